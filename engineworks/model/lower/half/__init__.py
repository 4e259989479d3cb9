"""fp16 and bf16: what can be converted, what stays fp32, and its numerical verification."""
