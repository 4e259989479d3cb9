"""From a histogram of |x| to the magnitude that int8 covers: trades clipping against rounding."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from engineworks.model.calibrate.histograms import merge_bins

LEVELS = 128
"""Number of magnitudes that symmetric int8 distinguishes."""

ENTROPY_BINS = 2048
"""Bins of the search for the minimum divergence, as in TensorRT: finer ones follow the noise of few samples."""

MSE_CANDIDATES = 2048
"""Number of ranges that the search for the minimum squared error tries."""

MAX_CLIPPED = 1e-3
"""Maximum fraction of values that the search may clip. Divergence ignores how far a value moves. Where many values are
equal (a background, padding, zeros behind a bias) it would clip at that spike, a quarter of all values."""


def percentile_bin(counts: NDArray[np.int64], percentile: float) -> int:
    """Return the number of bins of `counts`, int64[bins], from 0 up, that hold at least `percentile`% of all values.

    It is 0 for an empty histogram.
    """
    total = int(counts.sum())
    if not total:
        return 0
    return int(np.searchsorted(np.cumsum(counts), total * (percentile / 100.0))) + 1


def entropy_bin(counts: NDArray[np.int64]) -> int:
    """Return the number of bins of `counts`, int64[bins], from 0 up, to which clipping loses the least information.

    For each i ≥ 128, P is the histogram's first i bins with everything beyond added to the last one. Q is the same bins
    spread evenly over 128 levels and, within a level, over the bins that are not empty. The i with the minimum
    Kullback-Leibler divergence of Q from P is chosen, the largest one of equals.

    After S. Migacz, "8-bit Inference with TensorRT", GTC 2017 (s7310), pages 38-40, with even levels and the bin of
    zeros levelled to its neighbour as in NVIDIA's pytorch-quantization, calib/histogram.py, `_compute_amax_entropy`;
    `MAX_CLIPPED` is added here.
    """
    factor = max(1, counts.size // ENTROPY_BINS)
    coarse = merge_bins(counts, factor)
    used = int(np.flatnonzero(coarse)[-1]) + 1 if coarse.any() else 0
    if used <= LEVELS:
        return used * factor
    bins = coarse[:used].astype(np.float64)
    bins[0] = bins[1]
    divergence = _divergences(bins)
    clipped = 1 - np.cumsum(coarse[:used]) / coarse.sum()
    divergence[clipped[LEVELS - 1 :] > MAX_CLIPPED] = np.inf
    best = np.flatnonzero(divergence <= divergence.min() + 1e-12)[-1]
    return (LEVELS + int(best)) * factor


def mse_bin(counts: NDArray[np.int64]) -> int:
    """Return the number of bins of `counts`, int64[bins], to which clipping and rounding to int8 has the minimum
    squared error.

    For each candidate a, every bin's centre x is quantized with the step s = a / 127 and E(a) = Σ counts (x - Q(x))².
    The a of the minimum E is chosen, the largest one of equals.

    As NVIDIA's pytorch-quantization and ModelOpt, calib/histogram.py, `_compute_amax_mse`, from bin 128 on. R. Banner
    et al., "Post training 4-bit quantization of convolutional networks for rapid-deployment" (arXiv:1810.05723),
    section 2, minimizes the same E in closed form. One pass over the data is enough: a bin is at most 1/16 of the step
    of a range from bin 512 on.
    """
    used = int(np.flatnonzero(counts)[-1]) + 1 if counts.any() else 0
    if used <= LEVELS:
        return used
    candidates = np.unique(np.append(np.arange(LEVELS, used, max(1, counts.size // MSE_CANDIDATES)), used))
    errors = _squared_errors(counts[:used], candidates)
    best = np.flatnonzero(errors <= errors.min() * (1 + 1e-12))[-1]
    return int(candidates[best])


def _squared_errors(counts: NDArray[np.int64], candidates: NDArray[np.intp]) -> NDArray[np.float64]:
    """Return E(a) in squared bins for each candidate, from running sums over the bins of each of its 128 levels.

    counts: int64[bins]; candidates: intp[n]; result: float64[n]. Level l holds the centres x with round(x / s) = l;
    there Σ c (x - l s)² = Σ c x² - 2 l s Σ c x + (l s)² Σ c.
    """
    weights = counts.astype(np.float64)
    centres = np.arange(counts.size) + 0.5
    moments = np.stack([_running_sum(weights * centres**power) for power in range(3)])
    step = candidates[:, None] / (LEVELS - 1)
    edges = np.ceil((np.arange(1, LEVELS) - 0.5) * step - 0.5).astype(np.intp)
    full = np.full((candidates.size, 1), counts.size)
    bounds = np.concatenate((np.zeros_like(full), np.minimum(edges, counts.size), full), axis=1)
    zeroth, first, second = np.diff(moments[:, bounds], axis=2)
    level = np.arange(LEVELS) * step
    errors: NDArray[np.float64] = (second - 2 * level * first + level**2 * zeroth).sum(axis=1)
    return np.maximum(errors, 0)  # rounding may leave zero errors slightly negative


def _divergences(bins: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return KL(P‖Q) in nats for each i from 128 to len(bins), all from running sums: 128 terms for each i instead of
    i.

    bins: float64[n]; result: float64[n - 127]. Within a level every non-empty bin has the same Q, so Σ P log Q over the
    level is its count times log Q.
    """
    lengths = np.arange(LEVELS, bins.size + 1)
    edges = lengths[:, None] * np.arange(LEVELS + 1) // LEVELS
    counts = np.diff(_running_sum(bins)[edges], axis=1)
    filled = np.diff(_running_sum(bins > 0)[edges], axis=1)
    log_q = _log(counts / np.maximum(filled, 1))
    kept = _running_sum(bins)[lengths]
    total = bins.sum()
    last, beyond = bins[lengths - 1], total - kept
    p_log_p = _running_sum(bins * _log(bins))[lengths - 1] + (last + beyond) * _log(last + beyond)
    p_log_q = (counts * log_q).sum(axis=1) + beyond * log_q[:, -1]
    divergence: NDArray[np.float64] = (p_log_p - p_log_q) / total + _log(kept) - np.log(total)
    divergence[(last == 0) & (beyond > 0)] = np.inf  # P has mass where Q has none
    return divergence


def _running_sum(values: NDArray[np.float64] | NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the sums of the first 0, 1, …, n values: float64[n + 1] of values [n]."""
    return np.concatenate(([0.0], np.cumsum(values, dtype=np.float64)))


def _log(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the natural logarithm, float64 of any shape, with log 0 = 0, for terms 0 · log 0."""
    return np.log(np.where(values > 0, values, 1.0))
