"""A decoder's graph in ONNX Runtime's contrib operators for the CPU: the same results in fewer, faster nodes."""
