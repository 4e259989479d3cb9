"""YAML files that are wrong: one clear message each, with its place."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from engineworks.errors import RecipeError
from engineworks.recipe import yaml_nodes
from engineworks.recipe.yaml_nodes import merge, parse_yaml, read_yaml

WRONG = {
    "empty": ("", "r.yaml: the file is empty"),
    "only a comment": ("# hm\n", "r.yaml: the file is empty"),
    "tab": ("a:\n\t- b\n", "r.yaml:2:1: a tab in the indentation; YAML indents with spaces"),
    "open bracket": ("a: [1", "r.yaml:1:6: not valid YAML: expected ',' or ']'"),
    "two colons": ("a: b: c", "r.yaml:1:5: not valid YAML: mapping values are not allowed"),
    "twice": ("a: 1\nb: 2\na: 3\n", "r.yaml:3:1: duplicate key 'a' (first in line 1); remove one"),
    "twice inside": ("x: {a: 1, a: 2}", "r.yaml:1:11: duplicate key 'a'"),
    "conflict": (
        "a: 1\n<<<<<<< HEAD\nb: 1\n=======\nb: 2\n>>>>>>> main\n",
        "r.yaml:2:1: merge conflict marker '<<<<<<<'",
    ),
    "tag": ("a: !!python/object:os.system x", "r.yaml:1:4: the tag '!python/object:os.system' is not allowed"),
    "a list called text": ("a: !!str [b]", "r.yaml:1:4: the tag '!str' is not allowed"),
    "a mapping called a list": ("a: !!seq {b: c}", "r.yaml:1:4: the tag '!seq' is not allowed"),
    "text called a mapping": ("a: !!map b", "r.yaml:1:4: the tag '!map' is not allowed"),
    "a mapping called a number": ("a: !!int {b: 1}", "r.yaml:1:4: the tag '!int' is not allowed"),
    "unknown alias": ("a: *b", "r.yaml:1:4: not valid YAML: found undefined alias 'b'"),
    "merge key": (
        "a: &a {b: 1}\nc: {<<: *a}",
        "r.yaml:2:5: merge keys ('<<') are not allowed; write the keys out, or share them in _defaults.yaml",
    ),
    "a list": ("- a\n- b\n", "r.yaml:1:1: the top of the file must be a mapping"),
    "two documents": ("a: 1\n---\nb: 2\n", "r.yaml:2:1: not valid YAML: but found another document"),
    "control character": ("a: 1\nb: \x07\n", "r.yaml:2:1: holds a character that YAML does not allow"),
    "itself": ("a: &a [*a]", "aliases expand to more than 10,000 values"),
    "list as key": ("? [a]\n: 1", "r.yaml:1:3: a key must be a word"),
    "deep blocks": (
        "".join(f"{' ' * i}a:\n" for i in range(200)),
        "r.yaml: lists or mappings are nested more than 100",
    ),
    "deep": ("a: " + "[" * 3000, "r.yaml: lists or mappings are nested more than 100 deep"),
    "beyond Unicode": ('a: "\\U00110000"', r"r.yaml:1:5: '\U00110000' names no character; the last one is \U0010FFFF"),
}


@pytest.fixture(params=[True, False], ids=["libyaml", "without libyaml"])
def libyaml(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the C parser, which requirements.txt brings, and as on a platform that has no wheel of it."""
    import ruamel.yaml.main

    yaml_nodes._compose.cache_clear()
    if request.param:
        assert ruamel.yaml.main.CParser is not None
    else:
        monkeypatch.setattr(ruamel.yaml.main, "CParser", None)


@pytest.mark.usefixtures("libyaml")
@pytest.mark.parametrize("case", WRONG, ids=list(WRONG))
def test_wrong_yaml_is_one_message_with_its_place(case: str) -> None:
    text, message = WRONG[case]
    with pytest.raises(RecipeError) as caught:
        parse_yaml(text, "r.yaml")
    assert message in str(caught.value)


def test_exploding_aliases_are_refused_before_they_expand() -> None:
    rows = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    rows += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    with pytest.raises(RecipeError, match="aliases expand to more than"):
        parse_yaml("\n".join(rows), "r.yaml")


def test_all_conflict_markers_are_reported_at_once() -> None:
    with pytest.raises(RecipeError) as caught:
        parse_yaml("<<<<<<< a\n=======\n>>>>>>> b\n", "r.yaml")
    assert [p.place.line for p in caught.value.problems] == [1, 2, 3]


def test_a_few_aliases_are_fine_and_numbers_are_those_of_yaml_1_2() -> None:
    node = parse_yaml("a: &x {n: 1e-3, y: yes, o: 0o17, t: true, z: ~, d: 2026-01-02}\nb: *x", "r.yaml")
    plain = node.plain()
    assert plain["b"] == plain["a"] == {"n": 0.001, "y": "yes", "o": 15, "t": True, "z": None, "d": "2026-01-02"}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: None, "no such file"),
        (lambda p: p.mkdir(), "is a folder"),
        (lambda p: p.write_bytes(b"a: 1\nb: \xff\n"), ":2:1: is not UTF-8 text"),
        (lambda p: p.write_bytes(b"#" * (2 << 20)), "larger than 1 MiB"),
    ],
    ids=["missing", "folder", "binary", "huge"],
)
def test_unreadable_files(tmp_path: Path, make: object, message: str) -> None:
    path = tmp_path / "r.yaml"
    make(path)  # type: ignore[operator]
    with pytest.raises(RecipeError, match=message):
        read_yaml(path, str(path))


def test_merging_keeps_the_place_of_each_value() -> None:
    over = parse_yaml("a: {b: 1}", "over.yaml")
    under = parse_yaml("a: {b: 2, c: 3}\nd: [1, 2]", "under.yaml")
    merged = merge(over, under)
    assert merged.plain() == {"a": {"b": 1, "c": 3}, "d": [1, 2]}
    assert merged.at(("a", "b")).place.file == "over.yaml"
    assert merged.at(("a", "c")).place.file == "under.yaml"


ODD = (
    "a: {b: , c: d}", "a: x\x85b: y", "%YAML 1.1\n---\na: yes", "a: {b: m:f, http://x: y}", "a: [b?c, d:e]", "a:\nb: ~", "a:\n  -\n  - b", "a: [b, ~]", "a: #x\nb: \"\"\nc: !!null",
    "a: |\n  t\n  u\nb: 0x1f", "é: {ü: \U0001f600, d: e}", "a: 012\nb: 1_000\nc: 1e3", "? a\n: b", "a: &x 1\nb: *x",
)  # fmt: skip


@pytest.mark.parametrize("text", [*ODD, *(p.read_text() for p in Path("recipes").glob("*.yaml"))], ids=repr)
def test_libyaml_reads_what_the_python_parser_reads(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def read() -> object:
        yaml_nodes._compose.cache_clear()
        try:
            return parse_yaml(text, "r.yaml")
        except RecipeError as error:
            return str(error)

    fast = read()
    monkeypatch.setattr(yaml_nodes, "_SLOW", re.compile(""))
    assert fast == read()
