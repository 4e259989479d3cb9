"""The capabilities of each backend by version, precision and compute capability, with a message for each refusal.

`plan` asks before anything is built, so this module imports no vendor library. Sources:

- TensorRT-RTX 1.4.0.76, 1.5.0.114, 1.6.1.120 and 1.7.1.116: every cell was built on a machine without a GPU, for every
  capability that the version names. Each network had one kind of operator (Conv, ConvTranspose, Gemm, MatMul, Einsum,
  LSTM, attention). Precisions: fp32, fp16, bf16, int8 Q/DQ, int8 and int4 weights, fp8 Q/DQ; the quantized ones with
  unquantized nodes in fp32 and in fp16. 9.0 was run on an H200.
- TensorRT 10 and 11: the vendor's support matrix; not tested.
- ONNX Runtime 1.31: the same networks, built and run on the CPU.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

Version = tuple[int, ...]

PRECISIONS = ("fp32", "fp16", "bf16", "int8", "fp8", "int8_weights", "int4_weights", "w4a8", "as_is")

GEMMS = ("Gemm", "MatMul", "Einsum", "LSTM", "GRU", "RNN", "Attention")
"""Operators that TensorRT-RTX compiles to a matrix multiplication."""


END: Version = (9999,)
"""Later than every version: later versions are assumed to support what the newest tested one does."""


@dataclass(frozen=True)
class Named:
    """The compute capabilities that versions from `since` (included) to `until` (excluded) build for."""

    since: Version
    until: Version
    capabilities: tuple[str, ...]


@dataclass(frozen=True)
class Capabilities:
    """One backend's row. title: its name in messages. tried: tested version lines, oldest first. portable: one engine
    may serve several compute capabilities."""

    title: str
    tried: tuple[str, ...]
    named: tuple[Named, ...]
    portable: bool = False

    def named_by(self, version: str) -> Named | None:
        """Return what this version builds for; None if it is too old."""
        return next((n for n in self.named if n.since <= _parsed(version) < n.until), None)


CAPABILITIES: Mapping[str, Capabilities] = {
    "tensorrt_rtx": Capabilities(
        "TensorRT-RTX",
        ("1.4", "1.5", "1.6", "1.7"),
        (
            Named((1, 4), (1, 5), ("7.5", "8.0", "8.6", "8.9", "9.0", "12.0")),
            Named((1, 5), (1, 7), ("7.5", "8.0", "8.6", "8.9", "9.0", "12.0", "12.1")),
            Named((1, 7), END, ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")),
        ),
        portable=True,
    ),
    "tensorrt": Capabilities(
        "TensorRT",
        ("10", "11"),
        (Named((10,), END, ("7.5", "8.0", "8.6", "8.7", "8.9", "9.0", "10.0", "10.3", "12.0", "12.1")),),
    ),
    "onnxruntime": Capabilities("ONNX Runtime", ("1",), (Named((1,), END, ()),)),
}

PORTABLE_ONLY = ("9.0",)
"""Capabilities that TensorRT-RTX has no name for. Its portable engine, which names none, runs there (until 1.6)."""


@dataclass(frozen=True)
class Refusal:
    """A combination that cannot be built, with a message that states it and suggests an alternative.

    precisions, capabilities: empty for all. operators: only models with one of these, or with such a use of it
    ('LSTM:sequence_lens', see `model/fold/inventory.py`). assumed: applies also while a model's operators are unknown.
    of_quantized: only if such an operator is quantized. but: only models with an operator outside this list. In the
    message, {found} is those operators with their nodes.
    """

    backend: str
    since: Version
    until: Version
    precisions: tuple[str, ...]
    capabilities: tuple[str, ...]
    message: str
    operators: tuple[str, ...] = ()
    of_quantized: bool = False
    assumed: bool = True
    but: tuple[str, ...] = ()

    def echo(self, version: str, precision: str, capability: str, found: str = "") -> str:
        fields = {"version": _short(version), "precision": precision, "capability": capability, "found": found}
        fields["operator"] = found.partition(" ")[0]
        return self.message.format(title=CAPABILITIES[self.backend].title, **fields)


PARSED = (
    "Abs", "Acos", "Acosh", "Add", "And", "ArgMax", "ArgMin", "Asin", "Asinh", "Atan", "Atanh", "Attention",
    "AveragePool", "BatchNormalization", "BlackmanWindow", "Cast", "CastLike", "CausalConvWithState", "Ceil",
    "Celu", "Clip", "Concat", "Constant", "ConstantOfShape", "Conv", "ConvTranspose", "Cos", "Cosh", "CumSum",
    "DepthToSpace", "DequantizeLinear", "Div", "Dropout", "Einsum", "Elu", "Equal", "Erf", "Exp", "Expand",
    "EyeLike", "Flatten", "Floor", "GRU", "Gather", "GatherElements", "GatherND", "Gelu", "Gemm",
    "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "Greater", "GreaterOrEqual", "GridSample",
    "GroupNormalization", "GroupQueryAttention", "HammingWindow", "HannWindow", "HardSigmoid", "HardSwish",
    "Hardmax", "Identity", "If", "InstanceNormalization", "IsInf", "IsNaN", "LRN", "LSTM", "LayerNormalization",
    "LeakyRelu", "Less", "LessOrEqual", "LinearAttention", "Log", "LogSoftmax", "Loop", "LpNormalization", "LpPool",
    "MatMul", "Max", "MaxPool", "Mean", "MeanVarianceNormalization", "Min", "Mish", "Mod", "Mul", "Neg",
    "NonMaxSuppression", "NonZero", "Not", "OneHot", "Or", "PRelu", "Pad", "Pow", "QuantizeLinear",
    "RMSNormalization", "RNN", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Range",
    "Reciprocal", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin",
    "ReduceProd", "ReduceSum", "ReduceSumSquare", "Relu", "Reshape", "Resize", "ReverseSequence", "RoiAlign",
    "RotaryEmbedding", "Round", "STFT", "Scan", "Scatter", "ScatterElements", "ScatterND", "Selu", "Shape",
    "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Size", "Slice", "Softmax", "Softplus", "Softsign", "SpaceToDepth",
    "Split", "Sqrt", "Squeeze", "Sub", "Sum", "Swish", "Tan", "Tanh", "TensorScatter", "ThresholdedRelu", "Tile",
    "TopK", "Transpose", "Trilu", "Unsqueeze", "Upsample", "Where", "Xor",
)  # fmt: skip
"""Operators that the ONNX parser of TensorRT-RTX 1.7.1 lists as supported, in any domain."""

_ON_CPU = "or build the model for a CPU target (backend: onnxruntime)"
_NO_KERNEL = "move it out of the model to before or after the engine, " + _ON_CPU
_SYMMETRIC = "train with symmetric int8 (qscheme=torch.per_tensor_symmetric, dtype=qint8), " + _ON_CPU


def _quantized_otherwise(backend: str, since: Version) -> tuple[Refusal, ...]:
    """Refusals of a model's own Q/DQ nodes: TensorRT's parsers accept signed, symmetric ones without biases."""
    refused = {
        "zero_point": ("{title} {version} has no quantization with a zero point that is not 0: {found}; ", _SYMMETRIC),
        "unsigned": ("{title} {version} reads unsigned quantized values as int8: {found}; ", _SYMMETRIC),
        "int32": (
            "{title} {version} does not take biases quantized to int32: {found}; ",
            "leave biases in floating point (QuantizeBias=False), " + _ON_CPU,
        ),
    }
    return tuple(
        Refusal(
            backend, since, END, PRECISIONS, (), what + hint,
            operators=(f"QuantizeLinear:{use}", f"DequantizeLinear:{use}"), assumed=False,
        )
        for use, (what, hint) in refused.items()
    )  # fmt: skip


_W4A8 = "{title} has no products of int4 weights and int8 activations; use int4_weights on this target"

REFUSALS = (
    Refusal(
        "tensorrt_rtx", (1, 7), END, PRECISIONS, (), "{title} {version} does not have {found}; replace it, " + _ON_CPU,
        but=PARSED, assumed=False,
    ),
    Refusal(
        "tensorrt_rtx", (1, 7), END, PRECISIONS, (),
        "{title} {version} cannot run {found}: how long its output is follows from the data; " + _NO_KERNEL,
        operators=("NonZero", "NonMaxSuppression"), assumed=False,
    ),
    Refusal(
        "tensorrt_rtx", (1, 7), END, PRECISIONS, (), "{title} {version} has no kernel for {found}; " + _NO_KERNEL,
        operators=("RoiAlign", "MaxPool:indices", "ScatterND:reduction", "Resize:antialias"), assumed=False,
    ),
    Refusal(
        "tensorrt_rtx", (1, 6), END, PRECISIONS, (),
        "{title} {version} asks for a plugin that it does not have: {found}; replace it by ONNX's own Attention and "
        "TensorScatter (opset 24), " + _ON_CPU,
        operators=("com.microsoft.GroupQueryAttention",), assumed=False,
    ),
    Refusal(
        "tensorrt_rtx", (1, 7), END, ("fp16", "bf16"), (),
        "{title} {version} has sequence lengths in fp32 only: {found}; use fp32, or keep the node in fp32 by a mixture "
        "(mixtures: {{mixed: {{default: {precision}, fp32: ['op:{operator}']}}}}), or int8 by "
        "calibration.unquantized: fp32",
        operators=("LSTM:sequence_lens", "GRU:sequence_lens", "RNN:sequence_lens"), assumed=False,
    ),
    *_quantized_otherwise("tensorrt_rtx", (1, 4)),
    *_quantized_otherwise("tensorrt", (10,)),
    Refusal(
        "tensorrt_rtx", (1, 7), END, ("fp32",), ("7.5",),
        "{title} {version} has no fp32 matrix multiplication on compute capability 7.5; "
        "use fp16 on this target, or tensorrt-rtx 1.6",
        operators=GEMMS,
    ),
    Refusal(
        "tensorrt_rtx", (1, 7), END, (), ("9.0",),
        "{title} {version} does not run on Hopper GPUs (compute capability 9.0); use tensorrt-rtx 1.6, the last one "
        "that does",
    ),
    Refusal(
        "tensorrt_rtx", (1, 4), (1, 5), ("int8", "int8_weights", "fp8", "int4_weights"), (),
        "{title} {version} cannot quantize without a GPU; use fp16 on this target, or tensorrt-rtx 1.5 or later",
    ),
    Refusal(
        "tensorrt_rtx", (1, 5), (1, 7), ("int8",), (),
        "{title} {version} has no int8 convolution; use fp16 on this target, keep the convolutions out of "
        "quantization, or use tensorrt-rtx 1.7",
        operators=("Conv", "ConvTranspose"), of_quantized=True, assumed=False,
    ),
    Refusal(
        "tensorrt_rtx", (1, 4), END, ("bf16",), ("7.5",),
        "compute capability 7.5 has no bf16; use fp16 on this target",
    ),
    Refusal(
        "tensorrt_rtx", (1, 4), END, ("bf16",), (),
        "{title} {version} has no bf16 ConvTranspose; use fp16 on this target",
        operators=("ConvTranspose",), assumed=False,
    ),
    Refusal(
        "tensorrt_rtx", (1, 5), END, ("fp8",), ("7.5",),
        "compute capability 7.5 has no fp8; use fp16 on this target",
    ),
    Refusal(
        "tensorrt_rtx", (1, 5), END, ("fp8",), ("8.0", "8.6"),
        "compute capability {capability} has no fp8; use int8 or fp16 on this target",
    ),
    Refusal(
        "tensorrt_rtx", (1, 5), END, ("int4_weights",), ("7.5",),
        "compute capability 7.5 has no int4 weights; use fp16 on this target",
    ),
    Refusal("tensorrt", (10,), END, ("bf16",), ("7.5",), "compute capability 7.5 has no bf16; use fp16 on this target"),
    Refusal(
        "tensorrt", (10,), END, ("fp8",), ("7.5", "8.0", "8.6", "8.7"),
        "compute capability {capability} has no fp8; use int8 or fp16 on this target",
    ),
    Refusal("tensorrt_rtx", (1, 4), END, ("w4a8",), (), _W4A8),
    Refusal("tensorrt", (10,), END, ("w4a8",), (), _W4A8),
    Refusal(
        "onnxruntime", (1,), END, ("bf16",), (),
        "{title} has no bf16 kernels for the CPU; use fp32 or int8 on this target, or bf16 on a GPU target",
    ),
    Refusal(
        "onnxruntime", (1,), END, ("fp8",), (),
        "{title} has no fp8 kernels for the CPU; use int8 on this target, or fp8 on a GPU target",
    ),
)  # fmt: skip


def why_not(
    backend: str,
    version: str | None,
    precision: str,
    compute_capabilities: Sequence[str],
    *,
    operators: Collection[str] | None = None,
    quantized: Collection[str] | None = None,
) -> str | None:
    """Return why engines of this precision cannot be built for the target, None if they can.

    version: the installed one; None if unknown: only refusals of all versions then apply. operators: operator types of
    the model and its uses of them, as a mapping with node names. quantized: those of them that are quantized. Both are
    None while unknown.
    """
    if version is None:
        reasons = [
            why_not(backend, v, precision, compute_capabilities, operators=operators, quantized=quantized)
            for v in CAPABILITIES[backend].tried
        ]
        return reasons[-1] if all(reasons) else None
    if precision not in PRECISIONS:
        return f"'{precision}' is no precision of {CAPABILITIES[backend].title}; use one of {_joined(PRECISIONS, 'or')}"
    wrong = why_not_target(backend, version, compute_capabilities)
    if wrong is not None:
        return wrong
    for capability in compute_capabilities or ("",):
        for refusal in _about(backend, version, capability):
            if precision in refusal.precisions and _concerns(refusal, operators, quantized):
                message = refusal.echo(version, precision, capability, _found(refusal, operators))
                return message + (f", or leave {capability} out" if len(compute_capabilities) > 1 else "")
    return None


def why_not_target(backend: str, version: str | None, compute_capabilities: Sequence[str]) -> str | None:
    """Return why the backend cannot build for these compute capabilities in any precision, None if it can."""
    if version is None:
        reasons = [why_not_target(backend, v, compute_capabilities) for v in CAPABILITIES[backend].tried]
        return reasons[-1] if all(reasons) else None
    row = CAPABILITIES[backend]
    title = f"{row.title} {_short(version)}"
    named = row.named_by(version)
    if named is None:
        return f"{title} is too old; use {_joined(row.tried, 'or')}"
    if not named.capabilities:
        return f"{title} builds for the CPU: leave compute_capability out" if compute_capabilities else None
    if not compute_capabilities:
        return f"the target names no compute capability; say for example compute_capability: [{named.capabilities[-1]}]"
    for capability in compute_capabilities:
        for refusal in _about(backend, version, capability):
            if not refusal.precisions:
                return refusal.echo(version, "", capability)
        if capability not in named.capabilities:
            return (
                f"{title} does not build for compute capability {capability}; use {_joined(named.capabilities, 'or')}"
            )
    if len(compute_capabilities) > 1:
        return _why_not_together(row, title, compute_capabilities)
    return None


def _why_not_together(row: Capabilities, title: str, capabilities: Sequence[str]) -> str | None:
    if not row.portable:
        return f"{title} builds for the one GPU that it runs on; give each compute capability a target of its own"
    alone = [c for c in capabilities if c in PORTABLE_ONLY]
    if alone:
        return f"{title} cannot name {alone[0]} next to others; give {alone[0]} a target of its own"
    return None


def _about(backend: str, version: str, capability: str) -> Iterator[Refusal]:
    for r in REFUSALS:
        fits = not r.capabilities or capability in r.capabilities
        if fits and r.backend == backend and r.since <= _parsed(version) < r.until:
            yield r


def _concerns(refusal: Refusal, operators: Collection[str] | None, quantized: Collection[str] | None) -> bool:
    """Whether the model has an operator that the refusal covers."""
    present = quantized if refusal.of_quantized else operators
    if not refusal.operators and not refusal.but:
        return True
    return refusal.assumed if present is None else bool(_concerned(refusal, present))


def _concerned(refusal: Refusal, present: Collection[str]) -> list[str]:
    """Return the operators that the refusal covers; 'com.microsoft.Gelu' is parsed like Gelu."""
    if refusal.but:
        return sorted(o for o in present if ":" not in o and o.rpartition(".")[2] not in refusal.but)
    return [o for o in refusal.operators if o in present]


def _found(refusal: Refusal, operators: Collection[str] | None) -> str:
    """Return the operators that the refusal covers, each with its number of nodes and the first of them."""
    named_uses = []
    for use in _concerned(refusal, operators or ()):
        name, _, particular = use.partition(":")
        nodes = operators[use] if isinstance(operators, Mapping) else ()
        many = f", {len(nodes)} nodes" if len(nodes) > 1 else ""
        named = f" (node '{nodes[0]}'{many})" if nodes else ""
        named_uses.append(name + named + (f" with {particular.replace('_', ' ')}" if particular in _SPOKEN else ""))
    return ", ".join(named_uses)


_SPOKEN = ("indices", "reduction", "antialias")
"""Uses that a refusal's message does not name itself."""


@lru_cache(maxsize=64)
def _parsed(version: str) -> Version:
    """1.7.1.116 → (1, 7, 1, 116); ignores suffixes of a part (10.0.post1, 1.31.0rc1)."""
    parts = []
    for part in version.split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits:
            break
        parts.append(int(digits))
    return tuple(parts)


def _short(version: str) -> str:
    return ".".join(version.split(".")[:2])


def _joined(names: Sequence[str], last: str) -> str:
    return f"{', '.join(names[:-1])} {last} {names[-1]}" if len(names) > 1 else names[0]
