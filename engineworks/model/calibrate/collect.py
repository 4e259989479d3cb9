"""Calibration: run the folded fp32 model over samples and find the range that int8 is to cover in each tensor.

Memory does not grow with the number of samples: every activation is counted into a histogram and freed at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from engineworks.errors import SamplesError
from engineworks.model.calibrate.activations import Activation, Settings
from engineworks.model.calibrate.heap import settle_heap
from engineworks.model.calibrate.ranges import Method, Ranges
from engineworks.model.calibrate.reductions import open_reductions
from engineworks.model.calibrate.runtime import CPU_PROVIDER, Device, choose_providers
from engineworks.model.calibrate.sessions import open_segments
from engineworks.model.calibrate.tally import Tally
from engineworks.tensors import TensorSpec

Batch = Mapping[str, NDArray[Any]]

EARLY = 0.8
"""Share of the samples after which the ranges are looked at a first time: they should not move much any more."""

SAMPLED_BATCHES, SAMPLED_BATCHES_EVERY = 8, 16
"""A moving average samples values of so many batches, then of one in so many, to say how many its range clips: a
histogram costs as much as both extremes do."""


class Passes(Protocol):
    """Runs a model on one batch after the other and lets calibrators take in its tensors."""

    inputs: tuple[TensorSpec, ...]
    provider: str
    """ONNX Runtime's execution provider."""

    def run(self, feeds: Batch, seen: Mapping[str, Activation], *, look: bool) -> None:
        """One batch. look: whether a moving average samples it. Raises `SamplesError` if the names of `feeds` are not
        the model's inputs, `CalibrationError` with what ONNX Runtime says if the model does not run on them, and what
        a calibrator raises, if need be only at the next batch."""

    def finish(self) -> None:
        """Wait until all is taken in. Raises what a calibrator raised."""

    def close(self) -> None:
        """End what it started."""


def collect_ranges(
    model: Path,
    batches: Callable[[], Iterable[Batch]],
    tensors: Sequence[str],
    *,
    method: Method,
    percentile: float = 99.99,
    averaging: float | None = None,
    bins: int = 8192,
    threads: int = 0,
    device: Device = "auto",
    samples: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Ranges:
    """Ranges of `tensors` (activations or inputs of the ONNX file) over all `batches`, in one pass: no method needs
    more, because histograms grow with the values that they meet.

    batches: called once; each batch holds an array for every input of the model, shapes may differ from batch to
    batch. A batch counts as many samples as its first input that has axes is long in axis 0.
    percentile: of |x|, in per cent, for method "percentile". averaging: weight of a new batch for "moving_average",
    None for the mean over all batches. bins: of each histogram, a power of two; at least half of them lie below the
    largest magnitude. threads: of ONNX Runtime, 0 for one per core. device: where the model runs, "auto" for a GPU
    where ONNX Runtime has one; values are counted there, too. samples: how many there will be, so that the ranges
    after `EARLY` of them are noted. progress: called after each batch with the number of samples so far.
    Raises `SamplesError` for samples that do not fit the model or for none, `CalibrationError` for a tensor that the
    model does not have, that is no float or that holds NaN or infinity.
    """
    settings = Settings(method, percentile, averaging, bins)
    settings.check()
    settle_heap()
    seen = {name: Activation(name, settings) for name in tensors}
    with closing(_open(model, tensors, settings, threads, device)) as passes:
        sample_count, early = _run_all(passes, batches(), seen, samples, progress)
    if not sample_count:
        raise SamplesError("there are no calibration samples", hint="check the recipe's data.calibration")
    ranges = {name: activation.range(early.get(name)) for name, activation in seen.items() if not activation.empty}
    empty = tuple(name for name, activation in seen.items() if activation.empty)
    return Ranges(method, sample_count, ranges, settings.parameters, passes.provider, empty)


def _open(model: Path, tensors: Sequence[str], settings: Settings, threads: int, device: Device) -> Passes:
    """Where extremes are enough the graph finds them itself; other methods, and GPUs, are handed the tensors."""
    if not settings.counts_all and choose_providers(device) == [CPU_PROVIDER]:
        reduced = open_reductions(model, tensors, threads, settings.counted_bins, sample=settings.samples)
        if reduced:
            return reduced
    return Tally(open_segments(model, tensors, threads, device), settings)


def _run_all(
    passes: Passes,
    batches: Iterable[Batch],
    seen: Mapping[str, Activation],
    samples: int | None,
    progress: Callable[[int], None] | None,
) -> tuple[int, dict[str, float]]:
    """How many samples there were, and amax by tensor after `EARLY` of them (nothing if `samples` is not known)."""
    early: dict[str, float] = {}
    axis0 = next((spec.name for spec in passes.inputs if spec.shape), None)
    sample_count = 0
    for at, batch in enumerate(batches, 1):
        if samples and not early and EARLY * samples <= sample_count:
            passes.finish()
            early = {name: activation.amax for name, activation in seen.items()}
        feeds = {name: np.asarray(value) for name, value in batch.items()}
        passes.run(feeds, seen, look=at <= SAMPLED_BATCHES or at % SAMPLED_BATCHES_EVERY == 0)
        sample_count += len(feeds[axis0]) if axis0 else 1
        if progress:
            progress(sample_count)
    passes.finish()
    return sample_count, early
