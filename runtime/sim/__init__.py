"""The ``sim`` device: CUDA source compiled for the CPU, with a fiber for each CUDA thread."""
