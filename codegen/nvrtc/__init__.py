"""CUDA text to object code: NVRTC in this process or in workers, cached by content."""
