"""The graph: dimensions, expressions, IR, the operator registry, and the importers of ONNX and PyTorch models."""
