"""The command line: exit codes, one JSON object on stdout, one message on stderr."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from engineworks.cli import run_command
from engineworks.errors import EXIT_UNREAD
from engineworks.recipe.schema import recipe_schema
from engineworks.recipe.yaml_nodes import read_yaml

REPOSITORY = Path(__file__).parents[1]


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = run_command(list(arguments))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_a_right_recipe_is_valid(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "validate", "recipes/tiny.yaml")
    assert (code, out, err) == (0, "recipes/tiny.yaml: 2 precisions × 1 target, valid\n", "")


def test_a_shells_glob_may_name_the_files_that_are_no_recipes(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run(capsys, "validate", *map(str, sorted(Path("recipes").glob("*.yaml"))))
    assert code == 0, err


def test_without_a_name_every_recipe_is_validated(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (repository / "recipes" / "broken.yaml").write_text("recipe: [", encoding="utf-8")
    code, _, err = run(capsys, "validate")
    assert code == 2
    assert "recipes/broken.yaml:1:10: not valid YAML" in err


def test_problems_as_json(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (repository / "recipes" / "tiny.yaml").write_text("recipe: x\nprecison: []\n", encoding="utf-8")
    code, out, _ = run(capsys, "validate", "recipes/tiny.yaml", "--json")
    problems = json.loads(out)["problems"]
    assert code == 2
    assert {"file": "recipes/tiny.yaml", "line": 2, "column": 1}.items() <= next(
        p for p in problems if "precison" in p["message"]
    ).items()


@pytest.mark.parametrize("command", ["validate", "plan", "build", "release"])
def test_bad_input_is_exit_2_and_leaves_nothing(
    repository: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    (repository / "recipes" / "tiny.yaml").write_text("", encoding="utf-8")
    code, out, err = run(capsys, command, "recipes/tiny.yaml")
    assert code == 2
    assert out == ""
    assert err.startswith("error: recipes/tiny.yaml: the file is empty")
    assert not (repository / "artifacts").exists()


def test_the_plan_as_json_says_exactly_what_will_be_done(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "plan", "recipes/tiny.yaml", "--json", "--only", "*/int8/*")
    (recipe,) = json.loads(out)["recipes"]
    assert code == 0
    expected = {
        "method": "entropy",
        "percentile": 99.99,
        "averaging": None,
        "batch": 4,
        "keep": [],
        "unquantized": None,
    }
    assert recipe["resolved"]["calibration"] == expected
    assert [e["id"] for e in recipe["engines"]] == ["tiny/int8/cpu"]
    assert {s["state"] for s in recipe["steps"]} == {"to do"}
    assert all(len(s["key"]) == 64 and s["reason"] == "never built" for s in recipe["steps"])


def test_exit_code_of_a_plan_with_work_left(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "plan", "recipes/tiny.yaml", "--exit-code")[0] == 1


def test_only_that_matches_nothing(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "plan", "recipes/tiny.yaml", "--only", "tiny/int4/cpu")
    assert code == 2
    assert "matches no engine of tiny" in err


def test_wrong_usage_is_exit_2(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "plan")
    assert code == 2
    assert "RECIPES" in err.upper()


def test_a_defect_is_one_line_and_a_file(
    repository: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("boom")

    monkeypatch.setattr("engineworks.recipe.load.load_recipes", broken)
    code, _, err = run(capsys, "validate", "recipes/tiny.yaml")
    assert code == 70
    assert err.startswith("error: a defect of Engineworks: ZeroDivisionError: boom; please report it")
    assert "Traceback" not in err
    assert "ZeroDivisionError" in (repository / "artifacts/defects/last.txt").read_text(encoding="utf-8")


def test_a_full_disk_is_no_defect(
    repository: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise RuntimeError("inner") from sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr("engineworks.recipe.load.load_recipes", full)
    code, _, err = run(capsys, "validate", "recipes/tiny.yaml")
    assert code == 4
    assert f"{repository / 'artifacts'}: no space is left on its disk; free some space" in err
    assert not (repository / "artifacts/defects").exists()


@pytest.mark.parametrize("name", ["ENGINEWORKS_ARTIFACTS", "ENGINEWORKS_STORE", "ENGINEWORKS_KNOWN_STATEMENTS"])
def test_what_the_host_refuses_is_no_defect(
    repository: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (repository / "loop").symlink_to("loop")
    for value in ("loop", "a" * 300):
        monkeypatch.setenv(name, value)
        code, _, err = run(capsys, "plan", "recipes/tiny.yaml")
        assert code in (0, 4)
        assert "defect" not in err


def test_doctor_says_what_can_be_built_and_run(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "doctor", "--json")
    findings = json.loads(out)
    assert code == 0, findings["conflicts"]
    targets = {t["name"]: t for t in findings["targets"]}
    assert targets["cpu"] == {"name": "cpu", "build": None, "run": None, "measure": None}
    assert targets["rtx40"]["run"]
    assert findings["libraries"]["onnx"]


def test_inspect_refuses_what_is_no_engine(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "inspect", "recipes/calib.npz")
    assert code == 2
    assert "neither a TensorRT plan nor an ONNX file" in err


def test_inspect_reads_a_model(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "inspect", "recipes/tiny.onnx", "--json")
    assert code == 0
    assert json.loads(out)["kind"] == "onnx"


def test_the_schema_in_the_repository_is_that_of_the_models() -> None:
    stored = json.loads((REPOSITORY / "recipes/recipe.schema.json").read_text(encoding="utf-8"))
    assert stored == json.loads(json.dumps(recipe_schema())), "run 'make schema'"


def test_the_shipped_recipes_fit_the_schema() -> None:
    schema = json.loads((REPOSITORY / "recipes/recipe.schema.json").read_text(encoding="utf-8"))
    recipes = [p for p in (REPOSITORY / "recipes").glob("*.yaml") if not p.name.startswith("_")]
    assert len(recipes) >= 4
    Draft202012Validator.check_schema(schema)
    for path in recipes:
        Draft202012Validator(schema).validate(read_yaml(path, path.name).plain())


@pytest.mark.parametrize(
    "command",
    ["validate", "plan", "build", "inspect", "doctor", "gc", "release", "rollback", "package", "verify", "keygen"],
)
def test_every_command_has_help(capsys: pytest.CaptureFixture[str], command: str) -> None:
    code, out, _ = run(capsys, command, "--help")
    assert code == 0
    assert command in out


def test_the_installed_program_runs() -> None:
    program = Path(sys.executable).parent / "engineworks"
    result = subprocess.run([program, "validate", "--schema"], capture_output=True, text=True, check=False)
    assert result.returncode == 0
    assert json.loads(result.stdout)["title"] == "Engineworks recipe"


def test_a_reader_that_ends_first_is_no_failed_gate() -> None:
    program = Path(sys.executable).parent / "engineworks"
    with subprocess.Popen([program, "validate", "--schema"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.wait(60) == EXIT_UNREAD
        assert process.stderr is not None
        assert process.stderr.read() == b""
