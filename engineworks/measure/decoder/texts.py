"""Perplexity and agreement on texts, from logits. Pure.

    nll_i      = log Σ_v exp(logit_i,v) − logit_i,t     (t: the token that follows position i), in nats, float64
    perplexity = exp(mean nll)                           (Jelinek et al., 1977)
    ratio      = reference's perplexity / engine's = exp(mean(nll_reference − nll_engine))

The ratio's interval is Student's, 95%, of the mean over blocks of BLOCK neighbouring tokens: those of one sentence are
not independent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from engineworks.host.lazy import np
from engineworks.measure.accuracy_report import MetricValues
from engineworks.measure.decoder.report import Continuation
from engineworks.measure.statistics import finite, student_quantile

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

ROWS = 32
"""Positions whose logits are in float64 at once."""

BLOCK = 16
LEAST_BLOCKS = 4


@dataclass(frozen=True)
class TokenMetrics:
    """One text. nll: f64 [n − 1], of each next token. best: int64 [n], the most probable next token. margin: f64 [n],
    by how much its logit leads the second's. entropy is not kept."""

    nll: Floats
    best: NDArray[np.int64]
    margin: Floats


def token_metrics(logits: NDArray[Any], tokens: NDArray[np.int64]) -> TokenMetrics:
    """logits: [n, vocabulary]; tokens: [n]. Non-finite logits give a NaN in `nll`."""
    following = np.append(tokens[1:], 0)
    parts = [_row_metrics(logits[i : i + ROWS], following[i : i + ROWS]) for i in range(0, len(tokens), ROWS)]
    nll, best, margin = (np.concatenate(part) for part in zip(*parts, strict=True))
    return TokenMetrics(nll[:-1], best, margin)


def _row_metrics(logits: NDArray[Any], following: NDArray[np.int64]) -> tuple[Floats, NDArray[np.int64], Floats]:
    values = logits.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        top = values.max(axis=-1)
        total = top + np.log(np.exp(values - top[:, None]).sum(axis=-1))
        nll = total - values[np.arange(len(values)), following]
    two = np.partition(values, -2, axis=-1)[:, -2:]
    return nll, values.argmax(axis=-1), two[:, 1] - two[:, 0]


@dataclass(frozen=True)
class TextMetrics:
    """All texts. perplexity of the engine and the reference, their ratio with its 95% interval (None with too few
    tokens), the share of positions with the same most probable token, and the number of tokens predicted."""

    engine: float
    reference: float
    ratio: float
    interval: tuple[float, float] | None
    agreement: float
    tokens: int

    def metric(self) -> MetricValues:
        known = self.interval if self.interval and all(map(math.isfinite, self.interval)) else None
        return MetricValues(
            "perplexity", "tokens", self.tokens, lower_is_better=True, engine=finite(self.engine),
            reference=finite(self.reference), ratio=finite(self.ratio), interval=known,
            agreement=finite(self.agreement),
        )  # fmt: skip


def compare_texts(engine: Sequence[TokenMetrics], reference: Sequence[TokenMetrics]) -> TextMetrics:
    """Compare text by text; both hold the same texts in the same order."""
    own, wanted = (np.concatenate([text.nll for text in texts]) for texts in (engine, reference))
    better = np.concatenate(
        [_blocks(r.nll - e.nll) for e, r in zip(engine, reference, strict=True)] or [np.empty((0, 2))]
    )
    same = np.concatenate([e.best == r.best for e, r in zip(engine, reference, strict=True)])
    return TextMetrics(
        engine=_exp(own.mean()),
        reference=_exp(wanted.mean()),
        ratio=_exp((wanted - own).mean()),
        interval=_interval(better),
        agreement=float(same.mean()),
        tokens=len(own),
    )


def _blocks(differences: Floats) -> Floats:
    """Return (mean, number) of each block of one text, f64 [blocks, 2]."""
    cut = [differences[i : i + BLOCK] for i in range(0, len(differences), BLOCK)]
    return np.array([(block.mean(), len(block)) for block in cut]).reshape(-1, 2)


def _interval(blocks: Floats) -> tuple[float, float] | None:
    count = len(blocks)
    if count < LEAST_BLOCKS or not np.isfinite(blocks).all():
        return None
    weights = blocks[:, 1] / blocks[:, 1].sum()
    mean = float((weights * blocks[:, 0]).sum())
    error = math.sqrt(float((weights**2 * (blocks[:, 0] - mean) ** 2).sum()) * count / (count - 1))
    half = student_quantile(0.975, count - 1) * error
    return _exp(mean - half), _exp(mean + half)


def _exp(value: float) -> float:
    return math.exp(value) if math.isfinite(value) and value < 700 else math.inf if value > 0 else math.nan


def parting(engine: Sequence[int], reference: Sequence[int]) -> int | None:
    """Return the index of the first token that differs, None where one continuation is a prefix of the other."""
    pairs = zip(engine, reference, strict=False)
    return next((index for index, (token, expected) in enumerate(pairs) if token != expected), None)


NEAR_TIE = 6.0
"""A parting is a near tie if the reference's own lead of its token is at most this many times the engine's usual error
of a logit (root mean square). A lead is the difference of two logits: 6 / √2 is 4.2 standard deviations of it."""


def why_parted(gap: float | None, usual_error: float) -> Literal["near tie", "error"]:
    """Return 'near tie' or 'error'. gap: the reference's logit of its token minus that of the engine's token; None
    where that is not among the tokens it kept, so the gap is large."""
    return "near tie" if gap is not None and gap <= NEAR_TIE * usual_error else "error"


def greedy_agreement(prompts: Sequence[Continuation]) -> float:
    """Return the share of generated tokens before the first parting, over all prompts."""
    of = sum(len(p.reference) for p in prompts)
    same = sum(len(p.reference) if p.parted is None else p.parted for p in prompts)
    return same / of if of else 1.0
