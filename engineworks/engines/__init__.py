"""Builds and runs engines: backends, peers, and the files and signatures of an engine."""
