"""The files that a recipe names: inside the allowed folders, present, and fitting the model's declared inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from engineworks.errors import Keys, ModelError, Problem, TrackingError
from engineworks.model.decoder.families import check_family, context_problems, read_config, vocabulary_of
from engineworks.model.decoder.interface import DecoderInterface, read_interface
from engineworks.model.export.from_huggingface import find_folder, source_files, task_of
from engineworks.model.export.outline import interface_problems
from engineworks.recipe.data import find_samples
from engineworks.recipe.datasets.decoder_text import plan_decoder_text
from engineworks.recipe.datasets.preparation import PYTHON_SLICES
from engineworks.recipe.datasets.text import TOKENIZER_FILES
from engineworks.recipe.decoder_part import Decoder
from engineworks.recipe.file_lookup import Finder, FoundModel, SourceKind
from engineworks.recipe.metric import python_metric
from engineworks.recipe.profiles import input_specs
from engineworks.recipe.recipe import Recipe
from engineworks.recipe.samples import SampleFile
from engineworks.recipe.yaml_nodes import Node
from engineworks.settings import read_settings
from engineworks.tensors import TensorSpec


@dataclass(frozen=True)
class RecipeFiles:
    """Files that a recipe reads, as absolute paths.

    kind: how the source is exported: onnx, torch, huggingface or mlflow_pytorch. source: the ONNX file, the factory's
    module file or the model's folder. model: every file that shapes the model, by a name that does not depend on the
    machine. metric: source files of the recipe's own metric and slices. resolved: the current meaning of a name in a
    registry. grows: whether a decoder's cache grows by concatenation.
    """

    folder: Path
    source: Path
    model: Mapping[str, Path]
    evaluation: SampleFile
    calibration: SampleFile | None = None
    metric: Mapping[str, Path] = field(default_factory=dict)
    kind: SourceKind = "onnx"
    resolved: str = ""
    grows: bool = False


def resolve_files(
    recipe: Recipe, node: Node, folder: Path, roots: Sequence[Path], problems: list[Problem]
) -> RecipeFiles:
    """Find every file, adding problems to `problems`; the result is complete only if none was added."""
    finder = Finder(node, folder, roots, problems)
    empty = SampleFile(folder, (), {}, None, 1, 1)
    if recipe.model.decoder is not None:
        model, vocabulary, grows = find_decoder(finder, recipe, recipe.model.decoder)
        texts = find_texts(finder, recipe, model, vocabulary)
        return RecipeFiles(folder, model.path or folder, model.files, texts or empty, kind=model.kind, grows=grows)
    model = _model_files(recipe, finder)
    _compare_interface(recipe, finder)
    data = recipe.data
    evaluation = find_samples(finder, "evaluation", recipe, data.evaluation, model)
    calibrating = find_samples(finder, "calibration", recipe, data.calibration, model) if data.calibration else None
    metric = python_metric(recipe.accuracy.metric)
    code = finder.code(("accuracy", "metric", "python"), metric) if metric else {}
    slices = data.evaluation.slices or ""
    if slices.startswith(PYTHON_SLICES):
        code |= finder.code(("data", "evaluation", "slices"), slices.removeprefix(PYTHON_SLICES))
    return RecipeFiles(
        folder, model.path or folder, model.files, evaluation or empty, calibrating, code, model.kind, model.resolved
    )


def _compare_interface(recipe: Recipe, finder: Finder) -> None:
    """Compare the inputs and outputs that an ONNX file declares with the recipe's."""
    if finder.outline is None:
        return
    for where, message, hint in interface_problems(input_specs(recipe), recipe.outputs, finder.outline):
        place = finder.node.at(where).place if len(where) > 2 else finder.node.key_place(where)
        finder.problems.append(Problem(place, message, hint, about=where[:2] if len(where) > 1 else ()))


def _model_files(recipe: Recipe, finder: Finder) -> FoundModel:
    source, at = recipe.model.source, ("model", "source")
    if source.onnx is not None:
        path = finder.file((*at, "onnx"), source.onnx)
        return FoundModel("onnx", path, finder.onnx_files((*at, "onnx"), path) if path else {})
    if source.huggingface is not None:
        path = finder.huggingface((*at, "huggingface"), source.huggingface, source.task)
        return FoundModel("huggingface", path, source_files(path) if path else {}, path, path)
    if source.mlflow is not None:
        return find_mlflow(finder, source.mlflow, source.task)
    if source.torch is not None:
        files = finder.code((*at, "torch"), source.torch)
        for index, name in enumerate(recipe.model.files):
            extra = finder.file(("model", "files", index), name)
            if extra:
                files[name] = extra
        return FoundModel("torch", next(iter(files.values()), None), files)
    return FoundModel("onnx", None, {})


PYTORCH_PARTS = ("data", "code")
"""Parts that shape a model of the pytorch flavor: its weights and the logged source, not the date or author."""


def find_mlflow(finder: Finder, uri: str, task: str | None) -> FoundModel:
    """The model's files on this host, fetched if needed; problems are noted at their places."""
    from engineworks.tracking.sources import fetch_model

    where = ("model", "source", "mlflow")
    try:
        model = fetch_model(uri, read_settings())
        if model.kind == "huggingface":
            task_of(find_folder(str(model.path), finder.folder), task)
    except (ModelError, TrackingError) as error:
        finder.add(where, error.message, error.hint)
        return FoundModel("onnx", None, {})
    if model.kind == "onnx":
        files = finder.onnx_files(where, model.path)
    elif model.kind == "huggingface":
        files = source_files(model.path)
    else:
        every = [p for part in PYTORCH_PARTS for p in sorted((model.path / part).rglob("*")) if p.is_file()]
        files = {p.relative_to(model.path).as_posix(): p for p in every}
    return FoundModel(model.kind, model.path, files, model.tokenizer, model.processor, model.resolved)


_DECODER: Keys = ("model", "decoder")


def find_decoder(finder: Finder, recipe: Recipe, decoder: Decoder) -> tuple[FoundModel, int | None, bool]:
    """Return the model's files, the length of its vocabulary, None if it is not known, and whether its cache grows."""
    source = recipe.model.source
    if source.onnx is not None:
        return _onnx(finder, source.onnx, decoder)
    return (*_huggingface(finder, source.huggingface or "", decoder), False)


def _huggingface(finder: Finder, name: str, decoder: Decoder) -> tuple[FoundModel, int | None]:
    where: Keys = ("model", "source", "huggingface")
    nothing = FoundModel("huggingface", None, {})
    if not name or ((finder.folder / Path(name).expanduser()).is_dir() and finder.inside(where, name) is None):
        return nothing, None
    try:
        folder = find_folder(name, finder.folder)
        config = read_config(folder)
        check_family(config)
    except ModelError as error:
        fetch = finder.fetch_hint((finder.folder / name).resolve())
        missing = not (finder.folder / name).is_dir()
        finder.add(where, error.message, fetch if missing and fetch else error.hint, missing=missing)
        return nothing, None
    for message, hint in context_problems(config, decoder.longest):
        finder.add((*_DECODER, "context"), message, hint)
    return FoundModel("huggingface", folder, source_files(folder), folder), vocabulary_of(config)


def _onnx(finder: Finder, name: str, decoder: Decoder) -> tuple[FoundModel, int | None, bool]:
    where: Keys = ("model", "source", "onnx")
    path = finder.file(where, name)
    files = finder.onnx_files(where, path) if path else {}
    folder = path.parent if path and any((path.parent / file).is_file() for file in TOKENIZER_FILES) else None
    face = _interface(finder, where, decoder) if finder.outline is not None else None
    grows = face is not None and face.form == "growing"
    return FoundModel("onnx", path, files, folder), face.vocabulary if face else None, grows


def _interface(finder: Finder, where: Keys, decoder: Decoder) -> DecoderInterface | None:
    assert finder.outline is not None
    inputs, outputs = (
        [TensorSpec(d.name, d.dtype, _shape(d.name, d.shape)) for d in declared]
        for declared in (finder.outline.inputs, finder.outline.outputs)
    )
    try:
        return read_interface(inputs, outputs, decoder.longest, decoder.cache, decoder.ties)
    except ModelError as error:
        given = next((key for key in ("ties", "cache") if getattr(decoder, key)), None)
        about = (*_DECODER, given) if given else where
        finder.add(about, error.message, error.hint)
        return None


def _shape(name: str, shape: object) -> tuple[int | str, ...]:
    dims = tuple(shape) if isinstance(shape, list | tuple) else ()
    return tuple(d if isinstance(d, int | str) else f"{name}_{axis}" for axis, d in enumerate(dims))


def find_texts(finder: Finder, recipe: Recipe, model: FoundModel, vocabulary: int | None) -> SampleFile | None:
    """Return the evaluation texts; None if something is wrong, which the finder notes."""
    samples, where = recipe.data.evaluation, ("data", "evaluation")
    decoder = recipe.model.decoder
    if samples.text is None or decoder is None:
        return None
    path = finder.file((*where, "text"), samples.text)
    folder = finder.subfolder((*where, "tokenizer"), samples.tokenizer) if samples.tokenizer else model.tokenizer
    if folder is None and samples.tokenizer is None and model.path is not None:
        finder.add(where, "the model brings no tokenizer", "name its folder: data.evaluation.tokenizer: FOLDER")
    if path is None or folder is None:
        return None
    return finder.planned(where, "text", lambda: plan_decoder_text(
        path, columns=samples.columns, messages=samples.messages, tokenizer=folder, samples=samples.samples,
        width=min(samples.max_length or decoder.longest, decoder.longest), context=decoder.longest,
        vocabulary=vocabulary,
    ))  # fmt: skip
