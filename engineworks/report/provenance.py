"""Where the build and every engine come from: recipe, commit, data, versions, hardware, digests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from engineworks.builds.results import BuildResult
from engineworks.plan.kinds import STEP_KINDS
from engineworks.report.background import Background
from engineworks.report.blocks import Block, Cell, Column, Fold, Section, Text, blocks_of, number, table
from engineworks.report.words import day


def provenance_section(result: BuildResult, background: Background) -> Section:
    blocks = blocks_of(_build(result, background), _versions(background), _engines(result, background))
    return Section("provenance", "Provenance", blocks, open=False)


def _build(result: BuildResult, background: Background) -> Block | None:
    facts = dict(background.facts)
    if background.at:
        facts["recorded"] = day(background.at)
    facts["MLflow run"] = result.run
    recipe: Mapping[str, Any] = next((p["recipe"] for p in background.passports.values() if p.get("recipe")), {})
    if recipe.get("sha256"):
        facts["recipe, sha256"] = recipe["sha256"]
    if recipe.get("changed"):
        facts["not committed"] = ", ".join(map(str, recipe["changed"]))
    digests = _digests(background)
    rows = [
        [Cell(name), Cell(str(value), code=len(str(value)) >= 32)] for name, value in (facts | digests).items() if value
    ]
    return table([Column("of the build"), Column("")], rows)


def _digests(background: Background) -> dict[str, str]:
    """sha256 of the model's and the data's files, once each."""
    found: dict[str, str] = {}
    for passport in background.passports.values():
        for step, kind in STEP_KINDS.items():
            for name, digest in (passport.get("digests") or {}).get(step, {}).items() if kind.files else ():
                label = kind.files if name in ("calibration", "evaluation") else f"{kind.files} {name}"
                found.setdefault(f"{label}, sha256", str(digest))
    return found


def _versions(background: Background) -> Block | None:
    """Libraries and hardware by target."""
    by_target: dict[str, dict[str, str]] = {}
    for engine, passport in background.passports.items():
        facts = by_target.setdefault(engine.split("/")[2], {})
        facts |= {str(k): str(v) for k, v in (passport.get("versions") or {}).items()}
        for hardware in (passport.get("hardware") or {}).values():
            facts |= {str(k): str(v) for k, v in hardware.items()}
    names = list(dict.fromkeys(name for facts in by_target.values() for name in facts))
    columns = [Column("target"), *(Column(name) for name in names)]
    rows = [[Cell(target, code=True), *(Cell(facts.get(n, "")) for n in names)] for target, facts in by_target.items()]
    return table(columns, rows, title="versions and hardware, by target")


def _engines(result: BuildResult, background: Background) -> Iterator[Block]:
    columns = [Column("engine"), Column("sha256"), Column("bytes", number=True), Column("MLflow run")]
    rows = [
        [Cell(e.id, code=True), Cell(e.sidecar.sha256, code=True), number(e.sidecar.bytes, 0),
         Cell(background.runs.get(e.id, ""), code=True)]
        for e in result.engines if e.sidecar
    ]  # fmt: skip
    places = [[Cell(e.id, code=True), Cell(str(e.path), code=True)] for e in result.engines if e.path]
    stored = table([Column("engine"), Column("file in the store")], places)
    for title, shown in (("digests of the engines", table(columns, rows)), ("where the engines are", stored)):
        if shown:
            yield Fold((Cell(title),), (shown,))
    if not background.passports and rows:
        yield Text("No passport is on record: versions and hardware are not known.", tone="muted")
