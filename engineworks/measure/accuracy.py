"""Distance of an engine's outputs from the reference, accumulated run by run. Pure.

Formulas, over all elements of an output (r: reference, e: engine), in float64:

    max_abs  = max |e - r|            mean_abs = mean |e - r|
    cosine   = Σ e·r / (‖e‖ ‖r‖)      (Salton & McGill 1983; 1.0 where both are all zero or empty, 0.0 where one is
                                       all zero, NaN where values are finite on one side only)
    sqnr_db  = 10 log10(Σ r² / Σ (e - r)²)   (signal-to-quantization-noise ratio: Oppenheim & Schafer,
                                              Discrete-Time Signal Processing, 4.8.3; None where the outputs are equal)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from engineworks.host.lazy import Array, NDArray, np
from engineworks.measure.statistics import finite
from engineworks.typed_json import Cosine, Count, Document, Size


@dataclass(frozen=True)
class Misshapen(Document):
    """Runs at which an output has another shape than the reference's: the first, why, how many, and of how many."""

    run: Count
    why: str
    runs: Count
    of: Count


@dataclass(frozen=True)
class OutputAccuracy(Document):
    """One output over all samples. Figures that are no number are None.

    nonfinite: number of elements that are NaN or Inf on one side only. The differences cover the other elements; cosine
    and sqnr_db are then None. dtypes: the engine's and the reference's, where they differ.
    """

    max_abs: Size | None
    mean_abs: Size | None
    cosine: Cosine | None
    sqnr_db: float | None
    nonfinite: Count
    elements: Count
    worst_row: Count
    worst_row_cosine: Cosine | None
    dtypes: tuple[str, str] | None = None
    misshapen: Misshapen | None = None

    @property
    def noise(self) -> float:
        """Σ(e - r)² / Σr² = 10^(-SQNR / 10), inf if values became NaN or infinite."""
        if self.nonfinite or self.max_abs is None:
            return math.inf
        if self.sqnr_db is None:  # equal, or a reference of zeros
            return 0.0 if not self.max_abs else math.inf
        return float(10 ** (-self.sqnr_db / 10))


class OutputComparison:
    """Accumulates one output; memory does not grow with the number of samples."""

    def __init__(self, batch_axis: int | None) -> None:
        self._axis = batch_axis
        self._elements = self._skipped = self._nonfinite = self._rows = 0
        self._max = self._sum_abs = self._noise = self._dot = self._ee = self._rr = 0.0
        self._worst_row, self._worst_cosine = 0, math.inf

    def add(self, engine: Array, reference: Array) -> None:
        """Add one run: engine and reference, any numeric dtype, same shape. Raises ValueError if the shapes differ."""
        if engine.shape != reference.shape:
            raise ValueError(f"the output has shape {list(engine.shape)}, the reference {list(reference.shape)}")
        e, r = engine.astype(np.float64), reference.astype(np.float64)
        good = np.isfinite(e) & np.isfinite(r)
        same_nonfinite = ~good & ((e == r) | (np.isnan(e) & np.isnan(r)))
        self._nonfinite += int((~good & ~same_nonfinite).sum())
        e, r = np.where(good, e, 0.0), np.where(good, r, 0.0)
        difference = np.abs(e - r)
        self._elements += int(good.sum())
        self._skipped += int((~good).sum())
        self._max = max(self._max, float(difference.max(initial=0.0)))
        self._sum_abs += float(difference.sum())
        self._noise += float(np.square(difference).sum())
        self._dot += float((e * r).sum())
        self._ee += float(np.square(e).sum())
        self._rr += float(np.square(r).sum())
        self._note_worst_row(e, r)

    def result(self) -> OutputAccuracy:
        known = not self._nonfinite and (self._elements > 0 or not self._skipped)
        ratio = self._rr / self._noise if known and self._noise > 0 else 0.0
        return OutputAccuracy(
            max_abs=finite(self._max),
            mean_abs=finite(self._sum_abs / max(1, self._elements)) if self._elements or not self._skipped else None,
            cosine=finite(cosine(self._dot, self._ee, self._rr)) if known else None,
            sqnr_db=10 * math.log10(ratio) if 0 < ratio < math.inf else None,
            nonfinite=self._nonfinite,
            elements=self._elements,
            worst_row=self._worst_row,
            worst_row_cosine=finite(self._worst_cosine),
        )

    def _note_worst_row(self, e: NDArray[np.float64], r: NDArray[np.float64]) -> None:
        """e, r: f64, equal shapes, rows along `self._axis`."""
        axis = 0 if self._axis is None or e.ndim == 0 else self._axis
        rows = e.shape[axis] if self._axis is not None and e.ndim else 1
        over = tuple(i for i in range(e.ndim) if i != axis) if self._axis is not None and e.ndim else None
        dots = np.atleast_1d((e * r).sum(axis=over))
        ees, rrs = np.atleast_1d(np.square(e).sum(axis=over)), np.atleast_1d(np.square(r).sum(axis=over))
        for row, (dot, ee, rr) in enumerate(zip(dots, ees, rrs, strict=True)):
            value = cosine(float(dot), float(ee), float(rr))
            if value < self._worst_cosine:
                self._worst_row, self._worst_cosine = self._rows + row, value
        self._rows += rows


def cosine(dot: float, ee: float, rr: float) -> float:
    """Cosine from the sums Σer, Σee, Σrr, within [-1, 1]; NaN if a sum is not finite."""
    if not (math.isfinite(dot) and math.isfinite(ee) and math.isfinite(rr)):
        return math.nan
    if ee == 0.0 or rr == 0.0:
        return 1.0 if ee == rr else 0.0
    return max(-1.0, min(1.0, dot / math.sqrt(ee) / math.sqrt(rr)))
