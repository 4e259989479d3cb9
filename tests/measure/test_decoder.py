"""Figures and checks of decoders, each with a planted fault."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from engineworks.measure.decoder.checks import decoder_checks, perplexity_verdict
from engineworks.measure.decoder.report import Continuation, DecoderAccuracy, Difference, Exact, Refusal
from engineworks.measure.decoder.situations import (
    LARGEST,
    TOLERANCES,
    difference,
    is_right,
    tolerance,
    worst_of,
    worst_position,
)
from engineworks.measure.decoder.texts import compare_texts, greedy_agreement, parting, token_metrics, why_parted


def test_uniform_logits_have_the_vocabulary_as_perplexity():
    tokens = np.array([3, 1, 0, 7, 2])
    values = token_metrics(np.zeros((5, 8), np.float32), tokens)
    assert math.exp(values.nll.mean()) == pytest.approx(8.0)


def test_large_logits_do_not_overflow():
    logits = np.full((2, 4), 1e4, np.float32)
    logits[:, 1] += 5
    nll = token_metrics(logits, np.array([0, 1])).nll
    assert nll == pytest.approx([math.log(1 + 3 * math.exp(-5))])


def texts_of(shift, count=40, length=17):
    rng = np.random.default_rng(0)
    made = []
    for _ in range(count):
        logits = rng.normal(size=(length, 12)).astype(np.float32)
        tokens = rng.integers(0, 12, length)
        logits[np.arange(length - 1), tokens[1:]] += shift
        made.append(token_metrics(logits, tokens))
    return made


def test_the_ratio_is_below_one_for_a_worse_engine_and_its_interval_holds_it():
    found = compare_texts(texts_of(0.0), texts_of(0.3))
    assert found.ratio < 1
    assert found.interval[0] <= found.ratio <= found.interval[1]
    assert found.ratio == pytest.approx(found.reference / found.engine)


def test_equal_logits_agree_in_all():
    found = compare_texts(texts_of(0.2), texts_of(0.2))
    assert (found.ratio, found.agreement, found.interval) == (1.0, 1.0, (1.0, 1.0))


def test_too_little_text_has_no_interval():
    found = compare_texts(texts_of(0.0, 1, 9), texts_of(0.3, 1, 9))
    assert found.interval is None
    assert perplexity_verdict(found.ratio, found.interval, 0.9) == "inconclusive"


@pytest.mark.parametrize(
    ("interval", "word"), [((0.96, 0.98), "pass"), ((0.9, 0.94), "fail"), ((0.94, 0.97), "inconclusive")]
)
def test_the_interval_decides_the_ratio(interval, word):
    assert perplexity_verdict(sum(interval) / 2, interval, 0.95) == word


def test_logits_that_are_not_finite_fail_the_ratio():
    bad = [token_metrics(np.full((9, 4), np.nan, np.float32), np.zeros(9, np.int64))]
    good = [token_metrics(np.zeros((9, 4), np.float32), np.zeros(9, np.int64))]
    metric = compare_texts(bad, good).metric()
    assert perplexity_verdict(metric.ratio, metric.interval, 0.5) == "fail"


def test_where_continuations_part():
    assert parting([1, 2, 3], [1, 2, 3]) is None
    assert parting([1, 2, 3], [1, 4, 3]) == 1
    prompts = [continuation(reference=(1, 2, 3, 4), parted=1), continuation(reference=(5, 6))]
    assert greedy_agreement(prompts) == 0.5


def test_a_parting_far_from_a_tie_is_an_error():
    assert why_parted(0.02, 0.1) == "near tie"
    assert why_parted(3.0, 0.1) == "error"
    assert why_parted(None, 0.1) == "error"


def test_a_situation_with_another_streams_keys_is_found():
    plain = np.random.default_rng(0).normal(size=(6, 32))
    leaked = plain.copy()
    leaked[4] += 0.05 * np.random.default_rng(1).normal(size=32)
    worst = worst_position(leaked, plain, 0, first=10)
    assert worst.position == 14
    assert not is_right(worst, "fp32")
    assert is_right(worst_position(plain + 1e-6, plain, 0), "fp32")


def test_what_is_not_finite_is_the_worst():
    plain = np.ones((2, 4)) * [0, 1, 2, 3]
    broken = plain.copy()
    broken[1, 2] = np.inf
    assert np.isinf(difference(broken, plain)[1])
    worst = worst_of([worst_position(plain, plain, 0), worst_position(broken, plain, 0)])
    assert worst.difference is None
    assert not is_right(worst, "fp16")


def test_the_tolerance_follows_the_models_own_sensitivity():
    seen_on_an_h200 = Difference(0.0375, 47, 0)
    assert not is_right(seen_on_an_h200, "fp16")
    assert is_right(seen_on_an_h200, "fp16", 0.032)
    assert tolerance("fp16", None) == tolerance("fp16", 1e-4) == 2e-2
    assert tolerance("fp16", 5.0) == LARGEST


def test_a_refusal_counts_for_every_session():
    assert worst_of([Refusal(True), Refusal(False)]) == Refusal(False)


def test_equal_bits_may_be_untold_but_not_other():
    assert worst_of([Exact(True), Exact(None), Exact(False)]) == Exact(False)
    assert worst_of([Exact(True), Exact(None)]) == Exact(None)
    assert is_right(Exact(None), "fp16")


def continuation(**changes):
    known = Continuation("", "", "", engine=(1, 2), reference=(1, 2), parted=None, gap=None, same_text=None, why="")
    return replace(known, **changes)


def report_of(**changes):
    situations = {"beside": Difference(1e-6, 3, 0), "beyond": Refusal(True)}
    return replace(DecoderAccuracy("fp32", situations, (continuation(),), 0.1, None), **changes)


def verdicts(report, **limits):
    return {f.name: f.verdict for f in decoder_checks(report, 0.9, limits)}


def test_a_right_decoder_passes():
    found = verdicts(report_of(), greedy_agreement=1.0, token_agreement=0.9)
    assert set(found.values()) == {"pass"}
    assert set(found) == {
        "decoder[beside]", "decoder[beyond]", "greedy_parting", "greedy_agreement", "token_agreement",
    }  # fmt: skip


@pytest.mark.parametrize("computes", TOLERANCES)
def test_every_type_that_engines_compute_in_can_be_read_back(computes):
    report = report_of(computes=computes, situations={"leak": Exact(None), "end": Difference(0.1, 1, 0)})
    assert DecoderAccuracy.from_json(json.loads(json.dumps(report.to_json())), "accuracy.json") == report


@pytest.mark.parametrize(
    ("changes", "check"),
    [
        ({"situations": {"reused": Difference(0.2, 3, 0)}}, "decoder[reused]"),
        ({"situations": {"end": Difference(None, 3, 0)}}, "decoder[end]"),
        ({"situations": {"leak": Exact(False)}}, "decoder[leak]"),
        ({"situations": {"beyond": Refusal(False)}}, "decoder[beyond]"),
        ({"prompts": (continuation(parted=0, why="error", gap=4.0),)}, "greedy_parting"),
    ],
)
def test_a_fault_fails_its_check(changes, check):
    assert verdicts(report_of(**changes))[check] == "fail"


def test_agreement_below_its_limit_fails():
    parted = (continuation(parted=1, why="near tie", gap=0.1),)
    found = verdicts(report_of(prompts=parted), greedy_agreement=0.9, token_agreement=0.95)
    assert (found["greedy_agreement"], found["token_agreement"], found["greedy_parting"]) == ("fail", "fail", "pass")
