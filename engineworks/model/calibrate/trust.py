"""Whether a calibration can be trusted: reasons to refuse it, and warnings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engineworks.errors import ModelError, SamplesError
from engineworks.fingerprint import digest_of
from engineworks.host.file_digests import digest_file
from engineworks.model.calibrate.inputs import InputStatistics
from engineworks.model.calibrate.ranges import Range, Ranges
from engineworks.model.onnx_files import saved_files
from engineworks.store.artifact import read_manifest

FEW_SAMPLES = 32
"""Fewer samples are far too few. NVIDIA's Model Optimizer asks for at least 500 for convolutional networks and vision
transformers (its ONNX PTQ guide, "calibration data size"). With a sixteenth of that, ranges are mostly luck."""

MOVED = 0.1
"""A range that the last fifth of the samples moves by more than this is not settled."""

MOVED_TENSORS = 0.25
"""Share of the tensors that may be unsettled: a few always are, with 512 samples of Fashion-MNIST one in eight."""

_SHOWN = 3


def digest_model(path: Path) -> str:
    """Return the sha256 over the files that `save_model` wrote: the same graph with other weights differs.

    Files of a stored artifact have been read and compared with its manifest, so their digests are taken from there.
    """
    artifact = read_manifest(path.parent)
    stored = artifact.files if artifact else {}
    named = {file.name: stored[file.name]["sha256"] if stored else digest_file(file) for file in saved_files(path)}
    return digest_of({"model": named.pop(path.name), "weights": named})


def check_pairing(stored: Mapping[str, Any], *, model: str, data: str | None = None) -> None:
    """Check that ranges belong to this model and this set of samples.

    stored: the artifact's JSON. model: `digest_model` of the model to convert. data: sha256 of the calibration data in
    use, None if unknown. Raises `ModelError` and `SamplesError`.
    """
    recorded = stored.get("model")
    if recorded != model:
        whose = f"another model ({_short(recorded)})" if recorded else "a model that they do not name"
        raise ModelError(
            f"these calibration ranges were made of {whose}, not of the one in use ({_short(model)})",
            hint="calibrate again with this model",
        )
    recorded = (stored.get("data") or {}).get("sha256")
    if data is not None and recorded != data:
        whose = f"other data ({_short(recorded)})" if recorded else "data that they do not name"
        raise SamplesError(
            f"these calibration ranges were made of {whose}, not of the calibration data in use ({_short(data)})",
            hint="calibrate again with this data",
        )


def check_samples(statistics: Mapping[str, InputStatistics], shown: str) -> None:
    """Raise `SamplesError` if every input is one constant value, e.g. for all-black images. `shown`: the file."""
    if statistics and all(statistic.constant for statistic in statistics.values()):
        values = ", ".join(f"'{name}' is always {statistic.minimum:.7g}" for name, statistic in statistics.items())
        raise SamplesError(
            f"calibration data {shown} is constant: {values}", hint="no range can be computed; use real samples"
        )


def warnings(ranges: Ranges, statistics: Mapping[str, InputStatistics], *, repeated: bool) -> tuple[str, ...]:
    """Return warnings about these ranges, one sentence each; `repeated`: whether all samples are the same."""
    messages = [
        f"calibration input '{name}' is {statistic.minimum:.7g} in every sample"
        for name, statistic in statistics.items()
        if statistic.constant and statistic.floating
    ]
    count = ranges.sample_count
    if repeated and count > 1:
        messages.append(f"all {count} calibration samples are the same")
    if count < FEW_SAMPLES:
        messages.append(
            f"calibration had {count} sample{'s' if count > 1 else ''}, which is far too few: "
            f"give it at least {FEW_SAMPLES}, better some hundreds"
        )
    if ranges.empty:
        also = f" and {len(ranges.empty) - 1} more tensors were" if len(ranges.empty) > 1 else " was"
        messages.append(
            f"'{ranges.empty[0]}'{also} empty in every calibration sample: nodes that read them are not quantized"
        )
    moved = [(statistic.moved, name) for name, statistic in ranges.tensors.items() if statistic.moved > MOVED]
    if len(moved) > MOVED_TENSORS * len(ranges.tensors):
        share, name = max(moved)
        messages.append(
            f"{len(moved)} of {len(ranges.tensors)} calibration ranges still moved by more than {MOVED:.0%} with the "
            f"last fifth of the samples ('{name}' by {share:.0%}): give it more samples, or mix their order"
        )
    return tuple(messages)


def constant_integers(
    calibration: Mapping[str, InputStatistics], evaluation: Mapping[str, InputStatistics]
) -> tuple[str, ...]:
    """Return integer inputs that never change in calibration but do in evaluation.

    If neither changes, as the token types of a model for single sentences, nothing is wrong.
    """
    return tuple(
        f"calibration input '{name}' is {statistic.minimum:.7g} in every sample, in the evaluation data it is not"
        for name, statistic in calibration.items()
        if statistic.constant and not statistic.floating and name in evaluation and not evaluation[name].constant
    )


def summary(ranges: Ranges) -> dict[str, object]:
    """Summarize all tensors for the report: shares of clipped values and of unused codes, and movement."""
    tensors = ranges.tensors
    return {
        "method": ranges.method,
        "samples": ranges.sample_count,
        "provider": ranges.provider,
        "tensors": len(tensors),
        "constants": list(ranges.constants),
        "empty": list(ranges.empty),
        **{share: _spread(tensors, share) for share in ("saturated", "unused", "moved")},
    }


def _spread(tensors: Mapping[str, Range], share: str) -> dict[str, object]:
    """Return the mean of this attribute, and its largest values with their tensors."""
    ranked = sorted(((getattr(statistic, share), name) for name, statistic in tensors.items()), reverse=True)
    mean = sum(value for value, _ in ranked) / len(tensors) if tensors else 0.0
    return {"mean": mean, "largest": {name: value for value, name in ranked[:_SHOWN] if value > 0}}


def _short(digest: object) -> str:
    return f"sha256 {str(digest)[:12]}…" if digest else "no digest"
