"""NVIDIA's AutoCast (package nvidia-modelopt, which needs PyTorch), imported only on request."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from engineworks.errors import LoweringError
from engineworks.host.lazy import onnx
from engineworks.model.lower.half.run import Arrays
from engineworks.model.lower.report import HalfType
from engineworks.model.onnx_files import load_model, save_model

_TYPES = {"float16": "fp16", "bfloat16": "bf16"}


def why_not_autocast() -> str | None:
    """Return None if AutoCast can be used here, otherwise the reason, as a sentence."""
    for package in ("modelopt", "torch", "onnxslim", "onnx_graphsurgeon"):
        if find_spec(package) is None:
            return f"package '{package}' is not installed"
    return None


def autocast_model(
    folder: Path, model: onnx.ModelProto, dtype: HalfType, sample: Arrays, keep: Sequence[str]
) -> onnx.ModelProto:
    """Convert with AutoCast, which finds the nodes to keep in fp32 on one sample; inputs and outputs keep their dtype.

    `keep` are names of nodes. `folder` is for its files. `sample`: arrays by input name, with the shapes and dtypes of
    the model's inputs. Raises `LoweringError` with AutoCast's message.
    """
    import re

    path, data = folder / "autocast.onnx", folder / "autocast.npz"
    save_model(model, path)
    np.savez(data, allow_pickle=False, **dict(sample))
    try:
        from modelopt.onnx.autocast import convert_to_mixed_precision

        made = convert_to_mixed_precision(
            str(path),
            _TYPES[dtype],
            nodes_to_exclude=[f"^{re.escape(name)}$" for name in keep],
            keep_io_types=True,
            calibration_data=str(data),
        )
    except (
        ImportError, RuntimeError, ValueError, AssertionError, KeyError, IndexError, TypeError, AttributeError,
    ) as error:  # fmt: skip
        raise LoweringError(f"AutoCast failed: {type(error).__name__}: {error}") from error
    result = folder / "autocast-made.onnx"
    save_model(made, result)
    return load_model(result)
