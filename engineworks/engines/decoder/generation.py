"""Text in, text out: a decoder's session with its tokenizer. Greedy: the most probable token at every step."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from engineworks.engines.backends.base import PLAIN, Serving
from engineworks.engines.decoder.base import DecoderSession, Tokens
from engineworks.engines.decoder.open import open_decoder
from engineworks.engines.engine_files import altered
from engineworks.engines.engine_session import check_host
from engineworks.engines.passport import Passport
from engineworks.engines.sidecar import Sidecar
from engineworks.engines.verified import VerifiedEngine, verified_engine
from engineworks.errors import RunError, TrustError

TOKENIZER_FILE = "tokenizer.json"
"""The tokenizer that is shipped with every decoder, as the tokenizers library reads it."""

DEFAULT_NEW = 64
"""Tokens generated where the caller does not say."""

UNFINISHED = "\N{REPLACEMENT CHARACTER}"
"""What the end of a text decodes to while a character's bytes are not all there."""


class Generator:
    """Generates text with an engine that is loaded for so many streams at once. `close` frees it."""

    def __init__(self, session: DecoderSession, tokenizer: Any, stop: Sequence[int]) -> None:
        self._session, self._tokenizer, self._stop = session, tokenizer, frozenset(stop)

    def tokens(self, prompt: str) -> Tokens:
        """Return the prompt's token ids [n]. Raises `RunError` where it is empty or leaves no room."""
        ids = np.array(self._tokenizer.encode(prompt).ids, np.int64)
        context = self._session.interface.context
        if not len(ids):
            raise RunError("the prompt holds no tokens", hint="give some text to continue")
        if len(ids) >= context:
            raise RunError(f"the prompt has {len(ids)} tokens, and the context holds {context}", hint="shorten it")
        return ids

    def stream(self, prompt: str, new: int = DEFAULT_NEW) -> Iterator[str]:
        """Yield the continuation piece by piece, until a stop token, `new` tokens or the end of the context."""
        ids, made, shown = self.tokens(prompt), list[int](), ""
        self._session.reset([0])
        logits = self._session.last_logits({0: ids})[0]
        room = min(new, self._session.interface.context - len(ids))
        while len(made) < room:
            token = int(logits.argmax())
            if token in self._stop:
                break
            made.append(token)
            text = self._tokenizer.decode(made)
            if not text.endswith(UNFINISHED):
                yield text[len(shown) :]
                shown = text
            if len(made) < room:
                logits = self._session.last_logits({0: np.array([token], np.int64)})[0]
        rest = self._tokenizer.decode(made)[len(shown) :]
        if rest:
            yield rest

    def generate(self, prompts: Sequence[str], new: int = DEFAULT_NEW) -> list[str]:
        """Return each prompt's continuation; as many at once as the session has streams."""
        texts: list[str] = []
        for begin in range(0, len(prompts), self._session.streams):
            texts += self._together([self.tokens(p) for p in prompts[begin : begin + self._session.streams]], new)
        return texts

    def _together(self, prompts: Sequence[Tokens], new: int) -> list[str]:
        context, session = self._session.interface.context, self._session
        session.reset()
        made: dict[int, list[int]] = {i: [] for i in range(len(prompts))}
        last = session.last_logits(dict(enumerate(prompts)))
        while True:
            going = {}
            for i, logits in last.items():
                token = int(logits.argmax())
                if token not in self._stop and len(made[i]) < min(new, context - len(prompts[i])):
                    made[i].append(token)
                    going[i] = np.array([token], np.int64)
            going = {i: t for i, t in going.items() if len(made[i]) < min(new, context - len(prompts[i]))}
            if not going:
                return [self._tokenizer.decode(made[i]) for i in range(len(prompts))]
            last = session.last_logits(going)

    def close(self) -> None:
        self._session.close()


def open_generator(
    engine: VerifiedEngine, target: Mapping[str, Any], *, streams: int = 1,
    serving: Serving = PLAIN,
) -> Generator:  # fmt: skip
    """Load a verified decoder with its tokenizer. Raises `RunError` for an engine that is no decoder, or where this
    host cannot run it."""
    decoder = engine.sidecar.decoder
    if decoder is None:
        raise RunError("this engine is no decoder: it generates no text", hint="'engineworks inspect' says what it is")
    try:
        import tokenizers
    except ImportError:
        hint = "pip install 'engineworks[text]'"
        raise RunError("text needs tokenizers, which is not installed", hint=hint) from None
    tokenizer = tokenizers.Tokenizer.from_str(_tokenizer_text(engine, decoder.tokenizer_sha256))
    return Generator(open_decoder(engine, target, streams, serving=serving), tokenizer, decoder.stop)


def _tokenizer_text(engine: VerifiedEngine, digest: str) -> str:
    """Return the tokenizer's file, read once. Raises `TrustError` unless it is what the verified sidecar names."""
    file = engine.source.parent / TOKENIZER_FILE
    try:
        data = file.read_bytes()
    except OSError as error:
        raise TrustError(f"{file}: cannot be read: {error.strerror}", hint="fetch the engine again") from None
    actual = hashlib.sha256(data).hexdigest()
    if actual != digest:
        raise altered(file, actual, digest, "engine.json")
    return data.decode("utf-8")


def is_decoder(folder: Path) -> bool:
    """Whether the engine in the folder is a decoder's. Only asks in which way to load it."""
    return Sidecar.read(folder).decoder is not None


def open_shipped_decoder(folder: Path, passport: Passport) -> Generator:
    """Load the decoder from bytes that are those of its passport, which must have been checked.

    Raises `TrustError`, or `RunError` where this host cannot run it.
    """
    check_host(passport)
    with verified_engine(folder, passport) as engine:
        streams = max(engine.sidecar.decoder.streams) if engine.sidecar.decoder else 1
        target = passport.body["engine"]["target"]
        return open_generator(engine, target, streams=streams, serving=passport.serving)
