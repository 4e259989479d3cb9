"""ONNX Runtime as every room uses it: its optimization levels and its errors."""
