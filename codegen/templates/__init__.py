"""The kernel templates: loop nests and data movement. Expressions come in through hooks."""
