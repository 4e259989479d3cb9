"""This machine: processor, GPU, memory, child processes, git."""
