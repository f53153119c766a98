"""Matrix products: on the FP32 and FP64 units (ffma), on tensor cores (mma, wgmma), and with few rows (gemv)."""
