"""ONNX → the same model, smaller: constants folded, names and shapes spelled out."""
