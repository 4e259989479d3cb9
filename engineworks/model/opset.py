"""Operator sets: which operators a model uses that nothing here knows, and raising an old opset."""

from __future__ import annotations

from engineworks.errors import FoldError, ModelError
from engineworks.host.lazy import onnx
from engineworks.model.graphs import all_graphs, all_nodes, model_nodes, node_label
from engineworks.model.onnx_files import MOST_OPSET, ir_version_for, is_too_new, opset_of

_NAMED = 3  # of the offending nodes, before "and N more"


def lower_to_limits(model: onnx.ModelProto, where: str) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """A model newer than ONNX Runtime reads, lowered by ONNX's converter, and what was done; others as they are.

    Raises `ModelError` where the converter cannot lower it.
    """
    if not is_too_new(model):
        return model, ()
    before, opset = f"IR {model.ir_version}, opset {opset_of(model)}", opset_of(model)
    if opset > MOST_OPSET:
        if model.functions:
            model = inline_functions(model)
        try:
            model = _converted(model, MOST_OPSET)
        except ConversionError as error:
            raise ModelError(
                f"{where}: opset {opset} is newer than ONNX Runtime reads ({MOST_OPSET}), and ONNX's version converter "
                f"cannot lower it: {error}",
                hint=f"export the model with opset {MOST_OPSET} or older",
            ) from None
    model.ir_version = ir_version_for(model)
    return model, (f"{before} lowered to IR {model.ir_version}, opset {opset_of(model)}, which ONNX Runtime reads",)


class ConversionError(Exception):
    """The reason of ONNX's version converter, in one line; log: its whole message."""

    def __init__(self, reason: str, log: str) -> None:
        super().__init__(reason)
        self.log = log


def _converted(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    try:
        converted: onnx.ModelProto = onnx.version_converter.convert_version(model, opset)
    except (onnx.version_converter.ConvertError, onnx.checker.ValidationError, RuntimeError, ValueError) as error:
        # Its messages begin with a C++ assertion: '/project/…h:67: adapter_lookup: Assertion `false` failed: '.
        raise ConversionError(str(error).rpartition("failed: ")[2].strip(), str(error)) from None
    return converted


STANDARD = "export the model with standard ONNX operators"


def check_operators(model: onnx.ModelProto, where: str) -> None:
    """Raises `ModelError` naming the nodes whose operator neither ONNX, ONNX Runtime nor the model itself defines."""
    from onnxruntime.capi.onnxruntime_pybind11_state import get_all_operator_schema

    versions = {_domain(o.domain): o.version for o in model.opset_import}
    runtime = {(_domain(schema.domain), schema.name) for schema in get_all_operator_schema()}
    own = {(_domain(f.domain), f.name) for f in model.functions}
    unknown = []
    for node in model_nodes(model):
        operator = (_domain(node.domain), node.op_type)
        if operator in own:
            continue
        reason = _why_unsupported(*operator, versions.get(operator[0], 0), operator in runtime)
        if reason:
            unknown.append(f"'{node.op_type}' ({reason}) at {node_label(node)}")
    if unknown:
        raise ModelError(f"{where}: unsupported operator {shortened(unknown)}", hint=STANDARD)


def raise_opset(model: onnx.ModelProto, minimum: int) -> onnx.ModelProto:
    """The model with at least this opset; never lowered. Raises `FoldError` if ONNX's converter cannot do it."""
    version = opset_of(model)
    if version >= minimum:
        return model
    try:
        return _converted(model, minimum)
    except ConversionError as error:
        raise FoldError(
            f"opset {version} could not be raised to {minimum}: ONNX's version converter reports: {error}",
            hint=f"export the model with opset {minimum} or newer",
            log=error.log,
        ) from None


def inline_functions(model: onnx.ModelProto) -> onnx.ModelProto:
    """Put the bodies of the model's own functions in place of their calls. Raises `FoldError` if ONNX cannot."""
    import onnx.inliner

    try:
        inlined: onnx.ModelProto = onnx.inliner.inline_local_functions(model)
    except (RuntimeError, ValueError, LookupError) as error:
        raise FoldError(f"the model's own functions could not be put in place of their calls: {error}") from None
    del inlined.functions[:]
    return inlined


def tidy_domains(model: onnx.ModelProto) -> None:
    """Write the default domain as '', and import each domain that is used, once, sorted, and no other."""
    for node in all_nodes(model.graph):
        if node.domain != _domain(node.domain):
            node.domain = ""
    versions = {_domain(o.domain): o.version for o in model.opset_import}
    used = {node.domain for graph in all_graphs(model.graph) for node in graph.node} | {""}
    del model.opset_import[:]
    model.opset_import.extend(onnx.helper.make_opsetid(d, versions.get(d, 1)) for d in sorted(used))


def _domain(name: str) -> str:
    return "" if name == "ai.onnx" else name


def _why_unsupported(domain: str, operator: str, version: int, in_runtime: bool) -> str | None:
    if domain in ("", "ai.onnx.ml", "ai.onnx.preview", "ai.onnx.preview.training"):
        if onnx.defs.has(operator, domain) and not onnx.defs.has(operator, version, domain):
            return f"it needs a newer opset than the model's {version}"
        return None if in_runtime or onnx.defs.has(operator, domain) else "ONNX has no such operator"
    return None if in_runtime else f"domain {domain}"


def shortened(items: list[str]) -> str:
    """The first few of them, and how many more there are."""
    more = len(items) - _NAMED
    return ", ".join(items[:_NAMED]) + (f" and {more} more" if more > 0 else "")
