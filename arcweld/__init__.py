"""Arcweld: compile ONNX files and PyTorch modules to engines of fused CUDA kernels."""
