"""An exported decoder without the weights that its Hugging Face folder has, for a host that cannot export it.

    python benchmarks/decoder_graph.py strip EXPORT FOLDER OUT      EXPORT: result of the step; FOLDER: Hugging Face
    python benchmarks/decoder_graph.py fill OUT FOLDER              there: write OUT/model.onnx.data again

The weights are found in the folder's safetensors by their bytes in fp32, transposed or not. Others are in `rest.bin`.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

DATA, PLACES, REST = "model.onnx.data", "weights.json", "rest.bin"
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json", "config.json")


def strip(export: Path, folder: Path, out: Path) -> None:
    """Write model.onnx, where each of its weights is in the safetensors, the rest's bytes, and the tokenizer."""
    out.mkdir(parents=True, exist_ok=True)
    known = dict[bytes, tuple[str, int]]()
    for name, values in _weights(folder):
        for turned, form in enumerate((values, values.T)):
            known.setdefault(sha256(np.ascontiguousarray(form).tobytes()).digest(), (name, turned))
    places = list[dict[str, Any]]()
    data = np.memmap(export / DATA, np.uint8, "r")
    model = onnx.load(str(export / "model.onnx"), load_external_data=False)
    with (out / REST).open("wb") as rest:
        for tensor in model.graph.initializer:
            at = {e.key: e.value for e in tensor.external_data}
            if not at:
                continue
            offset, length = int(at.get("offset", 0)), int(at["length"])
            raw = data[offset : offset + length].tobytes()
            digest = sha256(raw).digest()
            place: dict[str, Any] = {"offset": offset, "length": length, "name": None}
            if digest in known:
                place["name"], place["turned"] = known[digest]
            else:
                rest.write(raw)
            places.append(place)
    (out / PLACES).write_text(json.dumps({"bytes": len(data), "places": places}))
    shutil.copyfile(export / "model.onnx", out / "model.onnx")
    for file in TOKENIZER:
        if (folder / file).is_file():
            shutil.copyfile(folder / file, out / file)
    print(f"{len(places)} weights, {sum(p['name'] is None for p in places)} of them in {REST}")


def fill(out: Path, folder: Path) -> None:
    """Write the file of the weights again."""
    made = json.loads((out / PLACES).read_text())
    data = np.memmap(out / DATA, np.uint8, "w+", shape=(made["bytes"],))
    rest, used = (out / REST).read_bytes(), 0
    for name, values in _weights(folder):
        for place in made["places"]:
            if place["name"] == name:
                form = np.ascontiguousarray(values.T if place["turned"] else values)
                data[place["offset"] : place["offset"] + place["length"]] = form.reshape(-1).view(np.uint8)
    for place in made["places"]:
        if place["name"] is None:
            begin, length = place["offset"], place["length"]
            data[begin : begin + length] = np.frombuffer(rest, np.uint8, length, used)
            used += length
    data.flush()


def _weights(folder: Path) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Yield every tensor of the safetensors files in fp32, by name."""
    for file in sorted(folder.glob("*.safetensors")):
        raw = np.memmap(file, np.uint8, "r")
        begin = 8 + int(raw[:8].view("<u8")[0])
        header = json.loads(raw[8:begin].tobytes())
        for name, entry in header.items():
            if name != "__metadata__":
                first, last = entry["data_offsets"]
                yield name, _FORMS[entry["dtype"]](raw[begin + first : begin + last]).reshape(entry["shape"])


def _bfloat16(raw: NDArray[np.uint8]) -> NDArray[np.float32]:
    return (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


_FORMS: dict[str, Callable[[NDArray[np.uint8]], NDArray[np.float32]]] = {
    "BF16": _bfloat16,
    "F16": lambda raw: raw.view(np.float16).astype(np.float32),
    "F32": lambda raw: raw.view(np.float32),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for command, names in (("strip", ("export", "folder", "out")), ("fill", ("out", "folder"))):
        made = commands.add_parser(command)
        for name in names:
            made.add_argument(name, type=Path)
    given = vars(parser.parse_args())
    parts: dict[str, Callable[..., None]] = {"strip": strip, "fill": fill}
    parts[given.pop("command")](**given)


if __name__ == "__main__":
    main()
