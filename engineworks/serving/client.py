"""A client of any server that speaks KServe's protocol, version 2, by HTTP or gRPC (`tritonclient`), and Triton's
messages and log: the reason why something failed, as one sentence."""

from __future__ import annotations

import contextlib
import importlib
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from typing import Any, Literal

from engineworks.errors import InputError, RunError
from engineworks.host.lazy import Array, Arrays

_BEFORE = re.compile(
    r"^(?:load failed for model '[^']*': version \d+ is at \w+ state: |\[request id: [^\]]*\] |"
    r"(?:Internal|Invalid argument|Unavailable|Not found|Unknown): )"
)
"""What Triton writes before a reason."""

_AFTER = re.compile(r"\. NOTE: .*$|;$")
_OUR_CLASS = re.compile(r"^(?:TrustError|RunError|TargetError|InputError|TritonModelException): ")
"""Classes of errors whose name tells a user nothing."""

_SEVERITY = re.compile(r'^E\d{4} [\d:.]+ \d+ [\w.]+:\d+\]\s*"?(.*?)"?$')
"""An error line of the log: date, time, thread, source line, message."""

_OTHER = re.compile(r"^[EIW]\d{4} |^[+|]")
"""A line that Triton logs, or one of its tables."""

UNREACHABLE = re.compile(r"^failed to connect to all addresses; .*: (.+)$")
"""gRPC's words, of which the last say why."""

LATE = "Deadline Exceeded"
"""gRPC's words for a call that took longer than it may."""


def reason(message: str) -> str:
    """Return the reason in an error message of Triton; of a traceback the error that ended it."""
    text = next((line.strip() for line in message.splitlines() if line.strip()), "")
    while shorter := _BEFORE.match(text):
        text = text[shorter.end() :]
    return _AFTER.sub("", _OUR_CLASS.sub("", text)) or "the server gave no reason"


def last_error(log: str) -> str:
    """Return the reason in the last error line of a server's log; without one, the last line that is not Triton's
    own, such as the loader's or a shell's; '' without any."""
    lines = [line for line in log.splitlines() if line.strip()]
    found = [line for line in lines if not _OTHER.match(line)][-1:]
    found += [match[1] for line in lines if (match := _SEVERITY.match(line))]
    found += [line for line in lines if line.startswith(("error:", "tritonserver:", "Usage:"))]
    return reason(found[-1]) if found else ""


Protocol = Literal["http", "grpc"]
PROTOCOLS: tuple[Protocol, ...] = ("http", "grpc")

PROBE, NO_BACKEND = "engineworks-probe", "unable to find backend library"
"""The model that asks for a backend, and the server's words where it has none."""

LOADING = "model_repository"
"""KServe's extension by which a client loads and unloads models."""

LOAD_S = 120.0
"""Seconds that a model may take to load."""


_NEEDS: Mapping[Protocol, str] = {"http": "geventhttpclient", "grpc": "grpc"}
"""The library behind each protocol of `tritonclient`."""


def require_client(protocol: Protocol) -> None:
    """Raises `InputError` where the client's libraries are not installed."""
    if find_spec("tritonclient") is None or find_spec(_NEEDS[protocol]) is None:
        raise InputError(f"no client for Triton by {protocol} is installed", hint="pip install 'engineworks[serving]'")


class Client:
    """One connection. Not for several threads at once: each takes its own."""

    def __init__(self, address: str, protocol: Protocol) -> None:
        require_client(protocol)
        from tritonclient.utils import InferenceServerException

        self._api: Any = importlib.import_module(f"tritonclient.{protocol}")
        self._error = InferenceServerException
        self.address, self.protocol = address, protocol
        wait = {"network_timeout": LOAD_S, "connection_timeout": 10.0} if protocol == "http" else {}
        self._client: Any = self._api.InferenceServerClient(address, **wait)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def infer(self, model: str, feeds: Arrays) -> dict[str, Array]:
        """Return all outputs by name. feeds: input → array, the batch first where the model has one.

        Raises `RunError` with the server's reason where it refuses the request or does not answer.
        """
        with self._errors(f"'{model}' refused a request by {self.protocol}"):
            answer = self._client.infer(model, self.inputs(feeds))
        return {name: answer.as_numpy(name) for name in self._names(answer.get_response())}

    def _names(self, response: Any) -> list[str]:
        return (
            [o["name"] for o in response["outputs"]] if self.protocol == "http" else [o.name for o in response.outputs]
        )

    def inputs(self, feeds: Arrays) -> list[Any]:
        """Return the request's inputs, as the library holds them."""
        from tritonclient.utils import np_to_triton_dtype

        inputs = []
        for name, array in feeds.items():
            tensor = self._api.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
            tensor.set_data_from_numpy(array)
            inputs.append(tensor)
        return inputs

    def answer(self, model: str, inputs: list[Any]) -> None:
        """Send a request of `inputs` and wait for the answer, which is not read: for timing."""
        with self._errors(f"'{model}' refused a request by {self.protocol}"):
            self._client.infer(model, inputs)

    def send(self, model: str, inputs: list[Any], done: Callable[[Any, Any], None]) -> None:
        """Send a request by gRPC and return at once; `done` gets the answer, or None and the error."""
        self._client.async_infer(model, inputs, callback=done)

    def load(self, model: str, config: Mapping[str, Any] | None = None) -> float:
        """Load or reload a model; returns the seconds until it is ready. config: instead of its `config.pbtxt`.

        Raises `RunError` with the reason why it is not ready.
        """
        start = time.monotonic()
        with self._errors(f"'{model}' does not become ready"):
            text = None if config is None else json.dumps(config)
            self._client.load_model(model, config=text, **self._within())
            ready = self._client.is_model_ready(model)
        if not ready:
            raise RunError(f"'{model}' does not become ready: the server gave no reason")
        return time.monotonic() - start

    def _within(self) -> dict[str, float]:
        """Return the time limit of a call by gRPC; by HTTP the connection has it."""
        return {"client_timeout": LOAD_S} if self.protocol == "grpc" else {}

    def has_backend(self, name: str) -> bool:
        """Ask the server whether it has a backend, by a model that it cannot load."""
        config = {"name": PROBE, "backend": name, "max_batch_size": 0}
        try:
            self._client.load_model(PROBE, config=json.dumps(config), files={"file:1/model": b"-"})
            self._client.unload_model(PROBE)
        except self._error as error:
            return NO_BACKEND not in str(error.message())
        return True

    def unload(self, model: str) -> None:
        """Unload a model and wait until it is gone. Raises `RunError`."""
        with self._errors(f"'{model}' cannot be unloaded"):
            self._client.unload_model(model, **self._within())
            end = time.monotonic() + LOAD_S
            while any(entry.get("reason") != "unloaded" for entry in self._entries(model)):
                if time.monotonic() > end:
                    raise RunError(f"'{model}' was not unloaded within {LOAD_S:g} s")
                time.sleep(0.005)

    def _entries(self, model: str) -> list[dict[str, Any]]:
        index = self._json(self._client.get_model_repository_index)
        entries = index if isinstance(index, list) else index.get("models", [])
        return [entry for entry in entries if entry["name"] == model and "state" in entry]

    def ready(self, model: str) -> bool:
        with self._errors(f"the server does not say whether '{model}' is ready"):
            return bool(self._client.is_model_ready(model))

    def config(self, model: str) -> dict[str, Any]:
        """Return the model's configuration as the server has it. Raises `RunError`."""
        with self._errors(f"the server has no model '{model}'"):
            found = self._json(self._client.get_model_config, model)
        return dict(found.get("config", found))

    def metadata(self) -> dict[str, Any]:
        """Return the server's name, version and extensions. Raises `RunError`."""
        with self._errors("the server does not answer"):
            return dict(self._json(self._client.get_server_metadata))

    def require_loading(self) -> dict[str, Any]:
        """Return the metadata of a server that loads models on request. Raises `RunError` for another, such as an old
        one or a proxy."""
        found = self.metadata()
        if LOADING not in found.get("extensions", ()):
            name = f"{found.get('name', '')} {found.get('version', '')}".strip() or "without a name"
            raise RunError(
                f"the server at {self.address} ({name}) loads no models: it lacks KServe's extension '{LOADING}'",
                hint="start Triton 24.10 or later with --model-control-mode=explicit",
            )
        return found

    def statistics(self, model: str) -> dict[str, Any]:
        """Return what the server has counted for the model. Raises `RunError`."""
        with self._errors(f"the server has no statistics of '{model}'"):
            found = self._json(self._client.get_inference_statistics, model)
        return dict(found["model_stats"][0])

    def _json(self, call: Any, *arguments: Any) -> Any:
        return call(*arguments) if self.protocol == "http" else call(*arguments, as_json=True)

    @contextlib.contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        try:
            yield
        except self._error as error:
            why = reason(str(error.message()))
            if why == LATE:
                why = f"not within {LOAD_S:g} s"
            elif away := UNREACHABLE.match(why):
                why = f"{self.address} is not reachable: {away[1]}"
            raise RunError(f"{what}: {why}", log=str(error)) from None
        except OSError as error:  # HTTP: refused, reset, timed out
            raise RunError(f"{what}: {self.address} is not reachable: {error.strerror or error}") from None
