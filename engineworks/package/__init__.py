"""Packages for servers: Triton model repositories, warm-up samples."""
