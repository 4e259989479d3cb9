"""A loaded PyTorch module, called directly without gradients, and transformers' own decoder. Timed runs have their
inputs on the device."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from engineworks.engines.backends._feeds import checked_feeds, shapes_of
from engineworks.engines.backends.base import RunTimes
from engineworks.engines.decoder.base import Logits, Tokens
from engineworks.engines.peers.base import PeerSession, time_each
from engineworks.errors import EngineworksError, RunError
from engineworks.host.lazy import Array, Arrays
from engineworks.model.export.interface import Interface
from engineworks.tensors import TensorSpec

if TYPE_CHECKING:
    import torch


Result = TypeVar("Result")


class TorchSession(PeerSession):
    """Satisfies `backends.base.Session`. Not thread-safe. `outputs` has the session's float dtype, because a recipe
    states none. half: float inputs are float16 on the device."""

    def __init__(
        self, module: torch.nn.Module, interface: Interface, *, device: str, half: bool, facts: Mapping[str, object]
    ) -> None:
        from engineworks.model.export.torch_onnx import takes_names

        self._module: Any = module
        self._device, self._half = device, half
        self.notes: tuple[str, ...] = ()
        self.facts = facts
        self.inputs = interface.inputs
        floats = "float16" if half else "float32"
        self.outputs = tuple(TensorSpec(name, floats, tuple(shape)) for name, shape in interface.outputs.items())
        self._by_name = takes_names(module, tuple(spec.name for spec in interface.inputs))

    def run(self, feeds: Arrays) -> dict[str, Array]:
        """Run once from host arrays to host arrays. feeds: one array per input, with its dtype and shape. Returns
        outputs as the module gives them, bfloat16 as float32. Raises `RunError`."""
        arrays = checked_feeds(self.inputs, feeds)
        return self._try(arrays, lambda: self._from_device(self._call(self._to_device(arrays))))

    def time_runs(self, feeds: Arrays, runs: int, *, copies: bool = False) -> RunTimes:
        """Time `runs` runs in ms; `copies` includes the copies to and from the device."""
        arrays = checked_feeds(self.inputs, feeds)
        return self._try(arrays, lambda: self._timed(arrays, runs, copies))

    def close(self) -> None:
        self._module = None

    def _timed(self, arrays: Arrays, runs: int, copies: bool) -> RunTimes:
        tensors = self._to_device(arrays)

        def once() -> None:
            if copies:
                self._from_device(self._call(self._to_device(arrays)))
            else:
                self._call(tensors)

        return _time_on_gpu(once, runs) if self._device == "cuda" else RunTimes(time_each(once, runs), on_host=True)

    def _call(self, tensors: Mapping[str, torch.Tensor]) -> Any:
        return self._module(**tensors) if self._by_name else self._module(*tensors.values())

    def _to_device(self, arrays: Arrays) -> dict[str, torch.Tensor]:
        """Copy arrays to the device with their shapes and dtypes; floats become float16 for `half`."""
        import torch

        writeable = {n: a if a.flags.writeable else a.copy() for n, a in arrays.items()}  # else PyTorch warns
        tensors = {name: torch.from_numpy(array).to(self._device) for name, array in writeable.items()}
        if self._half:
            tensors = {name: t.half() if t.is_floating_point() else t for name, t in tensors.items()}
        return tensors

    def _from_device(self, result: Any) -> dict[str, Array]:
        """Copy outputs to host arrays with their shapes and dtypes; bfloat16 becomes float32."""
        import torch

        from engineworks.model.export.torch_onnx import plain_outputs

        names = tuple(spec.name for spec in self.outputs)
        tensors = dict(zip(names, plain_outputs(result, names), strict=True))
        return {n: (t.float() if t.dtype == torch.bfloat16 else t).cpu().numpy() for n, t in tensors.items()}

    def _try(self, arrays: Arrays, work: Callable[[], Result]) -> Result:
        import torch

        if self._module is None:
            raise RunError("this session was closed; load the model again")
        try:
            with torch.inference_mode():
                return work()
        except EngineworksError:
            raise
        except Exception as error:  # the user's module may raise anything
            lines = [line for line in str(error).splitlines() if line.strip()]
            message = lines[0] if lines else ""
            raise RunError(f"PyTorch failed at {shapes_of(arrays)}: {type(error).__name__}: {message}") from error


def _time_on_gpu(once: Callable[[], object], runs: int) -> RunTimes:
    """Time each awaited run in ms: by the host's clock until the GPU is idle, and by CUDA events."""
    import torch

    clock = time.perf_counter_ns
    begins = [torch.cuda.Event(enable_timing=True) for _ in range(runs)]
    ends = [torch.cuda.Event(enable_timing=True) for _ in range(runs)]
    torch.cuda.synchronize()
    host = []
    for begin, end in zip(begins, ends, strict=True):
        start = clock()
        begin.record()
        once()
        end.record()
        torch.cuda.synchronize()
        host.append((clock() - start) / 1e6)
    return RunTimes(tuple(host), tuple(b.elapsed_time(e) for b, e in zip(begins, ends, strict=True)))


class TorchDecoder:
    """Satisfies `base.PromptRunner` by the cache that transformers makes for itself. model: its module, on its
    device."""

    notes = ()

    def __init__(self, model: Any, device: str) -> None:
        self._model, self._device, self._cache = model, device, None

    def reset(self, streams: Sequence[int] | None = None) -> None:
        del streams
        self._cache = None

    def last_logits(self, tokens: Mapping[int, Tokens]) -> dict[int, Logits]:
        logits = self._run(np.stack(list(tokens.values()))).float().cpu().numpy()
        return dict(zip(tokens, logits, strict=True))

    def next_step(self, tokens: Tokens) -> None:
        self._run(tokens[:, None]).argmax(-1).cpu()

    def _run(self, ids: Tokens) -> Any:
        import torch

        with torch.inference_mode():
            given = torch.from_numpy(np.ascontiguousarray(ids)).to(self._device)
            made = self._model(input_ids=given, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        self._cache = made.past_key_values
        return made.logits[:, -1]

    def close(self) -> None:
        self._model = self._cache = None
