"""What shapes each step's result, as the JSON document whose digest is the step's key.

A document holds: step and its version, params (the slice of the recipe it reads), inputs (keys of earlier steps),
digests (of files), libraries (their versions) and, where a result depends on it, the hardware. What cannot shape the
result goes into the step's `unkeyed`: absolute paths, and the samples that verify a rewritten graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

from engineworks.engines.backends import backend, backend_facts
from engineworks.engines.peers import peer
from engineworks.fingerprint import digest_of
from engineworks.host.file_digests import FileDigests
from engineworks.host.packages import installed_versions
from engineworks.measure.statistics import TAILS
from engineworks.model.export.interface import Interface
from engineworks.model.export.source_code import imported_distributions
from engineworks.plan.kinds import STEP_KINDS, StepName
from engineworks.plan.served import server_of
from engineworks.recipe.batch import batch_dim, fixed_batch
from engineworks.recipe.computation import Computation
from engineworks.recipe.load import LoadedRecipe
from engineworks.recipe.metric import LIBRARIES, metric_name, metric_settings, python_metric
from engineworks.recipe.package_settings import package_settings
from engineworks.recipe.profiles import STATIC_PROFILE, admitting_profile, evaluation_batches, input_specs, profiles
from engineworks.recipe.samples import SampleFile
from engineworks.recipe.targets import NamedTarget
from engineworks.settings import uses_workarounds

Document = dict[str, Any]
Unkeyed = Mapping[str, Any]

MINIMUM_OPSET = 13
"""Older models are converted to this, the first opset with per-channel Q/DQ and bf16, so that one fold serves all."""

PROOF_SAMPLES = 4
"""Samples of each file on which a rewritten graph is compared with the original."""

PEER_TIME_LIMIT_S = 1800.0
"""Seconds after which a peer is stopped: it only serves comparison."""

TORCH_LIBRARIES = {
    "torch": ("torch", "onnxscript"),
    "huggingface": ("torch", "onnxscript", "transformers"),
    "mlflow_pytorch": ("torch", "onnxscript", "mlflow"),
}


class Documents:
    """Makes the documents of one recipe's steps. Each method returns the document and the paths behind its digests."""

    def __init__(self, loaded: LoadedRecipe, digests: FileDigests, variant: int = 0) -> None:
        """variant: ends the names of shared steps; the context where a decoder's recipe lists several."""
        self.loaded, self.recipe, self.name = loaded, loaded.recipe, loaded.name
        self.variant = f"-{variant}" if variant else ""
        self._files, self._digests = loaded.files, digests
        self._prepare_keys: dict[int, str] = {}
        self._inputs = [s.to_json() for s in input_specs(self.recipe)]
        self._profiles = [p.to_json() for p in profiles(self.recipe)]

    @cached_property
    def server(self) -> tuple[Mapping[str, Any] | None, str]:
        """What identifies the Triton server that serves the recipe's packages here; why none does."""
        return server_of(self.recipe, self._digests)

    def export(self) -> tuple[Document, Unkeyed]:
        source, kind = self.recipe.model.source.model_dump(exclude_none=True), self._files.kind
        params: Document = {"source": kind}
        if kind != "onnx":
            params |= {"factory": source.get("torch"), "task": source.get("task"), "interface": self._interface()}
        digests = {name: self._digests.digest(path) for name, path in self._files.model.items()}
        document = self._document("export", params, {}, digests, TORCH_LIBRARIES.get(kind, ()))
        if kind == "torch":
            document["libraries"] |= self._imports(source["torch"])
        return document, self._sources()

    def _sources(self) -> Unkeyed:
        files = self._files
        return {"source": files.source, "folder": files.folder, "files": list(files.model.values())}

    def _interface(self) -> Document:
        outputs = {name: tuple(shape) for name, shape in self.recipe.outputs.items()}
        return dict(
            Interface(input_specs(self.recipe), outputs, profiles(self.recipe), self.recipe.model.opset).to_json()
        )

    def prepared(self) -> list[tuple[str, SampleFile]]:
        """Return the data made of texts or images, each with the name of its part."""
        parts = (("evaluation", self._files.evaluation), ("calibration", self._files.calibration))
        return [(part, data) for part, data in parts if data is not None and data.preparation is not None]

    def prepare(self, data: SampleFile) -> tuple[Document, Unkeyed]:
        """Document the preparation of data made of texts or images."""
        made = data.preparation
        assert made is not None  # the step exists only then
        digests = {name: self._digests.digest(path) for name, path in made.files.items()}
        if made.tree:
            digests[str(made.params["kind"])] = self._digests.digest_tree(made.tree)
        return self._document("prepare", made.params, {}, digests, made.libraries), made.places

    def _data(self, role: str, data: SampleFile) -> tuple[dict[str, str], dict[str, str], Document]:
        """Return how a step gets these samples: as another step's result (its key), or as a file (digest and path)."""
        if data.preparation is not None:
            key = self._prepare_keys.get(id(data.preparation)) or digest_of(self.prepare(data)[0])
            self._prepare_keys[id(data.preparation)] = key
            return {role: key}, {}, {}
        if data.more:
            tree = {str(index): path for index, path in enumerate(data.paths)}  # their order counts, their names do not
            return {}, {role: self._digests.digest_tree(tree)}, {role: list(data.paths)}
        return {}, {role: self._digests.digest(data.path)}, {role: data.path}

    def fold(self, export: str) -> tuple[Document, Unkeyed]:
        """Document the fold. The samples of its verification are unkeyed: they can fail the step, never change its
        result."""
        outputs = {n: list(s) for n, s in self.recipe.outputs.items()}
        params = {"inputs": self._inputs, "outputs": outputs, "minimum_opset": MINIMUM_OPSET}
        data = self._files.evaluation
        count = fixed_batch(data.specs) or min(PROOF_SAMPLES * len(data.paths), data.count)
        made, _, place = self._data("samples", data)
        unkeyed = {**place, "proof": _samples(data) | {"count": count}, "reads": made}
        return self._document("fold", params, {"export": export}, {}), unkeyed

    def calibrate(self, fold: str) -> tuple[Document, Unkeyed]:
        data = self._files.calibration
        assert data is not None  # checked with the recipe
        settings = self.recipe.calibration.model_dump(mode="json", exclude={"keep", "unquantized"})
        params = {"calibration": settings, "samples": _samples(data)}
        made, digests, unkeyed = self._data("calibration", data)
        unkeyed |= {"sha256": digests["calibration"]} if digests else {}
        return self._document("calibrate", params, {"fold": fold, **made}, digests), unkeyed

    def lower(self, precision: str, computes: Computation, fold: str, ranges: str | None) -> tuple[Document, Unkeyed]:
        params: Document = {"precision": precision, **computes.to_json(), **_workarounds()}
        inputs = {"fold": fold} | ({"ranges": ranges} if ranges else {})
        unkeyed: dict[str, Any] = {}
        if ranges:
            assert self._files.calibration is not None  # checked with the recipe
            _, digests, _ = self._data("calibration", self._files.calibration)
            unkeyed |= {"calibration_sha256": digests["calibration"]} if digests else {}
        if computes.unquantized == "fp32":
            return self._document("lower", params, inputs, {}), unkeyed
        data = self._files.calibration or self._files.evaluation
        params["samples"] = _samples(data)
        made, digests, place = self._data("samples", data)
        libraries = () if computes.quantized else ("nvidia-modelopt",)  # AutoCast
        return self._document("lower", params, inputs | made, digests, libraries), unkeyed | place

    def build(self, precision: str, computes: Computation, target: NamedTarget, lower: str) -> tuple[Document, Unkeyed]:
        params = {
            "precision": precision,
            "computes": list(computes.parts),
            "target": target.to_json(),
            "profiles": self._profiles,
            **_workarounds(),
        }
        facts = backend_facts(target.target.backend)
        document = self._document("build", params, {"lower": lower}, {}, facts.libraries)
        unkeyed: Document = {"time_limit_s": target.target.time_limit_s}
        if facts.needs_gpu_to_build:
            document["hardware"] = facts.hardware()
            unkeyed |= device_cache(document, facts.libraries)
        return document, unkeyed

    def reference(self, fold: str) -> tuple[Document, Unkeyed]:
        data = self._files.evaluation
        params = {
            "samples": _samples(data), "batches": self._batches, "outputs": list(self.recipe.outputs),
            "shapes": self._shapes(),
        }  # fmt: skip
        made, digests, unkeyed = self._data("evaluation", data)
        return self._document("reference", params, {"fold": fold, **made}, digests), unkeyed

    def lowered_reference(self, computes: Computation, lower: str, reference: str) -> tuple[Document, Unkeyed]:
        """Document the lowered reference. folded: the lowered model is the folded one, which the reference ran."""
        data = self._files.evaluation
        folded = not computes.quantized and computes.unquantized == "fp32"
        params = {"samples": _samples(data), "ranges": self._shapes()["ranges"], "folded": folded}
        made, digests, unkeyed = self._data("evaluation", data)
        inputs = {"lower": lower, "reference": reference, **made}
        return self._document("lowered_reference", params, inputs, digests), unkeyed

    def sensitivity(
        self, precision: str, computes: Computation, target: NamedTarget, fold: str, ranges: str, data: SampleFile
    ) -> tuple[Document, Unkeyed]:
        """Document the sensitivity, with `compare`'s evaluation data except `data`, which may be fewer samples of it.

        Of the target it depends only on whether its engine computes with ONNX Runtime's integer kernels.
        """
        accuracy = self.recipe.accuracy
        limits = {str(name): given for name, given in accuracy.limits.items()}.get(precision)
        params = {
            "precision": precision, "quantized": {n: list(g) for n, g in computes.quantized.items()},
            "fp32": list(computes.fp32), "samples": _samples(data), "labels": data.labels, "batches": self._batches,
            "metric": metric_settings(accuracy.metric) if accuracy.metric else None, "output": accuracy.output,
            "limits": limits.model_dump(mode="json", exclude_none=True, exclude={"worst_slice_ratio"})
            if limits else None,
            "integer_kernels": backend(target.target.backend).TRAITS.ort_integer_kernels,
        }  # fmt: skip
        made, digests, place = self._data("evaluation", data)
        digests |= {f"metric {name}": self._digests.digest(path) for name, path in self._files.metric.items()}
        libraries = LIBRARIES.get(metric_name(accuracy.metric), ()) if accuracy.metric else ()
        document = self._document("sensitivity", params, {"fold": fold, "ranges": ranges, **made}, digests, libraries)
        if own := python_metric(accuracy.metric):
            document["libraries"] |= self._imports(own)
        return document, {**place, "folder": self._files.folder}

    def compare(self, target: NamedTarget, build: str, reference: str, lowered: str) -> tuple[Document, Unkeyed]:
        data, accuracy = self._files.evaluation, self.recipe.accuracy
        metric = accuracy.metric
        params = {
            "samples": _samples(data), "labels": data.labels, "batches": self._batches, "target": target.to_json(),
            "metric": metric_settings(metric) if metric else None, "output": accuracy.output,
            "shapes": self._shapes(),
            "serving": self._serving(),
        }  # fmt: skip
        params |= {"slices": data.slices} if data.slices else {}
        made, digests, place = self._data("evaluation", data)
        digests |= {f"metric {name}": self._digests.digest(path) for name, path in self._files.metric.items()}
        libraries = LIBRARIES.get(metric_name(metric), ()) if metric else ()
        inputs = {"build": build, "reference": reference, "lowered": lowered, **made}
        document, cache = self._on_device("compare", target, params, inputs, digests, libraries)
        for own in filter(None, (python_metric(metric), data.slice_function)):
            document["libraries"] |= self._imports(own)
        return document, {**place, "folder": self._files.folder, **cache}

    def measure(self, target: NamedTarget, build: str, lower: str) -> tuple[Document, Unkeyed]:
        """Document the measurement. Options that only select among measurements, such as the sweep's latency budget,
        are unkeyed."""
        data, performance = self._files.evaluation, self.recipe.performance
        params = {
            "at": self._at, "sweep": self._sweep(), "streams": list(performance.streams), "serving": self._serving(),
            "inputs": self._inputs, "samples": _samples(data), "target": target.to_json(),
        }  # fmt: skip
        made, digests, place = self._data("evaluation", data)
        inputs = {"build": build, "lower": lower, **made}
        document, cache = self._on_device("measure", target, params, inputs, digests)
        return document, place | cache

    def serve(
        self, target: NamedTarget, build: str, compared: tuple[str, Document], server: Document
    ) -> tuple[Document, Unkeyed]:
        """Document the serving. compared: key and document of the comparison, whose metric and data it repeats.
        server: identity and backends of the Triton server."""
        key, compare = compared
        load = self.recipe.performance.serving.load
        params = {name: compare["params"][name] for name in ("samples", "labels", "batches", "metric", "output")}
        params |= {
            "target": target.to_json(), "serving": self._serving(), "package": package_settings(self.loaded).to_json(),
            "load": load.model_dump(mode="json") if load else None, "server": server,
        }  # fmt: skip
        made, digests, place = self._data("evaluation", self._files.evaluation)
        digests |= {n: d for n, d in compare["digests"].items() if n.startswith("metric ")}
        inputs = {"build": build, "compare": key, "reference": compare["inputs"]["reference"], **made}
        document, _ = self._on_device("serve", target, params, inputs, digests)
        return document, {**place, "folder": self._files.folder}

    def peer(self, name: str, precision: str, inputs: Mapping[str, str]) -> tuple[Document, Unkeyed]:
        """Document a peer. inputs: the reference, and the ONNX file where the peer runs that.

        The key of a peer that runs the recipe's source holds all that shapes the export.
        """
        data, module = self._files.evaluation, peer(name)
        at = {n: {"dims": dict(d), "tail": self._needs_tail(n)} for n, d in self.recipe.performance.at.items()}
        params = {"peer": name, "precision": precision, "at": at, "batches": self._batches}
        params |= {"inputs": self._inputs, "samples": _samples(data), "sweep": [], "streams": []}
        made, digests, place = self._data("evaluation", data)
        unkeyed: dict[str, Any] = {**place, "time_limit_s": PEER_TIME_LIMIT_S}
        libraries: dict[str, Any] = dict(module.versions())
        if module.FROM_SOURCE:
            export, paths = self.export()
            params, unkeyed, digests = {**export["params"], **params}, {**paths, **unkeyed}, export["digests"] | digests
            libraries = export["libraries"] | libraries
        document = self._document("peer", params, {**inputs, **made}, digests)
        document["libraries"] |= libraries
        document["hardware"] = dict(module.hardware())
        return document, unkeyed

    def _imports(self, function: str) -> dict[str, str]:
        """Return the versions of the installed packages that the user's code imports."""
        return imported_distributions(function.partition(":")[0], self._files.folder)

    @property
    def _batches(self) -> list[int]:
        return evaluation_batches(self.recipe)

    def _shapes(self) -> Document:
        """Return the shapes at which the engine is compared besides the evaluation data: see `measure.served`."""
        specs = input_specs(self.recipe)
        dim = batch_dim(specs)
        return {
            "profiles": {name: dict(dims) for name, dims in (self.recipe.shapes or {STATIC_PROFILE: {}}).items()},
            "batch": dim if isinstance(dim, str) else None,
            "fixed_batch": (fixed_batch(specs) or 1) if isinstance(dim, int) else 1,
            "ranges": {name: list(i.range) for name, i in self.recipe.inputs.items() if i.range is not None},
        }

    def _serving(self) -> Document:
        return self.recipe.performance.serving.model_dump(mode="json", exclude={"load"})

    @cached_property
    def _at(self) -> Document:
        """The named shapes to measure, the same for every engine of the recipe."""
        return {
            name: {"dims": dict(dims), "profile": self._profile(name, dims), "tail": self._needs_tail(name)}
            for name, dims in self.recipe.performance.at.items()
        }

    def _sweep(self) -> list[Document]:
        """Return one shape per batch: the named shape with another batch size."""
        sweep, dim = self.recipe.performance.sweep, batch_dim(input_specs(self.recipe))
        if sweep is None or not isinstance(dim, str):
            return []
        name = sweep.at or next(iter(self.recipe.performance.at))
        shapes = [(batch, {**self.recipe.performance.at[name], dim: batch}) for batch in sorted(sweep.batch)]
        return [{"batch": b, "dims": dims, "profile": self._profile(name, dims), "tail": False} for b, dims in shapes]

    def _profile(self, shape: str, dims: Mapping[str, int]) -> str | None:
        admitting = admitting_profile(self.recipe, shape, dims)
        return admitting.name if admitting else None

    def _needs_tail(self, shape: str) -> bool:
        """Return whether a limit applies to p90 or p99 at this shape, which needs many more runs than a median."""
        budget = self.recipe.performance.budget.get(shape)
        return budget is not None and any(getattr(budget, field) is not None for field in TAILS)

    def _document(
        self,
        kind: StepName,
        params: Mapping[str, Any],
        inputs: Mapping[str, str],
        digests: Mapping[str, str],
        libraries: tuple[str, ...] = (),
    ) -> Document:
        step = STEP_KINDS[kind]
        return {
            "step": kind,
            "version": step.version,
            "params": dict(params),
            "inputs": dict(inputs),
            "digests": dict(digests),
            "libraries": installed_versions((*step.libraries, *libraries)),
            **({} if self.loaded.mode == "full" else {"mode": self.loaded.mode}),
        }

    def _on_device(
        self, kind: StepName, target: NamedTarget, params: Document, inputs: Mapping[str, str],
        digests: Mapping[str, str], libraries: tuple[str, ...] = (),
    ) -> tuple[Document, Document]:  # fmt: skip
        """Document a step that runs the target's engine. Also the engine's cache on this device: unkeyed."""
        facts = backend_facts(target.target.backend)
        document = self._document(kind, params, inputs, digests, (*facts.libraries, *libraries))
        document["hardware"] = facts.hardware()
        return document, device_cache(document, facts.libraries, inputs["build"])


def device_cache(document: Document, libraries: tuple[str, ...], engine: str = "") -> Document:
    """Return the device, driver, versions and, for a cache of one engine's kernels, engine that a cache belongs to.

    Empty without a GPU. A cache is never shared across any of them.
    """
    if "driver" not in document["hardware"]:
        return {}
    versions = {name: document["libraries"].get(name) for name in libraries}
    return {"device_cache": {"hardware": document["hardware"], "libraries": versions, "engine": engine}}


def _workarounds() -> Document:
    """Return what is made otherwise without workarounds; empty where they are in use."""
    return {} if uses_workarounds() else {"workarounds": "off"}


def _samples(data: SampleFile) -> Document:
    """Return how samples are read from their files: all that `SampleFile` needs except the paths."""
    return {
        "arrays": dict(data.arrays), "count": data.count, "total": data.total,
        "specs": [s.to_json() for s in data.specs],
        **({"ragged": data.ragged.to_json()} if data.ragged else {}),
        **({"totals": list(data.totals)} if data.more else {}),
    }  # fmt: skip
