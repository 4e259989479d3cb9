"""Which files a module beside a recipe is made of, and what is imported of it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from engineworks.errors import ExportError, ModelError
from engineworks.model.export.source_code import imported_distributions, load_function, source_closure


@pytest.fixture(autouse=True)
def _same_imports() -> Iterator[None]:
    """Leave the interpreter as it was: modules, finders and search path."""
    modules, finders, path = dict(sys.modules), list(sys.meta_path), list(sys.path)
    yield
    sys.meta_path[:], sys.path[:] = finders, path
    for name in set(sys.modules) - set(modules):
        del sys.modules[name]
    sys.modules.update(modules)


@pytest.fixture(autouse=True)
def _own_imports(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """What one test imports, and from where, is nothing to another, of other files too."""
    elsewhere = str(tmp_path_factory.getbasetemp())
    monkeypatch.setattr(sys, "path", [p for p in sys.path if not p.startswith(elsewhere)])
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.delitem(sys.modules, "models", raising=False)


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


def closure(root: Path, module: str) -> list[str]:
    return [p.relative_to(root).as_posix() for p in source_closure(module, root)]


def test_the_closure_begins_with_the_module_itself(tmp_path: Path) -> None:
    write(tmp_path, {"z.py": "import a", "a.py": ""})
    assert closure(tmp_path, "z") == ["z.py", "a.py"]


def test_the_closure_follows_absolute_and_relative_imports_and_packages(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "models/__init__.py": "",
            "models/bert.py": "import torch\nfrom . import layers\nfrom .parts.head import H\nfrom shared import sizes",
            "models/layers.py": "def f():\n    import late\n",
            "models/parts/__init__.py": "from .deep import x",
            "models/parts/deep.py": "from ...models import unused_name",
            "models/parts/head.py": "",
            "shared/sizes.py": "",
            "late.py": "import importlib\nimportlib.import_module('plugins.one')",
            "plugins/one.py": "",
            "not_imported.py": "",
        },
    )
    assert closure(tmp_path, "models.bert") == [
        "models/bert.py", "late.py", "models/__init__.py", "models/layers.py", "models/parts/__init__.py",
        "models/parts/deep.py", "models/parts/head.py", "plugins/one.py", "shared/sizes.py",
    ]  # fmt: skip


def test_modules_that_import_each_other_are_found_once(tmp_path: Path) -> None:
    write(tmp_path, {"a.py": "import b", "b.py": "import a"})
    assert closure(tmp_path, "a") == ["a.py", "b.py"]


def test_nothing_is_executed_and_a_file_that_does_not_parse_stands_for_itself(tmp_path: Path) -> None:
    write(tmp_path, {"a.py": "raise SystemExit(3)\nimport broken", "broken.py": "def ("})
    assert closure(tmp_path, "a") == ["a.py", "broken.py"]


def test_a_module_that_is_not_there_has_an_empty_closure(tmp_path: Path) -> None:
    assert closure(tmp_path, "nothing") == []


def test_a_file_named_like_a_standard_module_does_not_shadow_it(tmp_path: Path) -> None:
    write(tmp_path, {"a.py": "import json", "json.py": "raise RuntimeError"})
    assert closure(tmp_path, "a") == ["a.py"]


def test_installed_packages_that_the_closure_imports_are_found_with_their_versions(tmp_path: Path) -> None:
    import numpy

    write(tmp_path, {"a.py": "import b, json", "b.py": "from numpy import linalg"})
    assert imported_distributions("a", tmp_path) == {"numpy": numpy.__version__}


def test_a_function_is_loaded_with_what_it_imports_from_a_plain_folder(tmp_path: Path) -> None:
    write(
        tmp_path,
        {"nets/make.py": "from nets.sizes import WIDTH\ndef factory(): return WIDTH", "nets/sizes.py": "WIDTH = 7"},
    )
    assert load_function("nets.make:factory", tmp_path, role="factory")() == 7


def test_a_folder_of_the_recipe_wins_over_an_installed_package_of_its_name(tmp_path: Path) -> None:
    installed = write(tmp_path / "installed", {"twin/__init__.py": "", "twin/make.py": "def f(): return 'installed'"})
    own = write(tmp_path / "own", {"twin/make.py": "def f(): return 'own'"})
    sys.path.insert(0, str(installed))
    assert load_function("twin.make:f", own, role="factory")() == "own"


def test_two_recipes_with_modules_of_one_name_each_get_their_own(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write(tmp_path / name, {"metrics.py": f"from metric_parts import x\ndef f(): return x + '{name}'",
                                "metric_parts.py": f"x = 'part {name} '"})  # fmt: skip
    got = [load_function("metrics:f", tmp_path / name, role="metric")() for name in ("one", "two", "one")]
    assert got == ["part one one", "part two two", "part one one"]


def test_an_edit_within_the_same_second_is_seen(tmp_path: Path) -> None:
    got = []
    for value in ("1", "2"):
        write(tmp_path, {"quick.py": f"def f(): return {value}"})
        got.append(load_function("quick:f", tmp_path, role="factory")())
    assert got == [1, 2]


def test_a_missing_module_is_told_with_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        load_function("models.bret:factory", tmp_path, role="factory")
    assert "there is no module 'models.bret'" in str(caught.value)
    assert str(tmp_path / "models" / "bret") + ".py" in str(caught.value)


def test_a_missing_function_is_told_with_the_closest_one(tmp_path: Path) -> None:
    write(tmp_path, {"m.py": "def make_bert(): ..."})
    with pytest.raises(ModelError, match=r"m\.py: no function 'make_brt'.*did you mean 'make_bert'\?"):
        load_function("m:make_brt", tmp_path, role="factory")


def test_something_that_is_no_function_is_refused(tmp_path: Path) -> None:
    write(tmp_path, {"m.py": "factory = 3"})
    with pytest.raises(ModelError, match="factory 'factory' is a int, not a function"):
        load_function("m:factory", tmp_path, role="factory")


def test_code_that_raises_on_import_is_told_at_its_own_line_with_the_traceback_in_the_log(tmp_path: Path) -> None:
    write(tmp_path, {"pkg/m.py": "import json\n\njson.loads('{')"})
    with pytest.raises(ExportError) as caught:
        load_function("pkg.m:f", tmp_path, role="factory")
    assert str(caught.value).startswith(
        "pkg/m.py:3: factory 'pkg.m:f': importing 'pkg.m' raised json.decoder.JSONDecodeError"
    )
    assert "Traceback" in caught.value.log


def test_a_syntax_error_is_told_with_line_and_column(tmp_path: Path) -> None:
    write(tmp_path, {"m.py": "x = 1\ndef f(:\n"})
    with pytest.raises(ExportError, match=r"^m\.py:2:7: .* raised SyntaxError"):
        load_function("m:f", tmp_path, role="factory")
