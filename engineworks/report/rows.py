"""The verdict table: its columns, which the terminal, the HTML page and Markdown all read."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from engineworks.builds.results import BuildResult, EngineResult
from engineworks.measure.ladder.ladder import ladder_statements
from engineworks.report.values import number_text


@dataclass(frozen=True)
class EngineColumn:
    """A column of the verdict table. A new one is a row of `COLUMNS` and nothing else.

    text: the engine's cell; '' leaves it blank. number: aligned to the right. hint: what the heading means, on the HTML
    page. brief: also in the short table of Prefect and MLflow.
    """

    name: str
    text: Callable[[EngineResult], str]
    number: bool = False
    hint: str = ""
    brief: bool = True


_FIRST_SENTENCE = re.compile(r"(?<=[a-z%\])0-9]\.) (?=[A-Z])")


def reasons(engine: EngineResult) -> tuple[str, ...]:
    """The reasons of the verdict: the failed step's message, else every check that did not pass, waived ones last."""
    if engine.failure:
        return tuple(line for line in engine.failure.message.splitlines() if line.strip())
    open_checks = [c for c in engine.checks if c.verdict != "pass"]
    return tuple(c.text for c in sorted(open_checks, key=lambda c: bool(c.waived)))


def grouped_reasons(engine: EngineResult) -> tuple[str, ...]:
    """The reasons; what several of them add to their first sentence, such as a disturbance, is said once after them."""
    parts = [_FIRST_SENTENCE.split(reason, maxsplit=1) for reason in reasons(engine)]
    counts = Counter(rest[0] for _, *rest in parts if rest)
    lines = [" ".join((first, *(r for r in rest if counts[r] == 1))) for first, *rest in parts]
    shared = {r: [first for first, *rest in parts if rest == [r]] for r, count in counts.items() if count > 1}
    return (*lines, *(_about(firsts, tail) for tail, firsts in shared.items()))


def _about(sentences: Sequence[str], tail: str) -> str:
    """'single: measured again …', if all sentences begin with 'single: '."""
    subjects = {sentence.partition(": ")[0] if ": " in sentence else "" for sentence in sentences}
    return tail if len(subjects) > 1 or subjects == {""} else f"{subjects.pop()}: {tail[0].lower()}{tail[1:]}"


def why(engine: EngineResult) -> str:
    """All reasons in one cell."""
    return " ".join(grouped_reasons(engine))


def _cosine(engine: EngineResult) -> str:
    cosine = engine.accuracy.worst_cosine if engine.accuracy else None
    return "nan" if engine.accuracy and cosine is None else number_text(cosine, 5)


def _at_first_shape(key: str, digits: int) -> Callable[[EngineResult], str]:
    """A figure at the recipe's first named shape."""

    def text(engine: EngineResult) -> str:
        return number_text(getattr(engine.latency and engine.latency.first, key, None), digits)

    return text


def _size(engine: EngineResult) -> str:
    size = engine.bytes
    return number_text(size / 2**20 if size else None, 2)


COLUMNS = (
    EngineColumn("engine", lambda engine: engine.id),
    EngineColumn("verdict", lambda engine: engine.status),
    EngineColumn(
        "metric", lambda engine: number_text(engine.metric, 4), number=True,
        hint="task metric of the engine on the evaluation data",
    ),
    EngineColumn(
        "cosine", _cosine, number=True, hint="smallest over the outputs, to the fp32 reference", brief=False
    ),
    EngineColumn(
        "p50 ms", _at_first_shape("latency_ms_p50", 3), number=True,
        hint="median latency at the recipe's first named shape",
    ),
    EngineColumn(
        "p99 ms", _at_first_shape("latency_ms_p99", 3), number=True, hint="at the recipe's first named shape",
        brief=False,
    ),
    EngineColumn(
        "samples/s", _at_first_shape("throughput_per_s", 0), number=True,
        hint="batch / median latency, at the recipe's first named shape",
    ),
    EngineColumn("MiB", _size, number=True, hint="size of the engine"),
    EngineColumn("why", why),
)  # fmt: skip

HEADINGS = tuple(column.name for column in COLUMNS)
NUMBERS = frozenset(column.name for column in COLUMNS if column.number)


@dataclass(frozen=True)
class Row:
    """cells: one text per column of `COLUMNS`."""

    cells: tuple[str, ...]
    verdict: str


def rows(result: BuildResult) -> list[Row]:
    """One row per engine, then one per refused engine. The ladder's statement on an engine replaces its `why`."""
    statements = ladder_statements(result.ladder)
    built = [
        Row((*(column.text(e) for column in COLUMNS[:-1]), statements.get(e.id) or why(e)), e.verdict)
        for e in result.engines
    ]
    blank = ("",) * (len(COLUMNS) - 3)
    return built + [Row((r.id, "refused", *blank, r.message), "refused") for r in result.refused]


def notes_of(result: BuildResult) -> list[str]:
    """The build's warnings without those that the calibration section shows."""
    shown = {message for health in result.calibration for message in health.report.warnings}
    return [message for message in result.warnings if message not in shown]
