"""Changes values in a recipe's text, and nothing else in it: comments and all other lines stay."""

from __future__ import annotations

import io
from collections.abc import Callable
from difflib import SequenceMatcher, unified_diff
from pathlib import Path
from typing import Any

from engineworks.errors import InputError
from engineworks.host.atomic_write import write_atomically
from engineworks.recipe.yaml_nodes import parse_yaml


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
    document = load_document(plain)
    unchanged = dump_document(document)
    change(document)
    changed = spliced(plain, unchanged, dump_document(document))
    if parse_yaml(changed, shown).plain() != wanted:
        raise InputError(f"{shown}: {what} cannot be changed by themselves", hint="write them into it by hand")
    return changed.replace("\n", newline)


def difference(before: str, after: str, shown: str) -> str:
    """Return both texts as a unified diff; empty if they are equal."""
    lines = (before.splitlines(keepends=True), after.splitlines(keepends=True))
    name = shown.lstrip("/")
    return "".join(unified_diff(*lines, fromfile=f"a/{name}", tofile=f"b/{name}"))


def load_document(text: str) -> Any:
    """Return the YAML with its comments and styles, as ruamel.yaml keeps them."""
    return _yaml().load(text)


def dump_document(document: Any) -> str:
    out = io.StringIO()
    _yaml().dump(document, out)
    return out.getvalue()


def _yaml() -> Any:
    from ruamel.yaml import YAML

    yaml = YAML(typ="rt", pure=True)
    yaml.preserve_quotes = True
    yaml.width = 1 << 16
    yaml.indent(mapping=2, sequence=4, offset=2)
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
        result.extend(lines[start:stop] if tag == "equal" else after[first:last])
    return "\n".join(result) + "\n"


def replace_file(file: Path, text: str) -> None:
    """Replace the file's text atomically and keep the file's permissions. Raises `InputError`."""
    try:
        write_atomically(file, text.encode(), mode=file.stat().st_mode & 0o777)
    except OSError as error:
        raise InputError(f"{file}: cannot be written: {error.strerror}") from None
