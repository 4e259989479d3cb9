"""What shapes each step's result for a decoder: the same kinds of steps, each with `decoder` among its parameters.

`steps.job` reads that to run the decoder's own module of the kind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engineworks.engines.peers import peer
from engineworks.host.file_digests import FileDigests
from engineworks.plan.documents import PEER_TIME_LIMIT_S, TORCH_LIBRARIES, Document, Documents, Unkeyed
from engineworks.recipe.computation import Computation
from engineworks.recipe.decoder import swept
from engineworks.recipe.load import LoadedRecipe
from engineworks.recipe.targets import NamedTarget


class DecoderDocuments(Documents):
    """As `Documents`. Of the lowered model only its sensitivity to one rounding is used: engines are compared with
    themselves in other situations."""

    def export(self) -> tuple[Document, Unkeyed]:
        kind, decoder = self._files.kind, self.recipe.model.decoder
        assert decoder is not None
        params = {"source": kind, "decoder": decoder.model_dump(mode="json") | {"context": decoder.longest}}
        digests = {name: self._digests.digest(path) for name, path in self._files.model.items()}
        return self._document("export", params, {}, digests, TORCH_LIBRARIES.get(kind, ())), self._sources()

    def fold(self, export: str) -> tuple[Document, Unkeyed]:
        return self._document("fold", {"decoder": True}, {"export": export}, {}), {}

    def lower(self, precision: str, computes: Computation, fold: str, ranges: str | None) -> tuple[Document, Unkeyed]:
        del ranges  # no decoder is calibrated
        params: Document = {"precision": precision, "decoder": True, **computes.to_json()}
        inputs = {"fold": fold}
        unkeyed: Unkeyed = {}
        if computes.unquantized != "fp32":
            made, _, unkeyed = self._data("evaluation", self._files.evaluation)
            inputs |= made
        return self._document("lower", params, inputs, {}), unkeyed

    def build(self, precision: str, computes: Computation, target: NamedTarget, lower: str) -> tuple[Document, Unkeyed]:
        document, unkeyed = super().build(precision, computes, target, lower)
        document["params"] |= {"decoder": self._streams(), "serving": self._serving()}
        del document["params"]["profiles"]
        document["digests"] = self._tokenizer_digests()
        tokenizer = self._files.evaluation.preparation
        assert tokenizer is not None  # a decoder's data is text
        return document, {**unkeyed, "tokenizer": tokenizer.places["tokenizer"]}

    def _tokenizer_digests(self) -> dict[str, str]:
        made = self._files.evaluation.preparation
        assert made is not None
        return {name: self._digests.digest(path) for name, path in made.files.items() if name != "text"}

    def reference(self, fold: str) -> tuple[Document, Unkeyed]:
        """The reference runs the source itself, so the model's files are among its inputs, not the fold's result."""
        export, paths = self.export()
        params = {**export["params"], "new": self._new()}
        made, digests, unkeyed = self._data("evaluation", self._files.evaluation)
        document = self._document("reference", params, {"fold": fold, **made}, export["digests"] | digests)
        document["libraries"] |= export["libraries"]
        return document, {**paths, **unkeyed}

    def lowered_reference(self, computes: Computation, lower: str, reference: str) -> tuple[Document, Unkeyed]:
        del reference
        made, _, unkeyed = self._data("evaluation", self._files.evaluation)
        params = {"decoder": True} | ({"dynamic": computes.dynamic} if computes.dynamic else {})
        return self._document("lowered_reference", params, {"lower": lower, **made}, {}), unkeyed

    def compare(self, target: NamedTarget, build: str, reference: str, lowered: str) -> tuple[Document, Unkeyed]:
        params = {"decoder": self._streams(), "target": target.to_json(), "serving": self._serving()}
        made, _, unkeyed = self._data("evaluation", self._files.evaluation)
        inputs = {"build": build, "reference": reference, "lowered": lowered, **made}
        document, cache = self._on_device("compare", target, params, inputs, {})
        return document, {**unkeyed, **cache}

    def measure(self, target: NamedTarget, build: str, lower: str) -> tuple[Document, Unkeyed]:
        del lower  # its layers are not timed
        params: dict[str, Any] = {
            "decoder": self._streams(), "at": self._at, "sweep": self._sweep(), "streams": [],
            "target": target.to_json(), "serving": self._serving(),
        }  # fmt: skip
        made, _, unkeyed = self._data("evaluation", self._files.evaluation)
        document, cache = self._on_device("measure", target, params, {"build": build, **made}, {})
        return document, {**unkeyed, **cache}

    def peer(self, name: str, precision: str, inputs: Mapping[str, str]) -> tuple[Document, Unkeyed]:
        module, params = peer(name), {"decoder": self._streams(), "peer": name, "precision": precision, "at": self._at}
        made, _, unkeyed = self._data("evaluation", self._files.evaluation)
        digests, libraries = {}, dict(module.versions())
        if module.FROM_SOURCE:
            export, paths = self.export()
            unkeyed, digests, libraries = {**paths, **unkeyed}, export["digests"], export["libraries"] | libraries
        document = self._document("peer", params, {**inputs, **made}, digests)
        document["libraries"] |= libraries
        document["hardware"] = dict(module.hardware())
        return document, {**unkeyed, "time_limit_s": PEER_TIME_LIMIT_S}

    def _sweep(self) -> list[Document]:
        return [{"batch": d["streams"], "dims": d, "profile": None, "tail": False} for d in swept(self.recipe)]

    def _profile(self, shape: str, dims: Mapping[str, int]) -> None:
        """A decoder's engine has no profiles."""

    def _streams(self) -> Document:
        """Return the numbers of streams that engines are made for, and the prompts that they begin with."""
        at = self.recipe.performance.at.values()
        return {
            "streams": sorted({1, *(dims["streams"] for dims in at)}),
            "prompts": sorted({dims["prompt"] for dims in at}),
        }

    def _new(self) -> int:
        """Return how many tokens the reference continues its prompts by."""
        return min(MOST_NEW, max((dims["new"] for dims in self.recipe.performance.at.values()), default=LEAST_NEW))


LEAST_NEW, MOST_NEW = 32, 48


def documents_of(loaded: LoadedRecipe, digests: FileDigests, context: int = 0) -> Documents:
    """Return what makes the documents of this recipe's steps."""
    kind = Documents if loaded.recipe.model.decoder is None else DecoderDocuments
    return kind(loaded, digests, context)


def every_document(loaded: LoadedRecipe, digests: FileDigests) -> dict[int, Documents]:
    """Return the documents by context, where a decoder's recipe lists several; else one, by 0."""
    return {c: documents_of(one, digests, c) for c, one in (loaded.by_context or {0: loaded}).items()}
