"""Elementwise kernels: each thread on its own, or transposing through shared memory."""
