"""`engineworks sensitivity`: the cost of quantizing each part of a model, and the resulting `keep` list."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from engineworks.commands.completion import precisions, target_names
from engineworks.commands.options import LARGEST_NUMBER, Json, OneRecipe, Quiet, Verbose
from engineworks.host.atomic_write import write_atomically
from engineworks.report import terminal
from engineworks.settings import read_settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from engineworks.commands.sensitivity.measurement import Sensitivity
    from engineworks.measure.sensitivity_report import ModelCost, Part, SensitivityReport

SHOWN = 20
"""Parts that the table shows; --json has them all."""


Precision = Annotated[
    str, typer.Option("--precision", help="int8, fp8, or a mixture that has them.", autocompletion=precisions)
]
Target = Annotated[
    str, typer.Option("--target", help="The target whose engine the list is for.", autocompletion=target_names)
]
Samples = Annotated[
    int | None,
    typer.Option("--samples", min=1, max=LARGEST_NUMBER, help="Number of samples to search on; default: all."),
]
Write = Annotated[bool, typer.Option("--write", help="Write the list into the recipe; default: print the diff.")]
Out = Annotated[Path | None, typer.Option("--out", help="Folder of the plot; default: artifacts/sensitivity.")]


def sensitivity(
    recipe: OneRecipe,
    precision: Precision = "int8",
    target: Target = "cpu",
    samples: Samples = None,
    write: Write = False,
    out: Out = None,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Rank the parts of a model by what quantizing them costs in accuracy.

    Exits 1 if no list meets the recipe's limits, 3 if this host cannot run its engine.

    Examples:
        engineworks sensitivity recipes/minilm.yaml --precision int8
    """
    from engineworks.commands.sensitivity.measurement import measure_sensitivity
    from engineworks.report.progress_text import progress

    settings = read_settings()
    with progress(settings, quiet=quiet or as_json, verbose=verbose):
        made = measure_sensitivity(recipe, settings, precision=precision, target=target, samples=samples)
    title = f"{made.id}: {made.found.samples} samples"
    plot = (out or settings.artifacts / "sensitivity") / f"{made.id.replace('/', '-')}.svg"
    write_plot(made.found, title, plot)
    diff, written = _patch(made, recipe, write=write)
    if as_json:
        terminal.print_json({**made.to_json(), "plot": str(plot), "diff": diff, "written": written})
    else:
        _say(made, plot, diff, written=written, quiet=quiet)
    raise typer.Exit(made.exit_code)


def _say(made: Sensitivity, plot: Path, diff: str, *, written: bool, quiet: bool) -> None:
    from engineworks.commands.recipe_patch import print_difference

    if not quiet:
        terminal.print_table(("part", "nodes", "noise dB", "cosine", "metric", "loss", "keep"), _rows(made.found))
    for line in _messages(made, plot):
        terminal.echo(line)
    print_difference(diff, made.loaded.shown, written=written)


def _patch(made: Sensitivity, recipe: Path, *, write: bool) -> tuple[str, bool]:
    """Return the change as a unified diff, '' if there is none to propose, and whether it was written."""
    from engineworks.commands.recipe_patch import patch_recipe, with_keep

    keep, shown = made.found.keep, made.loaded.shown
    if keep is None or not made.proven:
        return "", False
    diff = patch_recipe(recipe, lambda text: with_keep(text, keep, shown), shown, write=write)
    return diff, write and bool(diff)


def _rows(report: SensitivityReport) -> Iterator[tuple[str, ...]]:
    kept = set(report.kept_nodes)
    for part in report.parts[:SHOWN]:
        yield (
            part.name, str(len(part.nodes)),
            "not finite" if part.noise is None else _figure(part.sqnr_db and -part.sqnr_db, 1),
            _figure(part.cosine, 5), _figure(part.metric, 4),
            "" if part.loss is None else f"{part.loss:.2%}", "keep" if kept.issuperset(part.nodes) else "",
        )  # fmt: skip


def _messages(made: Sensitivity, plot: Path) -> Iterator[str]:
    from engineworks.commands.sensitivity.measurement import failures

    report, cost = made.found, made.found.cost
    every = f"all {report.candidates} nodes quantized, {report.samples} samples"
    yield f"{made.id}: {_values_text(report.everything)} with {every}"
    if not report.limits:
        yield f"the recipe has no limits for {report.precision}: nothing says which of them to keep out"
    elif made.found.keep is None:
        yield "no list of nodes to keep out makes the limits hold"
    elif not made.found.keep:
        yield "the limits hold with nothing kept out"
    else:
        assert report.result is not None  # there is a list
        yield f"with {len(report.kept_nodes)} nodes kept out: {_values_text(report.result)}"
    if made.verdict is not None:
        yield f"the engine of this list: {made.verdict.verdict}"
        yield from (f"  {check.message}" for check in failures(made.verdict))
    ratio = cost.seconds / (cost.tried * cost.pass_seconds) if cost.pass_seconds else 0.0
    yield (
        f"{cost.tried} parts tried and {cost.evaluations} lists in {cost.seconds:.1f} s: "
        f"{ratio:.1f} passes of fp32 over the samples per part"
    )
    yield f"plot: {plot}"


def _values_text(values: ModelCost) -> str:
    metric, text = values.metric_of, f"cosine {_figure(values.cosine, 5) or 'not finite'}"
    if metric is None:
        return text
    return f"{text}, {metric.name} {_figure(metric.engine, 4)} (fp32 {_figure(metric.reference, 4)})"


def _figure(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


MOST_BARS = 30

_KEPT, _QUANTIZED = "#c44e52", "#4c72b0"


def write_plot(report: SensitivityReport, title: str, file: Path) -> None:
    """Write the picture: SVG, or the format of the file's suffix."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    parts = report.parts[:MOST_BARS]
    figure = Figure(figsize=(9, 1.4 + 0.26 * len(parts)), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.add_subplot()
    kept = set(report.kept_nodes)
    noise = [p.noise or 1e-12 for p in parts]
    colours = [_KEPT if kept.issuperset(p.nodes) else _QUANTIZED for p in parts]
    axes.barh(range(len(parts)), noise, color=colours, log=True)
    axes.set_yticks(range(len(parts)), labels=[_label(p) for p in parts], fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel("noise / signal of the outputs with this part alone quantized (red: to keep out)")
    axes.set_title(title, fontsize=10)
    axes.grid(visible=True, axis="x", alpha=0.3)
    drawn = io.BytesIO()
    figure.savefig(drawn, format=file.suffix.lstrip(".") or "svg", metadata={"Date": None})
    write_atomically(file, drawn.getvalue())


def _label(part: Part) -> str:
    count = len(part.nodes)
    return part.name if count == 1 else f"{part.name} ({count} nodes)"
