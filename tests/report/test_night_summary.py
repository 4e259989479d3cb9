"""A night beside the night before: what its pages and metrics say, and where they go."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from engineworks.builds.results import BuildResult, EngineResult, EngineVerdict, Failure, RanStep, StepCounts
from engineworks.errors import InputError, StoreError
from engineworks.measure.check import Check
from engineworks.plan.plan import Refused
from engineworks.report.night.page import render_night
from engineworks.report.night.publish import (
    night_registry,
    publish_metrics,
    push_metrics,
    record_summary,
    write_metrics,
)
from engineworks.report.night.summary import NIGHT_JSON, Summary, summarize, summarize_night
from engineworks.tracking.runs import open_tracking
from tests.typed_reports import accuracy, metric, shape_json, sidecar
from tests.typed_reports import latency as report_with

AT = datetime(2026, 11, 21, 3, 0, tzinfo=UTC)


class Record:
    """The night before as MLflow would have it."""

    def __init__(self, text: str | None = None) -> None:
        self.text = text

    def last_night_text(self, path: str) -> str | None:
        assert path == NIGHT_JSON
        return self.text


def engine(name: str, verdict: EngineVerdict = "pass", *, digest: str = "a" * 64, p50: float = 2.0) -> EngineResult:
    checks = () if verdict in ("pass", "failed") else (Check("cosine", "fail", "cosine .9 is below .99"),)
    failure = Failure(f"{name}/build", "the builder crashed\nmore") if verdict == "failed" else None
    latency = report_with({"one": shape_json(p50)})
    return EngineResult(
        name, verdict, checks, sidecar=sidecar(sha256=digest, bytes=2**20), latency=latency, failure=failure,
        accuracy=accuracy(metric()),
    )  # fmt: skip


def build(*engines: EngineResult, recipe: str = "r", ran: tuple[RanStep, ...] = ()) -> BuildResult:
    steps = StepCounts(len(ran), 3, 0)
    return BuildResult(recipe, "run1", engines, (), steps, seconds=sum(s.seconds for s in ran), ran=ran)


def night(*results: BuildResult | Mapping[str, Any], before: Summary | None = None) -> Summary:
    return summarize(results, json.loads(before.to_json_text()) if before else None, at=AT)


def test_the_first_night_has_nothing_to_be_compared_with() -> None:
    first = night(build(engine("r/fp32/cpu")))
    assert first.changes is None
    assert "No night before this one" in render_night(first)


def test_a_night_like_the_one_before_changed_nothing_and_rebuilt_nothing() -> None:
    first = night(build(engine("r/fp32/cpu")))
    second = night(build(engine("r/fp32/cpu")), before=first)
    assert second.changes == ()
    assert second.rebuilt == ()
    assert f"Nothing, since {AT.isoformat()}" in render_night(second)
    assert "Nothing: every result was in the store." in render_night(second)


def test_verdicts_that_changed_are_told_with_their_reason() -> None:
    first = night(build(engine("r/fp32/cpu"), engine("r/int8/cpu", "fail"), engine("r/fp16/cpu")))
    second = night(
        build(engine("r/fp32/cpu", "fail"), engine("r/int8/cpu"), engine("r/fp16/cpu", "failed")), before=first
    )
    assert set(second.changes or ()) == {
        "r/fp32/cpu: pass → fail: cosine .9 is below .99",
        "r/int8/cpu: fail → pass",
        "r/fp16/cpu: pass → failed: the builder crashed",
    }


def test_engines_come_and_go() -> None:
    first = night(build(engine("r/fp32/cpu")))
    second = night(build(engine("r/int8/cpu", "fail")), before=first)
    assert second.changes == ("r/int8/cpu: new, fail", "r/fp32/cpu: gone, was pass")


def test_another_engine_and_another_speed_are_told_and_a_small_difference_is_not() -> None:
    first = night(build(engine("r/fp32/cpu", p50=2.0), engine("r/int8/cpu", p50=2.0)))
    second = night(build(engine("r/fp32/cpu", p50=3.0, digest="b" * 64), engine("r/int8/cpu", p50=2.05)), before=first)
    assert second.changes == (
        "r/fp32/cpu: another engine, sha256 aaaaaaaaaaaa → bbbbbbbbbbbb",
        "r/fp32/cpu: median 2 → 3 ms (+50%)",
    )


def test_figures_of_another_shape_or_metric_are_no_change() -> None:
    first = night(build(engine("r/fp32/cpu", p50=2.0)))
    other = replace(
        engine("r/fp32/cpu"), latency=report_with({"two": shape_json(9.0)}), accuracy=accuracy(metric(0.5, name="f1"))
    )
    larger = replace(other, latency=report_with({"one": shape_json(9.0, dims={"batch": 8})}))
    assert [night(build(now), before=first).changes for now in (other, larger)] == [(), ()]
    same = replace(engine("r/fp32/cpu"), accuracy=accuracy(metric(0.5)))
    assert night(build(same), before=first).changes == ("r/fp32/cpu: metric 0.9 → 0.5",)


def test_a_recipe_without_a_result_is_no_news_about_its_engines_and_fails_the_night() -> None:
    first = night(build(engine("r/fp32/cpu")), build(engine("q/fp32/cpu"), recipe="q"))
    second = night(build(engine("r/fp32/cpu")), {"recipe": "q", "error": "q.yaml:1:1: wrong"}, before=first)
    assert second.changes == ("q: no result: q.yaml:1:1: wrong",)
    assert second.verdict == "failed"
    assert "- **q**: q.yaml:1:1: wrong" in render_night(second)
    third = night(build(engine("r/fp32/cpu")), build(engine("q/fp32/cpu"), recipe="q"), before=second)
    assert third.changes == ("q: has results again",)


def broken(recipe: str, why: str = "bad") -> Mapping[str, Any]:
    return {"recipe": recipe, "error": why, "file": f"recipes/{recipe}.yaml"}


def filed(result: BuildResult) -> Mapping[str, Any]:
    return {**result.to_json(), "file": f"recipes/{result.recipe}.yaml"}


def test_a_recipe_that_is_not_in_a_night_is_neither_mended_nor_gone_nor_new_when_it_is_back() -> None:
    r = filed(build(engine("r/fp32/cpu")))
    q = filed(build(engine("q/fp32/cpu"), engine("q/int8/cpu", "fail"), recipe="q"))
    first = night(r, q, broken("fashion"))
    second = night(r, before=first)
    assert second.changes == ()
    assert second.verdict == "pass"
    assert second.counts == {"pass": 1}
    assert [(a["recipe"], a["error"], a["at"]) for a in second.absent] == [
        ("q", "", AT.isoformat()), ("fashion", "bad", AT.isoformat())
    ]  # fmt: skip
    page = render_night(second)
    assert "## Not part of this run" in page
    assert "- **q**: last on 2026-11-21, 1 fail, 1 pass" in page
    assert "- **fashion**: last on 2026-11-21, no result: bad" in page
    assert (second.metrics()["recipes_not_part"], second.metrics()["engines_not_part"]) == (2.0, 2.0)
    third = night(r, q, broken("fashion"), before=second)
    assert third.changes == ()
    assert third.absent == third.not_part == ()
    assert "Not part of last night, so compared with their own last: q (its last: 2026-11-21)" in render_night(third)
    worse = filed(build(engine("q/fp32/cpu", "fail"), engine("q/int8/cpu", "fail"), recipe="q"))
    mended = filed(build(engine("fashion/fp32/cpu"), recipe="fashion"))
    assert night(r, worse, mended, before=second).changes == (
        "fashion: has results again",
        "q/fp32/cpu: pass → fail: cosine .9 is below .99",
    )


def test_what_happened_while_a_recipe_had_no_result_is_told_when_it_has_one() -> None:
    first = night(filed(build(engine("r/fp32/cpu"), engine("r/int8/cpu"))))
    second = night(broken("r"), before=first)
    assert second.not_part == ()
    third = night(filed(build(engine("r/fp32/cpu", "fail"), engine("r/fp16/cpu"))), before=second)
    assert third.changes == (
        "r: has results again",
        "r/fp32/cpu: pass → fail: cosine .9 is below .99",
        "r/fp16/cpu: new, pass",
        "r/int8/cpu: gone, was pass",
    )


def test_a_recipe_is_gone_only_when_its_file_is() -> None:
    r, q = filed(build(engine("r/fp32/cpu"))), filed(build(engine("q/fp32/cpu"), recipe="q"))
    first = json.loads(night(r, q).to_json_text())
    there = summarize([r], first, at=AT, recipe_files=["recipes/q.yaml", "recipes/r.yaml"])
    assert (there.changes, [a["recipe"] for a in there.absent]) == ((), ["q"])
    elsewhere = summarize([r], first, at=AT, recipe_files=["other/x.yaml"])
    assert (elsewhere.changes, [a["recipe"] for a in elsewhere.absent]) == ((), ["q"])
    removed = summarize([r], first, at=AT, recipe_files=["recipes/r.yaml"])
    assert removed.changes == ("q: gone with its 1 engines: recipes/q.yaml was removed",)
    assert removed.absent == removed.known == ()
    renamed = {**filed(build(engine("p/fp32/cpu"), recipe="p")), "file": "recipes/q.yaml"}
    assert night(r, renamed, before=night(r, q)).changes == (
        "q: gone with its 1 engines: recipes/q.yaml is recipe p now",
        "p/fp32/cpu: new, pass",
    )


def test_a_file_that_cannot_be_read_keeps_its_recipes_name() -> None:
    """The recipe in `q.yaml` is called `queue`: while the file is broken, only the file's name is known."""
    queue = {**filed(build(engine("queue/fp32/cpu"), recipe="queue")), "file": "recipes/q.yaml"}
    first = night(queue)
    second = night(broken("q"), before=first)
    assert second.changes == ("queue: no result: bad",)
    assert night(queue, before=second).changes == ("queue: has results again",)
    assert night(queue, before=night(broken("q"))).changes == ("queue: has results again", "queue/fp32/cpu: new, pass")


def test_engines_that_only_left_out_are_neither_gone_nor_new() -> None:
    both = build(engine("r/fp32/cpu"), engine("r/int8/cpu"))
    some = replace(build(engine("r/int8/cpu", "fail")), not_selected=("r/fp32/cpu",))
    second = night(some, before=night(both))
    assert second.changes == ("r/int8/cpu: pass → fail: cosine .9 is below .99",)
    assert [e["id"] for e in second.not_part] == ["r/fp32/cpu"]
    assert "- 1 engines that --only left out: r/fp32/cpu" in render_night(second)
    assert night(both, before=second).changes == ("r/int8/cpu: fail → pass",)
    assert night(both, before=night(some)).changes == (
        "r/int8/cpu: fail → pass",
        "r/fp32/cpu: pass, not compared: not part of the run before",
    )


def test_metrics_of_what_a_night_leaves_out_are_those_of_its_last() -> None:
    q = build(engine("q/fp32/cpu", "fail"), recipe="q")
    second = night(build(engine("r/fp32/cpu")), before=night(build(engine("r/fp32/cpu")), q, broken("fashion")))
    text = samples(exposed(second))
    assert text["engineworks_recipe_without_result[('recipe', 'fashion')]"] == 1
    assert text["engineworks_recipe_in_night[('recipe', 'fashion')]"] == 0
    assert text["engineworks_recipe_in_night[('recipe', 'r')]"] == 1
    where = "('precision', 'fp32'), ('recipe', 'q'), ('target', 'cpu')"
    assert text[f"engineworks_engine_verdict[{where}, ('verdict', 'fail')]"] == 1
    assert text["engineworks_engines[('verdict', 'fail')]"] == 0
    assert text["engineworks_engines_not_in_night[]"] == 1


def test_the_most_severe_comes_first_and_a_refusal_is_no_failure() -> None:
    result = build(engine("r/a/cpu"), engine("r/b/cpu", "failed"), engine("r/c/cpu", "unmeasured"))
    found = night(BuildResult("r", "x", result.engines, (Refused("r/d/cpu", "it cannot"),), StepCounts()))
    assert [e["verdict"] for e in found.engines] == ["failed", "unmeasured", "pass", "refused"]
    assert night(BuildResult("r", "x", (), (Refused("r/d/cpu", "it cannot"),), StepCounts())).counts == {"refused": 1}


def test_rebuilt_steps_stand_with_their_reason_the_slowest_first() -> None:
    ran = tuple(RanStep(f"r/{i}/cpu/build", float(i), "file m.onnx changed") for i in range(12))
    found = night(build(engine("r/fp32/cpu"), ran=ran))
    assert [s["seconds"] for s in found.slowest] == [11.0, 10.0, 9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0]
    assert len(found.rebuilt) == 12
    assert "| r/0/cpu/build | 0.0 | file m.onnx changed |" in render_night(found)
    assert found.seconds == 66.0


def test_a_result_and_its_json_from_another_host_are_the_same() -> None:
    result = build(engine("r/fp32/cpu", "fail"), ran=(RanStep("r/export", 1.0, "never built"),))
    assert night(json.loads(json.dumps(result.to_json()))).to_json() == night(result).to_json()


def test_tables_survive_any_sentence() -> None:
    found = night({"recipe": "r", "error": "a | b\nc"}, build(engine("r/fp32/cpu", "fail")))
    rows = [line for line in render_night(found).splitlines() if line.startswith("| r/fp32")]
    assert [row.count(" | ") for row in rows] == [6]
    assert "- **r**: a \\| b c" in render_night(found)


def test_a_damaged_record_counts_as_none() -> None:
    for text in (None, "", "{", "[]", "{}"):
        assert summarize_night([build(engine("r/fp32/cpu"))], Record(text), at=AT).changes is None


def test_the_next_night_is_compared_with_what_mlflow_has(tmp_path: Path) -> None:
    tracking = open_tracking(tmp_path)
    assert tracking.last_night_text(NIGHT_JSON) is None
    first = summarize_night([build(engine("r/fp32/cpu"))], tracking, at=AT)
    run = record_summary(first, tracking)
    second = summarize_night([build(engine("r/fp32/cpu", "fail"))], tracking)
    assert second.changes == ("r/fp32/cpu: pass → fail: cosine .9 is below .99",)
    kept = tracking.get_run(run)
    assert kept.metrics["engines_pass"] == 1.0
    assert kept.tags["engineworks.verdict"] == "pass"
    assert tracking.find_runs(kind="build") == []
    record_summary(second, tracking)
    third = summarize_night([build(engine("r/fp32/cpu", "fail"))], tracking)
    assert third.changes == ()


def exposed(night: Summary) -> str:
    from prometheus_client import generate_latest

    return generate_latest(night_registry(night)).decode()


def samples(text: str) -> dict[str, float]:
    """Every sample of a text in Prometheus' format, by name and labels, as its own parser reads it."""
    from prometheus_client.parser import text_string_to_metric_families

    families = text_string_to_metric_families(text)
    return {f"{s.name}{sorted(s.labels.items())}": s.value for f in families for s in f.samples}


def test_prometheus_reads_every_engine_and_every_recipe() -> None:
    ran = (RanStep("r/fp32/lower", 2.0, ""), RanStep("r/int8/lower", 3.0, ""))
    found = night(
        build(engine("r/fp32/cpu", p50=2.0), engine("r/int8/cpu", "fail"), ran=ran), {"recipe": "q", "error": "x"}
    )
    text = samples(exposed(found))
    where = "('precision', 'fp32'), ('recipe', 'r'), ('target', 'cpu')"
    assert text[f"engineworks_engine_latency_p50_seconds[{where}]"] == 0.002
    assert text[f"engineworks_engine_verdict[{where}, ('verdict', 'pass')]"] == 1
    assert text["engineworks_engines[('verdict', 'fail')]"] == 1
    assert text["engineworks_engines[('verdict', 'failed')]"] == 0
    assert text["engineworks_recipe_without_result[('recipe', 'q')]"] == 1
    assert text["engineworks_step_duration_seconds[('recipe', 'r'), ('step', 'lower')]"] == 5.0
    assert text["engineworks_night_end_timestamp_seconds[]"] == AT.timestamp()


def test_the_textfile_is_whole_and_of_a_name_that_is_read(tmp_path: Path) -> None:
    found = night(build(engine("r/fp32/cpu")))
    write_metrics(found, tmp_path / "new" / "engineworks.prom")
    assert samples((tmp_path / "new" / "engineworks.prom").read_text()) == samples(exposed(found))
    assert [f.name for f in (tmp_path / "new").iterdir()] == ["engineworks.prom"]
    with pytest.raises(InputError, match=r"reads \*.prom alone"):
        write_metrics(found, tmp_path / "metrics.txt")


@contextmanager
def gateway() -> Iterator[tuple[str, list[tuple[str, str, str]]]]:
    """A push gateway that keeps what it was sent: method, path, body."""
    got: list[tuple[str, str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            got.append((self.command, self.path, body))
            self.send_response(202)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}", got
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_the_push_gateway_gets_the_whole_group_replaced() -> None:
    found = night(build(engine("r/fp32/cpu")))
    with gateway() as (place, got):
        push_metrics(found, place)
    assert [(method, path) for method, path, _ in got] == [("PUT", "/metrics/job/engineworks_nightly")]
    assert samples(got[0][2]) == samples(exposed(found))


def test_metrics_that_can_not_be_published_are_a_sentence_and_stop_nothing(tmp_path: Path) -> None:
    found = night(build(engine("r/fp32/cpu")))
    file = tmp_path / "x.prom"
    with gateway() as (place, _):
        pass  # nobody listens there any more
    missed = publish_metrics(found, {"ENGINEWORKS_METRICS_FILE": str(file), "ENGINEWORKS_PUSH_GATEWAY": place})
    assert file.is_file()
    assert len(missed) == 1
    assert f"the push gateway {place} did not take the metrics" in missed[0]
    with pytest.raises(StoreError, match="cannot be written"):
        write_metrics(found, file / "below.prom")
    assert publish_metrics(found, {}) == ()
