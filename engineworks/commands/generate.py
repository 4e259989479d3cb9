"""`engineworks generate`: try a decoder's engine, or its champion, on a prompt."""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from engineworks.commands.completion import engine_ids
from engineworks.commands.options import Json
from engineworks.report import terminal
from engineworks.settings import Settings, read_settings

if TYPE_CHECKING:
    from engineworks.engines.decoder.generation import Generator

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
    """Continue a prompt, token by token.

    Examples:
        engineworks generate tiny-decoder/fp32/cpu "You may reproduce"
    """
    settings = read_settings()
    with TemporaryDirectory(prefix="engineworks-") as folder:
        generator = _champion(engine, settings, Path(folder)) if champion else _built(engine, settings)
        pieces = []
        with closing(generator):
            for piece in generator.stream(prompt, new):
                pieces.append(piece)
                if not as_json:
                    sys.stdout.write(piece)
                    sys.stdout.flush()
    if as_json:
        terminal.print_json({"engine": engine, "prompt": prompt, "text": "".join(pieces)})
    else:
        terminal.echo("")


def _built(name: str, settings: Settings) -> Generator:
    """Load the latest engine with this id, or the one in this folder."""
    from engineworks.commands.inspect import inspect_engine
    from engineworks.engines.decoder.generation import open_generator
    from engineworks.engines.verified import verified_engine
    from engineworks.errors import InputError

    facts = inspect_engine(name, settings)
    if facts["kind"] != "engine":
        raise InputError(f"{name}: is no engine that was built here", hint="name recipe/precision/target")
    with verified_engine(Path(facts["path"]).parent) as engine:
        return open_generator(engine, facts["target"])


def _champion(name: str, settings: Settings, into: Path) -> Generator:
    """Fetch, verify and load the champion of an engine id, whose first part is the registered model.

    Raises `InputError` where there is none, `TrustError`.
    """
    from engineworks.engines.decoder.generation import open_shipped_decoder
    from engineworks.engines.signing import read_trust
    from engineworks.errors import InputError
    from engineworks.tracking.aliases import slot_of
    from engineworks.tracking.runs import open_tracking

    if name.count("/") != 2:
        raise InputError(f"'{name}' is no engine id", hint="name recipe/precision/target")
    registry = open_tracking(settings.artifacts, settings.tracking_uri).registry()
    slot = slot_of(name.partition("/")[0], name)
    fetched = registry.fetch(slot.model, None, slot.alias("champion"), into, read_trust())
    return open_shipped_decoder(fetched.folder, fetched.passport)
