"""A model loaded by ONNX Runtime's CUDA provider: timed runs have inputs and outputs bound on the device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from engineworks.engines.backends._feeds import checked_feeds, shapes_of
from engineworks.engines.backends._ort_session import specs
from engineworks.engines.backends.base import RunTimes
from engineworks.engines.peers._peer_session import Array, PeerSession, time_each
from engineworks.errors import RunError
from engineworks.model.runtime.ort_errors import ort_errors, plain
from engineworks.tensors import TensorSpec

DEVICE, DEVICE_ID = "cuda", 0


class OrtCudaSession(PeerSession):
    """Satisfies `backends.base.Session`. Not thread-safe."""

    def __init__(self, session: Any, *, notes: tuple[str, ...], facts: Mapping[str, object]) -> None:
        self._session, self.notes, self.facts = session, notes, facts
        self.inputs: tuple[TensorSpec, ...] = specs(session.get_inputs())
        self.outputs: tuple[TensorSpec, ...] = specs(session.get_outputs())
        self._names = [o.name for o in self.outputs]

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run once from host arrays to host arrays. feeds: one array per input, with its dtype and shape. Returns all
        outputs by name. Raises `RunError`."""
        session, arrays = self._open(), checked_feeds(self.inputs, feeds)
        outputs = self._try(arrays, lambda: session.run(self._names, arrays))
        return dict(zip(self._names, outputs, strict=True))

    def time_runs(self, feeds: Mapping[str, Array], runs: int, *, copies: bool = False) -> RunTimes:
        """Time `runs` runs in ms. Without copies, one untimed run allocates the outputs on the device. There are no
        device times, because ONNX Runtime has no events."""
        session, arrays = self._open(), checked_feeds(self.inputs, feeds)

        def timed() -> RunTimes:
            if copies:
                return RunTimes(time_each(lambda: session.run(self._names, arrays), runs))
            binding = self._bind(arrays)

            def once() -> None:
                session.run_with_iobinding(binding)
                binding.synchronize_outputs()

            return RunTimes(time_each(once, runs))

        times: RunTimes = self._try(arrays, timed)
        return times

    def close(self) -> None:
        self._session = None

    def _open(self) -> Any:
        if self._session is None:
            raise RunError("this session was closed; load the model again")
        return self._session

    def _bind(self, arrays: Mapping[str, Array]) -> Any:
        """Copy inputs to the device once; bind outputs to memory that one run allocated there."""
        import onnxruntime as ort

        session = self._open()
        binding = session.io_binding()
        for name, array in arrays.items():
            binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array, DEVICE, DEVICE_ID))
        for name in self._names:
            binding.bind_output(name, DEVICE, DEVICE_ID)
        session.run_with_iobinding(binding)
        values = binding.get_outputs()
        binding.clear_binding_outputs()
        for name, value in zip(self._names, values, strict=True):
            binding.bind_ortvalue_output(name, value)
        return binding

    def _try(self, arrays: Mapping[str, Array], work: Callable[[], Any]) -> Any:
        try:
            return work()
        except ort_errors() as error:
            raise RunError(f"ONNX Runtime failed at {shapes_of(arrays)}: {plain(error)}") from None
