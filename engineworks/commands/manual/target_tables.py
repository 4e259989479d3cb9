"""The generated part of docs/targets.md: keys of a target, options of every backend, capabilities of each version."""

from __future__ import annotations

from collections.abc import Iterator

from engineworks.commands.manual.schema_tables import key_rows, markdown_table
from engineworks.engines.backends import BACKENDS, backend
from engineworks.engines.capabilities import (
    CAPABILITIES,
    END,
    PRECISIONS,
    REFUSALS,
    Refusal,
    Version,
    why_not,
    why_not_target,
)
from engineworks.recipe.targets import Target

_TYPES = {int: "whole number", bool: "`true` · `false`", str: "text"}


def target_tables() -> str:
    """Return everything between the markers of docs/targets.md."""
    return "\n".join((*_keys(), *_options(), *_capabilities(), *_messages()))


def _keys() -> Iterator[str]:
    rows = (row[:4] for row in key_rows(Target.model_json_schema(), {}))
    yield f"## The keys of a target\n\n{markdown_table(('key', 'type', 'default', 'meaning'), rows)}\n"


def _options() -> Iterator[str]:
    yield "## The options of each backend\n"
    for name in BACKENDS:
        module = backend(name)
        rows = (
            (f"`{key}`", " · ".join(f"`{w}`" for w in option.choices) or _TYPES[option.type], option.help)
            for key, option in module.OPTIONS.items()
        )
        yield f"### `{name}`: {module.TITLE}\n"
        yield f"{markdown_table(('option', 'type', 'meaning'), rows)}\n" if module.OPTIONS else "None.\n"


def _capabilities() -> Iterator[str]:
    yield "## What each version builds\n"
    yield (
        "From `engineworks/engines/capabilities.py`, for a model of which nothing is known yet but that it may have "
        "matrix products.\n"
        "TensorRT-RTX: every cell was built on a host without a GPU. TensorRT: the vendor's support matrix, "
        "not tried\nhere. ONNX Runtime: built and run on the CPU. What some operators meet besides stands below.\n"
    )
    for name, row in CAPABILITIES.items():
        for version in row.tried:
            capabilities = _named(name, version)
            rows = _rows(name, version, capabilities)
            head = ("precision", *(capabilities or ("cpu",)))
            yield f"### {row.title} {version}\n\n{markdown_table(head, rows)}\n"


def _rows(name: str, version: str, capabilities: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    for precision in PRECISIONS:
        cells = (why_not(name, version, precision, (c,) if c else ()) for c in (capabilities or ("",)))
        yield (f"`{precision}`", *("no" if cell else "yes" for cell in cells))


def _named(name: str, version: str) -> tuple[str, ...]:
    named = CAPABILITIES[name].named_by(version)
    return tuple(c for c in (named.capabilities if named else ()) if why_not_target(name, version, (c,)) is None)


def _messages() -> Iterator[str]:
    yield "## Refusals, as `plan` says them\n"
    rows = (
        (
            CAPABILITIES[r.backend].title,
            _between(r.since, r.until),
            refused,
            _models_with(r),
            r.echo("N", "P", "C", "O (node 'n')"),
        )
        for r in REFUSALS
        for row in [CAPABILITIES[r.backend]]
        for refused in [", ".join(f"`{p}`" for p in r.precisions) or "all"]
    )
    head = ("backend", "versions", "precisions", "of models with", "reason")
    yield markdown_table(head, rows) + "\n"


def _models_with(refusal: Refusal) -> str:
    """Return what a model must have for the refusal to apply: 'LSTM: sequence lens'."""
    uses = ", ".join(use.replace(":", ": ").replace("_", " ") for use in refusal.operators)
    return uses or ("an operator that its parser lacks" if refusal.but else "any")


def _between(since: Version, until: Version) -> str:
    shown = ".".join(map(str, since))
    return f"{shown} and later" if until == END else f"{shown} until before {'.'.join(map(str, until))}"
