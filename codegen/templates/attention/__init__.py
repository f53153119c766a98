"""Attention in one pass over the keys: on ordinary pipelines and on tensor cores (mma, wgmma)."""
