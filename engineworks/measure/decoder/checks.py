"""A decoder's report and limits → findings for the gate. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from engineworks.measure.decoder.report import DecoderAccuracy, Difference, Exact, Refusal
from engineworks.measure.decoder.situations import SITUATIONS, is_right, tolerance
from engineworks.measure.decoder.texts import greedy_agreement


@dataclass(frozen=True)
class DecoderFinding:
    """One check. verdict: as in `gates.Check`."""

    name: str
    verdict: Literal["pass", "fail", "inconclusive"]
    message: str


def decoder_findings(
    report: DecoderAccuracy, agreement: float | None, limits: Mapping[str, float | None]
) -> Iterator[DecoderFinding]:
    """agreement: share of positions with fp32's most probable token. limits: greedy_agreement and token_agreement, None
    where the recipe sets none."""
    for name, found in report.situations.items():
        yield _situation(name, found, report.computes, report.moved)
    yield from _greedy(report, limits.get("greedy_agreement"))
    limit = limits.get("token_agreement")
    if limit is not None:
        value = agreement or 0.0
        message = f"The most probable next token is fp32's at {value:.4g} of the positions, limit at least {limit:g}."
        yield DecoderFinding("token_agreement", "pass" if value >= limit else "fail", message)


def _situation(name: str, found: Difference | Refusal | Exact, computes: str, moved: float | None) -> DecoderFinding:
    what, good = SITUATIONS[name], is_right(found, computes, moved)
    if isinstance(found, Refusal):
        outcome = "it is refused" if good else "no error was raised"
        return DecoderFinding(f"decoder[{name}]", "pass" if good else "fail", f"{what}: {outcome}.")
    if isinstance(found, Exact):
        told = {
            True: "every bit is equal",
            False: "the logits differ",
            None: "two equal runs differ: it cannot be told",
        }
        return DecoderFinding(f"decoder[{name}]", "pass" if good else "fail", f"{what}: {told[found.equal]}.")
    shown = "not a number" if found.difference is None else f"{found.difference:.2g}"
    where = f"stream {found.stream}, position {found.position}"
    message = f"{what}: logits differ by {shown} at most ({where}), tolerance {tolerance(computes, moved):.2g}."
    return DecoderFinding(f"decoder[{name}]", "pass" if good else "fail", message)


def _greedy(report: DecoderAccuracy, limit: float | None) -> Iterator[DecoderFinding]:
    prompts = report.prompts
    wrong = [(n, p) for n, p in enumerate(prompts, 1) if p.why == "error"]
    for number, prompt in wrong[:1]:
        gap = "more" if prompt.gap is None else f"{prompt.gap:.3g}"
        token = 0 if prompt.parted is None else prompt.parted + 1
        yield DecoderFinding(
            "greedy_parting", "fail",
            f"Prompt {number} parts from fp32's continuation at token {token} by an error: fp32 prefers "
            f"its own token by {gap}, the engine's logits are usually off by {report.usual_error:.3g}.",
        )  # fmt: skip
    if not wrong:
        parted = sum(p.parted is not None for p in prompts)
        near = f"{parted} of {len(prompts)} part, each at a near tie" if parted else "none parts"
        yield DecoderFinding("greedy_parting", "pass", f"Continuations beside fp32's: {near}.")
    if limit is not None:
        share = greedy_agreement(prompts)
        message = f"Greedy text equals fp32's for {share:.4g} of the tokens until the first parting, limit at least "
        yield DecoderFinding("greedy_agreement", "pass" if share >= limit else "fail", f"{message}{limit:g}.")


def perplexity_verdict(
    ratio: float | None, interval: tuple[float, float] | None, limit: float
) -> Literal["pass", "fail", "inconclusive"]:
    """Verdict of `metric_ratio` by the ratio's interval: whether the text is enough to tell."""
    if ratio is None:
        return "fail"
    if interval is None:
        return "inconclusive"
    low, high = interval
    if low >= limit:
        return "pass"
    return "fail" if high < limit else "inconclusive"
