"""`huggingface: folder or id` → `model.onnx`, offline always. Runs in a child process, for its memory."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engineworks.errors import ExportError, ModelError, did_you_mean
from engineworks.model.export.interface import ExportReport, Interface, require_packages, versions_of
from engineworks.store.json_files import read_json_object

if TYPE_CHECKING:
    import torch

TASKS: Mapping[str, tuple[str, str]] = {
    "feature-extraction": ("AutoModel", "Model"),
    "fill-mask": ("AutoModelForMaskedLM", "ForMaskedLM"),
    "image-classification": ("AutoModelForImageClassification", "ForImageClassification"),
    "question-answering": ("AutoModelForQuestionAnswering", "ForQuestionAnswering"),
    "text-classification": ("AutoModelForSequenceClassification", "ForSequenceClassification"),
    "token-classification": ("AutoModelForTokenClassification", "ForTokenClassification"),
}
"""Task: the class that loads it, and how the architectures in a config that were made for it end."""

WEIGHTS = (("model.safetensors", "model.safetensors.index.json"), ("pytorch_model.bin", "pytorch_model.bin.index.json"))
"""Names that transformers looks for, in its order: one file, or an index of shards."""

OPTIONAL_PREFIX = "pooler."
"""Weights that a checkpoint may lack when no output needs them: most encoders are trained without their pooler."""

PACKAGES: Mapping[str, str] = {"torch": "torch", "onnxscript": "onnxscript", "transformers": "transformers"}


def export_huggingface(
    source: str, root: Path, interface: Interface, out: Path, *, task: str | None = None
) -> ExportReport:
    """Load the model in float32 for its task and export it into the existing, empty folder `out`.

    Raises `ModelError` for a missing model or package, an unsupported task, weights that the checkpoint lacks, and
    outputs that the model does not have; `ExportError` where it cannot be loaded or exported.
    """
    require_packages(PACKAGES, extra="huggingface", doing=f"the Hugging Face model '{source}'")
    from engineworks.model.export.torch_onnx import write_onnx

    module, chosen = load_module(source, root, interface, task=task, attention="eager")
    report = write_onnx(module, interface, out, root=root)
    return ExportReport(
        report.exporter, report.opset, report.files, report.bytes, report.seconds,
        (f"task {chosen}", *report.notes), {**report.versions, **versions_of("transformers")},
    )  # fmt: skip


def load_module(
    source: str, root: Path, interface: Interface, *, task: str | None = None, attention: str | None = None
) -> tuple[torch.nn.Module, str]:
    """The model, eval'd, in float32 on the CPU, and the task it was loaded for. attention: transformers' name of an
    implementation; None leaves the choice to it. Raises as `export_huggingface`. Leaves PyTorch with one thread."""
    folder = find_folder(source, root)
    chosen = task_of(folder, task)
    return _load(folder, chosen, interface, attention), chosen


def find_folder(source: str, root: Path) -> Path:
    """The folder of a model: a path relative to `root`, else the snapshot of an id in the local cache.

    Raises `ModelError` if it is neither, and for a folder without a config or weights.
    """
    folder = (root / Path(source).expanduser()).resolve()
    if not folder.is_dir():
        snapshot = cached_snapshot(source)
        if snapshot is None:
            raise ModelError(
                f"Hugging Face model '{source}' is neither a folder at {folder} nor in the local cache",
                hint=f"this tool does not download: run `huggingface-cli download {source}` where that is allowed",
            )
        folder = snapshot
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder}: not a Hugging Face model: it holds no config.json")
    if not _weight_files(folder):
        raise ModelError(f"{folder}: holds no weights", hint=f"expected {' or '.join(names[0] for names in WEIGHTS)}")
    return folder


def cached_snapshot(model_id: str) -> Path | None:
    """The snapshot of a model's main branch in the local Hugging Face cache, None if it is not there.

    Layout of huggingface_hub: <cache>/models--org--name/refs/main holds the name of a folder under snapshots/.
    """
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    cache = Path(os.environ.get("HF_HUB_CACHE") or home / "hub") / ("models--" + model_id.replace("/", "--"))
    try:
        revision = (cache / "refs" / "main").read_text(encoding="utf-8").strip()
    except OSError:
        return None
    snapshot = cache / "snapshots" / revision
    return snapshot if snapshot.is_dir() else None


def source_files(folder: Path) -> dict[str, Path]:
    """The files that shape the exported model, by name: config and weights; not the tokenizer's, not the card."""
    names = ["config.json", *_weight_files(folder)]
    return {name: folder / name for name in names if (folder / name).is_file()}


def task_of(folder: Path, task: str | None) -> str:
    """The task given, else the one that the config's architecture was made for. Raises `ModelError`."""
    if task is not None:
        if task not in TASKS:
            raise ModelError(f"task '{task}' is not supported yet", hint=f"{did_you_mean(task, TASKS)}")
        return task
    config = read_json_object(folder / "config.json", ModelError)
    architectures = [str(a) for a in config.get("architectures") or ()]
    for name, (_, ending) in sorted(TASKS.items(), key=lambda item: -len(item[1][1])):
        if any(a.endswith(ending) for a in architectures):
            return name
    what = f"architecture {', '.join(architectures)} is not supported yet" if architectures else "names no architecture"
    raise ModelError(f"{folder / 'config.json'}: {what}", hint=f"give model.source.task: one of {', '.join(TASKS)}")


def _weight_files(folder: Path) -> list[str]:
    for single, index in WEIGHTS:
        if (folder / single).is_file():
            return [single]
        if (folder / index).is_file():
            shards = read_json_object(folder / index, ModelError).get("weight_map")
            return [index, *sorted(set(shards.values()))] if isinstance(shards, dict) else [index]
    return []


def _load(folder: Path, task: str, interface: Interface, attention: str | None) -> torch.nn.Module:
    """The model in float32 (transformers would keep the checkpoint's dtype). Attention "eager" is plain MatMul and
    Softmax, which the engines' builders know best."""
    model, missing_keys = from_pretrained(TASKS[task][0], folder, f"for {task}", attn_implementation=attention)
    pooled = any("pooler" in name for name in interface.outputs)
    missing = sorted(k for k in missing_keys if pooled or not k.startswith(OPTIONAL_PREFIX))
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ModelError(
            f"{folder}: its weights lack '{missing[0]}'{more}, which {task} needs: they would be random numbers",
            hint="give model.source.task for what the model was trained for",
        )
    model.config.return_dict = True
    model.config.use_cache = False
    module: torch.nn.Module = model.eval()
    return module


def from_pretrained(loader: str, folder: Path, what: str, **options: Any) -> tuple[Any, list[str]]:
    """Load a model in float32 with transformers' class `loader`, offline; return it and the weights that it lacks.
    what: ends the message of the `ExportError`. Leaves PyTorch with one thread."""
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1")
    import torch
    import transformers

    from engineworks.model.export.from_torch import use_one_thread

    use_one_thread()
    try:
        model, info = getattr(transformers, loader).from_pretrained(
            str(folder), local_files_only=True, dtype=torch.float32, trust_remote_code=False, output_loading_info=True,
            **options,
        )  # fmt: skip
    except Exception as error:  # transformers raises whatever its parts raise
        raise ExportError(f"{folder}: transformers cannot load it {what}: {error}", log=repr(error)) from error
    return model, list(info["missing_keys"])
