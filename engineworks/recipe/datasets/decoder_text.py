"""The meaning of `text:` for a decoder: sequences of tokens to predict, and prompts to continue.

A .txt file is one text, cut into windows. A row of a table is a text of its own. A chat becomes text by the tokenizer's
own template; its prompt ends where the last answer begins.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engineworks.errors import SamplesError, did_you_mean
from engineworks.recipe.datasets.preparation import Preparation
from engineworks.recipe.datasets.tables import SUFFIXES, look_at, read_rows
from engineworks.recipe.datasets.text import FAST_FILE, tokenizer_files, tokenizer_settings
from engineworks.recipe.datasets.tokenize import load_tokenizer
from engineworks.recipe.samples import SampleFile

PLAIN = ".txt"
DEFAULT_WIDTH, DEFAULT_TEXTS = 256, 32
"""Tokens of a text and number of texts where the recipe says nothing: about 8,000 tokens, which tell two perplexities
apart to a few tenths of a percent."""

PROMPTS, PROMPT_TOKENS = 3, 32
LEAST_TOKENS = 8
"""A shorter text is left out: its first tokens are predicted from nothing."""

TEMPLATE_FILE = "chat_template.jinja"


@dataclass(frozen=True)
class DecoderTexts:
    """texts: token ids of each text. prompts: token ids to continue. long: tokens enough to fill the context, repeated
    where the texts have fewer. left_out: number of texts that were too short."""

    texts: list[list[int]]
    prompts: list[list[int]]
    long: list[int]
    left_out: int


def plan_decoder_text(
    path: Path, *, columns: Sequence[str], messages: str | None, tokenizer: Path, samples: int | None, width: int,
    context: int, vocabulary: int | None,
) -> SampleFile:  # fmt: skip
    """Return the texts that the step `prepare` will make. Raises `SamplesError` for the first problem."""
    total, wanted = 1, [messages] if messages else list(columns)
    if path.suffix == PLAIN:
        if messages:
            raise SamplesError(f"{path.name}: a .txt file has no column '{messages}'", key="messages")
        if not path.stat().st_size:
            raise SamplesError(f"{path.name}: holds no text")
    elif path.suffix in SUFFIXES:
        present, total = look_at(path)
        for column in wanted:
            if column not in present:
                key = "messages" if messages else "columns"
                raise SamplesError(
                    f"{path.name}: has no column '{column}'", hint=did_you_mean(column, present), key=key
                )
        if samples is not None and samples > total:
            raise SamplesError(f"{path.name}: {samples} samples are asked for, there are {total}", key="samples")
    else:
        raise SamplesError(f"'{path.name}' is none of {', '.join((PLAIN, *SUFFIXES))}")
    if len(wanted) != 1:
        raise SamplesError(f"{path.name}: a decoder reads one column of text", hint="columns: text", key="columns")
    files = tokenizer_files(tokenizer)
    if (tokenizer / TEMPLATE_FILE).is_file():
        files[TEMPLATE_FILE] = tokenizer / TEMPLATE_FILE
    if messages and not chat_template(tokenizer):
        raise SamplesError(f"'{tokenizer.name}' has no chat template", hint=f"expected {TEMPLATE_FILE}", key="messages")
    params: dict[str, Any] = {
        "kind": "tokens", "name": path.name, "column": wanted[0], "chat": bool(messages), "samples": samples,
        "width": min(width, DEFAULT_WIDTH), "context": context, "vocabulary": vocabulary, "count": 1, "total": total,
    }  # fmt: skip
    libraries = ["numpy", "tokenizers", *([] if FAST_FILE in files else ["transformers"])]
    libraries += ["pyarrow"] if path.suffix == ".parquet" else []
    libraries += ["jinja2"] if messages else []
    preparation = Preparation(params, {"text": path, **files}, {"text": path, "tokenizer": tokenizer}, tuple(libraries))
    return SampleFile(path, (), {}, None, 1, 1, None, preparation)


def chat_template(tokenizer: Path) -> str:
    """Return the tokenizer's chat template, '' without one."""
    file = tokenizer / TEMPLATE_FILE
    if file.is_file():
        return file.read_text(encoding="utf-8")
    template = tokenizer_settings(tokenizer).get("chat_template")
    return template if isinstance(template, str) else ""


def read_texts(path: Path, tokenizer: Path, params: dict[str, Any]) -> DecoderTexts:
    """Tokenize. params: as in `plan_decoder_text`. Raises `SamplesError` for texts that do not fit the model."""
    loaded = load_tokenizer(tokenizer)
    loaded.no_padding()
    loaded.no_truncation()
    encoded = [_Encoded(*pair) for pair in _encoded(path, tokenizer, loaded, params)]
    width, most = params["width"], params["samples"] or DEFAULT_TEXTS
    windows = [ids for text in encoded for ids in _windows(text.ids, width, single=path.suffix != PLAIN)]
    kept = [ids for ids in windows if len(ids) >= LEAST_TOKENS]
    if not kept:
        hint = "give it longer texts"
        raise SamplesError(f"{path.name}: no text has {LEAST_TOKENS} tokens, so nothing can be predicted", hint=hint)
    chosen = [kept[i * len(kept) // most] for i in range(most)] if len(kept) > most else kept
    _check_vocabulary(path, [text.ids for text in encoded if text.ids], params["vocabulary"])
    every = [token for ids in kept for token in ids]
    context = params["context"]
    long = (every * -(-context // len(every)))[:context]
    return DecoderTexts(chosen, _prompts(encoded, chosen, context, chat=params["chat"]), long, len(windows) - len(kept))


@dataclass(frozen=True)
class _Encoded:
    """One text. prompt: how many of its tokens are a chat's prompt; 0 for other texts."""

    ids: list[int]
    prompt: int


def _encoded(path: Path, folder: Path, tokenizer: Any, params: dict[str, Any]) -> Iterator[tuple[list[int], int]]:
    if path.suffix == PLAIN:
        try:
            text = path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise SamplesError(f"{path.name}: is not UTF-8 ({error.reason} at byte {error.start})") from None
        yield tokenizer.encode(text, add_special_tokens=False).ids, 0
        return
    column, count = params["column"], params["total"]
    most = min(count, params["samples"] or DEFAULT_TEXTS)
    template = chat_template(folder) if params["chat"] else ""
    for place, row in read_rows(path, [i * count // most for i in range(most)], [column]):
        if params["chat"]:
            full, prompt = render_chat(place, row[column], template, tokenizer_settings(folder))
            ids = tokenizer.encode(full, add_special_tokens=False).ids
            yield ids, len(tokenizer.encode(prompt, add_special_tokens=False).ids)
        elif isinstance(row[column], str):
            yield tokenizer.encode(row[column]).ids, 0
        else:
            raise SamplesError(f"{place}: '{column}' is no text but {type(row[column]).__name__}")


def _windows(ids: list[int], width: int, *, single: bool) -> Iterator[list[int]]:
    """Return the text cut to `width` (single: one row, one text), or all windows of one long text."""
    yield from ([ids[:width]] if single else (ids[i : i + width] for i in range(0, len(ids), width)))


def _prompts(encoded: list[_Encoded], texts: list[list[int]], context: int, *, chat: bool) -> list[list[int]]:
    """Return up to PROMPTS beginnings to continue, evenly spread; half the context is left for what follows."""
    most = max(1, context // 2)
    if chat:
        given = [text.ids[: text.prompt] for text in encoded if 0 < text.prompt <= most]
        if given:
            return [given[i * len(given) // PROMPTS] for i in range(min(PROMPTS, len(given)))]
    count = min(PROMPTS, len(texts))
    spread = [texts[i * len(texts) // count] for i in range(count)]
    return [ids[: max(1, min(PROMPT_TOKENS, most, len(ids) // 2))] for ids in spread]


def render_chat(place: str, messages: Any, template: str, settings: dict[str, Any]) -> tuple[str, str]:
    """Return the whole chat as text, and its prompt: all before the last answer, with the marker that begins one.

    The template is the tokenizer's: it runs in Jinja's sandbox. Raises `SamplesError`.
    """
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    fits = isinstance(messages, list) and all(
        isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str) for m in messages
    )
    if not fits or not messages:
        raise SamplesError(f"{place}: is no chat", hint='a list of {"role": "user", "content": "…"}')
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = _raise
    special_tokens = {key: _content(value) for key, value in settings.items() if key.endswith("_token")}
    asked = messages[:-1] if messages[-1]["role"] == "assistant" and len(messages) > 1 else messages
    try:
        made = environment.from_string(template)
        full = made.render(messages=messages, add_generation_prompt=False, **special_tokens)
        return full, made.render(messages=asked, add_generation_prompt=True, **special_tokens)
    except (TemplateError, SamplesError, TypeError, ValueError) as error:
        raise SamplesError(f"{place}: the tokenizer's chat template does not take it: {error}") from None


def _raise(message: str) -> str:
    raise SamplesError(message)


def _content(token: Any) -> Any:
    return token.get("content") if isinstance(token, dict) else token


def _check_vocabulary(path: Path, texts: list[list[int]], vocabulary: int | None) -> None:
    largest = max(max(ids) for ids in texts)
    if vocabulary is not None and largest >= vocabulary:
        raise SamplesError(
            f"{path.name}: the tokenizer gives token {largest}, the model's vocabulary has {vocabulary}",
            hint="name the tokenizer of this model: data.evaluation.tokenizer: FOLDER",
        )
