"""From a failed engine to the smallest subgraph that shows the fault.

`graph` cuts subgraphs out of a model, `values` holds what every inner tensor should be, `probe` builds and runs one
subgraph in a child process, `search` chooses which, `lowered` compares the lowered model with fp32, and `bundle` writes
what anyone can run without Engineworks.
"""
