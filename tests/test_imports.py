"""What is imported when: all modules without optional dependencies, next to nothing by `validate` and `plan`."""

from __future__ import annotations

import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import engineworks

BLOCK = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocked())
"""
OPTIONAL = (
    "onnx", "onnxruntime", "polygraphy", "onnx_graphsurgeon", "tensorrt", "tensorrt_rtx", "torch", "transformers",
    "modelopt", "mlflow", "prefect", "cuda", "pynvml", "cryptography", "tritonclient", "scipy",
)  # fmt: skip


def run(code: str, cwd: Path | None = None) -> str:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=cwd)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_every_module_imports_without_any_optional_dependency() -> None:
    modules = sorted(m.name for m in pkgutil.walk_packages(engineworks.__path__, "engineworks."))
    root = Path(engineworks.__file__).parent
    files = (
        path.relative_to(root.parent).with_suffix("")
        for path in root.rglob("*.py")
        if path.parent != root or path.name != "__init__.py"
    )
    assert modules == sorted(".".join(f.parts).removesuffix(".__init__") for f in files), "a folder has no __init__.py"
    code = BLOCK.format(blocked=set(OPTIONAL)) + f"import importlib\nfor m in {modules}: importlib.import_module(m)"
    run(code)


def test_validate_and_plan_import_nothing_heavy(repository: Path) -> None:
    code = """
import contextlib, io, json, sys
from engineworks.cli import run_command
with contextlib.redirect_stdout(io.StringIO()):
    assert run_command(["validate", "recipes/tiny.yaml"]) == 0
    assert run_command(["plan", "recipes/tiny.yaml", "--json", "--compare", "pytorch,ort-cpu,ort-cuda"]) == 0
print(json.dumps(sorted({m.partition(".")[0] for m in sys.modules})))
"""
    loaded = set(json.loads(run(code, repository)))
    assert loaded & {*OPTIONAL, "pandas", "sqlalchemy"} == set()


def test_what_a_build_imports_before_prefect_is_light() -> None:
    """Its children import NumPy; a report draws with it where something was measured."""
    names = ("builds.command", "report.write", "report.gather", "tracking.spooled", "builds.to_mlflow")
    imports = ", ".join(["flows.local_build", *(f"engineworks.{name}" for name in names)])
    loaded = run(f"import sys, {imports}; print(*{{m.partition('.')[0] for m in sys.modules}})").split()
    assert {*loaded} & {*OPTIONAL, "numpy", "pandas", "sqlalchemy", "matplotlib"} == set()


def test_no_file_of_flows_or_tasks_hides_an_installed_module() -> None:
    """Prefect puts the folder of a flow first on the path."""
    root = Path(__file__).parents[1]
    names = {p.stem for folder in ("flows", "tasks") for p in (root / folder).glob("*.py")} - {"__init__"}
    code = f"""
import importlib.util, json
print(json.dumps([n for n in {sorted(names)} if importlib.util.find_spec(n)]))
"""
    assert json.loads(run(code, Path("/"))) == []


def test_onnx_runtime_sends_nothing() -> None:
    """It has a thread for what it sends. The variables are those that it looks for, CI's among them."""
    code = """
import os
for name in [n for n in os.environ if n == "CI" or n.startswith(("ORT_", "GITHUB_"))]:
    del os.environ[name]
import {first}numpy
threads = len(os.listdir("/proc/self/task"))
import onnxruntime
print(len(os.listdir("/proc/self/task")) - threads)
"""
    assert (run(code.format(first="")), run(code.format(first="engineworks, "))) == ("1\n", "0\n")


def test_the_command_imports_prefect_only_after_its_environment_is_set() -> None:
    """Prefect reads its address and whether telemetry is off when it is imported."""
    assert run("import sys, flows.local_build; print('prefect' in sys.modules)") == "False\n"
