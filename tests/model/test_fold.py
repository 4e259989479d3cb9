"""The fold step: what it must keep, what it must refuse, and what it must say."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from engineworks.errors import FoldError, ModelError, SamplesError
from engineworks.model import onnx_files
from engineworks.model.fold import fold, folding, large_constants
from engineworks.model.fold.fold import fold_model
from engineworks.model.fold.folding import Strategy
from engineworks.model.fold.report import Fallback, FoldReport
from engineworks.tensors import TensorSpec

FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
node = helper.make_node
X = TensorSpec("x", "float32", ("batch", 3, 4))


def value(name: str, shape: Sequence[int | str | None] | None, dtype: int = FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


def weight(name: str, content: object, dtype: type = np.float32) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(content, dtype), name)


def branch(name: str, nodes: list[onnx.NodeProto], *outputs: str) -> onnx.GraphProto:
    return helper.make_graph(nodes, name, [], [value(output, None) for output in outputs])


def model_of(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto] | None = None,
    outputs: Sequence[onnx.ValueInfoProto] | None = None,
    weights: Sequence[onnx.TensorProto] = (),
    *,
    opset: int = 17,
    ir_version: int = 8,
    **more: Any,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        list(nodes),
        "test",
        list(inputs or [value("x", ["n", 3, 4])]),
        list(outputs or [value("y", ["n", 3, 4])]),
        list(weights),
    )
    imports = [helper.make_opsetid("", opset), *more.pop("domains", [])]
    return helper.make_model(graph, opset_imports=imports, ir_version=ir_version, **more)


def ramp(*shape: int) -> NDArray[np.float32]:
    return (np.arange(np.prod(shape), dtype=np.float32).reshape(shape) - 5) / 7


class Folded:
    """A model that was folded in a folder of its own: the report, the written model, and a way to run both."""

    def __init__(self, folder: Path, model: onnx.ModelProto, feeds: list[dict[str, Any]] | None = None, **more: Any):
        folder.mkdir(exist_ok=True)
        self.source, self.out = folder / "source.onnx", folder / "out" / "model.onnx"
        if not self.source.exists():
            onnx.save(model, str(self.source))
        arguments: dict[str, Any] = {"inputs": [X], "outputs": None, "minimum_opset": 17, **more}
        self.report: FoldReport = fold_model(
            self.source, self.out, feeds=feeds or [{"x": ramp(2, 3, 4)}], **arguments
        )  # fmt: skip
        self.model = onnx.load(str(self.out))

    @property
    def operators(self) -> list[str]:
        return [n.op_type for n in self.model.graph.node]

    def run(self, feeds: Mapping[str, Any]) -> tuple[list[Any], list[Any]]:
        sessions = [onnxruntime.InferenceSession(str(p)) for p in (self.source, self.out)]
        before, after = (session.run(None, dict(feeds)) for session in sessions)
        return before, after


def shapes(values: Sequence[onnx.ValueInfoProto]) -> dict[str, list[int | str]]:
    return {
        v.name: [d.dim_value if d.HasField("dim_value") else d.dim_param for d in v.type.tensor_type.shape.dim]
        for v in values
    }


@pytest.fixture
def constants() -> onnx.ModelProto:
    """y = x * (a + b): one node more than needed."""
    return model_of(
        [
            node("Constant", [], ["b"], value_float=2.0),
            node("Add", ["a", "b"], ["c"]),
            node("Mul", ["x", "c"], ["y"], name="scale"),
        ],
        weights=[weight("a", [1, 2, 3, 4])],
    )


@pytest.fixture
def known_branch() -> onnx.ModelProto:
    """An If with two outputs whose condition is known from x's shape; Polygraphy loses the second output."""
    taken = branch("taken", [node("Split", ["x"], ["a", "b"], axis=2)], "a", "b")
    other = branch("other", [node("Sin", ["x"], ["s"]), node("Cos", ["x"], ["c"])], "s", "c")
    return model_of(
        [
            node("Shape", ["x"], ["shape"]),
            node("Gather", ["shape", "one"], ["width"]),
            node("Equal", ["width", "three"], ["known"]),
            node("If", ["known"], ["p", "q"], name="choice", then_branch=taken, else_branch=other),
            node("Sub", ["p", "q"], ["y"]),
        ],
        outputs=[value("y", ["n", 3, 2])],
        weights=[weight("one", 1, np.int64), weight("three", 3, np.int64)],
    )


# What is folded and cleaned


def test_constants_are_folded_and_the_report_says_so(tmp_path: Path, constants: onnx.ModelProto) -> None:
    folded = Folded(tmp_path, constants)
    assert folded.operators == ["Mul"]
    assert [tuple(numpy_helper.to_array(t)) for t in folded.model.graph.initializer] == [(3, 4, 5, 6)]
    report = folded.report
    assert (report.strategy, report.fallbacks, report.samples) == ("polygraphy", (), 1)
    assert (report.nodes_before, report.nodes_after, report.opset_from, report.opset_to) == (3, 1, 17, 17)
    assert report.max_abs == {"y": 0.0}
    assert report.to_json()["inventory"]["operators"] == {"Mul": 1}


def test_float_attributes_of_constants_stay_float32(tmp_path: Path, constants: onnx.ModelProto) -> None:
    # graphsurgeon alone makes them float64, and the Add does not load.
    assert Folded(tmp_path, constants).model.graph.initializer[0].data_type == FLOAT


def test_nothing_is_written_but_the_model(
    tmp_path: Path, constants: onnx.ModelProto, capfd: pytest.CaptureFixture[str]
) -> None:
    assert [f.name for f in Folded(tmp_path, constants).out.parent.iterdir()] == ["model.onnx"]
    assert capfd.readouterr() == ("", "")


def test_unused_nodes_and_weights_are_dropped_and_nodes_sorted(tmp_path: Path) -> None:
    model = model_of(
        [
            node("Relu", ["m"], ["y"], name="last"),
            node("Exp", ["x"], ["dead"]),
            node("Mul", ["x", "w"], ["m"], name="first"),
        ],
        weights=[weight("w", 2), weight("unused", [1, 2, 3])],
    )
    folded = Folded(tmp_path, model)
    assert [n.name for n in folded.model.graph.node] == ["first", "last"]
    assert [t.name for t in folded.model.graph.initializer] == ["w"]


def test_every_node_has_a_name_of_its_own_and_good_names_stay(tmp_path: Path) -> None:
    model = model_of(
        [
            node("Relu", ["x"], ["a"], name="mine"),
            node("Exp", ["a"], ["b"]),
            node("Neg", ["b"], ["c"], name="mine"),
            node("Abs", ["c"], ["y"], name="Exp_1"),
        ]
    )
    names = [n.name for n in Folded(tmp_path, model).model.graph.node]
    assert names == ["mine", "Exp_1_1", "Neg_2", "Exp_1"]


def test_tensors_of_sibling_branches_get_names_of_their_own(tmp_path: Path) -> None:
    both = [branch(n, [node(op, ["x"], ["same"])], "same") for n, op in (("then", "Sin"), ("else", "Cos"))]
    model = model_of(
        [
            node("ReduceSum", ["x"], ["sum"], keepdims=0),
            node("Greater", ["sum", "zero"], ["up"]),
            node("If", ["up"], ["y"], then_branch=both[0], else_branch=both[1]),
        ],
        weights=[weight("zero", 0)],
    )
    feeds = [{"x": ramp(2, 3, 4)}, {"x": -ramp(2, 3, 4)}]
    folded = Folded(tmp_path, model, feeds)
    inner = [a.g for n in folded.model.graph.node for a in n.attribute if a.HasField("g")]
    assert len({g.node[0].output[0] for g in inner}) == 2
    assert len({g.node[0].name for g in inner}) == 2


def test_initializers_that_are_listed_as_inputs_are_no_inputs(tmp_path: Path) -> None:
    model = model_of(
        [node("Mul", ["x", "w"], ["y"])],
        [value("x", ["n", 3, 4]), value("w", [])],
        weights=[weight("w", 2)],
        opset=8,
        ir_version=3,
    )
    folded = Folded(tmp_path, model)
    assert [v.name for v in folded.model.graph.input] == ["x"]
    assert folded.model.ir_version == onnx_files.IR_VERSION


def test_local_functions_are_put_in_place(tmp_path: Path) -> None:
    double = helper.make_function(
        "own", "Double", ["a"], ["b"], [node("Add", ["a", "a"], ["b"])], [helper.make_opsetid("", 17)]
    )
    model = model_of(
        [node("Double", ["x"], ["y"], domain="own")], domains=[helper.make_opsetid("own", 1)], functions=[double]
    )
    folded = Folded(tmp_path, model)
    assert folded.operators == ["Add"]
    assert not folded.model.functions
    assert [o.domain for o in folded.model.opset_import] == [""]
    assert "local functions" in folded.report.notes[0]


def test_metadata_survives_and_unused_domains_do_not(tmp_path: Path, constants: onnx.ModelProto) -> None:
    constants.metadata_props.add(key="names", value="cat,dog")
    constants.producer_name = "trainer"
    constants.opset_import.append(helper.make_opsetid("com.unused", 3))
    folded = Folded(tmp_path, constants).model
    assert [(p.key, p.value) for p in folded.metadata_props] == [("names", "cat,dog")]
    assert folded.producer_name == "trainer"
    assert [o.domain for o in folded.opset_import] == [""]


def test_quantization_is_not_folded_away(tmp_path: Path) -> None:
    model = model_of(
        [node("DequantizeLinear", ["w", "scale"], ["d"]), node("Mul", ["x", "d"], ["y"])],
        weights=[weight("w", [1, 2, 3, 4], np.int8), weight("scale", 0.5)],
    )
    assert Folded(tmp_path, model).operators == ["DequantizeLinear", "Mul"]


def test_small_constants_do_not_grow_into_large_files(tmp_path: Path) -> None:
    model = model_of(
        [
            node("Expand", ["w", "huge"], ["e"]),
            node("ReduceSum", ["x", "axes"], ["sum"], keepdims=1),
            node("Cast", ["sum"], ["index"], to=INT64),
            node("Gather", ["e", "index"], ["rows"]),
            node("ReduceSum", ["rows"], ["s"], keepdims=0),
            node("Add", ["x", "s"], ["y"]),
        ],
        weights=[weight("w", [[1]]), weight("huge", [1024, 1024], np.int64), weight("axes", [0, 1, 2], np.int64)],
    )
    folded = Folded(tmp_path, model)
    assert "Expand" in folded.operators
    assert folded.out.stat().st_size < 1 << 20


# Dimensions


@pytest.mark.parametrize("dim", [None, "?", "-1", -1, "s70"])
def test_the_recipes_names_replace_whatever_the_exporter_wrote(tmp_path: Path, dim: int | str | None) -> None:
    model = model_of(
        [node("Add", ["x", "m"], ["y"])], [value("x", [dim, 3, 4]), value("m", [dim, 3, 4])], [value("y", None)]
    )
    specs = [X, TensorSpec("m", "float32", ("batch", 3, 4))]
    folded = Folded(tmp_path, model, [{"x": ramp(2, 3, 4), "m": ramp(2, 3, 4)}], inputs=specs)
    expected = {name: ["batch", 3, 4] for name in ("x", "m", "y")}
    assert shapes([*folded.model.graph.input, *folded.model.graph.output]) == expected
    assert len(folded.report.notes) == 2


def test_a_declared_length_is_fixed_and_shapes_are_folded_with_it(tmp_path: Path) -> None:
    model = model_of(
        [
            node("Shape", ["x"], ["shape"], start=1),  # graphsurgeon alone would take the whole shape
            node("Reshape", ["x", "flat"], ["f"]),
            node("Cast", ["shape"], ["lengths"], to=FLOAT),
            node("ReduceSum", ["lengths"], ["s"], keepdims=0),
            node("Mul", ["f", "s"], ["y"]),
        ],
        [value("x", ["n", "h", "w"])],
        [value("y", None)],
        [weight("flat", [0, -1], np.int64)],
    )
    folded = Folded(tmp_path, model)
    assert shapes(folded.model.graph.input) == {"x": ["batch", 3, 4]}
    assert folded.operators == ["Reshape", "Mul"]
    assert "input 'x', axis 1: 'h' in the model, now fixed to 3" in folded.report.notes


@pytest.mark.parametrize("strategy", folding.STRATEGIES, ids=lambda s: s.name)
def test_lengths_picked_from_a_part_of_a_shape_are_the_right_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strategy: Strategy
) -> None:
    model = model_of(
        [
            node("Shape", ["x"], ["shape"], start=1),
            node("Gather", ["shape", "last"], ["width"]),  # 4; graphsurgeon alone takes 3
            node("Cast", ["width"], ["w"], to=FLOAT),
            node("Mul", ["x", "w"], ["y"]),
        ],
        [value("x", ["n", "h", 3, 4])],
        [value("y", None)],
        [weight("last", 2, np.int64)],
    )
    monkeypatch.setattr(fold, "STRATEGIES", [strategy])
    specs = [TensorSpec("x", "float32", ("batch", "height", 3, 4))]
    assert Folded(tmp_path, model, [{"x": ramp(2, 5, 3, 4)}], inputs=specs).report.strategy == strategy.name


def test_expressions_of_outputs_are_translated(tmp_path: Path) -> None:
    model = model_of(
        [node("Concat", ["past", "new"], ["both"], axis=1)],
        [value("past", ["s6", "s26"]), value("new", ["s6", "s70"])],
        [value("both", ["s6", "s26 + s70"])],
    )
    specs = [TensorSpec("past", "float32", ("batch", "past")), TensorSpec("new", "float32", ("batch", "sequence"))]
    folded = Folded(tmp_path, model, [{"past": ramp(2, 5), "new": ramp(2, 3)}], inputs=specs)
    assert shapes(folded.model.graph.output) == {"both": ["batch", "past + sequence"]}


def test_outputs_take_the_recipes_names_and_false_claims_are_dropped(tmp_path: Path) -> None:
    model = model_of(
        [node("NonZero", ["x"], ["a"]), node("Compress", ["x", "mask"], ["b"])],
        [value("x", ["n", 3, 4]), value("mask", ["m"], BOOL)],
        [value("a", [3, "n"], INT64), value("b", ["n"])],
    )
    specs = [X, TensorSpec("mask", "bool", ("masked",))]
    feeds = [{"x": ramp(2, 3, 4), "mask": np.array([True, False, True])}]
    folded = Folded(tmp_path, model, feeds, inputs=specs, outputs={"b": ("kept",)})
    assert shapes(folded.model.graph.output) == {"a": [3, "a_1"], "b": ["kept"]}


def test_a_stale_batch_of_one_inside_the_graph_is_not_folded_in(tmp_path: Path) -> None:
    model = model_of(
        [
            node("Relu", ["x"], ["r"]),
            node("Shape", ["r"], ["shape"], end=1),
            node("Cast", ["shape"], ["batch"], to=FLOAT),
            node("Mul", ["r", "batch"], ["y"]),
        ]
    )
    model.graph.value_info.append(value("r", [1, 3, 4]))
    folded = Folded(tmp_path, model, [{"x": ramp(1, 3, 4)}])
    assert "Shape" in folded.operators
    # Not compared with the original: ONNX Runtime's optimizer, now on, believes its claim and multiplies by 1.
    _, after = folded.run({"x": ramp(5, 3, 4)})
    np.testing.assert_array_equal(after[0], np.maximum(ramp(5, 3, 4), 0) * 5)


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        ([TensorSpec("y", "float32", ("b", 3, 4))], "the model has no input 'y'; known: x"),
        ([X, TensorSpec("xx", "float32", ("b",))], "the model has no input 'xx'"),
        ([], "the model has an input that the recipe does not declare: x: float32[n, 3, 4]"),
        ([TensorSpec("x", "int64", ("b", 3, 4))], "input 'x' is float32 in the model, int64 in the recipe"),
        ([TensorSpec("x", "float32", ("b", 3))], "input 'x' has 3 dimensions in the model (x: float32[n, 3, 4]), 2 in"),
        ([TensorSpec("x", "float32", ("b", "h", 4))], "input 'x', axis 1: fixed to 3 in the model, 'h' in the recipe"),
        ([TensorSpec("x", "float32", ("b", 3, 8))], "input 'x', axis 2: fixed to 4 in the model, 8 in the recipe"),
    ],
)
def test_inputs_that_differ_from_the_recipe_are_named(
    tmp_path: Path, constants: onnx.ModelProto, specs: list[TensorSpec], message: str
) -> None:
    with pytest.raises(ModelError) as error:
        Folded(tmp_path, constants, inputs=specs)
    assert message in str(error.value)


def test_a_mistyped_input_gets_a_suggestion_and_all_problems_come_at_once(tmp_path: Path) -> None:
    model = model_of([node("Neg", ["input_ids"], ["y"])], [value("input_ids", ["n", 4])], [value("y", None)])
    with pytest.raises(ModelError) as error:
        Folded(tmp_path, model, inputs=[TensorSpec("input_id", "float32", ("b", 4))], outputs={"z": ("b", 4)})
    text = str(error.value)
    assert "no input 'input_id'; did you mean 'input_ids'?" in text
    assert "does not declare: input_ids" in text
    assert "no output 'z'; known: y" in text


def test_an_output_of_another_shape_than_the_recipes_is_named(tmp_path: Path, constants: onnx.ModelProto) -> None:
    with pytest.raises(ModelError, match=r"output 'y' is \[batch, 2\], but the model gave \[2, 3, 4\] at batch=2"):
        Folded(tmp_path, constants, outputs={"y": ("batch", 2)})


# Opsets and operators


def test_an_old_opset_is_raised_with_its_meaning(tmp_path: Path) -> None:
    # Softmax flattened its input before opset 13.
    model = model_of([node("Softmax", ["x"], ["y"], axis=1)], opset=11)
    folded = Folded(tmp_path, model)
    assert (folded.report.opset_from, folded.report.opset_to) == (11, 17)
    assert folded.report.max_abs["y"] < 1e-6


def test_a_newer_opset_is_never_lowered(tmp_path: Path) -> None:
    folded = Folded(tmp_path, model_of([node("Relu", ["x"], ["y"])], opset=20), minimum_opset=13)
    assert (folded.report.opset_to, folded.model.opset_import[0].version) == (20, 20)


def test_an_opset_that_can_not_be_raised_says_why(tmp_path: Path) -> None:
    ones = [weight(name, np.ones((3, 4))) for name in "abcd"]
    model = model_of([node("BatchNormalization", ["x", "a", "b", "c", "d"], ["y"], spatial=0)], weights=ones, opset=7)
    onnx.save(model, str(tmp_path / "source.onnx"))
    with pytest.raises(FoldError) as error:
        Folded(tmp_path, model)
    assert "opset 7 could not be raised to 17" in str(error.value)
    assert "reports: Attribute spatial must have value 1" in str(error.value)
    assert "export the model with opset 17 or newer" in str(error.value)


def test_unknown_operators_are_named_with_domain_and_node(tmp_path: Path) -> None:
    foreign = [node("Foo", ["x"], [f"y{i}"], domain="com.acme", name=f"n{i}") for i in range(5)]
    outputs = [value(f"y{i}", None) for i in range(5)]
    model = model_of(foreign, outputs=outputs, domains=[helper.make_opsetid("com.acme", 1)])
    with pytest.raises(ModelError) as error:
        Folded(tmp_path, model)
    assert "unsupported operator 'Foo' (domain com.acme) at node 'n0', 'Foo' (domain com.acme) at node 'n1'" in str(
        error.value
    )
    assert "and 2 more" in str(error.value)


def test_an_operator_newer_than_the_opset_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        ModelError, match=r"'Gelu' \(it needs a newer opset than the model's 17\) at the node that makes 'y'"
    ):
        Folded(tmp_path, model_of([node("Gelu", ["x"], ["y"])]))


def test_an_operator_that_onnx_runtime_does_not_run_at_its_opset_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        ModelError, match="unsupported operator 'Pow' at node 'power': ONNX Runtime has none of version 1"
    ):
        Folded(tmp_path, model_of([node("Pow", ["x", "x"], ["y"], name="power")], opset=6))


def test_operators_of_onnx_runtime_are_kept(tmp_path: Path) -> None:
    model = model_of(
        [node("Gelu", ["x"], ["y"], domain="com.microsoft")], domains=[helper.make_opsetid("com.microsoft", 1)]
    )
    folded = Folded(tmp_path, model)
    assert [o.domain for o in folded.model.opset_import] == ["", "com.microsoft"]


def test_random_numbers_are_refused(tmp_path: Path) -> None:
    model = model_of([node("RandomNormalLike", ["x"], ["r"], name="noise"), node("Add", ["x", "r"], ["y"])])
    with pytest.raises(ModelError, match="random numbers are drawn by 'RandomNormalLike' at node 'noise'"):
        Folded(tmp_path, model)


# Branches


def test_polygraphys_broken_branches_are_found_and_said(tmp_path: Path, known_branch: onnx.ModelProto) -> None:
    folded = Folded(tmp_path, known_branch)
    assert folded.report.strategy == "graphsurgeon, branches by us"
    [fallback] = folded.report.fallbacks
    name, why = fallback.strategy, fallback.why
    assert name == "polygraphy"
    assert "checker" in why
    assert "'q'" in why
    assert "If" not in folded.operators
    before, after = folded.run({"x": ramp(7, 3, 4)})
    np.testing.assert_array_equal(before[0], after[0])


def test_without_our_branches_shapes_are_left_alone(
    tmp_path: Path, known_branch: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fold, "STRATEGIES", [s for s in folding.STRATEGIES if "by us" not in s.name])
    folded = Folded(tmp_path, known_branch)
    assert folded.report.strategy == "polygraphy, shapes not folded"
    assert "If" in folded.operators


@pytest.mark.parametrize("strategy", folding.STRATEGIES, ids=lambda s: s.name)
@pytest.mark.parametrize("flag", [True, False])
def test_each_strategy_by_itself_keeps_open_branches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strategy: Strategy, flag: bool
) -> None:
    inner_then = branch("it", [node("Mul", ["x", "c"], ["m"])], "m")
    inner_else = branch("ie", [node("Identity", ["c"], ["d"]), node("Add", ["x", "d"], ["a"])], "a")
    inner = node("If", ["flag"], ["i"], then_branch=inner_then, else_branch=inner_else)
    model = model_of(
        [
            node("Add", ["w", "w"], ["c"]),
            node("If", ["flag"], ["y"], then_branch=branch("t", [inner], "i"),
                 else_branch=branch("e", [node("Sub", ["x", "c"], ["s"])], "s")),
        ],
        [value("x", ["n", 3, 4]), value("flag", [], BOOL)],
        weights=[weight("w", [1, 2, 3, 4])],
    )  # fmt: skip
    monkeypatch.setattr(fold, "STRATEGIES", [strategy])
    specs = [X, TensorSpec("flag", "bool", ())]
    folded = Folded(tmp_path, model, [{"x": ramp(2, 3, 4), "flag": np.array(flag)}], inputs=specs)
    for other in (True, False):
        before, after = folded.run({"x": ramp(3, 3, 4), "flag": np.array(other)})
        np.testing.assert_array_equal(before[0], after[0])


def test_weights_that_branches_share_are_written_once(tmp_path: Path) -> None:
    # graphsurgeon copies into each branch what it reads from outside.
    model = model_of(
        [
            node("If", ["flag"], ["y"], then_branch=branch("t", [node("MatMul", ["x", "w"], ["a"])], "a"),
                 else_branch=branch("e", [node("Neg", ["x"], ["n"]), node("MatMul", ["n", "w"], ["b"])], "b")),
        ],
        [value("x", ["n", 3, 4]), value("flag", [], BOOL)],
        weights=[weight("w", np.eye(4))],
    )  # fmt: skip
    specs = [X, TensorSpec("flag", "bool", ())]
    folded = Folded(tmp_path, model, [{"x": ramp(2, 3, 4), "flag": np.array(True)}], inputs=specs)
    assert folded.report.inventory.parameters == 16


def test_what_graphsurgeon_can_not_read_is_still_cleaned_and_the_reasons_name_no_place_of_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnx_graphsurgeon as gs

    def refuse(model: onnx.ModelProto) -> None:
        raise gs.util.exception.OnnxGraphSurgeonException("Constant_0 has no data attributes")

    monkeypatch.setattr(gs, "import_onnx", refuse)
    model = model_of([node("Mul", ["x", "w"], ["y"])], weights=[weight("w", [0, 0, 0, 3])])
    report = Folded(tmp_path, model).report
    assert report.strategy == "clean-up only"
    assert len(report.fallbacks) == len(folding.STRATEGIES) - 1
    for why in (fallback.why for fallback in report.fallbacks):
        assert "Constant_0 has no data attributes" in why
        assert "/" not in why


# Proof


def _perturbed(model: onnx.ModelProto, _: Path) -> onnx.ModelProto:
    model.graph.initializer[0].CopyFrom(weight(model.graph.initializer[0].name, [1, 2, 3, 4.01]))
    return model


def _fixed_to_two(model: onnx.ModelProto, _: Path) -> onnx.ModelProto:
    model.graph.initializer.append(weight("two", [2, 12], np.int64))
    model.graph.node[0].CopyFrom(node("Reshape", ["x", "two"], ["y"]))
    return model


def _crashing(model: onnx.ModelProto, _: Path) -> onnx.ModelProto:
    raise IndexError(f"lost node {len(model.graph.node)}")


def test_a_fold_that_changes_values_is_passed_over(
    tmp_path: Path, constants: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = [Strategy("crashing", _crashing), Strategy("perturbed", _perturbed)]
    monkeypatch.setattr(fold, "STRATEGIES", [*bad, *folding.STRATEGIES])
    report = Folded(tmp_path, constants).report
    assert report.strategy == "polygraphy"
    assert report.fallbacks[0] == Fallback("crashing", "IndexError: lost node 2")
    assert report.fallbacks[1].why.startswith("output 'y' differs by 0.0257139 where it is 15.4286, allowed are")
    assert report.to_json()["fallbacks"][0] == {"strategy": "crashing", "why": "IndexError: lost node 2"}


def test_if_no_way_is_right_the_error_names_output_and_figure_and_nothing_is_written(
    tmp_path: Path, constants: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fold, "STRATEGIES", [Strategy("crashing", _crashing), Strategy("perturbed", _perturbed)])
    with pytest.raises(FoldError, match=r"'perturbed', the last: output 'y' differs by 0\.0257139") as error:
        Folded(tmp_path, constants)
    assert "crashing: IndexError" in error.value.log
    assert list((tmp_path / "out").iterdir()) == []


def test_a_fold_that_is_right_only_at_the_fed_length_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of([node("Flatten", ["x"], ["y"])], outputs=[value("y", ["n", 12])])
    monkeypatch.setattr(fold, "STRATEGIES", [Strategy("fixed", _fixed_to_two)])
    with pytest.raises(FoldError, match="does not run at another 'batch'"):
        Folded(tmp_path, model)


def test_nan_and_infinity_at_the_same_places_are_equal(tmp_path: Path) -> None:
    x = ramp(2, 3, 4)
    x[0, 0, :2] = [np.nan, np.inf]
    report = Folded(tmp_path, model_of([node("Log", ["x"], ["y"])]), [{"x": x}]).report
    assert report.max_abs == {"y": 0.0}


def test_feeds_are_needed_and_must_fit(tmp_path: Path, constants: onnx.ModelProto) -> None:
    onnx.save(constants, str(tmp_path / "m.onnx"))
    arguments: dict[str, Any] = {"inputs": [X], "outputs": None, "minimum_opset": 17}
    with pytest.raises(SamplesError, match="no evaluation data"):
        fold_model(tmp_path / "m.onnx", tmp_path / "out.onnx", feeds=[], **arguments)
    with pytest.raises(SamplesError, match=r"does not run on the first sample \(x: float64\[2, 3, 4\]\)"):
        Folded(tmp_path / "a", constants, [{"x": ramp(2, 3, 4).astype(np.float64)}])
    with pytest.raises(SamplesError, match="sample 1"):
        Folded(tmp_path / "b", constants, [{"x": ramp(2, 3, 4)}, {"x": ramp(2, 3, 5)}])
    free = model_of([node("Relu", ["x"], ["y"])], [value("x", None)], [value("y", None)])
    with pytest.raises(SamplesError, match=r"sample 0: 'x' is \[2, 3, 5\], not x: float32\[batch, 3, 4\]"):
        Folded(tmp_path / "c", free, [{"x": ramp(2, 3, 5)}])


# Files


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x00" * 64])
def test_what_is_no_model_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "source.onnx").write_bytes(content)
    with pytest.raises(ModelError, match="not an ONNX model"):
        Folded(tmp_path, onnx.ModelProto())


def test_missing_and_cut_external_data_is_named(tmp_path: Path) -> None:
    model = model_of(
        [node("MatMul", ["x", "w"], ["y"])],
        weights=[weight("w", np.eye(4).repeat(1024, 1))],
        outputs=[value("y", None)],
    )
    onnx.save(model, str(tmp_path / "source.onnx"), save_as_external_data=True, location="w.bin")
    (tmp_path / "w.bin").write_bytes((tmp_path / "w.bin").read_bytes()[:-4])
    with pytest.raises(
        ModelError, match=r"'w' needs 65536 bytes at offset 0 of external data 'w\.bin', which has 65532"
    ):
        Folded(tmp_path, model)
    (tmp_path / "w.bin").unlink()
    with pytest.raises(ModelError, match=r"external data 'w\.bin' is missing"):
        Folded(tmp_path, model)


def test_large_weights_are_folded_from_disk_to_disk_and_lie_beside_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, name in (
        (onnx_files, "EXTERNAL_ABOVE_BYTES"),
        (large_constants, "_WORTHWHILE_BYTES"),
        (large_constants, "_LARGE_BYTES"),
    ):
        monkeypatch.setattr(module, name, 1000)
    w = np.random.default_rng(0).normal(size=(64, 32)).astype(np.float32)
    model = model_of(
        [
            node("Transpose", ["w"], ["t"], perm=[1, 0]),
            node("Constant", [], ["half"], value_float=0.5),
            node("Mul", ["t", "half"], ["scaled"]),
            node("MatMul", ["x", "scaled"], ["y"]),
        ],
        [value("x", ["n", 32])],
        [value("y", None)],
        [weight("w", w)],
    )
    onnx.save(model, str(tmp_path / "source.onnx"), save_as_external_data=True, location="w.bin")
    calls: list[int] = []
    real = large_constants.fold_large_constants

    def counted(*arguments: Any) -> int:
        calls.append(real(*arguments))
        return calls[-1]

    monkeypatch.setattr(folding, "fold_large_constants", counted)
    folded = Folded(tmp_path, model, [{"x": ramp(2, 32)}], inputs=[TensorSpec("x", "float32", ("batch", 32))])
    assert calls == [2]
    assert folded.operators == ["MatMul"]
    assert sorted(f.name for f in folded.out.parent.iterdir()) == ["model.onnx", "model.onnx.data"]
    np.testing.assert_array_equal(numpy_helper.to_array(folded.model.graph.initializer[0]), w.T * np.float32(0.5))


def test_the_same_model_gives_the_same_bytes_in_any_process(tmp_path: Path, known_branch: onnx.ModelProto) -> None:
    known_branch.opset_import.extend([helper.make_opsetid(d, 1) for d in ("com.microsoft", "ai.onnx.ml")])
    onnx.save(known_branch, str(tmp_path / "m.onnx"))
    code = (
        "import sys, numpy as np; from pathlib import Path; from engineworks.model.fold.fold import fold_model;"
        "from engineworks.tensors import TensorSpec as S;"
        "fold_model(Path(sys.argv[1]), Path(sys.argv[2]), inputs=[S('x', 'float32', ('batch', 3, 4))], outputs=None,"
        "minimum_opset=17, feeds=[{'x': np.ones((2, 3, 4), np.float32)}])"
    )
    root = Path(fold.__file__).parents[2]
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(root)}
        subprocess.run([sys.executable, "-c", code, tmp_path / "m.onnx", tmp_path / seed], env=environment, check=True)
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


_FOLD_LARGE = """
import resource, sys, threading, time
from pathlib import Path
import numpy as np
from engineworks.model.fold.fold import fold_model
from engineworks.tensors import TensorSpec
folder, width = Path(sys.argv[1]), int(sys.argv[2])
feeds = [{"x": np.linspace(-1, 1, 2 * width, dtype=np.float32).reshape(2, width)}]
report = fold_model(folder / "m.onnx", folder / "out" / "model.onnx", outputs=None, minimum_opset=17, feeds=feeds,
                    inputs=[TensorSpec("x", "float32", ("batch", width))])
assert report.strategy == "polygraphy", report
assert report.nodes_after == 18, report
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


@pytest.mark.slow
def test_a_model_above_two_gigabytes_is_folded_with_little_memory(tmp_path: Path) -> None:
    width, layers = 8192, 9
    block = np.random.default_rng(0).standard_normal((width // 64, width), dtype=np.float32) / np.float32(width**0.5)
    nodes: list[onnx.NodeProto] = []
    weights = []
    with (tmp_path / "m.data").open("wb") as file:
        for i in range(layers):
            tensor = TensorProto(name=f"w{i}", data_type=FLOAT, dims=[width, width], data_location=TensorProto.EXTERNAL)
            for key, content in (("location", "m.data"), ("offset", file.tell()), ("length", width * width * 4)):
                tensor.external_data.add(key=key, value=str(content))
            weights.append(tensor)
            for shift in range(64):
                file.write(np.roll(block, shift + 64 * i).tobytes())
            source = f"w{i}"
            if i == 0:  # one that has to be computed
                nodes.append(node("Transpose", [source], ["t"], perm=[1, 0]))
                source = "t"
            nodes.append(node("MatMul", [f"h{i}" if i else "x", source], [f"m{i}"]))
            nodes.append(node("Tanh", [f"m{i}"], [f"h{i + 1}"]))
        total = file.tell()
    assert total > 2 << 30
    onnx.save(
        model_of(nodes, [value("x", ["n", width])], [value(f"h{layers}", ["n", width])], weights),
        str(tmp_path / "m.onnx"),
    )
    root = Path(fold.__file__).parents[2]
    child = subprocess.run(
        [sys.executable, "-c", _FOLD_LARGE, tmp_path, str(width)],
        env={**os.environ, "PYTHONPATH": str(root)}, check=True, capture_output=True, text=True,
    )  # fmt: skip
    peak = int(child.stdout)
    assert peak < 3 * total, f"peak {peak / 2**20:.0f} MiB for {total / 2**20:.0f} MiB of weights"
    assert (tmp_path / "out" / "model.onnx").stat().st_size < 1 << 20
    assert (tmp_path / "out" / "model.onnx.data").stat().st_size >= total


def test_a_branch_that_does_not_take_the_recipes_length_is_found_by_folding(tmp_path: Path) -> None:
    """ONNX Runtime sees it when it optimizes: not in the unoptimized session that the proof runs in."""
    other = [
        node("Abs", ["none"], ["pads"]),
        node("Pad", ["x", "pads"], ["padded"]),
        node("Squeeze", ["padded", "second"], ["row"]),
        node("Unsqueeze", ["row", "second"], ["b"]),
    ]
    taken = branch("t", [node("Relu", ["x"], ["a"])], "a")
    model = model_of(
        [node("If", ["flag"], ["y"], then_branch=taken, else_branch=branch("e", other, "b"))],
        [value("x", ["n", "m"]), value("flag", [], BOOL)],
        [value("y", ["n", "m"])],
        [weight("none", [0, 0, 0, 0], np.int64), weight("second", [1], np.int64)],
    )
    feeds = [{"x": ramp(2, 3), "flag": np.array(True)}]
    flag = TensorSpec("flag", "bool", ())
    Folded(tmp_path / "open", model, feeds, inputs=[TensorSpec("x", "float32", ("n", "m")), flag])
    with pytest.raises(FoldError, match="Dimension of input 1 must be 1 instead of 3") as caught:
        Folded(tmp_path / "fixed", model, feeds, inputs=[TensorSpec("x", "float32", ("n", 3)), flag])
    assert "axis 1: 'm' in the model, now fixed to 3" in caught.value.hint


def test_an_output_that_is_a_constant_is_made_by_an_identity(tmp_path: Path) -> None:
    values = np.arange(6, dtype=np.float32).reshape(3, 2)
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"], name="relu"), helper.make_node("Add", ["x", "c"], ["z"], name="add")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2]),
            helper.make_tensor_value_info("c", TensorProto.FLOAT, [3, 2]),
            helper.make_tensor_value_info("z", TensorProto.FLOAT, [3, 2]),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2]),
        ],
        [numpy_helper.from_array(values, "c")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, str(tmp_path / "model.onnx"))
    fold_model(
        tmp_path / "model.onnx", tmp_path / "folded.onnx", inputs=(TensorSpec("x", "float32", ("n", 2)),),
        outputs=None, minimum_opset=13, feeds=[{"x": np.ones((1, 2), np.float32)}],
    )  # fmt: skip
    folded = onnx.load(str(tmp_path / "folded.onnx")).graph
    made = {name: node.op_type for node in folded.node for name in node.output}
    assert made["c"] == "Identity"
    assert [value.name for value in folded.output] == ["y", "c", "z", "x"]
    found = onnxruntime.InferenceSession(str(tmp_path / "folded.onnx")).run(["c"], {"x": np.ones((3, 2), np.float32)})
    assert np.array_equal(found[0], values)
