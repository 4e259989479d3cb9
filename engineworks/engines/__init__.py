"""Builds engines and runs them: backends, peers, and the files and signatures of an engine."""
