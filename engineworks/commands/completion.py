"""Shell completion of recipe files, engine ids, targets and precisions, without planning.

Installed by `engineworks --install-completion`. Unreadable input completes to nothing: a completion reports no errors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from engineworks.errors import EngineworksError

Complete = Callable[[str], list[str]]


def recipe_files(incomplete: str) -> list[str]:
    """Return recipes in recipes/ and in the folder being typed, and folders to continue in."""
    typed = Path(incomplete)
    folder = typed if incomplete.endswith("/") else typed.parent
    files = {str(path) for path in (*_recipes(Path("recipes")), *_recipes(folder))}
    files |= {f"{path}/" for path in folder.glob("*/") if not path.name.startswith(".")}
    return sorted(name for name in files if name.startswith(incomplete))


def engine_ids(incomplete: str) -> list[str]:
    """Return recipe/precision/target of every recipe in recipes/, read from their files."""
    return sorted(engine for engine in _engines() if engine.startswith(incomplete))


def recorded_names(incomplete: str) -> list[str]:
    """Return what `report` and `why` take: engine ids and recipe names."""
    ids = list(_engines())
    return sorted(name for name in {*ids, *(i.partition("/")[0] for i in ids)} if name.startswith(incomplete))


def target_names(incomplete: str) -> list[str]:
    from engineworks.recipe.load import load_targets

    try:
        names = load_targets(Path("recipes"))
    except (EngineworksError, OSError):
        return []
    return sorted(name for name in names if name.startswith(incomplete))


def precisions(incomplete: str) -> list[str]:
    from engineworks.recipe.recipe import PRECISIONS

    return [name for name in PRECISIONS if name.startswith(incomplete)]


def peers(incomplete: str) -> list[str]:
    from engineworks.engines.peers import PEERS

    before, comma, last = incomplete.rpartition(",")
    return [f"{before}{comma}{name}" for name in PEERS if name.startswith(last)]


def one_of(*values: str) -> Complete:
    """Return a function that completes to one of these words."""

    def complete(incomplete: str) -> list[str]:
        return [value for value in values if value.startswith(incomplete)]

    return complete


def _recipes(folder: Path) -> list[Path]:
    from engineworks.recipe.load import find_recipes

    return find_recipes(folder) if folder.is_dir() else []


def _engines() -> Iterator[str]:
    for path in _recipes(Path("recipes")):
        content = _content(path)
        given = content.get("precisions", [])
        for precision in given if isinstance(given, list) else []:
            for target in content.get("targets") or []:
                yield f"{content.get('recipe')}/{precision}/{target}"


def _content(path: Path) -> Mapping[str, Any]:
    from engineworks.recipe.yaml_nodes import merge, read_yaml

    defaults = path.with_name("_defaults.yaml")
    try:
        node = read_yaml(path, path.name)
        if defaults.is_file():
            node = merge(node, read_yaml(defaults, defaults.name))
    except (EngineworksError, OSError):
        return {}
    content: Mapping[str, Any] = node.plain()
    return content
