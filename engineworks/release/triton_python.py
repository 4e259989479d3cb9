"""The name by which packages of Engineworks 0.1 import the model; new ones bring `package.python_model` along."""

from engineworks.package.python_model import TritonPythonModel

__all__ = ["TritonPythonModel"]
