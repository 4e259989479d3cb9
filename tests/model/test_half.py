"""`to_half`: which nodes become half precision, where casts stand, and that every result is strongly typed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from half_conversion import clamped, to_half
from onnx import TensorProto, helper, numpy_helper

from engineworks.errors import LoweringError, ModelError
from engineworks.model.onnx_files import detach_weights, save_model

F32, F16, BF16 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16
HALF = {"float16": F16, "bfloat16": BF16}
DTYPES = ["float16", "bfloat16"]
FLOAT_PORTS = {("Resize", 1), ("Resize", 2)}


def node(op: str, inputs: str, outputs: str, **attributes: Any) -> onnx.NodeProto:
    """Space-separated tensor names; the node is called after its first output."""
    names = ["" if name == "-" else name for name in inputs.split()]
    return helper.make_node(op, names, outputs.split(), name=f"n_{outputs.split()[0]}", **attributes)


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Any],
    outputs: Mapping[str, Any],
    weights: Mapping[str, Any] | None = None,
    opset: int = 17,
) -> onnx.ModelProto:
    """Inputs and outputs: name → shape (float32) or (element type, shape)."""

    def values(specs: Mapping[str, Any]) -> list[onnx.ValueInfoProto]:
        typed = {n: s if isinstance(s, tuple) else (F32, s) for n, s in specs.items()}
        return [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in typed.items()]

    stored = [numpy_helper.from_array(np.asarray(v), name) for name, v in (weights or {}).items()]
    graph = helper.make_graph(list(nodes), "g", values(inputs), values(outputs), initializer=stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def floats(*shape: int, scale: float = 1.0) -> np.ndarray:
    return (np.random.default_rng(sum(shape)).normal(size=shape) * scale).astype(np.float32)


def types_of(made: onnx.ModelProto) -> dict[str, int]:
    typed = onnx.shape_inference.infer_shapes(made, strict_mode=True, data_prop=True).graph
    types = {t.name: t.data_type for t in typed.initializer}
    return types | {v.name: v.type.tensor_type.elem_type for v in (*typed.input, *typed.value_info, *typed.output)}


def casts(made: onnx.ModelProto) -> list[tuple[str, int]]:
    return [(n.input[0], n.attribute[0].i) for n in made.graph.node if n.op_type == "Cast"]


def made_by(made: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(n for n in made.graph.node if n.name == name)


def assert_strongly_typed(made: onnx.ModelProto) -> None:
    """No node mixes floating types, no Cast follows a Cast that it could replace, no tensor is cast twice alike."""
    types = types_of(made)
    floating = {F32, F16, BF16}
    for n in made.graph.node:
        kinds = {types[name] for i, name in enumerate(n.input) if name and (n.op_type, i) not in FLOAT_PORTS}
        assert len(kinds & floating) <= 1, f"{n.name} mixes {kinds}"
    by_output = {n.output[0]: n for n in made.graph.node if n.op_type == "Cast"}
    for n in by_output.values():
        before = by_output.get(n.input[0])
        assert before is None or types[before.input[0]] not in floating, f"{n.name} undoes {before.name}"
    assert len(casts(made)) == len(set(casts(made)))


MLP = {"w1": floats(8, 16), "b1": floats(16), "w2": floats(16, 4)}


def mlp() -> onnx.ModelProto:
    nodes = [node("MatMul", "x w1", "h"), node("Add", "h b1", "a"), node("Relu", "a", "r"), node("MatMul", "r w2", "y")]
    return model(nodes, {"x": ["n", 8]}, {"y": ["n", 4]}, MLP)


@pytest.mark.parametrize("dtype", DTYPES)
def test_everything_between_the_fp32_inputs_and_outputs_is_half(dtype: Any) -> None:
    source = mlp()
    before = source.SerializeToString()
    made = to_half(source, dtype)
    types = types_of(made.model)
    assert types["x"] == types["y"] == F32
    assert {types[name] for name in ("w1", "b1", "w2", "h", "a", "r")} == {HALF[dtype]}
    assert len(casts(made.model)) == 2
    assert made.converted_nodes == ("n_h", "n_a", "n_r", "n_y")
    assert not made.kept_nodes
    assert made.weights.elements == 8 * 16 + 16 + 16 * 4
    assert_strongly_typed(made.model)
    assert source.SerializeToString() == before


def test_same_model_gives_same_bytes() -> None:
    first, second = (to_half(mlp(), "float16").model.SerializeToString() for _ in range(2))
    assert first == second


@pytest.mark.parametrize("keep", ["n_a", "*_a"])
def test_a_kept_node_stays_between_one_cast_on_either_side(keep: str) -> None:
    made = to_half(mlp(), "float16", keep=[keep])
    types = types_of(made.model)
    assert types["b1"] == F32
    assert set(casts(made.model)) == {("x", F16), ("h", F32), ("a", F16), ("y_fp16", F32)}
    assert made.kept_nodes == {"n_a": f"asked for by '{keep}'"}
    assert_strongly_typed(made.model)


def test_nodes_are_kept_by_their_operator_too() -> None:
    operators = {n.op_type for n in mlp().graph.node}
    operator = sorted(operators)[0]
    named = [n.name for n in mlp().graph.node if n.op_type == operator]
    by_operator = to_half(mlp(), "float16", keep=[f"op:{operator}"])
    assert by_operator.model == to_half(mlp(), "float16", keep=named).model
    assert by_operator.model != to_half(mlp(), "float16").model


def test_a_pattern_that_names_no_node_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(LoweringError, match=r"'n_aa' of keep .* did you mean 'n_a'"):
        to_half(mlp(), "float16", keep=["n_aa"])


def test_a_tensor_with_several_fp32_users_is_cast_once() -> None:
    nodes = [
        node("MatMul", "x w", "h"),
        node("Sin", "h", "a"),
        node("Cos", "h", "b"),
        node("MatMul", "a w", "c"),
        node("MatMul", "b w", "d"),
        node("Add", "c d", "y"),
    ]
    source = model(nodes, {"x": [2, 4]}, {"y": [2, 4]}, {"w": floats(4, 4)})
    made = to_half(source, "float16", keep=["n_a", "n_b"])
    assert [c for c in casts(made.model) if c[1] == F32 and c[0] == "h"] == [("h", F32)]
    assert_strongly_typed(made.model)


def test_a_weight_of_kept_and_converted_nodes_is_stored_in_both_types() -> None:
    nodes = [node("MatMul", "x w", "h"), node("MatMul", "h w", "y")]
    made = to_half(model(nodes, {"x": [2, 4]}, {"y": [2, 4]}, {"w": floats(4, 4)}), "float16", keep=["n_h"])
    stored = {t.name: t.data_type for t in made.model.graph.initializer}
    assert stored == {"w": F32, "w_fp16": F16}


def test_light_nodes_between_fp32_nodes_stay_fp32() -> None:
    nodes = [
        node("MatMul", "x w", "h"),
        node("Reshape", "h shape", "a"),
        node("Mul", "a two", "b"),
        node("MatMul", "b w", "y"),
    ]
    weights = {"w": floats(4, 4), "shape": np.array([2, 4]), "two": np.float32(2)}
    made = to_half(model(nodes, {"x": [2, 4]}, {"y": [2, 4]}, weights), "float16", keep=["n_h", "n_y"])
    assert made.kept_nodes["n_a"] == made.kept_nodes["n_b"] == "lies between nodes that stay fp32"
    assert not casts(made.model)


def test_an_input_that_is_only_moved_to_an_output_is_not_rounded() -> None:
    nodes = [node("Transpose", "x", "z", perm=[1, 0]), node("MatMul", "x w", "y")]
    made = to_half(model(nodes, {"x": [4, 4]}, {"z": [4, 4], "y": [4, 4]}, {"w": floats(4, 4)}), "float16")
    assert made_by(made.model, "n_z").input == ["x"]


def test_a_subgraph_stays_fp32_and_reads_fp32_versions_of_outer_tensors() -> None:
    def branch(name: str, op: str) -> onnx.GraphProto:
        out = helper.make_tensor_value_info(name, F32, [2, 4])
        return helper.make_graph([helper.make_node(op, ["h", "w"], [name])], name, [], [out])

    nodes = [
        node("MatMul", "x w", "h"),
        node("If", "cond", "i", then_branch=branch("t", "MatMul"), else_branch=branch("e", "MatMul")),
        node("MatMul", "i w", "y"),
    ]
    made = to_half(model(nodes, {"x": [2, 4], "cond": (TensorProto.BOOL, [])}, {"y": [2, 4]}, {"w": floats(4, 4)}), "float16")  # fmt: skip
    taken = made_by(made.model, "n_i").attribute[0].g.node[0].input
    types = types_of(made.model)
    assert [types[name] for name in taken] == [F32, F32]
    assert "subgraph" in made.kept_nodes["n_i"]
    assert "n_h" in made.converted_nodes
    assert "n_y" in made.converted_nodes


def test_scales_of_resize_stay_fp32_while_the_image_is_half() -> None:
    nodes = [node("Conv", "x w", "c"), node("Resize", "c - scales", "r", mode="linear"), node("Conv", "r w", "y")]
    weights = {"w": floats(3, 3, 1, 1), "scales": np.array([1, 1, 2, 2], np.float32)}
    made = to_half(model(nodes, {"x": [1, 3, 4, 4]}, {"y": [1, 3, 8, 8]}, weights), "float16")
    types = types_of(made.model)
    assert (types["scales"], types["c"], types["r"]) == (F32, F16, F16)
    assert_strongly_typed(made.model)


def test_constants_and_filled_tensors_follow_their_users() -> None:
    nodes = [
        node("Constant", "", "k", value_float=0.5),
        node("Constant", "", "v", value=numpy_helper.from_array(floats(4))),
        node("ConstantOfShape", "shape", "zeros"),
        node("MatMul", "x w", "h"),
        node("Add", "h zeros", "a"),
        node("Mul", "a k", "b"),
        node("Add", "b v", "y"),
    ]
    source = model(nodes, {"x": [2, 4]}, {"y": [2, 4]}, {"w": floats(4, 4), "shape": np.array([2, 4])})
    made = to_half(source, "float16")
    types = types_of(made.model)
    assert {types[name] for name in ("zeros", "k", "v")} == {F16}
    assert_strongly_typed(made.model)


def test_casts_of_the_model_turn_into_casts_to_half_or_vanish() -> None:
    nodes = [
        node("Cast", "tokens", "t", to=F32),
        node("MatMul", "t w", "h"),
        node("Cast", "h", "h16", to=F16),
        node("Cast", "h16", "h32", to=F32),
        node("MatMul", "h32 w", "y"),
        node("Cast", "y", "whole", to=TensorProto.INT64),
    ]
    source = model(nodes, {"tokens": (TensorProto.INT64, [2, 4])}, {"y": [2, 4], "whole": (TensorProto.INT64, [2, 4])}, {"w": floats(4, 4)})  # fmt: skip
    made = to_half(source, "float16").model
    assert made_by(made, "n_t").attribute[0].i == F16
    assert not {"n_h16", "n_h32"} & {n.name for n in made.graph.node}
    assert made_by(made, "n_y").input[0] == "h"
    assert_strongly_typed(made)


def test_unsorted_graphs_and_weights_listed_as_inputs_are_read() -> None:
    source = mlp()
    nodes = list(source.graph.node)[::-1]
    del source.graph.node[:]
    source.graph.node.extend(nodes)
    source.graph.input.extend(helper.make_tensor_value_info(n, F32, w.shape) for n, w in MLP.items())
    made = to_half(source, "float16").model
    assert [v.name for v in made.graph.input] == ["x"]
    assert_strongly_typed(made)
    onnx.checker.check_model(made, full_check=True)


def test_a_cycle_is_refused() -> None:
    with pytest.raises(ModelError, match="cycle"):
        to_half(model([node("Add", "x b", "a"), node("Relu", "a", "b")], {"x": [2]}, {"b": [2]}), "float16")


def test_nodes_without_or_with_equal_names_get_names_of_their_own() -> None:
    source = mlp()
    for n in source.graph.node:
        n.name = "same"
    source.graph.node[0].name = ""
    made = to_half(source, "float16")
    assert len(set(made.converted_nodes)) == 4


def test_functions_of_the_model_are_inlined() -> None:
    body = [helper.make_node("MatMul", ["a", "b"], ["c"]), helper.make_node("Relu", ["c"], ["d"])]
    source = model([helper.make_node("Layer", ["x", "w"], ["y"], domain="own")], {"x": [2, 4]}, {"y": [2, 4]}, {"w": floats(4, 4)})  # fmt: skip
    source.opset_import.add(domain="own", version=1)
    source.functions.append(helper.make_function("own", "Layer", ["a", "b"], ["d"], body, source.opset_import[:1]))
    made = to_half(source, "float16")
    assert len(made.converted_nodes) == 2
    assert not made.model.functions


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_operator_of_another_domain_stays_fp32(dtype: Any) -> None:
    source = model([node("MatMul", "x w", "h"), node("Mystery", "h", "m"), node("MatMul", "m w", "y")], {"x": [2, 4]}, {"y": [2, 4]}, {"w": floats(4, 4)})  # fmt: skip
    source.graph.node[1].domain = "vendor"
    source.opset_import.add(domain="vendor", version=1)
    made = to_half(source, dtype)
    assert "n_m" in made.kept_nodes
    assert "n_h" in made.converted_nodes
    assert ("h", F32) in casts(made.model)


def test_a_weight_beyond_the_range_keeps_its_node_in_fp32() -> None:
    nodes = [node("MatMul", "x w", "h"), node("Div", "h big", "y")]
    source = model(nodes, {"x": [2, 4]}, {"y": [2, 4]}, {"w": floats(4, 4), "big": np.float32(1e6)})
    assert to_half(source, "float16").kept_nodes["n_y"] == "weight 'big' reaches 1e+06; float16 ends at 6.55e+04"
    assert not to_half(source, "bfloat16").kept_nodes


def test_an_epsilon_that_would_vanish_keeps_its_node_in_fp32() -> None:
    nodes = [node("MatMul", "x w", "h"), node("Max", "h eps", "m"), node("MatMul", "m w", "y")]
    made = to_half(model(nodes, {"x": [2, 4]}, {"y": [2, 4]}, {"w": floats(4, 4), "eps": np.float32(1e-12)}), "float16")
    assert made.kept_nodes == {"n_m": "weight 'eps' (1e-12) would become 0"}


def test_lost_and_subnormal_weights_are_counted() -> None:
    w = np.array([[1.0, 1e-6], [1e-9, 0.0]], np.float32)
    made = to_half(model([node("MatMul", "x w", "y")], {"x": [2, 2]}, {"y": [2, 2]}, {"w": w}), "float16")
    assert (made.weights.elements, made.weights.subnormal, made.weights.flushed) == (4, 1, 1)


def test_a_spelled_out_layer_norm_stays_fp32_from_the_mean_to_the_division() -> None:
    nodes = [
        node("MatMul", "x w", "h"),
        node("ReduceMean", "h", "mean", axes=[-1]),
        node("Sub", "h mean", "d"),
        node("Pow", "d two", "sq"),
        node("ReduceMean", "sq", "var", axes=[-1]),
        node("Add", "var eps", "ve"),
        node("Sqrt", "ve", "std"),
        node("Div", "d std", "n"),
        node("Mul", "n gain", "g"),
        node("MatMul", "g w", "y"),
    ]
    weights = {"w": floats(4, 4), "two": np.float32(2), "eps": np.float32(1e-12), "gain": floats(4)}
    made = to_half(model(nodes, {"x": [2, 4]}, {"y": [2, 4]}, weights), "float16")
    assert set(made.kept_nodes) == {"n_mean", "n_d", "n_sq", "n_var", "n_ve", "n_std", "n_n"}
    assert set(casts(made.model)) == {("x", F16), ("h", F32), ("n", F16), ("y_fp16", F32)}


def test_positions_and_their_sines_are_computed_exactly() -> None:
    nodes = [
        node("Cast", "position", "p", to=F32),
        node("Mul", "p rate", "angle"),
        node("Cos", "angle", "cos"),
        node("MatMul", "x w", "h"),
        node("Mul", "h cos", "y"),
    ]
    source = model(nodes, {"position": (TensorProto.INT64, ["n", 1]), "x": ["n", 4]}, {"y": ["n", 4]}, {"w": floats(4, 4), "rate": floats(1, 4)})  # fmt: skip
    made = to_half(source, "float16")
    assert set(made.kept_nodes) == {"n_p", "n_angle", "n_cos"}
    assert ("cos", F16) in casts(made.model)


def attention_mask(fill: float, *, after: str = "Softmax") -> onnx.ModelProto:
    nodes = [
        node("MatMul", "x w", "scores"),
        node("Where", "mask zero fill", "bias"),
        node("Add", "scores bias", "masked"),
        node(after, "masked", "y", axis=-1),
    ]
    weights = {"w": floats(4, 4), "zero": np.float32(0), "fill": np.float32(fill)}
    return model(nodes, {"x": [2, 4], "mask": (TensorProto.BOOL, [2, 4])}, {"y": [2, 4]}, weights)


@pytest.mark.parametrize(("dtype", "limit"), [("float16", 8188.0), ("bfloat16", 4.2369e37)])
def test_a_mask_constant_becomes_one_that_stays_finite_when_added_up(dtype: Any, limit: float) -> None:
    made = to_half(attention_mask(-3.4028e38), dtype)
    fill = next(numpy_helper.to_array(t) for t in made.model.graph.initializer if t.name.startswith("fill"))
    assert clamped(made) == ("fill",)
    assert float(fill) == pytest.approx(-limit, rel=0.01)
    assert "n_masked" in made.converted_nodes


def test_a_mask_constant_that_reaches_an_output_keeps_its_value_and_its_nodes_fp32() -> None:
    made = to_half(attention_mask(-3.4028e38, after="LogSoftmax"), "float16")
    assert not clamped(made)
    assert "float16 ends" in made.kept_nodes["n_bias"]


def test_an_infinite_mask_stays_infinite() -> None:
    made = to_half(attention_mask(-np.inf), "float16")
    fill = next(numpy_helper.to_array(t) for t in made.model.graph.initializer if t.name == "fill")
    assert fill.dtype == np.float16
    assert np.isneginf(fill)


def test_bounds_of_clip_are_cut_to_the_range() -> None:
    nodes = [node("MatMul", "x w", "h"), node("Clip", "h zero top", "y")]
    weights = {"w": floats(4, 4), "zero": np.float32(0), "top": np.float32(3.4e38)}
    made = to_half(model(nodes, {"x": [2, 4]}, {"y": [2, 4]}, weights), "float16")
    assert clamped(made) == ("top",)
    assert "n_y" in made.converted_nodes


def quantized(opset: int, scale: float = 0.02) -> onnx.ModelProto:
    nodes = [
        node("Relu", "x", "r"),
        node("QuantizeLinear", "r s zp", "q"),
        node("DequantizeLinear", "q s zp", "dq"),
        node("DequantizeLinear", "wq ws", "wdq", axis=1),
        node("MatMul", "dq wdq", "h"),
        node("Relu", "h", "y"),
    ]
    weights = {
        "s": np.float32(scale),
        "zp": np.int8(0),
        "wq": np.ones((4, 4), np.int8),
        "ws": np.full(4, 0.01, np.float32),
    }
    return model(nodes, {"x": [2, 4]}, {"y": [2, 4]}, weights, opset)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("opset", [17, 19, 21])
def test_a_quantized_model_gets_half_scales(dtype: Any, opset: int) -> None:
    made = to_half(quantized(opset), dtype).model
    types = types_of(made)
    assert {types[name] for name in ("s", "ws", "dq", "wdq", "r")} == {HALF[dtype]}
    assert types["q"] == types["wq"] == TensorProto.INT8
    assert made.opset_import[0].version >= 19
    assert_strongly_typed(made)


def test_where_the_opset_can_not_be_raised_quantizers_stay_fp32_between_casts() -> None:
    source = quantized(17)
    then = helper.make_graph([helper.make_node("Identity", ["y"], ["t"])], "t", [], [helper.make_tensor_value_info("t", F32, [2, 4])])  # fmt: skip
    source.graph.node.append(node("If", "cond", "z", then_branch=then, else_branch=then))
    source.graph.input.append(helper.make_tensor_value_info("cond", TensorProto.BOOL, []))
    source.graph.output.append(helper.make_tensor_value_info("z", F32, [2, 4]))
    made = to_half(source, "float16")
    types = types_of(made.model)
    assert made.model.opset_import[0].version == 17
    assert types["s"] == types["ws"] == F32
    assert "n_h" in made.converted_nodes
    assert {("dq", F16), ("wdq", F16)} <= set(casts(made.model))


def test_a_scale_that_half_precision_spoils_stays_fp32() -> None:
    made = to_half(quantized(19, scale=1e-7), "float16")
    assert "its scale 's' would change by" in made.kept_nodes["n_q"]


def test_bfloat16_raises_the_opset_to_one_that_has_it() -> None:
    nodes = [node("Conv", "x w", "c"), node("MaxPool", "c", "y", kernel_shape=[2, 2])]
    source = model(nodes, {"x": [1, 3, 4, 4]}, {"y": [1, 3, 3, 3]}, {"w": floats(3, 3, 1, 1)}, opset=13)
    made = to_half(source, "bfloat16")
    assert made.model.opset_import[0].version == 22
    assert made.converted_nodes == ("n_c", "n_y")
    onnx.checker.check_model(made.model, full_check=True)


def test_what_tensorrt_does_not_build_in_bf16_stays_fp32() -> None:
    nodes = [node("Conv", "x w", "c"), node("ConvTranspose", "c w", "t"), node("Conv", "t w", "y")]
    source = model(nodes, {"x": [1, 3, 4, 4]}, {"y": [1, 3, 4, 4]}, {"w": floats(3, 3, 1, 1)})
    assert set(to_half(source, "bfloat16").kept_nodes) == {"n_t"}
    assert not to_half(source, "float16").kept_nodes


def test_detached_weights_are_read_from_their_file(tmp_path: Path) -> None:
    source = model([node("MatMul", "x w", "y")], {"x": [2, 64]}, {"y": [2, 64]}, {"w": floats(64, 64)})
    save_model(source, tmp_path / "m.onnx")
    light = detach_weights(onnx.load(str(tmp_path / "m.onnx")), tmp_path / "m.onnx", tmp_path / "spill")
    assert to_half(light, "float16").model.SerializeToString() == to_half(source, "float16").model.SerializeToString()


def test_weights_that_were_not_loaded_are_named() -> None:
    source = mlp()
    tensor = source.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="m.onnx.data")
    with pytest.raises(ModelError, match="weight 'w1' refers to external data"):
        to_half(source, "float16")


@pytest.mark.parametrize("dtype", DTYPES)
def test_tensorrt_rtx_parses_and_builds_what_was_made(dtype: Any) -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    nodes = [
        node("Conv", "x w", "c"),
        node("Resize", "c - scales", "r", mode="linear"),
        node("Clip", "r zero top", "k"),
        node("ReduceMean", "k", "m", axes=[2, 3], keepdims=0),
        node("MatMul", "m fw", "h"),
        node("LayerNormalization", "h gain", "n"),
        node("Softmax", "n", "y"),
    ]
    weights = {"w": floats(8, 3, 3, 3), "scales": np.array([1, 1, 2, 2], np.float32), "zero": np.float32(0), "top": np.float32(3.4e38), "fw": floats(8, 8), "gain": floats(8)}  # fmt: skip
    made = to_half(model(nodes, {"x": [1, 3, 8, 8]}, {"y": [1, 8]}, weights), dtype, keep=["n_h"])
    builder = trt.Builder(trt.Logger(trt.Logger.INTERNAL_ERROR))
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, trt.Logger(trt.Logger.INTERNAL_ERROR))
    assert parser.parse(made.model.SerializeToString()), parser.get_error(0).desc()
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM89, 0)
    assert builder.build_serialized_network(network, config) is not None
