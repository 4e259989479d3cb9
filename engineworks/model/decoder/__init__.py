"""Decoders: their interface with a KV cache, and their export from Hugging Face folders."""
