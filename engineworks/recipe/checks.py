"""Rules across fields of a recipe: each check yields what is wrong and where. No files are read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from math import prod

from engineworks.errors import did_you_mean
from engineworks.recipe.auto import named_precisions
from engineworks.recipe.batch import batch_dim
from engineworks.recipe.decoder import check_decoder
from engineworks.recipe.findings import Finding, at_key, at_value, twins
from engineworks.recipe.metric import WITHOUT_LABELS, metric_name
from engineworks.recipe.part import LARGEST_TENSOR_BYTES
from engineworks.recipe.precisions import PRECISION_CHECKS
from engineworks.recipe.profiles import admitting_profile, dynamic_dims, input_specs
from engineworks.recipe.recipe import AUTO, METRIC_LIMITS, Recipe
from engineworks.recipe.release import aliases_differ, batching_fits, load_is_given, waivers_name_something
from engineworks.tensors import dims_text

_SHAPES, _METRIC = ("shapes",), ("accuracy", "metric")
"""Parts that several problems are about."""


def check_recipe(recipe: Recipe) -> Iterator[Finding]:
    """Everything that is wrong with the recipe as a whole."""
    for check in _CHECKS:
        yield from check(recipe)


def _source_is_one(recipe: Recipe) -> Iterator[Finding]:
    source = recipe.model.source
    given = [k for k in SOURCES if getattr(source, k) is not None]
    if len(given) != 1:
        what = " and ".join(f"'{g}'" for g in given) or "no source"
        path = ("model", "source")
        yield at_value(path, f"model.source names {what}", f"give exactly one of {', '.join(SOURCES)}")
    if source.task and given not in (["huggingface"], ["mlflow"]):
        yield at_key(("model", "source", "task"), "'task' goes with 'huggingface' and 'mlflow' only")
    if recipe.model.files and given != ["torch"]:
        yield at_key(("model", "files"), "'files' goes with a torch factory only")


def _samples_are_of_one_kind(recipe: Recipe) -> Iterator[Finding]:
    for part in ("calibration", "evaluation"):
        samples = getattr(recipe.data, part)
        if samples is None:
            continue
        given = [kind for kind in SAMPLE_KEYS if getattr(samples, kind) is not None]
        if len(given) != 1:
            what = " and ".join(f"'{g}'" for g in given) or "no data"
            yield at_key(("data", part), f"data.{part} names {what}", _ONE_KIND)
            continue
        for kind, keys in SAMPLE_KEYS.items():
            for key in keys:
                if kind != given[0] and key in samples.model_fields_set and key not in SAMPLE_KEYS[given[0]]:
                    path = ("data", part, key)
                    yield at_key(path, f"'{key}' goes with '{kind}' only", f"this data is '{given[0]}'")


SOURCES = ("onnx", "torch", "huggingface", "mlflow")

SAMPLE_KEYS: Mapping[str, tuple[str, ...]] = {
    "npz": ("names",),
    "text": ("names", "columns", "tokenizer", "max_length", "padding", "messages"),
    "images": ("processor",),
}
"""Kinds of data, and the keys allowed with each besides `samples` and `labels`."""

_ONE_KIND = "give exactly one: npz: FILE, text: FILE or images: FOLDER"


def _lists_have_no_twins(recipe: Recipe) -> Iterator[Finding]:
    yield from twins(("precisions",), recipe.precisions)
    yield from twins(("targets",), recipe.targets)
    yield from twins(("performance", "streams"), recipe.performance.streams)


def _profiles_are_whole(recipe: Recipe) -> Iterator[Finding]:
    dims = dynamic_dims(recipe)
    if dims and not recipe.shapes:
        message = f"dynamic dimensions ({', '.join(dims)}) need profiles under 'shapes'"
        yield at_key(("inputs",), message, f"shapes: {{default: {{{dims[0]}: [1, 8, 32]}}}}", _SHAPES)
    for name, ranges in recipe.shapes.items():
        for dim in dims:
            if dim not in ranges:
                message = f"profile '{name}' has no range for dimension '{dim}'"
                yield at_value(("shapes", name), message, f"{dim}: [min, opt, max]")
        for dim, (low, opt, high) in ranges.items():
            if dim not in dims:
                yield at_key(("shapes", name, dim), f"no input has a dimension '{dim}'", did_you_mean(dim, dims))
            if not low <= opt <= high:
                message = f"profile '{name}': {dim}: [{low}, {opt}, {high}] is not min ≤ opt ≤ max"
                yield at_value(("shapes", name, dim), message, "write [min, opt, max] in rising order")


def _named_shapes_fit(recipe: Recipe) -> Iterator[Finding]:
    if recipe.model.decoder is not None:  # its shapes have other dimensions
        return
    dims = dynamic_dims(recipe)
    consistent = _profiles_can_be_asked(recipe)
    for name, lengths in recipe.performance.at.items():
        path = ("performance", "at", name)
        unknown = [d for d in lengths if d not in dims]
        missing = [d for d in dims if d not in lengths]
        for dim in unknown:
            yield at_key((*path, dim), f"no input has a dimension '{dim}'", did_you_mean(dim, dims))
        for dim in missing:
            yield at_value(path, f"shape '{name}' has no length for dimension '{dim}'", f"e.g. {dim}: 1")
        if not unknown and not missing and consistent and admitting_profile(recipe, name, lengths) is None:
            message = f"shape '{name}' ({dims_text(lengths)}) lies outside of every profile"
            yield at_value(path, message, _profile_limits(recipe), _SHAPES)


def _budgets_have_shapes(recipe: Recipe) -> Iterator[Finding]:
    for name in recipe.performance.budget:
        if name not in recipe.performance.at:
            path = ("performance", "budget", name)
            yield at_key(path, f"budget for unknown shape '{name}'", did_you_mean(name, recipe.performance.at))


def _sweep_fits(recipe: Recipe) -> Iterator[Finding]:
    sweep, at, path = recipe.performance.sweep, recipe.performance.at, ("performance", "sweep")
    if sweep is None or recipe.model.decoder is not None:  # a decoder's has other keys
        return
    for key in ("streams", "prompt"):
        if getattr(sweep, key):
            yield at_key((*path, key), f"'{key}' of a sweep is for decoders only", "batch: [1, 8, 32]")
    if not sweep.batch:
        yield at_key(path, "the sweep needs batch sizes", "e.g. batch: [1, 8, 32]")
        return
    yield from twins(("performance", "sweep", "batch"), sweep.batch)
    if not at:
        yield at_key(path, "the sweep needs a named shape under performance.at", _AT_EXAMPLE)
        return
    if sweep.at is not None and sweep.at not in at:
        yield at_value((*path, "at"), f"no shape '{sweep.at}'", did_you_mean(sweep.at, at))
        return
    name = sweep.at or next(iter(at))
    dim = batch_dim(input_specs(recipe))
    if not isinstance(dim, str):
        message = f"the model takes batches of {dim} only: there is nothing to sweep"
        yield at_key(path, message, "remove the sweep")
    elif _profiles_can_be_asked(recipe) and set(at[name]) == set(dynamic_dims(recipe)):
        for index, batch in enumerate(sweep.batch):
            lengths = {**at[name], dim: batch}
            if admitting_profile(recipe, name, lengths) is None:
                message = f"batch {batch} at shape '{name}' ({dims_text(lengths)}) lies outside of every profile"
                yield at_value((*path, "batch", index), message, _profile_limits(recipe), _SHAPES)


_AT_EXAMPLE = "e.g. at: {interactive: {batch: 1, sequence: 64}}"


def _profiles_can_be_asked(recipe: Recipe) -> bool:
    dims = dynamic_dims(recipe)
    rising = all(low <= opt <= high for r in recipe.shapes.values() for low, opt, high in r.values())
    return rising and bool(recipe.shapes or not dims) and all(d in r for r in recipe.shapes.values() for d in dims)


def _profile_limits(recipe: Recipe) -> str:
    """'they are small: batch 1–4, sequence 8–512; bulk: batch 8–64, …'"""
    return "they are " + "; ".join(
        f"{name}: {', '.join(f'{dim} {low}–{high}' for dim, (low, _, high) in ranges.items())}"
        for name, ranges in recipe.shapes.items()
    )


def _averaging_has_its_method(recipe: Recipe) -> Iterator[Finding]:
    if recipe.calibration.averaging is not None and recipe.calibration.method != "moving_average":
        message = f"'averaging' does nothing with method {recipe.calibration.method}"
        yield at_key(("calibration", "averaging"), message, "write method: moving_average, or remove it")


def _every_precision_has_limits(recipe: Recipe) -> Iterator[Finding]:
    for index, precision in enumerate(recipe.precisions):
        limits = recipe.accuracy.limits.get(precision)
        if precision != AUTO and (limits is None or not limits.model_fields_set):
            hint = f"without a limit nothing can fail: add e.g. {precision}: {{cosine: 0.99}}"
            yield at_value(("precisions", index), f"no accuracy limit for {precision}", hint, ("accuracy", "limits"))


def _metric_limits_have_a_metric(recipe: Recipe) -> Iterator[Finding]:
    if recipe.accuracy.metric is not None:
        return
    for precision, limits in recipe.accuracy.limits.items():
        for field in (*METRIC_LIMITS, "worst_slice_ratio"):
            if precision in named_precisions(recipe) and getattr(limits, field) is not None:
                path = ("accuracy", "limits", precision, field)
                yield at_key(path, f"{precision}: '{field}' needs accuracy.metric", "e.g. metric: top1", _METRIC)


def _slices_need_a_metric(recipe: Recipe) -> Iterator[Finding]:
    evaluation, metric = recipe.data.evaluation, recipe.accuracy.metric
    if evaluation.slices is not None and metric is None:
        message = "slices need accuracy.metric, which is computed on each"
        yield at_key(("data", "evaluation", "slices"), message, "e.g. metric: top1", _METRIC)
    for precision, limits in recipe.accuracy.limits.items():
        if limits.worst_slice_ratio is not None and evaluation.slices is None:
            path, hint = ("accuracy", "limits", precision, "worst_slice_ratio"), "data: {evaluation: {slices: NAME}}"
            yield at_key(path, "worst_slice_ratio: data.evaluation names no slices", hint)


def _metric_has_labels(recipe: Recipe) -> Iterator[Finding]:
    metric = recipe.accuracy.metric
    if metric is None or recipe.data.evaluation.labels is not None or metric_name(metric) in WITHOUT_LABELS:
        return
    if recipe.model.decoder is not None:  # the next tokens are its labels
        return
    message = f"the metric '{metric_name(metric)}' needs labels, and data.evaluation names none"
    yield at_value(("accuracy", "metric"), message, "data: {evaluation: {labels: NAME}}")


def _metric_limits_are_in_order(recipe: Recipe) -> Iterator[Finding]:
    for precision, limits in recipe.accuracy.limits.items():
        if limits.metric_between is not None and limits.metric_between[0] > limits.metric_between[1]:
            message = f"metric_between: {list(limits.metric_between)} is upside down"
            yield at_value(("accuracy", "limits", precision, "metric_between"), message, "write [low, high]")


def _ranges_fit_their_types(recipe: Recipe) -> Iterator[Finding]:
    for name, declared in recipe.inputs.items():
        if declared.range is None:
            continue
        low, high = declared.range
        path, about = ("inputs", name, "range"), ("inputs", name)
        what = f"input '{name}': range [{low:g}, {high:g}]"
        if low > high:
            yield at_value(path, f"{what} is upside down", "write [least, largest]", about)
        if declared.dtype == "bool":
            yield at_value(path, f"{what}: a bool has no range", "remove it: both values are tried", about)
        elif declared.dtype in INTEGER_RANGES:
            least, largest = INTEGER_RANGES[declared.dtype]
            if low != int(low) or high != int(high) or low < least or high > largest:
                hint = f"whole numbers, {least} to {largest}"
                yield at_value(path, f"{what} does not fit {declared.dtype}", hint, about)
        elif max(-low, high) > FLOAT_LIMITS[declared.dtype]:
            limit = FLOAT_LIMITS[declared.dtype]
            hint = f"values from {-limit:g} to {limit:g}"
            yield at_value(path, f"{what} does not fit {declared.dtype}", hint, about)


def _tensors_can_exist(recipe: Recipe) -> Iterator[Finding]:
    """Check the size of inputs and outputs at every profile's largest shape; an output's own dimensions count as 1."""
    if not _profiles_can_be_asked(recipe):
        return
    tensors = [(("inputs", name), spec.shape, ITEM_BYTES[spec.dtype]) for name, spec in recipe.inputs.items()]
    tensors += [(("outputs", name), shape, 1) for name, shape in recipe.outputs.items()]
    for path, shape, item_bytes in tensors:
        for profile, triples in (recipe.shapes or {"": {}}).items():
            largest = {dim: triple[2] for dim, triple in triples.items()}
            size = item_bytes * prod(largest.get(d, 1) if isinstance(d, str) else d for d in shape)
            if size > LARGEST_TENSOR_BYTES:
                where = ("shapes", profile) if largest.keys() & set(shape) else path
                what = f"{path[0][:-1]} '{path[1]}' would have at least {min(size >> 40, MOST_TIB):,} TiB"
                at = f" at the largest shape of profile '{profile}'" if profile else ""
                yield at_key(where, what + at, "make its dimensions smaller", path)


MOST_TIB = 1_000_000
"""What a message says at most of a tensor's size, whose number may have hundreds of digits."""

FLOAT_LIMITS = {"float16": 65504.0, "float32": 3.4028234663852886e38, "float64": 8.9e307}
"""Largest absolute value of a range. For float64 a half, so that the difference of both ends is finite too."""

ITEM_BYTES = {
    "float64": 8, "int64": 8, "float32": 4, "int32": 4, "float16": 2, "int8": 1, "uint8": 1, "bool": 1,
}  # fmt: skip

INTEGER_RANGES = {
    "int64": (-(2**63), 2**63 - 1), "int32": (-(2**31), 2**31 - 1), "int8": (-128, 127), "uint8": (0, 255),
}  # fmt: skip


def _names_are_known(recipe: Recipe) -> Iterator[Finding]:
    dims = dynamic_dims(recipe)
    if recipe.batch is not None and recipe.batch not in dims:
        yield at_value(("batch",), f"no input has a dimension '{recipe.batch}'", did_you_mean(recipe.batch, dims))
    output = recipe.accuracy.output
    if output is not None and output not in recipe.outputs:
        hint = did_you_mean(output, recipe.outputs)
        yield at_value(("accuracy", "output"), f"no output '{output}'", hint, ("outputs", output))
    for part in ("calibration", "evaluation"):
        samples = getattr(recipe.data, part)
        for name in samples.names if samples else ():
            if name not in recipe.inputs:
                message = f"the model has no input '{name}'"
                path = ("data", part, "names", name)
                yield at_key(path, message, did_you_mean(name, recipe.inputs), about=("inputs", name))


def _regressions_have_something_to_compare(recipe: Recipe) -> Iterator[Finding]:
    regression = recipe.performance.regression
    if regression is None:
        return
    path = ("performance", "regression")
    if regression.latency is None and regression.accuracy is None:
        yield at_key(path, "performance.regression sets no limit", "e.g. {latency: 5%}")
    if regression.latency is not None and not recipe.performance.at:
        hint = "e.g. performance.at: {single: {batch: 1}}"
        yield at_key((*path, "latency"), "regression.latency needs named shapes", hint)
    if regression.accuracy is not None and recipe.accuracy.metric is None:
        yield at_key((*path, "accuracy"), "regression.accuracy needs accuracy.metric", "e.g. metric: top1", _METRIC)


_CHECKS: tuple[Callable[[Recipe], Iterator[Finding]], ...] = (
    _source_is_one,
    _samples_are_of_one_kind,
    _lists_have_no_twins,
    _profiles_are_whole,
    check_decoder,
    _named_shapes_fit,
    _budgets_have_shapes,
    _sweep_fits,
    *PRECISION_CHECKS,
    _averaging_has_its_method,
    _every_precision_has_limits,
    _metric_limits_have_a_metric,
    _slices_need_a_metric,
    _metric_has_labels,
    _metric_limits_are_in_order,
    _ranges_fit_their_types,
    _tensors_can_exist,
    _names_are_known,
    _regressions_have_something_to_compare,
    batching_fits,
    load_is_given,
    waivers_name_something,
    aliases_differ,
)
