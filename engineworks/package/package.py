"""Engines that passed → a Triton model repository, with their passports.

    <out>/engineworks-package.json          every file with its digest; signed where there is a key
    <out>/<model>/config.pbtxt
    <out>/<model>/1/model.onnx              or <target>.plan, one per GPU type
    <out>/<model>/1/passports/<target>.json its statements.json where it was released, and engines.json: maps files to
                                            passports; signed where there is a key
    <out>/<model>/1/kernels/<target>/…      what TensorRT-RTX compiled here, if this host has the engine's GPU
    <out>/<model>/1/model.py                and runtime.zip: a model for the Python backend, where nothing else serves
    <out>/<model>/requirements.txt          what model.py needs besides
    <out>/<model>/warmup/…                  samples of the evaluation data

Each CPU engine is a model. Engines of one precision for several GPU types are one model: Triton picks the file by the
GPU's compute capability (`cc_model_filenames`).
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from engineworks.engines.backends import backend
from engineworks.engines.backends.base import Traits
from engineworks.engines.engine_files import SIDECAR_FILE, STATEMENTS_FILE, check_files
from engineworks.engines.passport import Passport, SignatureFacts
from engineworks.engines.signing import Signer, Trust, read_signer
from engineworks.engines.statements import Statements
from engineworks.engines.strict_json import Digest, parse_document, read_bytes, typed
from engineworks.errors import EngineworksError, InputError, StoreError, TrustError
from engineworks.host.file_digests import digest_file
from engineworks.measure.serving_report import BatchingSweep, ServingReport
from engineworks.package.runtime import write_python_model
from engineworks.package.triton import PYTHON, TritonModel, config_text, served_by
from engineworks.package.triton_engines import (
    PASSPORTS,
    VERSION,
    PackagedEngines,
    PackagedFiles,
    model_name,
    verify_engines,
)
from engineworks.package.warmup import package_kernels, write_warm_ups
from engineworks.plan.prepared import stored_evaluation
from engineworks.recipe.load import LoadedRecipe
from engineworks.recipe.package_settings import PackageSettings, package_settings
from engineworks.recipe.recipe import Triton
from engineworks.recipe.samples import SampleFile
from engineworks.tensors import profile_from_json
from engineworks.typed_json import Document

PACKAGE_FILE = "engineworks-package.json"
"""The manifest at the top of a package."""

CONTAINER = ("onnxruntime", "python", "tensorrt")
"""Backends of NVIDIA's Triton container, for packages that are made where no server was found."""


@dataclass(frozen=True)
class PackagedEngine:
    """An engine to package. The passport holds its files' names and digests. statements: of its release, if any."""

    folder: Path
    passport: Passport
    statements: Statements | None = None

    @property
    def precision(self) -> str:
        return self.passport.facts.engine.precision

    @property
    def target(self) -> str:
        return self.passport.target.name

    @property
    def backend(self) -> str:
        return self.passport.target.backend

    def tuned(self, triton: Triton) -> Triton:
        """Return how Triton is to serve the engine: with `dynamic_batching.measured`, what was measured, else as given.

        Raises `TrustError` where the passport's report is none of ours.
        """
        if triton.dynamic_batching is None or not triton.dynamic_batching.measured:
            return triton
        served = self.passport.body["reports"].get(ServingReport.FILE)
        if served is None:
            return triton
        try:
            point = BatchingSweep.from_json(served["batching"]).recommended
            batching = {"preferred": point.preferred, "max_delay_us": point.delay_us}
            more = {"dynamic_batching": None if point.preferred is None else batching, "instances": point.instances}
            return Triton.model_validate({**triton.model_dump(), **more})
        except (ValueError, KeyError, TypeError, StoreError):
            message = f"{self.passport.id}: its passport's {ServingReport.FILE} names no setting of the dynamic batcher"
            raise TrustError(message, hint="build it again") from None

    @property
    def traits(self) -> Traits:
        return backend(self.backend).TRAITS


@dataclass(frozen=True)
class PackageManifest(Document):
    """The contents of `engineworks-package.json`. files: sha256 by path."""

    package: Literal[1]
    recipe: str
    files: Mapping[str, Digest]
    signature: SignatureFacts | None = None


def write_package(
    loaded: LoadedRecipe, engines: Sequence[PackagedEngine], out: Path, *, available: Collection[str] = CONTAINER,
    echo: Callable[[str], object] = lambda _: None,
) -> list[Path]:  # fmt: skip
    """Write the package atomically, replacing an older package at `out`. Returns the models' directories.

    available: the server's backends. echo: gets the reason where kernels could not be compiled here. Raises
    `InputError` where `out` holds something else, or where the server has no backend for an engine.
    """
    if loaded.recipe.model.decoder is not None:
        raise InputError(f"{loaded.name}: a decoder has no Triton package yet", hint="'engineworks release' ships it")
    return write_models(package_settings(loaded), stored_evaluation(loaded), engines, out, available, echo)


def write_models(
    settings: PackageSettings, samples: SampleFile, engines: Sequence[PackagedEngine], out: Path,
    available: Collection[str], echo: Callable[[str], object] = lambda _: None,
) -> list[Path]:  # fmt: skip
    """Write the package as `write_package` does. samples: for the warm-up."""
    if out.exists() and any(out.iterdir()) and not (out / PACKAGE_FILE).is_file():
        raise InputError(f"{out}: is neither empty nor an Engineworks package", hint="name a new folder")
    partial = out.with_name(f".{out.name}.{os.getpid()}.{secrets.token_hex(4)}")
    partial.mkdir(parents=True)
    try:
        signer = read_signer()
        for name, group in _groups(settings.model, engines).items():
            (partial / name).mkdir()
            server_backend = served_by(group[0].traits, available)
            tuned = replace(settings, triton=group[0].tuned(settings.triton))
            _write_model(tuned, samples, name, group, partial / name, signer, server_backend, echo)
        _write_manifest(settings.recipe, partial, signer)
        _replace(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return sorted(p.parent for p in out.glob("*/config.pbtxt"))


def verify_package(folder: Path, trust: Trust) -> list[Passport]:
    """Return the package's passports after checking every file and signature. Raises `TrustError`."""
    what = str(folder / PACKAGE_FILE)
    document = parse_document(read_bytes(folder / PACKAGE_FILE), what)
    trust.check(document, what)
    digests = typed(PackageManifest, document, what).files
    check_files(folder, digests, against="the package")
    if strange := sorted(_files(folder) - digests.keys()):
        raise TrustError(
            f"{folder / strange[0]}: is no part of the package", hint="it was added later: do not serve it"
        )
    models = sorted({name.partition("/")[0] for name in digests if "/" in name})
    return [engine.passport for model in models for engine in verify_engines(folder / model, trust)]


def _groups(model: str, engines: Sequence[PackagedEngine]) -> dict[str, list[PackagedEngine]]:
    """Group engines by their shared directory: see the module's docstring."""
    groups: dict[str, list[PackagedEngine]] = {}
    for engine in engines:
        groups.setdefault(model_name(model, engine.passport), []).append(engine)
    return groups


def _write_model(
    settings: PackageSettings,
    samples: SampleFile,
    name: str,
    engines: Sequence[PackagedEngine],
    folder: Path,
    signer: Signer | None,
    server_backend: str,
    echo: Callable[[str], object],
) -> None:
    files = {e.target: _copy_engine(e, folder / VERSION) for e in engines}
    model = _triton_model(settings, samples, name, engines, files, folder, server_backend)
    (folder / PASSPORTS).mkdir()
    described = {e.target: _write_passport(e, files[e.target], folder) for e in engines}
    if server_backend == PYTHON:
        first = engines[0]
        write_python_model(folder, folder / VERSION, first.backend, first.passport.body["versions"])
        for e in engines if first.traits.on_gpu else ():
            kernels = package_kernels(e.folder, e.passport, model, folder, echo)
            described[e.target] = replace(described[e.target], kernels=kernels)
    PackagedEngines(1, name, described).write(folder, signer)
    text = config_text(model)
    validate_config(text)
    (folder / "config.pbtxt").write_text(text, encoding="utf-8")


def _write_passport(engine: PackagedEngine, files: Mapping[str, str], folder: Path) -> PackagedFiles:
    """Write the engine's passport, and the statements of its release."""
    passport, statements = f"{PASSPORTS}/{engine.target}.json", f"{PASSPORTS}/{engine.target}.{STATEMENTS_FILE}"
    shutil.copyfile(engine.passport.source, folder / passport)
    if engine.statements is None:
        return PackagedFiles(passport, files)
    (folder / statements).write_text(json.dumps(engine.statements.to_json(), indent=1) + "\n", encoding="utf-8")
    return PackagedFiles(passport, files, statements)


def _triton_model(
    settings: PackageSettings,
    samples: SampleFile,
    name: str,
    engines: Sequence[PackagedEngine],
    files: Mapping[str, Mapping[str, str]],
    folder: Path,
    server_backend: str,
) -> TritonModel:
    first = engines[0]
    described = first.passport.facts.engine
    mains = {e.target: Path(files[e.target][e.passport.main]).name for e in engines}
    pads = first.traits.on_gpu and server_backend == PYTHON and settings.triton.dynamic_batching is not None
    return TritonModel(
        name=name,
        backend=first.backend,
        inputs=described.inputs,
        outputs=described.outputs,
        max_batch=settings.max_batch,
        settings=settings.triton,
        served_by=server_backend,
        file="" if server_backend == PYTHON else mains[first.target],
        capabilities=_capabilities(engines, mains),
        profiles=len(first.passport.facts.profiles),
        warm_ups=write_warm_ups(
            settings,
            samples,
            folder,
            described.inputs,
            on_gpu=first.traits.on_gpu,
            padded_within=[profile_from_json(p) for p in first.passport.facts.profiles] if pads else (),
        ),
        options=first.passport.target.options,
        cuda_graphs=first.passport.serving.cuda_graphs,
        load_level=str(described.details.get("load_level", "")),
    )


def _capabilities(engines: Sequence[PackagedEngine], mains: Mapping[str, str]) -> dict[str, str]:
    """Return the file by compute capability; an engine for one capability precedes a portable one."""
    files: dict[str, str] = {}
    for engine in sorted(engines, key=lambda e: len(e.passport.target.compute_capability)):
        for capability in engine.passport.target.compute_capability:
            files.setdefault(capability, mains[engine.target])
    return files


def _copy_engine(engine: PackagedEngine, folder: Path) -> dict[str, str]:
    """Copy the engine's files under Triton's names. Returns the path in the model's directory by the passport's
    name."""
    folder.mkdir(exist_ok=True)
    names = {}
    for name in engine.passport.files:
        if name == SIDECAR_FILE:  # the passport has the same content
            continue
        main = engine.traits.triton.file.format(target=engine.target)
        shown = main if name == engine.passport.main else name  # weights keep the name in the model
        shutil.copyfile(engine.folder / name, folder / shown)
        names[name] = f"{folder.name}/{shown}"
    return names


def validate_config(text: str) -> None:
    """Parse the text with Triton's real message, where `tritonclient[grpc]` is installed. Raises `EngineworksError`."""
    if find_spec("tritonclient") is None or find_spec("grpc") is None:
        return
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    try:
        text_format.Parse(text, model_config_pb2.ModelConfig())
    except text_format.ParseError as error:
        raise EngineworksError(f"the package's config.pbtxt is not what Triton reads: {error}") from None


def _write_manifest(recipe: str, folder: Path, signer: Signer | None) -> None:
    files = {name: digest_file(folder / name) for name in sorted(_files(folder))}
    manifest = PackageManifest(1, recipe, files).to_json()
    text = json.dumps(signer.sign(manifest) if signer else manifest, indent=1)
    (folder / PACKAGE_FILE).write_text(text + "\n", encoding="utf-8")


def _files(folder: Path) -> set[str]:
    return {f.relative_to(folder).as_posix() for f in folder.rglob("*") if not f.is_dir()} - {PACKAGE_FILE}


def _replace(partial: Path, out: Path) -> None:
    """Replace the old package by two renames; a reader between them finds none."""
    out.parent.mkdir(parents=True, exist_ok=True)
    if not out.exists():
        os.rename(partial, out)
        return
    old = partial.with_name(partial.name + ".old")
    os.rename(out, old)
    os.rename(partial, out)
    shutil.rmtree(old)
