"""What a search tries first: the shape and sample at which the comparison failed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engineworks.measure.served_report import OutputRecords, RowFacts, RowRecord, Served, ServedAgainst, ServedVisit
from engineworks.recipe.samples import SampleFile, open_samples
from engineworks.steps.blame.trials import Trials, dims_of, worst_visit
from engineworks.tensors import TensorSpec

X = TensorSpec("x", "float32", ("batch", "length"))
SHAPES = {"ranges": {}, "profiles": {"small": {"batch": [1, 2, 4], "length": [3, 3, 6]}}}


@pytest.fixture
def samples(tmp_path: Path) -> SampleFile:
    np.savez(tmp_path / "data.npz", x=np.arange(30, dtype=np.float32).reshape(10, 3))
    return open_samples(tmp_path / "data.npz", [X], {}, samples=None, labels=None)


def visit(batch: int, length: int, error: float, *, nonfinite: int = 0, raised: str = "") -> ServedVisit:
    record = RowRecord(error, 0, 0, 0.5, nonfinite, 2, error)
    return ServedVisit(
        profile="small", role="opt", dims={"batch": batch, "length": length}, batch=batch, lengths=(("length", length),),
        tour=1, first_row=0, data="evaluation", samples=2, pool_rows=(4, 7), picks=((0,) * batch, (1,) * batch), moved={},
        runs_before_warm_up=2, outputs={"y": OutputRecords((record,))}, runs=2, raised=raised,
    )  # fmt: skip


def served(*visits: ServedVisit) -> Served:
    against = ServedAgainst("lowered", "", "rows", {})
    return Served("fp32", visits, (), {"y": RowFacts(True, 2)}, against, (), (), (), 0.0, 0.0)


def test_the_shape_that_failed_is_tried_first_at_the_run_that_was_worst(samples: SampleFile) -> None:
    report = served(visit(2, 3, 1e-6), visit(4, 3, 0.6), visit(1, 3, 0.2))
    first, second, third = Trials(samples, SHAPES, report, 5, [2, 4])
    assert first.what == "at batch 4, length 3"
    assert first.feeds["x"].tolist() == [[21, 22, 23]] * 4  # the second pick of the pool is sample 7
    assert first.other()["x"].shape == (2, 6)  # another length of both: the best one, else the smallest or largest
    assert (second.what, second.feeds["x"].shape, third.feeds["x"].shape) == ("on the first 2 samples", (2, 3), (4, 3))


def test_without_a_failed_shape_the_worst_sample_is_tried_alone(samples: SampleFile) -> None:
    (alone, batch) = Trials(samples, SHAPES, served(visit(2, 3, 1e-6)), 5, [1, 4])
    assert (alone.what, alone.feeds["x"].tolist()) == ("on sample 6", [[15, 16, 17]])
    assert dims_of([X], batch.feeds) == {"batch": 4, "length": 3}
    fixed = Trials(
        samples, {"ranges": {}, "profiles": {"one": {"batch": [4, 4, 4], "length": [3, 3, 3]}}}, None, 0, [4]
    )
    assert [trial.other() for trial in fixed] == [{}]


@pytest.mark.parametrize("bad", [{"raised": "no"}, {"nonfinite": 3}], ids=str)
def test_what_did_not_run_or_is_not_finite_is_the_worst(bad: dict[str, Any]) -> None:
    wrong = visit(1, 6, 0.0, **bad)
    assert worst_visit(served(visit(4, 3, 0.6), wrong)) is wrong
    assert worst_visit(served(visit(4, 3, 1e-5))) is None
