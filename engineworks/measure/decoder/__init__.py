"""Figures and checks of decoders: pure functions on token lists and logits."""
