"""A kernel's expressions to CUDA text: hooks, parameters, and the rendering of a template file."""
