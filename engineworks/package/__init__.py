"""What a server loads: Triton model repositories, warm-up samples."""
