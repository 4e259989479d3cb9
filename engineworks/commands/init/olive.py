"""An Olive workflow (JSON or YAML) → requests for a recipe: its model, the precisions of its passes, its accuracy goal.

Keys and pass names as in Microsoft Olive's documentation (input_model, systems, data_configs, evaluators, passes), in
the flat form of 0.6 and later and the nested `config` of earlier files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from engineworks.commands.init.draft import InitOptions
from engineworks.errors import InputError
from engineworks.recipe.yaml_nodes import read_yaml

PASSES: Mapping[str, tuple[str, ...]] = {
    "onnxfloattofloat16": ("fp16",), "ortmixedprecision": ("fp16",), "onnxstaticquantization": ("int8",),
    "onnxquantization": ("int8",), "onnxquantizationpreprocess": (), "onnxdynamicquantization": ("int8_weights",),
    "onnxmatmul4quantizer": ("int4_weights",), "onnxblockwisertnquantization": ("int4_weights",),
    "nvmodeloptquantization": ("int4_weights",), "incstaticquantization": ("int8",),
    "incdynamicquantization": ("int8_weights",), "vitisaiquantization": ("int8",), "onnxconversion": (),
    "onnxpeepholeoptimizer": (), "onnxmodeloptimizer": (), "graphsurgeries": (), "optimumconversion": (),
}  # fmt: skip
"""Passes with a counterpart, by lower-case type: the precisions they give; () is export and folding."""

_KNOWN = frozenset({"input_model", "passes", "evaluators", "evaluator", "data_configs"})
_NEEDLESS: Mapping[str, str] = {
    "cache_dir": "results are kept in the store by their fingerprints", "output_dir": "engines lie in the store",
    "output_name": "engines are named recipe/precision/target", "clean_cache": "nothing stale is ever a hit",
    "log_severity_level": "build -v", "search_strategy": "every precision is built and evaluated",
    "evaluate_input_model": "the fp32 reference is always run", "engine": "order and places are the flow's affair",
    "host": "where jobs run is the pool's affair: _targets.yaml",
}  # fmt: skip


def read_olive(path: Path) -> InitOptions:
    """Translate the file. Raises `InputError` if it cannot be read, or has no `input_model` with a path."""
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    document = read_yaml(path, str(path)).plain()  # JSON is YAML
    if not isinstance(document, dict) or not isinstance(document.get("input_model"), dict):
        raise InputError(f"{path}: is no Olive workflow: it has no 'input_model'")
    model = _flat(document["input_model"])
    dropped: list[str] = []
    kept = [f"translated from the Olive file {path.name}"]
    named = _model_path(path, model, dropped)
    precisions = _precisions(document.get("passes"), kept, dropped)
    delta = _metric_delta(document, kept, dropped)
    dropped += list(_unknown(document))
    return InitOptions(
        model=named, task=model.get("task"), precisions=precisions, metric_delta=delta,
        kept=tuple(kept), dropped=tuple(dropped),
    )  # fmt: skip


def _flat(part: Mapping[str, Any]) -> dict[str, Any]:
    inner = part.get("config")
    return {**part, **inner} if isinstance(inner, dict) else dict(part)


def _model_path(path: Path, model: Mapping[str, Any], dropped: list[str]) -> str:
    given = model.get("model_path") or model.get("hf_config", {}).get("model_name")
    kind = str(model.get("type", ""))
    if isinstance(given, dict):
        given = given.get("path") or given.get("name")
    if not isinstance(given, str) or not given:
        raise InputError(
            f"{path}: input_model names no model_path", hint="name the model: engineworks init MODEL --from-olive …"
        )
    if kind.lower().startswith("pytorch"):
        dropped.append(f"input_model of type {kind}: write model.source.torch: module:factory for a PyTorch model")
    for key in ("io_config", "dummy_inputs_func", "model_script", "model_loader"):
        if key in model:
            dropped.append(f"input_model.{key}: inputs and outputs are read from the model itself")
    relative = path.parent / given
    return str(relative) if relative.exists() else given


def _precisions(passes: object, kept: list[str], dropped: list[str]) -> tuple[str, ...]:
    """Return fp32 and the precisions that the passes make; () if no pass makes any, so that the model decides."""
    precisions: list[str] = []
    for name, details in _each(passes):
        kind = str(details.get("type", name))
        made = PASSES.get(kind.lower())
        if made is None:
            dropped.append(f"pass {name} ({kind}): has no counterpart")
            continue
        kept.append(f"pass {name} ({kind}): {', '.join(made) or 'done by export and fold'}")
        precisions += [p for p in made if p not in precisions]
        settings = sorted(set(_flat(details)) - {"type", "config", "data_config"})
        if settings and made:
            dropped.append(f"pass {name}: its settings {', '.join(settings)}; see calibration and mixtures")
    return ("fp32", *precisions) if precisions else ()


def _each(passes: object) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield passes by name; newer files may have a list of alternatives under one name."""
    for name, value in passes.items() if isinstance(passes, dict) else ():
        for alternative in value if isinstance(value, list) else [value]:
            if isinstance(alternative, dict):
                yield str(name), alternative


def _metric_delta(document: Mapping[str, Any], kept: list[str], dropped: list[str]) -> float | None:
    """Return the maximum loss of an accuracy metric, if a goal is a 'max-degradation'."""
    delta: float | None = None
    evaluators = document.get("evaluators")
    for name, evaluator in evaluators.items() if isinstance(evaluators, dict) else ():
        for metric in evaluator.get("metrics", ()) if isinstance(evaluator, dict) else ():
            kind = str(metric.get("type"))
            for sub in metric.get("sub_types", ()):
                goal = sub.get("goal") or {}
                label = f"{name}: {kind} {sub.get('name')}"
                if kind == "accuracy" and goal.get("type") == "max-degradation" and delta is None:
                    delta = float(goal["value"])
                    kept.append(f"{label}: metric_delta {delta:g}, once data.evaluation has labels")
                elif goal:
                    dropped.append(f"goal of {label} ({goal.get('type')}): write a limit or a budget")
    return delta


def _unknown(document: Mapping[str, Any]) -> Iterator[str]:
    for key in document:
        if key in _NEEDLESS:
            yield f"{key}: not needed, {_NEEDLESS[key]}"
        elif key == "systems" or key == "target":
            yield f"{key}: say targets, which _targets.yaml describes"
        elif key not in _KNOWN:
            yield f"{key}: has no place in a recipe"
    if document.get("data_configs"):
        yield "data_configs: write the samples into an .npz and name it under data"
