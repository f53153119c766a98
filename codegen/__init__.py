"""A fused region to CUDA source to cubin: expressions, index maps, templates, tactics, NVRTC, caches."""
