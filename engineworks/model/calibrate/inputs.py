"""Statistics of the samples themselves, by input and in constant memory, and how two sets differ.

All values of an input count together, whatever their place. That shows black images, a forgotten scaling or other
lengths of padding, but not shuffled pixels.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engineworks.errors import SamplesError
from engineworks.host.lazy import np
from engineworks.typed_json import Document

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Batch = Mapping[str, NDArray[Any]]

DRAWN = 1024
"""Approximate number of values kept of each input, evenly from all samples: the empirical distribution."""

MIN_DISTANCE = 0.2
"""Minimum Kolmogorov-Smirnov distance for a warning, however many samples there are."""

MIN_DISTANCE_OF_INTEGERS = 0.35
"""The same for integers: most are token ids, which have no order and differ from text to text."""

SAMPLES_TO_COMPARE_SCALES = 8
"""With fewer samples, mean and deviation depend too much on the single sample."""

KS_ALPHA = 0.001
"""Chance of a warning about two sets of one origin, if the values of one sample counted as one value."""


@dataclass(frozen=True)
class InputStatistics(Document):
    """One input over all samples. mean, std: of all finite values; nonfinite: how many were NaN or infinite.

    drawn: some of the values, sorted. samples: how many samples they come from.
    """

    dtype: str
    samples: int
    minimum: float
    maximum: float
    mean: float
    std: float
    nonfinite: int
    drawn: tuple[float, ...] = ()

    @property
    def constant(self) -> bool:
        """Whether the samples hold one value only."""
        return self.minimum == self.maximum and not self.nonfinite

    @property
    def floating(self) -> bool:
        return self.dtype.startswith(("float", "bfloat"))


class InputWatch:
    """Observes the batches that pass through `watch` for their `statistics`.

    axes: where each input has its samples, None where a batch is one sample of it. samples: the expected number.
    refuse: the name of the data in the error if NaN and infinity are errors, else None.
    """

    def __init__(self, axes: Mapping[str, int | None], samples: int, *, refuse: str | None = None) -> None:
        self._axes, self._refuse = axes, refuse
        self._moments = {name: _Moments(samples) for name in axes}
        self._first: dict[str, NDArray[Any]] = {}
        self._rows = 0
        self.repeated = True

    def watch(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield the same batches, arrays of any shape and dtype by input name. Raises `SamplesError` for the first
        value that is not finite, if `refuse` is set."""
        for batch in batches:
            rows = {
                name: self._by_sample(name, np.asarray(value)) for name, value in batch.items() if name in self._axes
            }
            for name, values in rows.items():
                nonfinite = self._moments[name].add(values)
                if nonfinite and self._refuse:
                    raise self._not_finite(name, values)
                first = self._first.setdefault(name, values[:1].copy())
                same = values.shape[1:] == first.shape[1:] and bool((values == first).all())
                self.repeated = self.repeated and same
            self._rows += max((len(values) for values in rows.values()), default=0)
            yield batch

    def statistics(self) -> dict[str, InputStatistics]:
        """Return statistics by input, in the order of the model, without inputs that had no value."""
        return {name: moments.statistics() for name, moments in self._moments.items() if moments.samples}

    def _by_sample(self, name: str, array: NDArray[Any]) -> NDArray[Any]:
        """Return the array as [samples, values] in its dtype; a view where the samples come first."""
        axis = self._axes[name]
        first = array[None] if axis is None else np.moveaxis(array, axis, 0)
        return first.reshape(len(first), -1) if len(first) else first.reshape(0, 0)

    def _not_finite(self, name: str, values: NDArray[Any]) -> SamplesError:
        row = int(np.flatnonzero(~np.isfinite(values).all(axis=1))[0])
        what = "NaN" if np.isnan(values[row]).any() else "infinity"
        return SamplesError(
            f"{self._refuse} holds {what}: input '{name}', sample {self._rows + row}",
            hint="check how the file is written: its preprocessing, or a division by a standard deviation of 0",
        )


class _Moments:
    """Count, extremes, mean and variance of values that come in pieces.

    Merges pieces as in T. F. Chan, G. H. Golub, R. J. LeVeque, "Updating formulae and a pairwise algorithm for
    computing sample variances" (1979): M2 = M2a + M2b + d² na nb / n.
    """

    def __init__(self, expected: int) -> None:
        self._every = max(1, expected // DRAWN)
        self._per_sample = max(1, DRAWN // max(1, expected))
        self._random = np.random.default_rng(0)
        self.samples = self._count = self._nonfinite = 0
        self._minimum, self._maximum = math.inf, -math.inf
        self._mean = self._m2 = 0.0
        self._dtype = ""
        self._drawn: list[NDArray[np.float64]] = []

    def add(self, values: NDArray[Any]) -> int:
        """Take in [samples, values] of any numeric dtype; returns how many of them are not finite."""
        if not values.size:
            return 0
        self._dtype = self._dtype or values.dtype.name
        self._draw(values)
        self.samples += len(values)
        finite, lost = values, 0
        if values.dtype.kind == "f" and not np.isfinite(values.sum(dtype=np.float64)):
            finite = values[np.isfinite(values)]
            lost = values.size - finite.size
        self._nonfinite += lost
        if finite.size:
            self._merge(finite)
        return lost

    def _merge(self, values: NDArray[Any]) -> None:
        self._minimum = min(self._minimum, float(values.min()))
        self._maximum = max(self._maximum, float(values.max()))
        mean = float(values.mean(dtype=np.float64))
        m2 = float(values.var(dtype=np.float64)) * values.size
        total, delta = self._count + values.size, mean - self._mean
        self._m2 += m2 + delta * delta * self._count * values.size / total
        self._mean += delta * values.size / total
        self._count = total

    def _draw(self, values: NDArray[Any]) -> None:
        """Draw some values, [samples, values], of every sample (of some samples, if there are many), at places that are
        not on a grid."""
        skip = -self.samples % self._every
        for row in values[skip :: self._every]:
            places = self._random.integers(0, row.size, self._per_sample)
            self._drawn.append(row[places].astype(np.float64))

    def statistics(self) -> InputStatistics:
        drawn = np.concatenate(self._drawn) if self._drawn else np.empty(0)
        kept = np.sort(drawn[np.isfinite(drawn)])
        std = math.sqrt(self._m2 / self._count) if self._count else 0.0
        low, high = (self._minimum, self._maximum) if self._count else (0.0, 0.0)
        shown = tuple(float(f"{v:.7g}") for v in kept)
        return InputStatistics(self._dtype, self.samples, low, high, self._mean, std, self._nonfinite, shown)


def drift(calibration: Mapping[str, InputStatistics], evaluation: Mapping[str, InputStatistics]) -> tuple[str, ...]:
    """Return one warning for each input whose values differ between the two sets of samples."""
    messages = []
    for name, before in calibration.items():
        now = evaluation.get(name)
        if now is None or not (before.drawn and now.drawn):
            continue
        distance = ks_distance(before.drawn, now.drawn)
        least = MIN_DISTANCE if before.floating else MIN_DISTANCE_OF_INTEGERS
        if distance > max(least, ks_critical(before.samples, now.samples)) or _scaled(before, now):
            messages.append(
                f"input '{name}' differs between calibration and evaluation data: mean {before.mean:.4g} against "
                f"{now.mean:.4g}, standard deviation {before.std:.4g} against {now.std:.4g}, range "
                f"[{before.minimum:.4g}, {before.maximum:.4g}] against [{now.minimum:.4g}, {now.maximum:.4g}] "
                f"(Kolmogorov-Smirnov distance {distance:.2f}); are both preprocessed in the same way?"
            )
    return tuple(messages)


def _scaled(before: InputStatistics, now: InputStatistics) -> bool:
    """Return whether one set is twice as wide as the other, or its mean lies outside.

    A forgotten scaling around zero moves the distribution functions apart by less than a half.
    """
    if not before.floating or min(before.samples, now.samples) < SAMPLES_TO_COMPARE_SCALES:
        return False
    narrow, wide = sorted((before.std, now.std))
    return wide > 2 * narrow or abs(before.mean - now.mean) > wide


def ks_distance(values: Iterable[float], others: Iterable[float]) -> float:
    """Return the largest distance, in 0 … 1, of the two empirical distribution functions.

    D = sup |F1(x) - F2(x)|, as `scipy.stats.ks_2samp` computes it (both sets sorted, both searched for all values).
    """
    first, second = sorted(values), sorted(others)
    return max(
        abs(bisect_right(first, x) / len(first) - bisect_right(second, x) / len(second)) for x in (*first, *second)
    )


def ks_critical(samples: int, others: int, alpha: float = KS_ALPHA) -> float:
    """Return the distance that n = `samples` and m = `others` independent values of one distribution exceed with
    probability `alpha`.

    It is sqrt(-ln(alpha / 2) / 2 · (n + m) / (n m)), the asymptotic form (N. Smirnov, 1948; D. E. Knuth, The Art of
    Computer Programming, 3.3.1). Values of one sample depend on each other, so n and m are counts of samples.
    """
    return math.sqrt(-math.log(alpha / 2) / 2 * (samples + others) / (samples * others))
