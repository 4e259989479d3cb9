"""The whole report in its order: what matters first."""

from __future__ import annotations

from engineworks.builds.results import BuildResult
from engineworks.report.accuracy import accuracy_section
from engineworks.report.background import NOTHING, Background
from engineworks.report.blame import blame_section
from engineworks.report.blocks import Section
from engineworks.report.calibration import calibration_section
from engineworks.report.changes import changes_section
from engineworks.report.choice import choice_section
from engineworks.report.comparison import comparison_tables
from engineworks.report.decoder import decoder_section
from engineworks.report.layers import layers_section
from engineworks.report.provenance import provenance_section
from engineworks.report.serving import serving_section
from engineworks.report.speed import latency_section, memory_section, sweep_section
from engineworks.report.steps_section import steps_section
from engineworks.report.trend import trend_section
from engineworks.report.verdict_section import verdict_section


def sections(result: BuildResult, background: Background = NOTHING, *, plots: bool) -> list[Section]:
    """plots: with the plots and the files within the page, which only HTML shows."""
    every = [
        verdict_section(result, files=plots),
        blame_section(result, background),
        changes_section(result, background),
        Section(
            "frameworks", "Next to other frameworks", tuple(comparison_tables(result.comparison)), brief="Frameworks"
        ),
        latency_section(result, background, plots=plots),
        layers_section(result, background),
        sweep_section(result, background, plots=plots),
        decoder_section(result, plots=plots),
        accuracy_section(result, background),
        choice_section(result, plots=plots),
        serving_section(result, plots=plots),
        calibration_section(result),
        memory_section(result),
        trend_section(result, background, plots=plots),
        steps_section(result, plots=plots),
        provenance_section(result, background),
    ]
    return [section for section in every if section is not None and section.blocks]
