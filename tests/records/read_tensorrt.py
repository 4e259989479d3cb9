"""Writes what NVIDIA's published Python bindings say of themselves into tensorrt_bindings.json, version by version.

The bindings import where `tensorrt_bindings.tensorrt` can be loaded: with TensorRT installed, or over empty libraries of
the same names. Run it with each version's package on PYTHONPATH: `python tests/records/read_tensorrt.py 11.4.0.106`.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
from pathlib import Path

CLASSES = (
    "Builder", "IBuilderConfig", "OnnxParser", "ParserError", "INetworkDefinition", "ITensor", "IOptimizationProfile",
    "Runtime", "ICudaEngine", "IExecutionContext", "IOutputAllocator", "ILogger", "ITimingCache", "IHostMemory",
    "MemoryPoolType", "BuilderFlag", "HardwareCompatibilityLevel", "NetworkDefinitionCreationFlag", "TensorIOMode",
    "TensorLocation", "DataType", "IStreamWriter", "EngineStat", "IErrorRecorder", "Logger", "ErrorCodeTRT",
)  # fmt: skip


def signatures(name: str, value: object) -> list[str]:
    """The lines of a function's text that pybind11 writes its signatures in, one per overload; none for an attribute."""
    lines = (getattr(value, "__doc__", "") or "").splitlines()
    found = (re.sub(r"^\d+\. ", "", line.strip()) for line in lines)
    return [line.replace("tensorrt_bindings.tensorrt.", "") for line in found if re.match(rf"{name}\(.*\) -> ", line)]


def main() -> None:
    bindings = importlib.import_module("tensorrt_bindings.tensorrt")
    found = {
        name: {
            member: signatures(member, getattr(owner, member))
            for member in dir(owner)
            if not member.startswith("_") or member == "__init__"
        }
        for name in CLASSES
        if (owner := getattr(bindings, name, None)) is not None
    }
    file = Path(__file__).with_name("tensorrt_bindings.json")
    record = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    record[sys.argv[1]] = found
    file.write_text(json.dumps(record, indent=0, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
