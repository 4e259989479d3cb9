"""Sources of models → ONNX."""
