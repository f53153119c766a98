"""One file for each family of ONNX operators: their handlers, which emit IR nodes."""
