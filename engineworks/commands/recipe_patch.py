"""Changes values in a recipe's text, and nothing else in it: comments and all other lines stay."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from difflib import SequenceMatcher, unified_diff
from pathlib import Path
from typing import Any

from engineworks.errors import InputError, RecipeError
from engineworks.host.atomic_write import write_atomically
from engineworks.recipe.yaml_nodes import parse_yaml
from engineworks.report import terminal


def with_change(text: str, change: Callable[[Any], None], shown: str, what: str) -> str:
    """Return the recipe's text after `change`, which alters its mapping in place.

    shown: the file's name in messages. what: what is changed, in messages. Raises `InputError` if the text does not
    allow the change, e.g. if a mapping is an alias.
    """
    wanted = parse_yaml(text, shown).plain()
    unchanged_value = parse_yaml(text, shown).plain()
    change(wanted)
    if wanted == unchanged_value:
        return text
    newline = "\r\n" if "\r\n" in text else "\n"
    plain = text.replace("\r\n", "\n")
    changed = with_values(plain, wanted)
    if parse_yaml(changed, shown).plain() != wanted:  # keys are added
        document, style = load_document(changed), indents(changed)
        unchanged = dump_document(document, style)
        change(document)
        changed = spliced(changed, unchanged, dump_document(document, style))
    if not _is_right(changed, wanted, shown) or comments(changed) != comments(plain):
        raise InputError(f"{shown}: {what} cannot be changed by themselves", hint="write them into it by hand")
    return changed.replace("\n", newline)


def _is_right(text: str, wanted: Any, shown: str) -> bool:
    try:
        return bool(parse_yaml(text, shown).plain() == wanted)
    except RecipeError:
        return False


def with_values(text: str, wanted: Any) -> str:
    """Return the text with the numbers of `wanted` in place of those that stand at the same keys; all else stays."""
    from ruamel.yaml.nodes import MappingNode, Node, ScalarNode

    edits: list[tuple[int, int, str]] = []
    seen: set[int] = set()

    def walk(node: Node, value: Any) -> None:
        if id(node) in seen:
            return  # an alias: its anchor's value is that of another key, too
        seen.add(id(node))
        if isinstance(node, MappingNode) and isinstance(value, dict):
            for key, inner in node.value:
                if key.value in value:
                    walk(inner, value[key.value])
        elif isinstance(node, ScalarNode) and isinstance(value, float) and not node.anchor:
            start, end = node.start_mark.index, node.end_mark.index
            if _number(text[start:end]) not in (None, value):
                edits.append((start, end, repr(value)))

    walk(_yaml().compose(text), wanted)
    for start, end, value in sorted(edits, reverse=True):
        text = text[:start] + value + text[end:]
    return text


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def comments(text: str) -> list[str]:
    """Return what follows each # that begins a comment, in any order, without spaces at the end."""
    return sorted(found.rstrip() for found in re.findall(r"(?:^|\s)#(.*)", text, re.M))


def difference(before: str, after: str, shown: str) -> str:
    """Return both texts as a unified diff; empty if they are equal."""
    lines = (before.splitlines(keepends=True), after.splitlines(keepends=True))
    name = shown.lstrip("/")
    found = unified_diff(*lines, fromfile=f"a/{name}", tofile=f"b/{name}")
    return "".join(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in found)


def load_document(text: str) -> Any:
    """Return the YAML with its comments and styles, as ruamel.yaml keeps them."""
    return _yaml().load(text)


Indents = tuple[int, int]
"""Columns that a mapping within another, and the dash of a list, are indented."""

USUAL: Indents = (2, 2)


def indents(text: str) -> Indents:
    """Return how the text is indented, by its first mapping within another and its first list."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    columns = [len(line) - len(line.lstrip()) for line in lines]
    steps = [
        (line.lstrip().startswith("- "), here - before)
        for before, here, above, line in zip(columns, columns[1:], lines, lines[1:], strict=False)
        if above.partition(" #")[0].rstrip().endswith(":")
    ]
    mapping = next((step for is_list, step in steps if not is_list and step > 0), USUAL[0])
    return mapping, next((step for is_list, step in steps if is_list and step >= 0), USUAL[1])


def dump_document(document: Any, style: Indents = USUAL) -> str:
    out = io.StringIO()
    _yaml(style).dump(document, out)
    return out.getvalue()


def _yaml(style: Indents = USUAL) -> Any:
    from ruamel.yaml import YAML

    mapping, dash = style
    yaml = YAML(typ="rt", pure=True)
    yaml.preserve_quotes = True
    yaml.width = 1 << 16
    yaml.indent(mapping=mapping, sequence=dash + 2, offset=dash)
    return yaml


def spliced(text: str, unchanged: str, changed: str) -> str:
    """Apply to `text` only the differences between two dumps of it, without ruamel.yaml's changes to other lines.

    If the dump has other lines than the text, which no shipped recipe has shown, the dump is used.
    """
    lines, before, after = text.splitlines(), unchanged.splitlines(), changed.splitlines()
    if len(lines) != len(before):
        return changed
    result: list[str] = []
    for tag, start, stop, first, last in SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        below: list[str] = []
        while tag == "insert" and result and (not result[-1].strip() or result[-1].lstrip().startswith("#")):
            below.insert(0, result.pop())  # comments and blank lines belong to what follows
        result.extend(lines[start:stop] if tag == "equal" else after[first:last])
        result.extend(below)
    return "\n".join(result) + "\n"


def patch_recipe(recipe: Path, change: Callable[[str], str], shown: str, *, write: bool) -> str:
    """Return the change of the recipe's text as a unified diff, '' if there is none. write: change the file, too."""
    with recipe.open(encoding="utf-8", newline="") as file:
        before = file.read()
    after = change(before)
    if write and after != before:
        replace_file(recipe, after)
    return difference(before, after, shown)


def print_difference(diff: str, shown: str, *, written: bool) -> None:
    if diff:
        terminal.echo(f"written into {shown}:" if written else "the recipe's change (--write applies it):")
        terminal.echo(diff.rstrip("\n"))


def replace_file(file: Path, text: str) -> None:
    """Replace the file's text atomically and keep the file's permissions. Raises `InputError`."""
    try:
        write_atomically(file, text.encode(), mode=file.stat().st_mode & 0o777)
    except OSError as error:
        raise InputError(f"{file}: cannot be written: {error.strerror}") from None


LINE_ROOM = 100
"""Maximum columns of a list on one line; a longer one gets a line for each entry."""


def with_keep(text: str, keep: Sequence[str], shown: str) -> str:
    """Return the recipe's text with `calibration: {keep: […]}` as given; comments and all other lines stay.

    An empty list removes the key. `shown`: the file's name in messages. Raises `InputError` if the text does not allow
    the change, e.g. if 'calibration' is an alias.
    """
    if parse_yaml(text, shown).plain().get("calibration", {}).get("keep", []) == list(keep):
        return text
    newline = "\r\n" if "\r\n" in text else "\n"
    plain = text.replace("\r\n", "\n")
    before = parse_yaml(plain, shown).plain()
    document = load_document(plain)
    unchanged = dump_document(document)
    _set_keep(document, list(keep))
    changed = spliced(plain, unchanged, dump_document(document))
    calibration = {k: v for k, v in before.get("calibration", {}).items() if k != "keep"}
    wanted = {k: v for k, v in before.items() if k != "calibration"}
    reread = parse_yaml(changed, shown).plain()
    left = {k: v for k, v in reread.get("calibration", {}).items() if k != "keep"}
    others = {k: v for k, v in reread.items() if k != "calibration"}
    if (others, left, reread.get("calibration", {}).get("keep", [])) != (wanted, calibration, list(keep)):
        raise InputError(f"{shown}: its 'keep' cannot be changed by itself", hint="write the list into it by hand")
    return changed.replace("\n", newline)


def _set_keep(document: Any, keep: list[str]) -> None:
    from ruamel.yaml.comments import CommentedMap

    calibration = document.get("calibration")
    if not keep:
        if calibration is not None:
            calibration.pop("keep", None)
            if not calibration:
                del document["calibration"]
        return
    if calibration is None:
        document["calibration"] = CommentedMap(keep=_sequence(keep))
        return
    if "keep" in calibration:
        _replace(calibration["keep"], keep)
    else:
        calibration["keep"] = _sequence(keep)
    if calibration["keep"].fa.flow_style() and not calibration.fa.flow_style() and not _on_one_line(keep):
        calibration["keep"].fa.set_block_style()


def _sequence(keep: list[str]) -> Any:
    from ruamel.yaml.comments import CommentedSeq

    made = CommentedSeq(keep)
    if _on_one_line(keep):
        made.fa.set_flow_style()
    return made


def _on_one_line(keep: list[str]) -> bool:
    return sum(len(entry) + 2 for entry in keep) <= LINE_ROOM


def _replace(listed: Any, keep: list[str]) -> None:
    """Put new entries into the list in its own style.

    A comment behind an entry goes with it. Lines of comment stay, also those that follow the list, which ruamel.yaml
    ties to its last entry.
    """
    comments = {entry: _comment_of(listed, at) for at, entry in enumerate(listed)}
    listed.ca.items.clear()
    while len(listed):
        listed.pop()
    listed.extend(keep)
    orphans = "".join(below for entry, (_, below, _) in comments.items() if entry not in keep)
    for at, entry in enumerate(keep):
        behind, below, column = comments.get(entry, ("", "", 0))
        text = behind + "\n" + below + (orphans if at == len(keep) - 1 else "")
        if text != "\n":
            listed.ca.items[at] = [_token(text, column), None]


def _comment_of(listed: Any, at: int) -> tuple[str, str, int]:
    """Return the comment behind an entry, the lines of comment below it, and the first one's column."""
    tokens = [token for token in listed.ca.items.get(at) or [] if hasattr(token, "value")]
    first, _, rest = "".join(token.value for token in tokens).partition("\n")
    return first, rest, tokens[0].start_mark.column if tokens else 0


def _token(text: str, column: int) -> Any:
    from ruamel.yaml.error import CommentMark
    from ruamel.yaml.tokens import CommentToken

    return CommentToken(text, CommentMark(column), None)
