"""Reductions of axes, row programs (softmax, norms) and pooling windows."""
