"""TensorRT's complaints as sentences: operator, node, what to do; what nobody knows is quoted whole."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from onnx import TensorProto, helper

from engineworks.engines.backends._trt_log import builder_message, parser_message

NO_CUDA = "[checkMacros.cpp::catchCudaError::250] Error Code 1: Cuda Runtime (In catchCudaError at /_src/x.cpp:250 (…"


def error(operator: str, name: str, text: str) -> SimpleNamespace:
    return SimpleNamespace(node_operator=lambda: operator, node_name=lambda: name, desc=lambda: text)


@pytest.mark.parametrize(
    ("operator", "said", "text", "hint"),
    [
        ("Det", "false", "it does not have Det (node 'n')", "replace it in the model"),
        (
            "NonZero", "Assertion failed: creator && …: NonZero plugin creator version 1 was not found in plugin registry.",
            "it does not have NonZero (node 'n')", "replace it in the model",
        ),
        (
            "BiasGelu", 'creator && "Plugin not found, are the plugin name, version, and namespace correct?"',
            "it does not have BiasGelu (node 'n')", "replace it in the model",
        ),
        (
            "MaxPool", "This version of TensorRT doesn't support mode than 1 outputs for MaxPool nodes!",
            "MaxPool (node 'n') is supported with its first output only", "leave the others out",
        ),
        (
            "QuantizeLinear", "Assertion failed: shiftIsAllZeros(zeroPoint): Non-zero zero point is not supported. Please …",
            "QuantizeLinear (node 'n') has a zero point that is not 0", "symmetric int8",
        ),
        (
            "GRU",
            "Invalid Node - n\nITensor::getDimensions: Error Code 4: API Usage Error ((Unnamed Layer* 49) [Select]: "
            "ISelectLayer must have `thenInput` and `elseInput` of same types but has Half and Float. In validateTypes at "
            f"/_src/optimizer/selectNode.cpp:27)\n{NO_CUDA}",
            "GRU (node 'n') is supported in fp32 only, in this form", "fp32: ['op:GRU']",
        ),
        (
            "MatMul", "Assertion failed: status.is_success(): Found unsupported input type of INT64",
            "MatMul (node 'n') does not take inputs of type int64", "cast them in the model",
        ),
        (
            "Resize", '(antialias == 0) && "Antialiasing is not supported currently."',
            "Resize (node 'n'): Antialiasing is not supported currently", "replace it in the model",
        ),
        (
            "ScatterND", 'Assertion failed: mode == "none": ScatterND with reduction is not supported.',
            "ScatterND (node 'n'): ScatterND with reduction is not supported", "replace it in the model",
        ),
    ],
)  # fmt: skip
def test_what_the_parser_says_is_a_sentence(operator: str, said: str, text: str, hint: str) -> None:
    found = parser_message([error(operator, "n", said)], None, "")
    assert (found.text, found.known) == (text, True)
    assert hint in found.hint


def test_operators_that_it_lacks_are_named_once_with_their_count() -> None:
    errors = [error(o, n, "false") for o, n in (("Det", "a"), ("Foo", "f"), ("Det", "b"), ("Det", "b"))]
    assert parser_message(errors, None, "").text == "it does not have Det (node 'a', 2 nodes), Foo (node 'f')"


def test_a_type_that_it_lacks_is_found_in_the_model() -> None:
    graph = helper.make_graph([], "g", [helper.make_tensor_value_info("ids", TensorProto.UINT64, [6])], [])
    said = error("", "", "Assertion failed: convertDtype(onnxDtype.elem_type(), &trtDtype) && …")
    assert parser_message([said], graph, "").text == "input 'ids' is of type uint64"


def test_an_unknown_complaint_is_quoted_whole_with_its_node() -> None:
    said = f"Invalid Node - n\nsomething new happened\nand more of it In f at /_src/a.cpp:12)\n{NO_CUDA}"
    found = parser_message([error("Conv", "n", said)], None, "")
    assert found.text == "Conv (node 'n'): something new happened and more of it"
    assert not found.known


def test_the_builder_names_the_node() -> None:
    graph = helper.make_graph([helper.make_node("NonMaxSuppression", [], [], name="nms")], "g", [], [])
    found = builder_message("Assertion !layerImpls.empty() failed. nms_0 has no runners that implement it", graph)
    assert found.text == "it has no kernel for NonMaxSuppression (node 'nms')"
    unknown = builder_message("something about node nms, which nobody knows", graph)
    assert unknown.text == "something about node nms, which nobody knows (NonMaxSuppression, node 'nms')"
    assert not unknown.known
