"""One build of a part of a model: does it show the fault? In a child process, because a builder may crash.

A probe is written down by the digest of what was asked. A search that was killed finds the answers of its first run.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import numpy as np

from engineworks.engines.backends import builder
from engineworks.engines.backends.base import BuildRequest, Serving
from engineworks.engines.engine_session import runner_of
from engineworks.errors import BuildError, EngineworksError, Interrupted, StepError
from engineworks.fingerprint import digest_of
from engineworks.host.child import ChildPool
from engineworks.host.lazy import Array, Arrays, onnx
from engineworks.recipe.npz import read_arrays
from engineworks.steps.blame.graph import named_shape
from engineworks.steps.blame.values import WORST, row_error_of, save_part
from engineworks.tensors import InputRange, Profile, spec_from_json
from engineworks.typed_json import Record

PROBE = "engineworks.steps.blame.probe:main"

SCRATCH = "part-"
"""How the folders of parts begin, which a search that was killed leaves behind."""

RUNS = 5
"""Runs that are compared, of which the worst counts: a fault may not show in each."""

WARM_RUNS = 20
"""Runs between the first comparison and the second: specialized kernels replace general ones meanwhile."""


FIXED: Mapping[str, Sequence[int]] = {}
"""No other shapes: the part has fixed ones."""


@dataclass(frozen=True)
class Answer(Record):
    """What a build of a part gave. errors: by output, empty after a crash. crash: its message, '' without one.

    ran: False where this host can only build.
    """

    errors: Mapping[str, float] = field(default_factory=dict)
    crash: str = ""
    ran: bool = True


class Prober(Protocol):
    """Builds and runs a part. `builds`: how many it has built."""

    builds: int

    def probe(
        self, model: onnx.ModelProto, feeds: Arrays, wanted: Arrays, shapes: Mapping[str, Sequence[int]] = ...
    ) -> Answer:
        """Build the model, run it on the feeds and compare its outputs. shapes: another shape of every input, by
        name, which the engine has to take, too; {} for fixed shapes."""
        ...


class OutOfBuilds(Exception):
    """The search has used up its builds."""


@dataclass
class Budget:
    """Counts the builds of a prober; raises `OutOfBuilds` after `most`."""

    prober: Prober
    most: int
    builds: int = 0

    def probe(
        self, model: onnx.ModelProto, feeds: Arrays, wanted: Arrays, shapes: Mapping[str, Sequence[int]] = FIXED
    ) -> Answer:
        if self.builds >= self.most:
            raise OutOfBuilds
        self.builds += 1
        return self.prober.probe(model, feeds, wanted, *([shapes] if shapes else []))


@dataclass
class EngineProber:
    """Probes with a backend, in children of a pool.

    target: as of a plan. source: digest of the model that the parts are cut from. folder: keeps the answers. say: gets
    one line for each build.
    """

    target: Mapping[str, Any]
    precision: str
    computes: Sequence[str]
    source: str
    folder: Path
    pool: ChildPool
    echo: Callable[[str], object]
    serving: Mapping[str, Any] = field(default_factory=lambda: Serving().to_json())
    builds: int = 0

    def probe(
        self, model: onnx.ModelProto, feeds: Arrays, wanted: Arrays, shapes: Mapping[str, Sequence[int]] = FIXED
    ) -> Answer:
        how = {
            "target": dict(self.target),
            "serving": dict(self.serving),
            "source": self.source,
            "shapes": {n: list(s) for n, s in shapes.items()},
        }
        asked = _digest(model, feeds, wanted, how)
        known = self.folder / f"{asked}.json"
        self.builds += 1
        if known.is_file():
            return Answer(**json.loads(known.read_text(encoding="utf-8")))
        answer = self._build(model, feeds, wanted, shapes)
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = known.with_suffix(".partial")
        partial.write_text(json.dumps(answer.to_json()), encoding="utf-8")
        partial.replace(known)
        self.echo(f"build {self.builds}: {len(model.graph.node)} nodes: {_described(answer)}")
        return answer

    def _build(
        self, model: onnx.ModelProto, feeds: Arrays, wanted: Arrays, shapes: Mapping[str, Sequence[int]]
    ) -> Answer:
        self.folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=self.folder, prefix=SCRATCH) as scratch:
            part = Path(scratch)
            model_file, inputs = save_part(model, feeds, part)
            np.savez(part / "wanted.npz", **wanted)  # type: ignore[arg-type]
            payload = {
                "target": dict(self.target), "precision": self.precision, "computes": list(self.computes),
                "model": str(model_file), "feeds": str(inputs), "wanted": str(part / "wanted.npz"),
                "out": str(part / "engine"), "serving": dict(self.serving),
                "inputs": [
                    {"name": n, "dtype": a.dtype.name, "shape": named_shape(a.shape, shapes.get(n))}
                    for n, a in feeds.items()
                ],
                "shapes": {n: [list(a.shape), list(shapes.get(n, a.shape))] for n, a in feeds.items()},
            }  # fmt: skip
            try:
                result = self.pool.run(PROBE, payload, what="a part", error=BuildError, time_limit_s=3600)
            except Interrupted:
                raise
            except StepError as error:
                return Answer(crash=error.message.replace(str(part), "part"))
            return Answer(errors=result["errors"], ran=result["ran"])


def main(payload: Mapping[str, Any]) -> dict[str, Any]:
    """Build a part, run it a few times, and compare its outputs: {errors by output, ran}.

    The other shape is the engine's best one: a fault at shapes beside that shows.

    Runs in a child process. Raises `BuildError` or `RunError`, which is a crash of the part.
    """
    target, out = payload["target"], Path(payload["out"])
    out.mkdir(parents=True, exist_ok=True)
    build = builder(target["backend"])
    if build is None:
        raise BuildError(f"backend '{target['backend']}' builds no engines")
    specs = [spec_from_json(spec) for spec in payload["inputs"]]
    ranges = {name: shape_range(*both) for name, both in payload["shapes"].items()}
    request = BuildRequest(
        Path(payload["model"]), out, payload["precision"], (Profile("part", ranges),),
        compute_capabilities=tuple(target["compute_capability"]), options=target["options"],
        computes=tuple(payload["computes"]),
    )  # fmt: skip
    try:
        report = build.build(request, print)
        try:
            run = runner_of(target)
        except EngineworksError:
            return {"errors": {}, "ran": False}
        session = run.load(out / report.file, target["options"], serving=Serving(**payload["serving"]), known=specs)
        return {"errors": _compare(session, read_arrays(Path(payload["feeds"])), payload), "ran": True}
    finally:
        shutil.rmtree(out, ignore_errors=True)


def shape_range(run: Sequence[int], best: Sequence[int]) -> InputRange:
    """The profile of an input that takes both shapes."""
    return InputRange(tuple(map(min, run, best)), tuple(best), tuple(map(max, run, best)))


def _compare(session: Any, feeds: Arrays, payload: Mapping[str, Any]) -> dict[str, float]:
    wanted = read_arrays(Path(payload["wanted"]))
    errors: dict[str, float] = dict.fromkeys(wanted, 0.0)
    with closing(session):
        for turn in range(RUNS):
            for name, array in session.run(feeds).items():
                errors[name] = max(errors[name], row_error_of(array, wanted[name]))
            if turn == 0 and payload["target"]["compute_capability"]:
                session.time_runs(feeds, WARM_RUNS)
    return {name: min(error, WORST) for name, error in errors.items()}


def same_crash(one: str, other: str) -> bool:
    """Whether two messages are of the same fault: most of their words are equal, names, numbers and places left out."""
    a, b = _word_set(one), _word_set(other)
    return bool(one) == bool(other) and len(a & b) >= 0.5 * max(1, min(len(a), len(b)))


def _word_set(message: str) -> set[str]:
    plain = re.sub(r"'[^']*'|\"[^\"]*\"|\([^)]*\)|\S*[/\\]\S*|\d\S*|after .*? s\b|peak memory.*", " ", message)
    return {word.strip(".,:;").lower() for word in plain.split() if len(word) > 2}


def _digest(model: onnx.ModelProto, feeds: Arrays, wanted: Arrays, rest: Mapping[str, Any]) -> str:
    """The digest of what is asked: the part, its values, and how it is built. The part's weights may be on disk."""
    import hashlib

    written = hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()
    return digest_of({"model": written, "arrays": array_digests({**feeds, **wanted}), **rest})


def array_digests(arrays: Arrays) -> dict[str, str]:
    import hashlib

    def digest(array: Array) -> str:
        return hashlib.sha256(f"{array.dtype}{array.shape}".encode() + array.tobytes()).hexdigest()

    return {name: digest(np.asarray(array)) for name, array in arrays.items()}


def _described(answer: Answer) -> str:
    if answer.crash:
        return f"crashes ({answer.crash[:80]})"
    if not answer.ran:
        return "builds; this host cannot run it"
    worst = max(answer.errors.values(), default=0.0)
    return "NaN, infinity or another shape" if worst >= WORST else f"largest error {worst:.2e}"
