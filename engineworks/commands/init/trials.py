"""Tries guessed lengths on the model, by ONNX Runtime on the CPU in a child process: only lengths that ran are written.

Declared shapes do not show all limits: a position table ends at 512, a U-Net takes multiples of 32, a Reshape holds the
batch of the export. A run shows them.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

from engineworks.commands.init.draft import Range
from engineworks.commands.init.guesses import Candidates
from engineworks.commands.init.values import feeds
from engineworks.errors import RunError
from engineworks.host.lazy import np, ort
from engineworks.model.ort import exact_options
from engineworks.recipe.samples import SampleFile, open_samples
from engineworks.tensors import TensorSpec, spec_from_json

SECONDS = 40.0
"""Time limit for all trials of a model; then the rest keeps the results so far."""

TIME_LIMIT_S = 180.0
LARGEST_VALUES = 1 << 22
"""Maximum number of values of all inputs of one trial run."""

MOST_SETTINGS = 40

Lengths = dict[str, int]


@dataclass(frozen=True)
class Trials:
    """triples: by dimension, what ran; {} if nothing did, and then `error` is the first run's. observed: lengths
    and outputs' shapes of the runs. runs, seconds: the cost."""

    triples: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)
    observed: tuple[tuple[Lengths, dict[str, list[int]]], ...] = ()
    error: str = ""
    runs: int = 0
    seconds: float = 0.0


def try_lengths(
    model: Path,
    specs: Sequence[TensorSpec],
    ranges: Mapping[str, Range],
    wanted: Mapping[str, Candidates],
    sums: Mapping[str, Sequence[str]],
) -> Trials:
    """Find lengths of the dimensions at which the model runs. Raises `StepError` if the child crashes."""
    from engineworks.host.child import run_in_child

    payload = {
        "model": str(model), "specs": [s.to_json() for s in specs],
        "ranges": {name: list(r) for name, r in ranges.items()},
        "wanted": {d: [list(c.least), list(c.opt), list(c.largest)] for d, c in wanted.items()},
        "sums": {name: list(parts) for name, parts in sums.items()},
    }  # fmt: skip
    result = run_in_child(
        "engineworks.commands.init.trials:main", payload, time_limit_s=TIME_LIMIT_S, what=f"trying {model.name}",
        error=RunError,
    )  # fmt: skip
    triples = {d: (t[0], t[1], t[2]) for d, t in result["triples"].items()}
    observed = tuple((lengths, shapes) for lengths, shapes in result["seen"])
    return Trials(triples, observed, result["error"], result["runs"], result["seconds"])


def count_not_finite(model: Path, data: SampleFile, rows: int) -> dict[str, int]:
    """Count values of each output that are NaN or infinite when the model runs on the samples, `rows` at a time.

    Omits outputs without any. Raises `StepError` if it does not run.
    """
    from engineworks.host.child import run_in_child

    payload = {
        "model": str(model), "data": str(data.path), "specs": [s.to_json() for s in data.specs], "rows": rows,
    }  # fmt: skip
    made = run_in_child(
        "engineworks.commands.init.trials:run_samples", payload, time_limit_s=TIME_LIMIT_S,
        what=f"running {model.name}", error=RunError,
    )  # fmt: skip
    return {str(name): int(count) for name, count in made["not_finite"].items()}


def run_samples(payload: Mapping[str, Any]) -> dict[str, Any]:
    """Run the model on samples: entry point of the child process."""
    specs = [spec_from_json(s) for s in payload["specs"]]
    started, not_finite = time.monotonic(), dict[str, int]()
    try:
        session = _session(payload["model"])
        names = [o.name for o in session.get_outputs()]
        for feeds_ in open_samples(Path(payload["data"]), specs, {}, samples=None, labels=None).batches(
            [payload["rows"]]
        ):
            for name, value in zip(names, session.run(names, dict(feeds_)), strict=True):
                floating = isinstance(value, np.ndarray) and np.issubdtype(value.dtype, np.floating)
                if floating and (count := int(value.size - np.isfinite(value).sum())):
                    not_finite[name] = not_finite.get(name, 0) + count
            if time.monotonic() - started > SECONDS:
                break
    except Exception as error:  # noqa: BLE001 - ONNX Runtime raises what it likes; the user reads it
        raise RunError(_first_line(error)) from None
    return {"not_finite": not_finite}


def _session(model: str) -> Any:
    options = exact_options()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    ort.set_default_logger_severity(4)
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def main(payload: Mapping[str, Any]) -> dict[str, Any]:
    """Search for lengths: entry point of the child process."""
    try:
        session = _session(payload["model"])
    except Exception as error:  # noqa: BLE001 - ONNX Runtime raises what it likes; the user reads it
        return {"triples": {}, "seen": [], "error": _first_line(error), "runs": 0, "seconds": 0.0}
    specs = [spec_from_json(s) for s in payload["specs"]]
    ranges = {name: (r[0], r[1]) for name, r in payload["ranges"].items()}
    search = _Search(session, specs, ranges, payload["sums"])
    wanted = {d: Candidates(*(tuple(x) for x in c)) for d, c in payload["wanted"].items()}
    return search.find(wanted)


class _Search:
    """Finds any lengths that run, then larger and smaller ones for each dimension, then all together."""

    def __init__(
        self, session: Any, specs: Sequence[TensorSpec], ranges: Mapping[str, Range], sums: Mapping[str, Sequence[str]]
    ) -> None:
        self._session, self._specs, self._ranges, self._sums = session, specs, ranges, sums
        self._outputs = [o.name for o in session.get_outputs()]
        self._seen: list[tuple[Lengths, dict[str, list[int]]]] = []
        self._error, self._runs, self._start = "", 0, time.monotonic()
        self._fixed: set[str] = set()

    def find(self, wanted: Mapping[str, Candidates]) -> dict[str, Any]:
        self._fixed = {d for d, c in wanted.items() if len(c.least) == len(c.opt) == len(c.largest) == 1}
        free = {d: c for d, c in wanted.items() if d not in self._sums}
        base = self._base(free)
        triples: dict[str, list[int]] = {}
        if base is not None:
            top, bottom = dict(base), dict(base)
            for dim, tried in free.items():
                top[dim] = self._furthest(base, dim, [n for n in tried.largest if n > base[dim]])
                bottom[dim] = self._furthest(base, dim, [n for n in tried.least if n < base[dim]])
            top, bottom = self._together(base, top), self._together(base, bottom)
            triples = {d: [bottom[d], base[d], top[d]] for d in free}
            low, opt, high = (self._complete(lengths) for lengths in (bottom, base, top))
            triples |= {d: [low[d], opt[d], high[d]] for d in self._sums}
        return {
            "triples": triples, "seen": self._seen, "error": "" if base is not None else self._error,
            "runs": self._runs, "seconds": time.monotonic() - self._start,
        }  # fmt: skip

    def _base(self, wanted: Mapping[str, Candidates]) -> Lengths | None:
        """Return the first setting that runs: candidates of all dimensions in step, then their combinations."""
        steps = max((len(c.opt) for c in wanted.values()), default=1)
        in_step = [{d: c.opt[min(i, len(c.opt) - 1)] for d, c in wanted.items()} for i in range(steps)]
        mixed = (dict(zip(wanted, lengths)) for lengths in product(*(c.opt for c in wanted.values())))
        for index, lengths in enumerate((*in_step, *mixed)):
            if index >= MOST_SETTINGS or self._late():
                break
            if self._runs_at(lengths):
                return self._usual(lengths, wanted)
        return None

    def _usual(self, base: Lengths, wanted: Mapping[str, Candidates]) -> Lengths:
        """Move each dimension back to its first candidate if that runs: the failure may be another's."""
        for dim, tried in wanted.items():
            usual = {**base, dim: tried.opt[0]}
            if usual != base and not self._late() and self._runs_at(usual):
                base = usual
        return base

    def _furthest(self, base: Lengths, dim: str, lengths: Sequence[int]) -> int:
        if lengths and dim in self._fixed and self._too_large({**base, dim: lengths[0]}):
            return lengths[0]
        return next((n for n in lengths if not self._late() and self._runs_at({**base, dim: n})), base[dim])

    def _together(self, base: Lengths, largest: Lengths) -> Lengths:
        """Return all of `largest` at once; if that does not run, half of the way, then the base itself.

        What the user stated stays if it is too large to be tried.
        """
        if all(n == base[d] or d in self._fixed for d, n in largest.items()) and self._too_large(largest):
            return largest
        halfway = {d: _round((base[d] + n) // 2) for d, n in largest.items()}
        for lengths in (largest, halfway):
            if lengths == base or (not self._late() and self._runs_at(lengths)):
                return lengths
        return base

    def _complete(self, lengths: Lengths) -> Lengths:
        return {**lengths, **{d: sum(lengths[p] for p in parts) for d, parts in self._sums.items()}}

    def _runs_at(self, lengths: Lengths) -> bool:
        bound = self._complete(lengths)
        if self._too_large(lengths):
            return False
        self._runs += 1
        try:
            made = self._session.run(self._outputs, feeds(self._specs, self._ranges, bound))
        except Exception as error:  # noqa: BLE001 - whatever ONNX Runtime says, the model does not take these lengths
            self._error = self._error or _first_line(error)
            return False
        self._seen.append((bound, {name: list(value.shape) for name, value in zip(self._outputs, made)}))
        return True

    def _too_large(self, lengths: Lengths) -> bool:
        bound = self._complete(lengths)
        return sum(prod(s.concrete(bound)) for s in self._specs) > LARGEST_VALUES

    def _late(self) -> bool:
        return time.monotonic() - self._start > SECONDS


def _round(length: int) -> int:
    """Round long lengths to multiples of 32, which people and strided models prefer."""
    return length // 32 * 32 if length >= 64 else length


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
