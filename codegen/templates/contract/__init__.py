"""Matrix products: on ordinary pipelines, on tensor cores (mma, wgmma), and by streaming a weight (gemv)."""
