"""A model loaded by ONNX Runtime's CUDA provider: timed runs have inputs and outputs bound on the device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engineworks.engines.backends._feeds import checked_feeds
from engineworks.engines.backends._ort_session import OrtSession
from engineworks.engines.backends.base import RunTimes
from engineworks.engines.peers._peer_session import PeerSession, time_each
from engineworks.host.lazy import Array

DEVICE, DEVICE_ID = "cuda", 0


class OrtCudaSession(PeerSession, OrtSession):
    """Satisfies `backends.base.Session`. Not thread-safe."""

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

        return self._try(arrays, timed)

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
        self._bind_outputs(binding)
        return binding
