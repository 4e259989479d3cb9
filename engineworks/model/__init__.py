"""ONNX in, ONNX out: export, fold, calibrate, lower."""
