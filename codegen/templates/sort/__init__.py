"""The sort template: rows in order, in n log n steps."""
