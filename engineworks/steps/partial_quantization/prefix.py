"""Outputs of the fp32 nodes before a group, kept for all samples, so that only later nodes run again.

Groups are tried in the order of the graph: the cut moves forward, each fp32 node before it runs once in all, and the
tensors of one cut are in memory at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from engineworks.host.lazy import onnx
from engineworks.model.calibrate.segments import Segment, segment_model, tensor_types
from engineworks.model.graphs import names_read
from engineworks.model.onnx_files import graph_inputs
from engineworks.steps.partial_quantization.sessions import CutSession, Tensors

CACHE_BYTES = 1 << 29
"""Maximum memory of a cut's tensors, all samples together; if they would take more, the cut does not move."""


class Prefix:
    """A model (fp32, its weights in memory) cut at a place that moves forward. `batches`: its inputs."""

    def __init__(
        self, model: onnx.ModelProto, batches: Sequence[Tensors], scratch: Path, *, cache_bytes: int = CACHE_BYTES
    ) -> None:
        self._model, self._scratch, self._cache_bytes = model, scratch, cache_bytes
        self._types = tensor_types(model)
        self._uses = [tuple(names_read(node)) for node in model.graph.node]
        self._made_at = {name: at for at, node in enumerate(model.graph.node) for name in node.output if name}
        self._inputs = {spec.name for spec in graph_inputs(model)}
        self.at = 0
        self.batches = list(batches)
        self._sorted = all(self._made_at.get(n, -1) < at for at, names in enumerate(self._uses) for n in names)

    def move_to(self, position: int) -> None:
        """Cut before the node at `position`, if possible. Raises `RunError`.

        The cut does not move in a graph that is not sorted, where a tensor of unknown type would cross, or where the
        tensors would take too much memory.
        """
        if position <= self.at or not self._sorted:
            return
        crossing = self._crossing(position)
        made = tuple(name for name in crossing if self._made_at.get(name, -1) >= self.at)
        if any(name not in self._types for name in made):
            return
        moved = self._run(Segment(self.at, position, self._read_by(self.at, position), made), crossing)
        if moved is not None:
            self.at, self.batches = position, moved

    def rest(self) -> onnx.ModelProto:
        """Return the model behind the cut, fp32, with its outputs."""
        stop = len(self._uses)
        if self.at == 0:
            return self._model
        outputs = tuple(o.name for o in self._model.graph.output if self._made_at.get(o.name, -1) >= self.at)
        return segment_model(self._model, Segment(self.at, stop, self._read_by(self.at, stop), outputs), self._types)

    def _run(self, segment: Segment, crossing: Sequence[str]) -> list[Tensors] | None:
        """Return the tensors that cross at the segment's end, None if they are too many."""
        moved: list[Tensors] = []
        part = segment_model(self._model, segment, self._types)
        session = CutSession(part, self._scratch) if segment.outputs else None
        taken = 0
        for tensors in self.batches:
            made = session.run(tensors) if session else {}
            kept = {name: made[name] if name in made else tensors[name] for name in crossing}
            taken += sum(value.nbytes for value in kept.values())
            if taken > self._cache_bytes:
                return None
            moved.append(kept)
        return moved

    def _crossing(self, position: int) -> tuple[str, ...]:
        """Return tensors that nodes from `position` on read and that earlier nodes, or the caller, give."""
        read = dict.fromkeys(name for names in self._uses[position:] for name in names)
        return tuple(n for n in read if n in self._inputs or self._made_at.get(n, position) < position)

    def _read_by(self, start: int, stop: int) -> tuple[str, ...]:
        read = dict.fromkeys(name for names in self._uses[start:stop] for name in names)
        return tuple(n for n in read if n in self._inputs or self._made_at.get(n, start) < start)
