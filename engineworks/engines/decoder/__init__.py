"""Sessions of decoders: streams of tokens that share one engine and keep their own cache."""
