"""`engineworks init`: a first recipe."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from engineworks.commands.options import Json
from engineworks.errors import InputError
from engineworks.report import terminal
from engineworks.settings import read_settings

if TYPE_CHECKING:
    from engineworks.commands.init.draft import InitOptions
    from engineworks.commands.init.write import Written


def init(
    model: Annotated[
        str | None, typer.Argument(help="ONNX file or Hugging Face folder; without one, init asks.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="File to write; default: recipes/NAME.yaml.")] = None,
    name: Annotated[str | None, typer.Option("--name", help="Name of the recipe; default: the model's.")] = None,
    precisions: Annotated[str | None, typer.Option("--precisions", help="E.g. fp32,fp16,int8.")] = None,
    evaluation: Annotated[
        str | None, typer.Option("--evaluation", help="Samples: .npz, texts or a folder of images; default: synthetic.")
    ] = None,
    labels: Annotated[str | None, typer.Option("--labels", help="Array or column with the labels.")] = None,
    calibration: Annotated[
        str | None, typer.Option("--calibration", help="Samples that calibrate int8, in the same forms.")
    ] = None,
    task: Annotated[str | None, typer.Option("--task", help="Task of a Hugging Face model.")] = None,
    from_trtexec: Annotated[
        str | None, typer.Option("--from-trtexec", help="Translate this trtexec command line, in quotes.")
    ] = None,
    from_olive: Annotated[Path | None, typer.Option("--from-olive", help="Translate this Olive file.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing recipe.")] = False,
    as_json: Json = False,
) -> None:
    """Write a recipe that builds at once, with its guesses marked.

    Dimensions are named and tried on the model. Without data, synthetic samples are made.

    Examples:
        engineworks init model.onnx
        engineworks init --from-trtexec 'trtexec --onnx=model.onnx --fp16' --out recipes/half.yaml
    """
    from engineworks.commands.init.write import recipe_name, write_recipe

    options = _translated(from_trtexec, from_olive)
    options = replace(
        options, model=model or options.model, name=name or options.name, task=task or options.task,
        precisions=_split(precisions) or options.precisions, evaluation=evaluation or options.evaluation,
        labels=labels or options.labels, calibration=calibration or options.calibration,
    )  # fmt: skip
    if not options.model:
        options = _asked(options)
    given = Path(options.model)
    folder = Path("recipes") if Path("recipes").is_dir() else Path()
    stem = recipe_name(options.name or (given.stem if given.suffix == ".onnx" else given.name))
    written = write_recipe(options, out or folder / f"{stem}.yaml", read_settings(), force=force)
    _print(written, options, as_json=as_json)


def _translated(trtexec: str | None, olive: Path | None) -> InitOptions:
    from engineworks.commands.init.draft import InitOptions
    from engineworks.commands.init.olive import read_olive
    from engineworks.commands.init.trtexec import read_trtexec

    if trtexec is not None and olive is not None:
        raise InputError("give --from-trtexec or --from-olive, not both")
    if trtexec is not None:
        return read_trtexec(trtexec)
    return read_olive(olive) if olive is not None else InitOptions()


def _split(given: str | None) -> tuple[str, ...]:
    return tuple(part.strip() for part in given.split(",") if part.strip()) if given else ()


def _asked(options: InitOptions) -> InitOptions:
    """Ask questions whose defaults are usable answers; only on a terminal."""
    if not sys.stdin.isatty():
        raise InputError("no model is named", hint="e.g. engineworks init model.onnx; on a terminal it asks")
    nearby = sorted(p for pattern in ("*.onnx", "models/*.onnx") for p in Path().glob(pattern))
    model = typer.prompt("Model (ONNX file or Hugging Face folder)", default=str(nearby[0]) if nearby else None)
    name = typer.prompt("Name of the recipe", default=Path(model).stem.lower())
    evaluation = typer.prompt(
        "Samples to compare on (.npz, texts, images; empty: stand-ins)", default="", show_default=False
    )
    calibration = typer.prompt("Samples to calibrate int8 on (empty: no int8)", default="", show_default=False)
    usual = "fp32,fp16,int8" if calibration else "fp32,fp16"
    precisions = typer.prompt("Precisions (empty: by the model)", default="", show_default=False) or ""
    terminal.echo(f"precisions: {precisions or usual}")
    return replace(
        options, model=model, name=name, evaluation=evaluation or options.evaluation,
        calibration=calibration or options.calibration, precisions=_split(precisions) or options.precisions,
    )  # fmt: skip


def _print(written: Written, options: InitOptions, *, as_json: bool) -> None:
    recipe = written.loaded.recipe
    if as_json:
        terminal.print_json({
            "recipe": str(written.recipe), "files": [str(f) for f in written.files], "notes": list(written.notes),
            "translated": list(options.kept), "not_translated": list(options.dropped),
            "resolved": recipe.model_dump(mode="json"),
        })  # fmt: skip
        return
    terminal.echo_valid(str(written.recipe), len(recipe.precisions), len(recipe.targets))
    for spec_name, spec in recipe.inputs.items():
        terminal.echo(f"input {spec_name}: {spec.dtype}[{', '.join(map(str, spec.shape))}]")
    for profile in recipe.shapes.values():
        for dim, triple in profile.items():
            terminal.echo(f"shape {dim}: min {triple[0]}, opt {triple[1]}, max {triple[2]}")
    for line in written.notes:
        terminal.echo(f"note: {line}")
    for line in options.kept:
        terminal.echo(f"translated: {line}")
    for line in options.dropped:
        terminal.echo(f"not translated: {line}")
    terminal.echo(f"next: engineworks build {written.recipe}")
