"""Plain CUDA shared by the templates."""
