"""Releases evaluated engines.

promotion      promotes engines to champions, and reports on each
command        `engineworks release`: builds if needed, then reports what was released
issuer         signs the statements of releases
sources        selects the engines of a package: built here, or champions
triton_python  TensorRT-RTX in Triton's Python backend: packages name this module, so it keeps its name
"""
