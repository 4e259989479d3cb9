"""`engineworks generate`: try a decoder's engine, or its champion, on a prompt."""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

from engineworks.commands.completion import engine_ids
from engineworks.commands.options import Json
from engineworks.report import terminal
from engineworks.settings import read_settings

if TYPE_CHECKING:
    from engineworks.settings import Settings

MOST_NEW = 100_000


def generate(
    engine: Annotated[
        str, typer.Argument(help="An engine's id, or its folder in the store.", autocompletion=engine_ids)
    ],
    prompt: Annotated[str, typer.Argument(help="The text to continue.")],
    new: Annotated[int, typer.Option("--new", min=1, max=MOST_NEW, help="Tokens to generate at most.")] = 64,
    champion: Annotated[bool, typer.Option("--champion", help="MLflow's champion, not what is built here.")] = False,
    as_json: Json = False,
) -> None:
    """Continue a prompt, token by token. Example: engineworks generate tiny-decoder/fp32/cpu "You may" """
    from engineworks.engines.decoder.generation import open_generator

    settings = read_settings()
    with TemporaryDirectory(prefix="engineworks-") as folder:
        place, target = _champion(engine, settings, Path(folder)) if champion else _built(engine, settings)
        generator = open_generator(place, target)
        pieces = []
        try:
            for piece in generator.stream(prompt, new):
                pieces.append(piece)
                if not as_json:
                    sys.stdout.write(piece)
                    sys.stdout.flush()
        finally:
            generator.close()
    if as_json:
        terminal.print_json({"engine": engine, "prompt": prompt, "text": "".join(pieces)})
    else:
        terminal.say("")


def _built(name: str, settings: Settings) -> tuple[Path, dict[str, Any]]:
    """Return the folder and target of the latest engine with this id, or of this folder."""
    from engineworks.commands.inspect import inspect_engine

    facts = inspect_engine(name, settings)
    if facts["kind"] != "engine":
        from engineworks.errors import InputError

        raise InputError(f"{name}: is no engine that was built here", hint="name recipe/precision/target")
    return Path(facts["path"]).parent, facts["target"]


def _champion(name: str, settings: Settings, into: Path) -> tuple[Path, dict[str, Any]]:
    """Fetch and verify the champion of an engine id. Raises `InputError` where there is none."""
    from engineworks.engines.passport import verify_folder
    from engineworks.engines.signing import read_trust
    from engineworks.errors import InputError
    from engineworks.tracking.aliases import registered_name, slot_of
    from engineworks.tracking.runs import open_tracking

    if name.count("/") != 2:
        raise InputError(f"'{name}' is no engine id", hint="name recipe/precision/target")
    registry = open_tracking(settings.artifacts, settings.tracking_uri).registry()
    slot = slot_of(registered_name(name.partition("/")[0], ""), name)
    found = registry.get(slot)
    if found is None:
        raise InputError(f"{name}: has no champion: it was never released", hint="run 'engineworks release'")
    folder = registry.download(found, into)
    return folder, dict(verify_folder(folder, read_trust()).target)
