"""Texts → input_ids, attention_mask, token_type_ids, by the tokenizers library; labels of tokens and spans too."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from engineworks.errors import SamplesError
from engineworks.host.lazy import NDArray, np
from engineworks.model.export.interface import require_packages
from engineworks.recipe.datasets.labels import number_of
from engineworks.recipe.datasets.tables import Row
from engineworks.recipe.datasets.text import FAST_FILE, tokenizer_settings

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

IGNORED = -100
"""The label of tokens without one: special tokens, later pieces of a word, padding (as in PyTorch's losses)."""

CHUNK = 256
"""Number of texts tokenized at once."""

Kind = Literal["class", "tokens", "span"]

_ATTRIBUTES = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}


@dataclass
class Tokenized:
    """rows: per text, field → its values. labels: per text a number ("class"), one for each token ("tokens"), or the
    first and last token of an answer ("span"). kind: which of these.

    cut: number of texts that were too long. lost: number of answers that were cut off.
    """

    rows: list[Mapping[str, list[int]]] = field(default_factory=list)
    labels: list[Any] = field(default_factory=list)
    kind: Kind | None = None
    cut: int = 0
    lost: int = 0

    def add_label(self, place: str, kind: Kind, label: Any) -> None:
        if kind != (self.kind or kind):
            raise SamplesError(
                f"{place}: its label is a {kind}, the ones before are {self.kind}", hint="write all alike"
            )
        self.kind = kind
        self.labels.append(label)
        self.lost += kind == "span" and IGNORED in label


def tokenize(
    rows: Iterator[tuple[str, Row]],
    folder: Path,
    *,
    columns: Sequence[str],
    label: str | None,
    limit: int,
    numbers: Mapping[str, int],
) -> Tokenized:
    """Tokenize the rows, cut to `limit` tokens, unpadded.

    Raises `SamplesError` for a row that is not text, or whose label does not fit.
    """
    tokenizer = load_tokenizer(folder)
    tokenizer.no_padding()
    tokenizer.enable_truncation(limit)
    tokenized = Tokenized()
    for chunk in _chunks(rows):
        split = [isinstance(row[columns[0]], list) for _, row in chunk]
        if any(split) != all(split):
            raise SamplesError(f"{chunk[0][0]}: some texts are lists of words, others are not", hint="write all alike")
        inputs = [_text(place, row, columns) for place, row in chunk]
        encodings = tokenizer.encode_batch(inputs, is_pretokenized=any(split))
        for (place, row), encoding in zip(chunk, encodings, strict=True):
            tokenized.rows.append({name: list(getattr(encoding, at)) for name, at in _ATTRIBUTES.items()})
            tokenized.cut += bool(encoding.overflowing)
            if label is not None:
                tokenized.add_label(
                    place, *_label(place, row[label], row[columns[0]], encoding, numbers, len(columns) - 1)
                )
    return tokenized


def load_tokenizer(folder: Path) -> Tokenizer:
    """tokenizer.json by the tokenizers library; transformers converts older files. Raises `SamplesError`."""
    if (folder / FAST_FILE).is_file():
        require_packages({"tokenizers": "tokenizers"}, extra="text", doing=f"text for '{folder.name}'")
        import tokenizers

        try:
            loaded: Tokenizer = tokenizers.Tokenizer.from_file(str(folder / FAST_FILE))
        except Exception as error:  # the library raises plain Exceptions
            raise SamplesError(f"{FAST_FILE}: is no tokenizer that can be read: {error}") from error
        return loaded
    require_packages({"transformers": "transformers"}, extra="images", doing=f"the tokenizer of '{folder.name}'")
    import transformers

    try:
        slow = transformers.AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        converted: Tokenizer = slow.backend_tokenizer
    except Exception as error:  # transformers passes on any error of its parts
        raise SamplesError(f"'{folder.name}': transformers cannot read its tokenizer: {error}") from error
    return converted


def padding_id(folder: Path, tokenizer: Tokenizer) -> int:
    """The id of the padding token; 0 if the tokenizer names none, because the mask hides it."""
    padding = tokenizer.padding
    if padding:
        return int(padding["pad_id"])
    name = tokenizer_settings(folder).get("pad_token")
    token = name.get("content") if isinstance(name, dict) else name
    token_id = tokenizer.token_to_id(str(token)) if token else None
    return int(token_id) if token_id is not None else 0


def padded(rows: Sequence[Sequence[int]], width: int, fill: int, dtype: str) -> NDArray[Any]:
    """Rows as one array [rows, width] of `dtype`, filled up at the end."""
    block = np.full((len(rows), width), fill, dtype)
    for slot, row in zip(block, rows, strict=True):
        slot[: len(row)] = row
    return block


def _chunks(rows: Iterator[tuple[str, Row]]) -> Iterator[list[tuple[str, Row]]]:
    chunk = []
    for row in rows:
        chunk.append(row)
        if len(chunk) == CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _text(place: str, row: Row, columns: Sequence[str]) -> Any:
    values = [row[column] for column in columns]
    for column, value in zip(columns, values, strict=True):
        is_split = isinstance(value, list) and all(isinstance(word, str) for word in value)
        if not isinstance(value, str) and not is_split:
            raise SamplesError(
                f"{place}: '{column}' is no text but {type(value).__name__}", hint="text, or a list of words"
            )
    return values[0] if len(values) == 1 else tuple(values)


def _label(
    place: str, value: Any, text: Any, encoding: Encoding, numbers: Mapping[str, int], sequence: int
) -> tuple[Kind, Any]:
    """The kind of label and its values. sequence: which of the texts an answer is in."""
    if isinstance(value, Mapping):
        return "span", _span(place, value, encoding, sequence)
    if not isinstance(value, list):
        return "class", number_of(place, value, numbers)
    if not isinstance(text, list):
        raise SamplesError(f"{place}: labels per word, and the text is no list of words", hint='["The", "words"]')
    if len(value) != len(text):
        raise SamplesError(f"{place}: {len(value)} labels for {len(text)} words", hint="one label per word")
    known = [number_of(place, name, numbers) for name in value]
    per_token, before = [], None
    for at in encoding.word_ids:
        per_token.append(IGNORED if at is None or at == before else known[at])
        before = at
    return "tokens", per_token


def _span(place: str, value: Mapping[str, Any], encoding: Encoding, sequence: int) -> list[int]:
    """The first and last token of an answer in SQuAD's format, {text, answer_start}; -100 if it was cut off."""
    text, start = (_first(value.get(key)) for key in ("text", "answer_start"))
    if not isinstance(text, str) or not isinstance(start, int):
        raise SamplesError(
            f"{place}: the answer has no text and answer_start", hint="as in SQuAD: one answer, or lists"
        )
    end = start + len(text)
    inside = [
        token for token, ((low, high), of) in enumerate(zip(encoding.offsets, encoding.sequence_ids, strict=True))
        if of == sequence and low < end and high > start
    ]  # fmt: skip
    contained = inside and encoding.offsets[inside[-1]][1] >= end and encoding.offsets[inside[0]][0] <= start
    return [inside[0], inside[-1]] if contained else [IGNORED, IGNORED]


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, list) and value else value
