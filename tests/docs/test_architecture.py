"""docs/architecture.md names the rooms and files that there are."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
TEXT = (REPOSITORY / "docs/architecture.md").read_text(encoding="utf-8")
LIBRARY = REPOSITORY / "engineworks"


def section(title: str) -> str:
    return re.split(r"^## ", TEXT.partition(f"## {title}\n")[2], flags=re.M)[0]


def rooms() -> list[str]:
    """The first cells of the table of rooms, one name each."""
    cells = re.findall(r"^\| (`.*?) \|", section("The rooms of `engineworks/`"), flags=re.M)
    return [name.rstrip("/") for cell in cells for name in re.findall(r"`([^`]+)`", cell)]


def test_the_rooms_are_the_packages_and_modules_that_there_are() -> None:
    found = {
        p.name for p in LIBRARY.iterdir() if (p / "__init__.py").exists() or (p.suffix == ".py" and "__" not in p.name)
    }
    assert set(rooms()) == found


def test_the_rooms_stand_in_the_order_of_the_layers_contract() -> None:
    contracts = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    (layers,) = (c["layers"] for c in contracts["contracts"] if c["name"].startswith("the rooms"))
    ordered = [name.strip().removeprefix("engineworks.") for layer in layers for name in layer.split(":")]
    assert [room.removesuffix(".py") for room in rooms()] == ordered


def paths() -> list[str]:
    """Every path of the page, those of the diagram below `engineworks/` included."""
    drawn = section("From recipe to verdict")
    in_diagram = re.findall(r"\b((?:\w+/)+\w+\.py)\b", drawn)
    return sorted({*re.findall(r"`((?:\w+/)*[\w.]+\.(?:py|md|toml))`", TEXT), *in_diagram})


@pytest.mark.parametrize("path", paths())
def test_every_named_file_exists(path: str) -> None:
    assert any((folder / path).is_file() for folder in (REPOSITORY, LIBRARY, REPOSITORY / "docs")), path


def test_all_ten_tasks_name_their_files() -> None:
    tasks = [line.split(" | ") for line in section("Where do I change X?").splitlines() if line.startswith("| ")][1:]
    assert len(tasks) == 10
    assert all(re.search(r"`[\w/]+\.py`", files) for _, files in tasks)
