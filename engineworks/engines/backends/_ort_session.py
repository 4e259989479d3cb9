"""A loaded ONNX Runtime engine: checked runs, a timing loop with inputs and outputs bound in advance, and the first run
of an engine, as part of its build, so that a crash happens there."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from engineworks.engines.backends._feeds import checked_feeds, shapes_of
from engineworks.engines.backends.base import RunTimes, TimedLayer
from engineworks.errors import RunError
from engineworks.host.lazy import Array, Arrays, NDArray, np, ort
from engineworks.model.onnx_files import load_model
from engineworks.model.ort import ort_errors, plain
from engineworks.tensors import Profile, TensorSpec

T = TypeVar("T")


def specs(values: Iterable[Any]) -> tuple[TensorSpec, ...]:
    """Convert ONNX Runtime's inputs or outputs; a dimension without length or name is called '<tensor>_<axis>'."""
    return tuple(
        TensorSpec(
            v.name,
            dtype_name(v.type),
            tuple(d if isinstance(d, int | str) else f"{v.name}_{axis}" for axis, d in enumerate(v.shape)),
        )
        for v in values
    )


def dtype_name(ort_type: str) -> str:
    """'tensor(float)' → float32. Types other than tensors keep ONNX Runtime's name."""
    name = ort_type.removeprefix("tensor(").removesuffix(")")
    return {"float": "float32", "double": "float64"}.get(name, name)


class OrtSession:
    """Satisfies `base.Session`. Not thread-safe."""

    def __init__(
        self, session: Any, notes: tuple[str, ...] = (), facts: Mapping[str, object] = MappingProxyType({})
    ) -> None:
        self._session, self.notes, self.facts = session, notes, facts
        self.inputs, self.outputs = specs(session.get_inputs()), specs(session.get_outputs())
        self._names = [o.name for o in self.outputs]

    def run(self, feeds: Arrays) -> dict[str, Array]:
        """Run once from host arrays to host arrays. feeds: one array per input, with its dtype and shape. Returns all
        outputs by name, in the model's dtypes. Raises `RunError`."""
        session, arrays = self._open(), checked_feeds(self.inputs, feeds)
        outputs = self._try(arrays, lambda: session.run(self._names, arrays))
        return dict(zip(self._names, outputs, strict=True))

    def time_runs(self, feeds: Arrays, runs: int, *, copies: bool = False) -> RunTimes:
        """Time `runs` runs in ms, with inputs and outputs bound by one untimed run, so that no timed run allocates. On
        a CPU `copies` has no effect."""
        session, arrays = self._open(), checked_feeds(self.inputs, feeds)

        def timed() -> RunTimes:
            binding = self._bind(arrays)
            session.run_with_iobinding(binding)
            self._bind_outputs(binding)
            return RunTimes(_time(session.run_with_iobinding, binding, runs), on_host=True)

        return self._try(arrays, timed)

    def throughput(self, feeds: Arrays, streams: int, seconds: float) -> float:
        """Return runs per second of `streams` threads that share the session for `seconds`."""
        session, arrays = self._open(), checked_feeds(self.inputs, feeds)
        end = time.monotonic() + seconds

        def work() -> int:
            binding, done = self._bind(arrays), 0
            while not done or time.monotonic() < end:
                session.run_with_iobinding(binding)
                done += 1
            return done

        def work_together() -> int:
            with ThreadPoolExecutor(streams) as pool:
                return sum(future.result() for future in [pool.submit(work) for _ in range(streams)])

        start = time.monotonic()
        done = self._try(arrays, work_together)
        return done / (time.monotonic() - start)

    def end_profile(self) -> Path:
        """Return the file with the profile of all runs so far. The session must be loaded for profiling; this ends
        it."""
        return Path(self._open().end_profiling())

    def close(self) -> None:
        self._session = None

    def _open(self) -> Any:
        if self._session is None:
            raise RunError("this session was closed; load the engine again")
        return self._session

    def _try(self, arrays: Arrays, work: Callable[[], T]) -> T:
        try:
            return work()
        except ort_errors() as error:
            raise RunError(f"ONNX Runtime failed at {shapes_of(arrays)}: {plain(error)}") from None

    def _bind(self, arrays: Arrays) -> Any:
        binding = self._open().io_binding()
        for name, array in arrays.items():
            binding.bind_cpu_input(name, array)
        for name in self._names:
            binding.bind_output(name)
        return binding

    def _bind_outputs(self, binding: Any) -> None:
        """Bind every output to its memory from the previous run: the same feeds give the same shapes."""
        values = binding.get_outputs()
        binding.clear_binding_outputs()
        for name, value in zip(self._names, values, strict=True):
            if value.is_tensor() and not value.data_type().endswith("(string)"):
                binding.bind_ortvalue_output(name, value)
            else:
                binding.bind_output(name)


def _time(run: Any, binding: Any, runs: int) -> tuple[float, ...]:
    clock = time.perf_counter_ns
    marks = [0] * (runs + 1)
    marks[0] = clock()
    for i in range(runs):
        run(binding)
        marks[i + 1] = clock()
    return tuple((b - a) / 1e6 for a, b in pairwise(marks))


def run_once_per_profile(
    session: OrtSession, profiles: Sequence[Profile], log: Callable[[str], None], raised: Sequence[str]
) -> None:
    """Run at the smallest and the usual shapes of every profile. Raises `RunError` whose text has one of `raised`.

    Synthetic inputs may be invalid for the model, so another error is logged and left to the comparison with real
    samples. The comparison also runs the largest shapes: they take longest and run no other code.
    """
    for shapes in _shapes(profiles):
        feeds = _feeds(session.inputs, shapes)
        if feeds is None:
            continue
        try:
            session.run(feeds)
        except RunError as error:
            if any(text in f"{error} {error.log}" for text in raised):
                raise
            log(f"made-up inputs do not run: {error.message}")
    session.close()


def _shapes(profiles: Sequence[Profile]) -> Iterator[Mapping[str, tuple[int, ...]]]:
    """Yield each combination of shapes by input once."""
    tried = []
    for profile in profiles:
        for which in ("min", "opt"):
            shapes = {name: getattr(lengths, which) for name, lengths in profile.inputs.items()}
            if shapes not in tried:
                tried.append(shapes)
                yield shapes


def _feeds(inputs: Sequence[TensorSpec], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, NDArray[Any]] | None:
    """Return one array per input, None for inputs that NumPy or the profile does not know. Floats are in [-1, 1], all
    else is 1, valid almost everywhere as a length, an index or an unmasked position."""
    feeds: dict[str, NDArray[Any]] = {}
    for spec in inputs:
        if spec.name not in shapes or not hasattr(np, spec.dtype) or spec.dtype == "string":
            return None
        dtype, shape = np.dtype(spec.dtype), shapes[spec.name]
        random = np.random.default_rng(0).uniform(-1, 1, shape)
        feeds[spec.name] = random.astype(dtype) if dtype.kind == "f" else np.ones(shape, dtype)
    return feeds


WARM_UP = 3
"""Runs before those that count; the profile of a session begins with its first run."""


def profile_nodes(engine: Path, options: Any, feeds: Arrays, runs: int) -> list[TimedLayer]:
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
