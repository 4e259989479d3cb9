"""A plan carried out: order, retries, memory, one step at a time in a child, and who is told."""
