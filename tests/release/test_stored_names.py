"""Names that stored MLflow models and Triton packages hold: these texts were written by earlier versions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engineworks.errors import TrustError
from engineworks.tracking.opening import prepare_environment

MLMODEL = """\
flavors:
  python_function:
    data: data/files
    env: {}
    loader_module: engineworks.tracking.engine_model
    python_version: 3.11.7
"""

TRITON_MODEL = '''"""TensorRT-RTX in Triton's Python backend; needs engineworks and tensorrt-rtx in the container."""

from engineworks.release.triton_python import TritonPythonModel

__all__ = ["TritonPythonModel"]
'''


def test_a_stored_mlflow_model_is_opened_by_its_loader_which_refuses_an_engine_without_passport(tmp_path: Path) -> None:
    (tmp_path / "data" / "files").mkdir(parents=True)
    (tmp_path / "MLmodel").write_text(MLMODEL, encoding="utf-8")
    prepare_environment()
    import mlflow.pyfunc

    with pytest.raises(TrustError, match="does not exist; an engine without a passport is not loaded"):
        mlflow.pyfunc.load_model(str(tmp_path))


def test_the_python_model_of_a_stored_package_has_what_triton_calls() -> None:
    names: dict[str, Any] = {}
    exec(compile(TRITON_MODEL, "model.py", "exec"), names)
    assert {"initialize", "execute", "finalize"} <= set(dir(names["TritonPythonModel"]))
