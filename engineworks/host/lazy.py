"""Heavy libraries that are imported at their first use: commands that only look need none of them."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any


class LazyModule(ModuleType):
    """A module that is imported when something in it is asked for."""

    def __getattr__(self, name: str) -> Any:
        return getattr(import_module(self.__name__), name)

    def __setattr__(self, name: str, value: object) -> None:
        setattr(import_module(self.__name__), name, value)


if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    import onnx
    import onnxruntime as ort
    from numpy.typing import NDArray

    Array = NDArray[np.generic]
    Arrays = Mapping[str, Array]
else:
    np = LazyModule("numpy")  # 0.1 s
    onnx = LazyModule("onnx")  # 0.4 s
    ort = LazyModule("onnxruntime")
    Array = Arrays = NDArray = Any  # for annotations alone

__all__ = ["Array", "Arrays", "NDArray", "np", "onnx", "ort"]
