"""Calibration for int8: ranges of activations, collected over samples in constant memory."""
