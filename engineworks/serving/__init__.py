"""Runs packages on a Triton server and talks to it; the server itself, its queues and its protocols are NVIDIA's."""
