"""The engines inside one decoder artifact for a GPU: each is the same decoder at one batch and number of tokens.

Fixed shapes get the fastest kernels (`model.decoder.static`). All parts use one cache, so each knows only its own place
in it: a decode part takes one token of some neighbouring streams, a prefill part some tokens of one stream.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

LEAST_PREFILL = 16
"""A prefill part takes at least so many tokens, for prompts that the recipe does not name."""


@dataclass(frozen=True)
class Part:
    """One engine file. batch: sequences; tokens: of each."""

    file: str
    batch: int
    tokens: int


def parts_for(streams: Sequence[int], prompts: Sequence[int], context: int) -> list[Part]:
    """Return the parts for a recipe's situations: decode alone and at every number of streams, and prefill at every
    length of a prompt. A prompt of `context` tokens cannot be continued, so it needs no part."""
    decode = [(batch, 1) for batch in sorted({1, *streams})]
    lengths = {min(max(length, LEAST_PREFILL), context) for length in prompts or (context,)}
    return [Part(f"engine-{b}x{t}", b, t) for b, t in decode + [(1, t) for t in sorted(lengths - {1})]]


def pieces(count: int, length: int, context: int, sizes: Sequence[int]) -> list[tuple[int, int]]:
    """Cut `count` new tokens of a stream that holds `length` into (size of the part, tokens of it that are real).

    sizes: tokens that parts take, 1 among them. The fewest runs: on a GPU a run of 128 tokens takes hardly longer than
    one of a single token. A piece is padded only where the cache has room for the padding too.
    """
    cut: list[tuple[int, int]] = []
    while count:
        fitting = [size for size in sorted(sizes) if length + size <= context]
        size = next((size for size in fitting if size >= count), fitting[-1])
        real = min(size, count)
        cut.append((size, real))
        count, length = count - real, length + real
    return cut


def windows(
    wanted: Collection[int], streams: int, batches: Collection[int], full: Collection[int]
) -> list[tuple[int, int]]:
    """Cover single steps of the `wanted` streams by runs of neighbours: (first stream, batch of the part).

    streams: of the session. batches: of the decode parts, 1 among them. full: streams without room for one position
    more; a run may step over an idle stream, but not over one of these. The fewest runs, then the smallest.
    """
    left, runs = sorted(wanted), list[tuple[int, int]]()
    blocked = set(full) - set(wanted)
    while left:
        options = [
            (-sum(first <= s < first + batch for s in left), batch, first)
            for batch in batches
            for first in range(max(0, left[0] - batch + 1), min(left[0], streams - batch) + 1)
            if not blocked & set(range(first, first + batch))
        ]
        _, batch, first = min(options)
        runs.append((first, batch))
        left = [s for s in left if not first <= s < first + batch]
    return runs
