"""The kernel templates: loop nests and data movement, a folder for each family. Expressions enter through hooks."""
