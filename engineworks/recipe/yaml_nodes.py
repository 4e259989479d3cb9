"""YAML text → nodes that know their place, so that every later problem can name file:line:column.

Only plain data is accepted: one document, unique string keys, no tags, no merge keys, a limited expansion of aliases.
"""

from __future__ import annotations

import contextlib
import errno
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from engineworks.errors import Keys, Place, Problem, RecipeError
from engineworks.host.regular_files import read_regular

MAX_NODES = 10_000
"""Maximum nodes of a file after aliases are expanded; nested aliases ("billion laughs") exceed it at once."""

MAX_DEPTH = 100

MAX_BYTES = 1 << 20

CONFLICT_MARKERS = ("<<<<<<< ", "=======", ">>>>>>> ", "||||||| ")

SCALARS = {"str", "int", "float", "bool", "null", "timestamp"}
"""Plain values; a date stays text."""

_TAGS = {"mapping": {"map"}, "sequence": {"seq"}}
"""Tags that a node may have that is no scalar, by ruamel's name of its kind."""


_SLOW = re.compile(r"^%|[\x85\u2028\u2029]|^\s*-\s*(#.*)?$", re.MULTILINE)
"""Text that libyaml reads otherwise: directives, Unicode's line ends, the places of empty items."""


_ESCAPE = re.compile(r"\\U([0-9A-Fa-f]{8})")


@dataclass
class Node:
    """A scalar, a list of nodes or a mapping of nodes, and its place in a file."""

    place: Place
    value: Any
    key_places: dict[str, Place] = field(default_factory=dict)

    def plain(self) -> Any:
        """The value without places: dicts, lists and scalars."""
        if isinstance(self.value, dict):
            return {k: v.plain() for k, v in self.value.items()}
        if isinstance(self.value, list):
            return [v.plain() for v in self.value]
        return self.value

    def at(self, path: Keys) -> Node:
        """The deepest node along `path` that exists."""
        node = self
        for step in path:
            inner = node.get(step)
            if inner is None:
                break
            node = inner
        return node

    def get(self, step: str | int) -> Node | None:
        inner = self.value.get(str(step)) if isinstance(self.value, dict) else None
        if isinstance(self.value, list) and isinstance(step, int) and step < len(self.value):
            inner = self.value[step]
        return inner if isinstance(inner, Node) else None

    def remove(self, step: str | int) -> None:
        """Take one entry out, if it exists."""
        if isinstance(self.value, dict):
            self.value.pop(str(step), None)
        elif isinstance(self.value, list) and isinstance(step, int) and step < len(self.value):
            del self.value[step]

    def rename(self, key: str, to: str) -> None:
        """Rename a key of this mapping; its place stays."""
        self.value[to] = self.value.pop(key)
        self.key_places[to] = self.key_places.pop(key)

    def key_place(self, path: Keys) -> Place:
        """The place of the last key of `path`, or of the deepest node above it."""
        parent = self.at(path[:-1])
        return parent.key_places.get(str(path[-1]), parent.place) if path else self.place


def read_yaml(path: Path, shown: str) -> Node:
    """Parse the file. shown: its name in messages. Raises `RecipeError` with every problem that was found."""
    return parse_yaml(read_text(path, shown), shown)


def parse_yaml(text: str, shown: str) -> Node:
    """Parse YAML 1.2 text whose top is a mapping. Raises `RecipeError`."""
    markers = list(_conflict_markers(text, shown))
    if markers:
        raise RecipeError(markers)
    root = _compose(text, shown)
    if root is None:
        raise _one(Place(shown), "the file is empty", "write a recipe, or see 'engineworks validate --schema'")
    reader = _Reader(shown)
    if reader.size(root) > MAX_NODES:
        raise _one(
            _place(root, shown), f"aliases expand to more than {MAX_NODES:,} values", "write the values out instead"
        )
    node = reader.read(root)
    if not isinstance(node.value, dict):
        reader.problems.append(
            Problem(node.place, "the top of the file must be a mapping of keys to values", "begin with: recipe: NAME")
        )
    if reader.problems:
        raise RecipeError(reader.problems)
    return node


def merge(over: Node, under: Node) -> Node:
    """`over` on top of `under`: mappings merge key by key; other values are replaced as a whole."""
    if not (isinstance(over.value, dict) and isinstance(under.value, dict)):
        return over
    merged = dict(under.value)
    for key, node in over.value.items():
        merged[key] = merge(node, merged[key]) if key in merged else node
    return Node(over.place, merged, {**under.key_places, **over.key_places})


def read_text(path: Path, shown: str) -> str:
    """The file's text. Raises `RecipeError` if it cannot be read, or is too large for a recipe."""
    try:
        data = read_regular(path, MAX_BYTES)
    except FileNotFoundError:
        raise _one(Place(shown), "no such file") from None
    except IsADirectoryError:
        raise _one(Place(shown), "is a folder, not a recipe", "name the .yaml files in it") from None
    except OSError as error:
        if error.errno == errno.EFBIG:
            raise _one(Place(shown), f"the file is larger than {MAX_BYTES >> 20} MiB: not a recipe") from None
        raise _one(Place(shown), f"cannot be read: {error.strerror}") from None
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise _one(Place(shown, line, 1), "is not UTF-8 text", "save the file as UTF-8") from None


def _conflict_markers(text: str, shown: str) -> Iterator[Problem]:
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith(CONFLICT_MARKERS[:1] + CONFLICT_MARKERS[2:]) or line == CONFLICT_MARKERS[1]:
            yield Problem(Place(shown, number, 1), f"merge conflict marker '{line[:7]}'", "resolve the conflict first")


@lru_cache(maxsize=8)
def _compose(text: str, shown: str) -> Any:
    """Nodes of ruamel, None for an empty text. Kept, because all recipes of a folder share their defaults."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    if _bracket_depth(text) > MAX_DEPTH:
        raise _too_deep(shown)
    if not _SLOW.search(text):
        # libyaml is five times as fast. What it refuses, such as `{torch: module:factory}`, ruamel's own parser reads
        # or refuses with its place. Without libyaml this is that same parser.
        with contextlib.suppress(YAMLError, ValueError, OverflowError, RecursionError):
            return YAML(typ="safe", pure=False).compose(text)
    try:
        return YAML(typ="safe", pure=True).compose(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (0, 0)
        tab = _tab_indent(text, line)
        if tab is not None:
            raise _one(Place(shown, tab, 1), "a tab in the indentation", "YAML indents with spaces") from None
        problem = error.problem or error.context or "does not parse"
        raise _one(Place(shown, line, column), f"not valid YAML: {problem}", _opened(error)) from None
    except RecursionError:
        raise _too_deep(shown) from None
    except (ValueError, OverflowError):  # of chr(): ruamel does not check what an escape names
        found = next((m for m in _ESCAPE.finditer(text) if int(m[1], 16) > sys.maxunicode), None)
        line, column = _position(text, found.start()) if found else (0, 0)
        what = f"'{found[0]}' names no character" if found else "holds an escape that names no character"
        raise _one(Place(shown, line, column), what, r"the last one is \U0010FFFF") from None
    except YAMLError as error:
        position = getattr(error, "position", None)
        line = text[:position].count("\n") + 1 if isinstance(position, int) else _control_line(text)
        raise _one(Place(shown, line, 1 if line else 0), "holds a character that YAML does not allow") from None


def _position(text: str, index: int) -> tuple[int, int]:
    """Line and column of a character, both from 1."""
    return text.count("\n", 0, index) + 1, index - text.rfind("\n", 0, index)


def _opened(error: Any) -> str:
    """The construct around an unclosed bracket or quote; '' if it began on the same line."""
    mark = error.context_mark
    if mark is None or not error.context or (error.problem_mark and mark.line == error.problem_mark.line):
        return ""
    what = str(error.context).removeprefix("while ")
    return f"it was {what} that begins at {mark.line + 1}:{mark.column + 1}: is that closed?"


def _bracket_depth(text: str) -> int:
    """Nesting depth of brackets, including those in quoted text: the parser takes quadratic time over deep nesting."""
    depth = deepest = 0
    for character in text:
        if character in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in "]}":
            depth = max(0, depth - 1)
    return deepest


def _tab_indent(text: str, line: int) -> int | None:
    lines = text.splitlines()
    for number in (line, line - 1, line + 1):
        if 0 < number <= len(lines):
            indent = lines[number - 1][: len(lines[number - 1]) - len(lines[number - 1].lstrip())]
            if "\t" in indent:
                return number
    return None


def _control_line(text: str) -> int:
    for number, line in enumerate(text.split("\n"), 1):
        if any(ord(c) < 32 and c not in "\t\r" for c in line):
            return number
    return 0


class _Reader:
    """Composed YAML nodes → `Node`, collecting problems instead of stopping at the first."""

    def __init__(self, shown: str) -> None:
        self.shown = shown
        self.problems: list[Problem] = []
        self._sizes: dict[int, int] = {}

    def size(self, node: Any, depth: int = 0) -> int:
        """Nodes below `node` with aliases expanded; a node that contains itself counts as too many."""
        if depth > MAX_DEPTH:
            raise _too_deep(self.shown)
        known = self._sizes.get(id(node))
        if known is not None:
            return known
        self._sizes[id(node)] = MAX_NODES + 1  # seen again before it is done: a cycle
        if isinstance(node.value, str):
            total = 1
        else:
            inner = (n for item in node.value for n in (item if isinstance(item, tuple) else (item,)))
            total = 1 + sum(self.size(n, depth + 1) for n in inner)
        self._sizes[id(node)] = total
        return total

    def read(self, node: Any) -> Node:
        place = _place(node, self.shown)
        kind = str(node.tag).removeprefix("tag:yaml.org,2002:")
        if kind not in _TAGS.get(node.id, SCALARS):  # an explicit tag may name anything, as in `!!seq {a: b}`
            self.problems.append(Problem(place, f"the tag '!{kind.lstrip('!')}' is not allowed", "write a plain value"))
            return Node(place, str(node.value))
        if kind == "map":
            return self._mapping(node, place)
        if kind == "seq":
            return Node(place, [self.read(n) for n in node.value])
        return Node(place, self._scalar(kind, self._unicode(node.value, place), place))

    def _mapping(self, node: Any, place: Place) -> Node:
        values: dict[str, Node] = {}
        places: dict[str, Place] = {}
        for key, value in node.value:
            at = _place(key, self.shown)
            name = key.value
            if str(key.tag).endswith(":merge"):
                self.problems.append(
                    Problem(
                        at, "merge keys ('<<') are not allowed", "write the keys out, or share them in _defaults.yaml"
                    )
                )
            elif not isinstance(name, str):
                self.problems.append(Problem(at, "a key must be a word, not a list or mapping"))
            elif name in values:
                self.problems.append(
                    Problem(at, f"duplicate key '{name}' (first in line {places[name].line})", "remove one")
                )
            else:
                name = self._unicode(name, at)
                values[name], places[name] = Node(at, None) if _is_empty(value) else self.read(value), at
        return Node(place, values, places)

    def _unicode(self, text: str, place: Place) -> str:
        """The text, with a problem and a '?' for half of a surrogate pair, which no file, record or database takes."""
        whole = text.encode(errors="replace").decode()
        if whole != text:
            self.problems.append(
                Problem(place, f"'{whole[:40]}' holds half of a surrogate pair", "write the character itself")
            )
        return whole

    def _scalar(self, kind: str, text: str, place: Place) -> Any:
        if kind == "null":
            return None
        if kind == "bool":
            return text.lower() == "true"
        try:
            if kind == "int":
                return int(text.replace("_", ""), 0) if text.lstrip("+-")[:2].lower() in ("0x", "0o") else int(text)
            if kind == "float":
                return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
        except ValueError:
            shown = text if len(text) <= 40 else f"{text[:40]}…"
            self.problems.append(Problem(place, f"'{shown}' is not a number that can be read"))
        return text


def _too_deep(shown: str) -> RecipeError:
    return _one(Place(shown), f"lists or mappings are nested more than {MAX_DEPTH} deep", "is this a recipe?")


def _is_empty(node: Any) -> bool:
    """Whether nothing stands behind the key; parsers do not agree on the place of that."""
    return node.value == "" and str(node.tag).endswith(":null")


def _place(node: Any, shown: str) -> Place:
    return Place(shown, node.start_mark.line + 1, node.start_mark.column + 1)


def _one(place: Place, message: str, hint: str = "") -> RecipeError:
    return RecipeError([Problem(place, message, hint)])
