"""One file for each family of ATen operators: their handlers, which emit IR nodes."""
