"""What happens to an engine that was judged.

promotion      which engines become champions, and what is said of each
command        `engineworks release`: the build where something is to do, then what was released of it
sources        where the engines of a package come from: what was built here, or the champions
triton_python  TensorRT-RTX in Triton's Python backend: packages name this module, so it keeps its name
"""
