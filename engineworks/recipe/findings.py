"""What is wrong with a recipe, located by the keys that lead there, until a file's text gives line and column."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from engineworks.errors import Keys, Problem
from engineworks.recipe.yaml_nodes import Node


@dataclass(frozen=True)
class Finding:
    """path: the wrong value, or the mapping that lacks it. of_key: the place is its key's. The rest: see `Problem`."""

    path: Keys
    message: str
    hint: str = ""
    about: Keys = ()
    of_key: bool = False

    def problem(self, node: Node) -> Problem:
        """The same at its place in the file that `node` was read from."""
        place = node.key_place(self.path) if self.of_key else node.at(self.path).place
        return Problem(place, self.message, self.hint, self.about)


def twins(path: tuple[str, ...], values: Sequence[str | int]) -> Iterator[Finding]:
    for index, value in enumerate(values):
        if value in values[:index]:
            yield at_value((*path, index), f"duplicate '{value}' in {path[-1]}", "remove one")


def at_value(path: Keys, message: str, hint: str = "", about: Keys = ()) -> Finding:
    return Finding(path, message, hint, about)


def at_key(path: Keys, message: str, hint: str = "", about: Keys = ()) -> Finding:
    return Finding(path, message, hint, about, of_key=True)
