"""Recipes of decoders: what `model.decoder` spells out, and the rules that hold for them. No files are read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from engineworks.errors import Problem, did_you_mean
from engineworks.recipe.decoder_part import Decoder
from engineworks.recipe.findings import Finding, at_key, at_value, twins
from engineworks.recipe.metric import metric_name
from engineworks.recipe.recipe import AUTO, W4A8, Recipe
from engineworks.recipe.yaml_nodes import Node, merge, parse_yaml

DECODER_PRECISIONS = ("fp32", "fp16", "int8_weights", "int4_weights", W4A8)
DECODER_DIMS = ("prompt", "new", "streams")
"""What a named shape of a decoder says: tokens of the prompt, tokens generated, and sequences at once."""

_SPELLED_OUT = """\
inputs: {{input_ids: {{dtype: int64, shape: [batch, sequence]}}}}
outputs: {{logits: [batch, sequence, vocabulary]}}
shapes: {{generate: {{batch: [1, 1, {streams}], sequence: [1, 1, {context}]}}}}
"""
_OWN_KEYS = ("inputs", "outputs", "shapes")
_NOT_YET = ("streams", "regression")

MOST_SWEPT = 24
"""Pairs of streams and prompt: each takes about a second and a half, and as long to load."""

SWEPT_NEW = 16
"""Tokens that each stream of a sweep continues by, or as many as fit."""

DECODER_BUDGETS = (
    "first_token_ms", "tokens_per_s", "memory_mib", "load_ms", "engine_mib", "p50_ms", "p90_ms", "p99_ms",
)  # fmt: skip


def is_decoder(node: Node) -> bool:
    return node.at(("model",)).get("decoder") is not None


def spell_out(node: Node) -> Node:
    """Return the tree with the inputs, outputs and shapes that follow from `model.decoder`, which other parts read."""
    at = node.at(("performance", "at")).value
    asked = (
        [_number(n.get("streams")) for n in at.values() if isinstance(n.value, dict)] if isinstance(at, dict) else []
    )
    context = node.at(("model", "decoder", "context"))
    given = context.value if isinstance(context.value, list) else [context]
    text = _SPELLED_OUT.format(context=max([1, *map(_number, given)]), streams=max([1, *asked]))
    return merge(node, parse_yaml(text, node.place.file))


def contexts_of(recipe: Recipe) -> tuple[int, ...]:
    """Return the contexts that a decoder's recipe lists; (0,) where it gives one, and for other models."""
    decoder = recipe.model.decoder
    return decoder.context if decoder is not None and len(decoder.context) > 1 else (0,)


def target_name(target: str, context: int) -> str:
    """Return the target's part of engine ids, which has the context where the recipe lists several."""
    return f"{target}-{context}" if context else target


def target_names(recipe: Recipe) -> list[str]:
    """Return the last parts of the recipe's engine ids."""
    return [target_name(target, context) for target in recipe.targets for context in contexts_of(recipe)]


def at_context(recipe: Recipe, context: int) -> Recipe:
    """Return the recipe with one of its contexts, and with the shapes and budgets that fit into it. 0: unchanged."""
    if not context:
        return recipe
    model, performance = recipe.model, recipe.performance
    assert model.decoder is not None
    at = {name: dims for name, dims in performance.at.items() if _tokens(dims) <= context}
    budget = {name: limits for name, limits in performance.budget.items() if name in at}
    shapes = {"generate": {**recipe.shapes["generate"], "sequence": (1, 1, context)}}
    decoder = model.decoder.model_copy(update={"context": (context,)})
    return recipe.model_copy(
        update={
            "model": model.model_copy(update={"decoder": decoder}),
            "performance": performance.model_copy(update={"at": at, "budget": budget}),
            "shapes": shapes,
        }
    )


def _tokens(dims: Mapping[str, int]) -> int:
    return dims.get("prompt", 0) + dims.get("new", 0)


def _number(node: Node | None) -> int:
    return node.value if node is not None and isinstance(node.value, int) else 1


def drop_own_keys(node: Node) -> Iterator[Problem]:
    """Problems of keys that a decoder's recipe must not have, which are taken out; called before `spell_out`."""
    for key in _OWN_KEYS:
        if node.get(key) is not None:
            yield Problem(node.key_place((key,)), f"'{key}' of a decoder follows from model.decoder", "remove it")
            node.remove(key)


def check_decoder(recipe: Recipe) -> Iterator[Finding]:
    """What is wrong with a recipe that has `model.decoder`, or has the keys of one without it."""
    if recipe.model.decoder is None:
        yield from _keys_of_decoders(recipe)
        return
    for check in (_source, _contexts, _precisions, _data, _shapes, _budgets, _sweep):
        yield from check(recipe, recipe.model.decoder)
    metric = recipe.accuracy.metric
    if metric is not None and metric_name(metric) != "perplexity":
        message = f"a decoder has no metric '{metric_name(metric)}'"
        yield at_value(("accuracy", "metric"), message, "metric: perplexity")


def _keys_of_decoders(recipe: Recipe) -> Iterator[Finding]:
    for index, precision in enumerate(recipe.precisions):
        if precision == W4A8:
            yield at_value(("precisions", index), "'w4a8' is for decoders only", "use int4_weights")
    for precision, limits in recipe.accuracy.limits.items():
        for field in ("greedy_agreement", "token_agreement"):
            if getattr(limits, field) is not None:
                path = ("accuracy", "limits", precision, field)
                yield at_key(path, f"'{field}' is a limit of decoders only", "e.g. model: {decoder: {context: 1024}}")
    for shape, budget in recipe.performance.budget.items():
        for field in ("first_token_ms", "tokens_per_s"):
            if getattr(budget, field) is not None:
                path = ("performance", "budget", shape, field)
                yield at_key(path, f"'{field}' is a budget of decoders only", "e.g. p50_ms")
    if recipe.data.evaluation.messages is not None:
        yield at_key(("data", "evaluation", "messages"), "'messages' goes with decoders only")


def _source(recipe: Recipe, decoder: Decoder) -> Iterator[Finding]:
    source = recipe.model.source
    for kind in ("torch", "mlflow"):
        if getattr(source, kind) is not None:
            path = ("model", "source", kind)
            yield at_key(path, f"a decoder cannot come from '{kind}'", "give huggingface: FOLDER, or onnx: FILE")
    if source.task is not None:
        yield at_key(("model", "source", "task"), "a decoder has no 'task'", "remove it")
    for key, what in (("cache", "tensors"), ("ties", "dimensions")):
        if getattr(decoder, key) and source.onnx is None:
            path = ("model", "decoder", key)
            yield at_key(path, f"'{key}' names {what} of an ONNX file, and the source is none", "remove it")


def _contexts(recipe: Recipe, decoder: Decoder) -> Iterator[Finding]:
    yield from twins(("model", "decoder", "context"), decoder.context)
    names = target_names(recipe)
    for index, target in enumerate(recipe.targets):
        if len(decoder.context) > 1 and target in names:
            message = f"'{target}' is also the name of another target's engines with that context"
            yield at_value(("targets", index), message, "rename the target")


def _precisions(recipe: Recipe, decoder: Decoder) -> Iterator[Finding]:
    for index, precision in enumerate(recipe.precisions):
        if precision not in (*DECODER_PRECISIONS, AUTO):
            what = "mixtures are" if precision in recipe.mixtures else f"'{precision}' is"
            path = ("precisions", index)
            yield at_value(path, f"{what} not for decoders yet", f"use {', '.join(DECODER_PRECISIONS)}, or auto")


def _data(recipe: Recipe, decoder: Decoder) -> Iterator[Finding]:
    evaluation, at = recipe.data.evaluation, ("data", "evaluation")
    if evaluation.text is None:
        hint = "evaluation: {text: FILE}, a .txt, or .jsonl, .csv or .parquet with columns"
        yield at_key(at, "a decoder is evaluated on texts", hint)
    if evaluation.labels is not None:
        yield at_key((*at, "labels"), "a decoder's labels are the next tokens of its texts", "remove it")
    if evaluation.slices is not None:
        yield at_key((*at, "slices"), "slices are not for decoders yet", "remove them")
    if recipe.data.calibration is not None:
        yield at_key(("data", "calibration"), "a decoder's precisions need no calibration", "remove it")
    if evaluation.max_length is not None and evaluation.max_length > decoder.longest:
        message = f"max_length {evaluation.max_length} is more than the context of {decoder.longest}"
        yield at_value((*at, "max_length"), message, f"at most {decoder.longest}")


def _shapes(recipe: Recipe, decoder: Decoder) -> Iterator[Finding]:
    for name, lengths in recipe.performance.at.items():
        path = ("performance", "at", name)
        for dim in lengths:
            if dim not in DECODER_DIMS:
                yield at_key((*path, dim), f"a decoder's shape has no '{dim}'", did_you_mean(dim, DECODER_DIMS))
        for dim in DECODER_DIMS:
            if lengths.get(dim, 0) < 1:
                yield at_value(path, f"shape '{name}' needs '{dim}'", _EXAMPLE)
        tokens = _tokens(lengths)
        if tokens > decoder.longest:
            message = f"shape '{name}' has {tokens} tokens (prompt and new), the context holds {decoder.longest}"
            yield at_value(path, message, "shorten it, or raise model.decoder.context")
    shortest = min(map(_tokens, recipe.performance.at.values()), default=0)
    for context in (c for c in decoder.context if shortest > c and shortest <= decoder.longest):
        message = f"no shape of performance.at fits a context of {context}"
        yield at_value(("model", "decoder", "context"), message, "add a shorter shape")
    for key in _NOT_YET:
        if key in recipe.performance.model_fields_set:
            hint = "say streams under performance.at"
            yield at_key(("performance", key), f"performance.{key} is not for decoders yet", hint)


def swept(recipe: Recipe) -> list[dict[str, int]]:
    """Return the shapes of a decoder's sweep, by prompt and then by streams."""
    sweep, at = recipe.performance.sweep, recipe.performance.at.values()
    if sweep is None or recipe.model.decoder is None:
        return []
    context = recipe.model.decoder.longest
    streams = sweep.streams or [dims["streams"] for dims in at]
    prompts = sweep.prompt or [dims["prompt"] for dims in at]
    pairs = [(p, s) for p in sorted({*prompts}) if p < context for s in sorted({*streams})]
    return [{"prompt": p, "new": min(SWEPT_NEW, context - p), "streams": s} for p, s in pairs]


def _sweep(recipe: Recipe, decoder: Decoder) -> Iterator[Finding]:
    sweep, path = recipe.performance.sweep, ("performance", "sweep")
    if sweep is None:
        return
    for key in ("batch", "at", "latency_ms"):
        if getattr(sweep, key):
            yield at_key((*path, key), f"a decoder's sweep has no '{key}'", _SWEEP_EXAMPLE)
    for index, prompt in enumerate(sweep.prompt):
        if prompt >= decoder.longest:
            message = f"a prompt of {prompt} tokens leaves no room in the context of {decoder.longest}"
            yield at_value((*path, "prompt", index), message, f"at most {decoder.longest - 1}")
    if any(set(dims) != set(DECODER_DIMS) for dims in recipe.performance.at.values()):
        return  # told by `_shapes`
    if (count := len(swept(recipe))) > MOST_SWEPT:
        yield at_key(path, f"the sweep has {count} pairs, {MOST_SWEPT} at most", "name fewer")
    if not count:
        yield at_key(path, "the sweep names nothing to measure", _SWEEP_EXAMPLE)


_SWEEP_EXAMPLE = "e.g. sweep: {streams: [1, 4], prompt: [32, 128]}"
_EXAMPLE = "e.g. chat: {prompt: 128, new: 64, streams: 1}"


def _budgets(recipe: Recipe, decoder: Decoder) -> Iterator[Finding]:
    for shape, budget in recipe.performance.budget.items():
        for field in budget.model_dump(exclude_none=True):
            if field not in DECODER_BUDGETS:
                path = ("performance", "budget", shape, field)
                yield at_key(path, f"'{field}' is no budget of a decoder", f"use {', '.join(DECODER_BUDGETS)}")
