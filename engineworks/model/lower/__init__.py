"""ONNX in fp32 → ONNX in a precision."""
