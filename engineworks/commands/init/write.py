"""From a model to a recipe that builds: read the model, name and try its dimensions, find or make data, write."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from engineworks.commands.init.decoder import FoundDecoder, decoder_in_folder, decoder_in_onnx, decoder_lines, is_text
from engineworks.commands.init.dimensions import NamedDims, is_cache, name_dims, name_outputs
from engineworks.commands.init.draft import DataFile, Draft, InitOptions, ModelFacts, Range
from engineworks.commands.init.guesses import Candidates, candidates, decoding_candidates, value_ranges
from engineworks.commands.init.render import GUESS, render
from engineworks.commands.init.samples import OTHER_LABELS, OwnData, match_images, match_samples, match_texts
from engineworks.commands.init.trials import Trials, count_not_finite, try_lengths
from engineworks.commands.init.values import write_stand_in
from engineworks.errors import InputError, StepError, did_you_mean
from engineworks.recipe.batch import batch_dim
from engineworks.recipe.datasets.decoder_text import PLAIN
from engineworks.recipe.datasets.pictures import BY_FOLDER
from engineworks.recipe.datasets.tables import SUFFIXES
from engineworks.recipe.load import LoadedRecipe, load_recipe, load_targets
from engineworks.recipe.recipe import CALIBRATED, PRECISIONS
from engineworks.settings import Settings, find_repository
from engineworks.tensors import Dim

SCHEMA = "recipe.schema.json"
Say = Callable[[str], object]
Triple = tuple[int, int, int]


@dataclass(frozen=True)
class Written:
    """The result of `init`. files: everything written. notes: one sentence each."""

    recipe: Path
    files: tuple[Path, ...]
    notes: tuple[str, ...]
    loaded: LoadedRecipe


def write_recipe(options: InitOptions, out: Path, settings: Settings, *, force: bool = False) -> Written:
    """Write the recipe to the file `out`, synthetic samples next to it, and check that it is valid.

    Raises `InputError` if a file would be overwritten, and the errors of reading the model or the data.
    """
    if out.exists() and not force:
        raise InputError(f"{out}: is there already", hint="name another with --out, or replace it with --force")
    _check_options(options, out, settings)
    notes: list[str] = []
    files: list[Path] = []
    folder = Path(options.model).expanduser()
    if is_text(options.evaluation) and (found := decoder_in_folder(folder)):
        source = f"huggingface: {_quoted(_relative(folder.resolve(), out))}"
        return _decoder(options, out, source, found, settings, files, notes)
    source, facts, model = _source(options, out, settings, files, notes)
    if model and (found := decoder_in_onnx(facts.inputs, facts.outputs)):
        if is_text(options.evaluation):
            return _decoder(options, out, source, found, settings, files, notes)
        notes.append("the model has a KV cache: with --evaluation FILE.txt its recipe generates text")
    draft, ranges = _draft(options, out, source, facts, model, notes)
    out.parent.mkdir(parents=True, exist_ok=True)
    if draft.evaluation.stand_in:
        path = out.parent / draft.evaluation.file
        count = write_stand_in(path, draft.inputs, ranges, draft.shapes)
        files.append(path)
        notes.append(f"{path}: {count} samples that stand in for data: accuracy is agreement with fp32 on them")
    out.write_text(render(draft), encoding="utf-8")
    loaded = load_recipe(out, data_roots=settings.data_roots)
    if model and draft.evaluation.stand_in:
        _say_not_finite(model, loaded, notes)
    return Written(out, (out, *files), tuple(notes), loaded)


def _decoder(
    options: InitOptions, out: Path, source: str, found: FoundDecoder, settings: Settings, files: list[Path],
    notes: list[str],
) -> Written:  # fmt: skip
    """Write the recipe of a decoder language model."""
    path = Path(str(options.evaluation)).expanduser().resolve()
    columns = () if path.suffix == PLAIN else match_texts(path, _relative(path, out), None).file.columns
    name, precisions = Path(options.model).name, options.precisions or ("fp32", "int4_weights")
    lines = decoder_lines(
        recipe_name(options.name or Path(name).stem), f"{name}, a decoder language model", source, found,
        _relative(path, out), columns, precisions,
    )  # fmt: skip
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return Written(out, (out, *files), tuple(notes), load_recipe(out, data_roots=settings.data_roots))


def _check_options(options: InitOptions, out: Path, settings: Settings) -> None:
    """Check, before anything is written, that precisions are valid and that recipes may read the data's folder."""
    for precision in options.precisions:
        if precision not in PRECISIONS:
            raise InputError(f"'{precision}' is no precision", hint=did_you_mean(precision, PRECISIONS))
    folder = out.parent.resolve()
    root = find_repository(folder) or folder
    for given in (options.evaluation, options.calibration):
        path = Path(given).expanduser().resolve() if given else root
        if not any(path.is_relative_to(r) for r in (root, *settings.data_roots)):
            raise InputError(
                f"{given}: lies outside of {root}, where recipes may read",
                hint="move it there, or add its folder to ENGINEWORKS_DATA_ROOTS",
            )


def recipe_name(text: str) -> str:
    """Return a legal name for the recipe, from a file's or folder's name."""
    name = re.sub(r"[^a-z0-9._-]+", "-", text.lower()).strip("-._")
    return name[:80] or "model"


def _source(
    options: InitOptions, out: Path, settings: Settings, files: list[Path], notes: list[str]
) -> tuple[str, ModelFacts, Path | None]:
    """Return the line of `model.source`, the model's facts, and the ONNX file that can be tried."""
    from engineworks.commands.init.read_huggingface import read_huggingface
    from engineworks.commands.init.read_onnx import read_onnx

    given = Path(options.model).expanduser()
    if given.suffix == ".onnx" or given.is_file():
        if not given.is_file():
            raise InputError(f"{given}: no such file", hint="name an ONNX file or a Hugging Face folder")
        facts = read_onnx(given)
        named = _reachable(given.resolve(), out, settings, files, notes)
        return f"onnx: {_quoted(named)}", facts, given.resolve()
    if given.is_dir() and not (given / "config.json").is_file():
        onnx_files = sorted(given.glob("*.onnx"))
        hint = f"name the file: {onnx_files[0]}" if onnx_files else "it holds no config.json and no .onnx file"
        raise InputError(f"{given}: is not a Hugging Face folder", hint=hint)
    facts = read_huggingface(options.model, Path.cwd(), options.task)
    named = _relative(given.resolve(), out) if given.is_dir() else options.model
    notes.append("the model was not run: lengths and outputs are what its config.json says")
    return f"huggingface: {_quoted(named)}, task: {facts.task}", facts, None


def _reachable(model: Path, out: Path, settings: Settings, files: list[Path], notes: list[str]) -> str:
    """Return the model's path from the recipe; a copy next to the recipe if recipes may not read the original."""
    from engineworks.model.onnx_files import model_files

    folder = out.parent.resolve()
    root = find_repository(folder) or folder
    if any(model.is_relative_to(r) for r in (root, *settings.data_roots)):
        return _relative(model, out)
    copies = folder / "models"
    copies.mkdir(parents=True, exist_ok=True)
    for file in model_files(model):
        target = copies / file.resolve().relative_to(model.parent)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
        files.append(target)
    notes.append(f"{model}: lies outside of {root}, where recipes may read: copied to {copies / model.name}")
    return f"models/{model.name}"


def _draft(
    options: InitOptions, out: Path, source: str, facts: ModelFacts, model: Path | None, notes: list[str]
) -> tuple[Draft, Mapping[str, Range]]:
    named = name_dims(facts.inputs)
    ranges = value_ranges(named.inputs, facts.ranges)
    own = _own_data(options.evaluation, out, named, options.labels, guess=True)
    calibrating = _own_data(options.calibration, out, named, None, guess=False)
    wanted = _wanted(named, facts, options, own, notes)
    tried = _try(model, named, ranges, wanted)
    if tried.error and (untied := name_dims(facts.inputs, tie=False)) != named:
        named, wanted = untied, _wanted(untied, facts, options, own, [])
        tried = _try(model, named, ranges, wanted)
    if tried.error:
        notes.append(f"the model ran at none of the guessed lengths, correct them: {tried.error}")
    triples, why = _triples(named, wanted, tried, facts)
    outputs = name_outputs(facts.outputs, named.symbols, tried.observed, by_values=facts.by_values)
    precisions = _precisions(options, facts, calibrating)
    if not calibrating and any(p in CALIBRATED for p in precisions):
        options, precisions = _without_calibrated(options, precisions, notes)
    targets, target_note = _targets(out.parent)
    evaluation = own.file if own else DataFile(f"{out.stem}.stand-in-evaluation.npz", stand_in=True)
    calibration = replace(calibrating.file, labels=None) if calibrating else None
    _check_labels(options, own, outputs)
    first = next(iter(outputs.values()))
    metric = "top1" if own and own.classes and len(first) == 2 else None
    name = options.name or recipe_name(Path(options.model).stem if model else Path(options.model).name)
    draft = Draft(
        name=recipe_name(name), description=f"{Path(options.model).name}, described by its own inputs", source=source,
        inputs=named.inputs, outputs=outputs, precisions=precisions, targets=targets, evaluation=evaluation,
        ranges={} if own else ranges, shapes=triples, calibration=calibration,
        tried=f"Tried: {tried.runs} runs of ONNX Runtime" if tried.runs else "", why_shapes=why, metric=metric,
        options=options, target_note=target_note, schema=SCHEMA if (out.parent / SCHEMA).is_file() else "",
    )  # fmt: skip
    if draft.evaluation.labels and not metric:
        draft = replace(draft, evaluation=replace(draft.evaluation, labels=None))
    return draft, ranges


def _own_data(given: str | None, out: Path, named: NamedDims, labels: str | None, *, guess: bool) -> OwnData | None:
    if given is None:
        return None
    path = Path(given).expanduser().resolve()
    if path.suffix in SUFFIXES:
        return match_texts(path, _relative(path, out), labels)
    if path.is_dir():
        return match_images(path, _relative(path, out), _label_file(labels, out))
    return match_samples(path, _relative(path, out), named.inputs, labels, guess=guess)


def _label_file(labels: str | None, out: Path) -> str | None:
    """Return labels of images: 'folder', or a .csv file, as the recipe names it."""
    if labels is None or labels == BY_FOLDER:
        return labels
    if not Path(labels).is_file():
        raise InputError(f"--labels {labels}: no such file", hint="of images: 'folder', or a .csv with file and label")
    return _relative(Path(labels).resolve(), out)


def _check_labels(options: InitOptions, own: OwnData | None, outputs: Mapping[str, Sequence[Dim]]) -> None:
    """Raise `InputError` for requested labels that have no use."""
    if options.labels is None:
        return
    if own is None:
        raise InputError(f"--labels {options.labels}: there is no data with labels", hint="name it with --evaluation")
    name, shape = next(iter(outputs.items()))
    if len(shape) != 2:
        problem = f"output '{name}' is [{', '.join(map(str, shape))}], and classes need [batch, classes]"
        raise InputError(f"--labels {options.labels}: {problem}", hint=OTHER_LABELS)


def _wanted(
    named: NamedDims, facts: ModelFacts, options: InitOptions, own: OwnData | None, notes: list[str]
) -> dict[str, Candidates]:
    """Return lengths worth a try: the user's, else the data's, else usual ones of such dimensions."""
    usual = decoding_candidates if any(is_cache(raw.name) for raw in facts.inputs) else candidates
    given_lengths = _given_shapes(named, options, notes)
    wanted = {}
    for dim in named.dims:
        guess = usual(dim)
        limit = facts.limits.get(dim)
        if limit:
            guess = Candidates(guess.least, guess.opt, (limit, *guess.largest))
        if own and dim in own.lengths:
            guess = Candidates(guess.least, (own.lengths[dim],), guess.largest)
        if dim in given_lengths:
            guess = Candidates(*((n,) for n in given_lengths[dim]))
        wanted[dim] = guess
    return wanted


def _given_shapes(named: NamedDims, options: InitOptions, notes: list[str]) -> dict[str, Triple]:
    """Return the dimensions' min, opt and max from whole shapes of inputs, as trtexec has them."""
    specs = {s.name: s for s in named.inputs}
    triples: dict[str, Triple] = {}
    for name, shapes in options.shapes.items():
        if name not in specs:
            notes.append(f"shapes are given for '{name}', which is no input: {', '.join(specs)}")
            continue
        if any(len(shape) != len(specs[name].shape) for shape in shapes):
            notes.append(f"shapes are given for '{name}' with another rank than {specs[name]}")
            continue
        for axis, dim in enumerate(specs[name].shape):
            triple = (shapes[0][axis], shapes[1][axis], shapes[2][axis])
            if isinstance(dim, str):
                if triples.setdefault(dim, triple) != triple:
                    notes.append(f"'{name}' has {dim} {list(triple)}, another input {list(triples[dim])}, which counts")
            elif set(triple) != {dim}:
                notes.append(f"'{name}', axis {axis}: {list(triple)} is asked for, the model is fixed to {dim}")
    return triples


def _try(model: Path | None, named: NamedDims, ranges: Mapping[str, Range], wanted: Mapping[str, Candidates]) -> Trials:
    if model is None:
        return Trials()
    try:
        tried = try_lengths(model, named.inputs, ranges, wanted, named.sums)
        if not tried.observed and not tried.error:  # the requested lengths are too large: name outputs by smaller ones
            smaller = try_lengths(model, named.inputs, ranges, {d: candidates(d) for d in wanted}, named.sums)
            return replace(tried, observed=smaller.observed)
        return tried
    except StepError as error:
        return Trials(error=error.message)


def _say_not_finite(model: Path, loaded: LoadedRecipe, notes: list[str]) -> None:
    """Note whether the model's own outputs are finite on the synthetic samples."""
    batch = batch_dim(loaded.files.evaluation.specs)
    lengths = next(iter(loaded.recipe.shapes.values()), {})
    rows = batch if isinstance(batch, int) else lengths[batch][1]
    try:
        not_finite = count_not_finite(model, loaded.files.evaluation, rows)
    except StepError as error:
        notes.append(f"the model does not run on the samples that stand in: {error.message}")
        return
    for name, count in not_finite.items():
        notes.append(
            f"output '{name}' of the model itself is NaN or infinite on the samples that stand in ({count} values); "
            "no engine can be compared there: give real samples with --evaluation, or correct the inputs' range"
        )


def _triples(
    named: NamedDims, wanted: Mapping[str, Candidates], tried: Trials, facts: ModelFacts
) -> tuple[dict[str, Triple], dict[str, str]]:
    """Return [min, opt, max] of every dimension, and the basis of each."""
    triples: dict[str, Triple] = {}
    why: dict[str, str] = {}
    for dim in named.dims:
        asked = wanted[dim]
        is_given = all(len(lengths) == 1 for lengths in (asked.least, asked.opt, asked.largest))
        opt = min(asked.opt[0], facts.limits.get(dim, asked.opt[0]))
        untried = (min(asked.least[0], opt), opt, max(asked.largest[0], opt))
        triples[dim] = tried.triples.get(dim, untried)
        if is_given:
            missed = "" if triples[dim] == untried else f"; asked for {list(untried)}, of which this ran"
            why[dim] = f"as you said{missed}"
        elif dim in tried.triples:
            why[dim] = f"{GUESS}; ran from {triples[dim][0]} to {triples[dim][2]}"
        else:
            why[dim] = f"{GUESS}, not tried"
    return triples, why


def _without_calibrated(
    options: InitOptions, precisions: tuple[str, ...], notes: list[str]
) -> tuple[InitOptions, tuple[str, ...]]:
    """Drop int8 and fp8, which synthetic samples cannot calibrate. Raises an error if --precisions requested them."""
    left_out = [p for p in precisions if p in CALIBRATED]
    names = " and ".join(left_out)
    if not options.kept:
        raise InputError(f"{names}: calibration data is needed, real samples", hint="name it with --calibration")
    notes.append(f"{names}: left out: calibration data is needed, name real samples with --calibration")
    line = f"{names}: left out, for lack of calibration data; name real samples with --calibration"
    return replace(options, dropped=(*options.dropped, line)), tuple(p for p in precisions if p not in left_out)


def _precisions(options: InitOptions, facts: ModelFacts, calibrating: OwnData | None) -> tuple[str, ...]:
    if options.precisions:
        return options.precisions
    if facts.quantized or facts.half:
        return ("as_is",)
    return ("fp32", "fp16", "int8") if calibrating else ("fp32", "fp16")


def _targets(folder: Path) -> tuple[tuple[str, ...], str]:
    """Return the CPU and what runs here; the comment names targets that can only be built ahead of time."""
    from engineworks.engines.backends import backend_facts

    known = load_targets(folder) if folder.is_dir() else {}
    here = [n for n, t in known.items() if backend_facts(t.backend).why_not_run(t.compute_capability) is None]
    others = [name for name in known if name not in here and name != "cpu"]
    if "cpu" in known or not known:
        here = ["cpu", *(n for n in here if n != "cpu")]
    note = f"also in _targets.yaml, built here and run elsewhere: {', '.join(others)}" if others else ""
    return tuple(here or list(known)[:1]), note or "GPUs: name them in a _targets.yaml beside this file"


def _relative(path: Path, out: Path) -> str:
    import os

    return Path(os.path.relpath(path, out.parent.resolve())).as_posix()


def _quoted(text: str) -> str:
    import json

    return text if re.match(r"^[A-Za-z0-9_.][\w./-]*$", text) else json.dumps(text, ensure_ascii=False)
