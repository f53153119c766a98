"""The sim device: generated CUDA source compiled for the CPU and run by fibers."""
