"""Nodes that are tried together, and the globs that name them."""

from __future__ import annotations

from fnmatch import fnmatchcase

import pytest

from engineworks.steps.partial_quantization.groups import Group, exact_pattern, group_nodes, keep_patterns, single_nodes

ENCODER = [
    f"encoder/layer/{layer}/{part}/MatMul"
    for layer in range(6)
    for part in (
        "attention/self/query", "attention/self/key", "attention/self/value", "attention/self", "attention/self/2",
        "attention/output/dense", "intermediate/dense", "output/dense",
    )
]  # fmt: skip


def test_groups_follow_the_names_of_an_encoder() -> None:
    groups = group_nodes(ENCODER)
    assert [g.name for g in groups[:4]] == [
        "encoder/layer/0/attention/",
        "encoder/layer/0/intermediate/dense/MatMul",
        "encoder/layer/0/output/dense/MatMul",
        "encoder/layer/1/attention/",
    ]
    assert len(groups) == 18


@pytest.mark.parametrize(
    "names", [ENCODER, [f"p2o.Conv.{i}" for i in range(38)], ["a"], ["x", "y/1", "y/2"], [f"n{i}" for i in range(9)]]
)
def test_every_node_is_in_one_group_and_none_is_large(names: list[str]) -> None:
    groups = group_nodes(names)
    assert sorted(n for g in groups for n in g.nodes) == sorted(names)
    assert max(len(g.nodes) for g in groups) <= max(1, -(-len(names) // 8))
    assert [g.nodes[0] for g in groups] == sorted((g.nodes[0] for g in groups), key=names.index)


def test_no_nodes_make_no_groups() -> None:
    assert group_nodes([]) == []


def test_numbered_names_are_cut_into_runs() -> None:
    groups = group_nodes([f"p2o.Conv.{i}" for i in range(16)])
    assert [g.nodes for g in groups][:2] == [("p2o.Conv.0", "p2o.Conv.1"), ("p2o.Conv.2", "p2o.Conv.3")]


def test_single_nodes_of_groups() -> None:
    assert single_nodes([Group("a/", ("a/1", "a/2"))]) == [Group("a/1", ("a/1",)), Group("a/2", ("a/2",))]


def test_patterns_name_the_nodes_of_the_groups_and_no_others() -> None:
    names = ["a/1", "a/2", "ab", "b[0]", "b0", "c.1", "c.2", "c.3"]
    kept = [Group("a/", ("a/1", "a/2")), Group("b[0]", ("b[0]",)), Group("c.", ("c.1", "c.3"))]
    patterns = keep_patterns(kept, names)
    assert patterns == ("a/*", "b[[]0]", "c.1", "c.3")
    matched = [n for n in names if any(fnmatchcase(n, p) for p in patterns)]
    assert matched == ["a/1", "a/2", "b[0]", "c.1", "c.3"]
    assert keep_patterns([], names) == ()


def test_a_name_with_special_characters_matches_itself_alone() -> None:
    assert fnmatchcase("w[1]?*", exact_pattern("w[1]?*"))
    assert not fnmatchcase("w1ab", exact_pattern("w[1]?*"))
