"""Time per node of an engine on the CPU, by ONNX Runtime's profile (docs: Performance, Profiling tools).

The profile names the nodes of the graph that really runs, after the fusions of loading. So that graph is saved, too.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engineworks.engines.layer_times import TimedLayer
from engineworks.errors import RunError
from engineworks.host.lazy import Array, ort
from engineworks.model.onnx_files import load_model
from engineworks.model.ort import ort_errors, plain

WARM_UP = 3
"""Runs before those that count; the profile of a session begins with its first run."""


def profile_nodes(engine: Path, options: Any, feeds: Mapping[str, Array], runs: int) -> list[TimedLayer]:
    """Run the engine `runs` times under the profiler. options: of the session, at the level of a usual load."""
    with tempfile.TemporaryDirectory() as folder:
        options.enable_profiling, options.profile_file_prefix = True, f"{folder}/profile"
        options.optimized_model_filepath = f"{folder}/final.onnx"
        options.log_severity_level = 4  # it warns that the saved graph is for this processor
        try:
            session = ort.InferenceSession(str(engine), options, providers=["CPUExecutionProvider"])
            names = [output.name for output in session.get_outputs()]
            for _ in range(WARM_UP + runs):
                session.run(names, dict(feeds))
            profile = Path(session.end_profiling())
            del session
        except ort_errors() as error:
            raise RunError(f"ONNX Runtime's profiler failed: {plain(error)}") from None
        graph = load_model(Path(f"{folder}/final.onnx"), weights=False).graph
        tensors = {
            node.name: (tuple(filter(None, node.input)), tuple(filter(None, node.output))) for node in graph.node
        }
        return _layers(json.loads(profile.read_text(encoding="utf-8")), tensors, runs)


def _layers(
    events: Sequence[Mapping[str, Any]], tensors: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]], runs: int
) -> list[TimedLayer]:
    """The events of the last runs, by node. Nodes of branches and bodies are part of the node that holds them."""
    spent: dict[str, list[float]] = {}
    kinds: dict[str, str] = {}
    for event in events:
        name = str(event.get("name", "")).removesuffix("_kernel_time")
        if event.get("cat") == "Node" and name != event.get("name") and name in tensors:
            spent.setdefault(name, []).append(event["dur"] / 1000)
            kinds[name] = str(event.get("args", {}).get("op_name", ""))
    return [TimedLayer(name, kinds[name], sum(times[-runs:]) / runs, *tensors[name]) for name, times in spent.items()]
