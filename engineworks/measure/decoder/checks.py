"""A decoder's report and limits → checks. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

from engineworks.measure.check import Check, checked
from engineworks.measure.decoder.report import DecoderAccuracy, Difference, Exact, Refusal
from engineworks.measure.decoder.situations import SITUATIONS, is_right, tolerance
from engineworks.measure.decoder.texts import greedy_agreement


def decoder_checks(
    report: DecoderAccuracy, agreement: float | None, limits: Mapping[str, float | None]
) -> Iterator[Check]:
    """agreement: share of positions with fp32's most probable token. limits: greedy_agreement and token_agreement, None
    where the recipe sets none."""
    for name, found in report.situations.items():
        yield _situation(name, found, report.computes, report.moved)
    yield from _greedy(report, limits.get("greedy_agreement"))
    limit = limits.get("token_agreement")
    if limit is not None:
        value = agreement or 0.0
        message = f"The most probable next token is fp32's at {value:.4g} of the positions, limit at least {limit:g}."
        yield checked("token_agreement", value >= limit, message)


def _situation(name: str, found: Difference | Refusal | Exact, computes: str, moved: float | None) -> Check:
    what, good = SITUATIONS[name], is_right(found, computes, moved)
    if isinstance(found, Refusal):
        outcome = "it is refused" if good else "no error was raised"
        return checked(f"decoder[{name}]", good, f"{what}: {outcome}.")
    if isinstance(found, Exact):
        told = {
            True: "every bit is equal",
            False: "the logits differ",
            None: "two equal runs differ: it cannot be told",
        }
        return checked(f"decoder[{name}]", good, f"{what}: {told[found.equal]}.")
    shown = "not a number" if found.difference is None else f"{found.difference:.2g}"
    where = f"stream {found.stream}, position {found.position}"
    message = f"{what}: logits differ by {shown} at most ({where}), tolerance {tolerance(computes, moved):.2g}."
    return checked(f"decoder[{name}]", good, message)


def _greedy(report: DecoderAccuracy, limit: float | None) -> Iterator[Check]:
    prompts = report.prompts
    wrong = [(n, p) for n, p in enumerate(prompts, 1) if p.why == "error"]
    for number, prompt in wrong[:1]:
        gap = "more" if prompt.gap is None else f"{prompt.gap:.3g}"
        token = 0 if prompt.parted is None else prompt.parted + 1
        yield Check(
            "greedy_parting", "fail",
            f"Prompt {number} parts from fp32's continuation at token {token} by an error: fp32 prefers "
            f"its own token by {gap}, the engine's logits are usually off by {report.usual_error:.3g}.",
        )  # fmt: skip
    if not wrong:
        parted = sum(p.parted is not None for p in prompts)
        near = f"{parted} of {len(prompts)} part, each at a near tie" if parted else "none parts"
        yield Check("greedy_parting", "pass", f"Continuations beside fp32's: {near}.")
    if limit is not None:
        share = greedy_agreement(prompts)
        message = f"Greedy text equals fp32's for {share:.4g} of the tokens until the first parting, limit at least "
        yield checked("greedy_agreement", share >= limit, f"{message}{limit:g}.")


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
