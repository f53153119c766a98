"""Attention in one pass over the keys: on the FP32 and FP64 units (ffma), and on tensor cores (mma, wgmma)."""
