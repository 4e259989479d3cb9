"""The engines in one directory of a Triton package, each verified by its passport."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from engineworks.engines.backends import backend_facts, runner
from engineworks.engines.backends.base import Session
from engineworks.engines.engine_files import SIDECAR_FILE, check_files
from engineworks.engines.passport import Passport, read_passport
from engineworks.engines.signing import Trust, read_trust
from engineworks.errors import RunError, TrustError
from engineworks.tensors import spec_from_json

VERSION = "1"
"""Version of every model in the package: Triton counts versions per directory; passports hold Engineworks' versions."""

PASSPORTS = f"{VERSION}/passports"
"""In the version's directory: in the model's, Triton takes every other folder for a version and warns."""

EARLIER_PASSPORTS = "passports"
"""Where packages of Engineworks 0.1 have them."""

ENGINES_FILE = "engines.json"


@dataclass(frozen=True)
class EngineInPackage:
    """An engine of the directory: its verified file and its passport."""

    file: Path
    passport: Passport


def read_engines(model: Path, trust: Trust) -> list[EngineInPackage]:
    """Return every engine of the model's directory after checking its signature and bytes. Raises `TrustError`."""
    folders = (model / PASSPORTS, model / EARLIER_PASSPORTS)
    place = next((f for f in folders if f.is_dir()), folders[0]) / ENGINES_FILE
    try:
        described = json.loads(place.read_text(encoding="utf-8"))
        listed = [(str(d["passport"]), dict(d["files"])) for d in described.values()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise TrustError(f"{place}: cannot be read, so nothing says what the engines are") from None
    return [_read_engine(model, passport, files, trust) for passport, files in listed]


def _read_engine(model: Path, name: str, files: dict[str, str], trust: Trust) -> EngineInPackage:
    passport = read_passport(model / name, trust)
    missing = passport.files.keys() - files.keys() - {SIDECAR_FILE}
    if missing:
        raise TrustError(f"{model}: '{min(missing)}' of {passport.id} is missing", hint="fetch the package again")
    digests = {files[n]: digest for n, digest in passport.files.items() if n in files}
    check_files(model, digests, against="its passport")
    main = next(n for n, digest in passport.files.items() if digest == passport.sha256)
    return EngineInPackage(model / files[main], passport)


def open_packaged(model: Path, *, cache: Path | None = None) -> Session:
    """Load the engine of the model's directory that this host can run. cache: folder for its compiled kernels.

    Raises `TrustError` before loading anything, `RunError` where this host can run none of them.
    """
    engines = read_engines(model, read_trust())
    chosen = _choose(engines)
    target = chosen.passport.target
    backend = runner(target["backend"])
    assert backend is not None  # it has no reason not to run
    described = chosen.passport.body["engine"]
    known = [spec_from_json(spec) for spec in (*described["inputs"], *described["outputs"])]
    return backend.load(chosen.file, target["options"], serving=chosen.passport.serving, cache=cache, known=known)


def _choose(engines: Sequence[EngineInPackage]) -> EngineInPackage:
    """Choose an engine, preferring one for exactly this GPU type to a portable one."""
    reasons = []
    for engine in sorted(engines, key=lambda e: len(e.passport.target["compute_capability"])):
        target = engine.passport.target
        why = backend_facts(target["backend"]).why_not_run(target["compute_capability"])
        if why is None:
            return engine
        reasons.append(f"{engine.passport.id}: {why}")
    raise RunError("no engine of the package can be run here:\n" + "\n".join(reasons))
