"""Changes the `keep` list in a recipe's text, and nothing else in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from engineworks.commands.recipe_patch import dump_document, load_document, spliced
from engineworks.errors import InputError
from engineworks.recipe.yaml_nodes import parse_yaml

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
