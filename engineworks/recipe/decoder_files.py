"""The files of a decoder's recipe: the model's, checked by their headers and configs, and the texts."""

from __future__ import annotations

from pathlib import Path

from engineworks.errors import Keys, ModelError
from engineworks.model.decoder.families import check_family, context_problems, read_config, vocabulary_of
from engineworks.model.decoder.interface import DecoderInterface, read_interface
from engineworks.model.export.from_huggingface import find_folder, source_files
from engineworks.recipe.datasets.decoder_text import plan_decoder_text
from engineworks.recipe.datasets.text import TOKENIZER_FILES
from engineworks.recipe.decoder_part import Decoder
from engineworks.recipe.file_lookup import Finder, FoundModel
from engineworks.recipe.recipe import Recipe
from engineworks.recipe.samples import SampleFile
from engineworks.tensors import TensorSpec

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
