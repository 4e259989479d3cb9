"""The first run of an engine, as part of its build, so that a crash happens during the build."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from engineworks.errors import RunError
from engineworks.host.lazy import NDArray, np
from engineworks.tensors import Profile, TensorSpec

if TYPE_CHECKING:
    from engineworks.engines.backends._ort_session import OrtSession


def run_once_per_profile(
    session: OrtSession, profiles: Sequence[Profile], log: Callable[[str], None], raised: Sequence[str]
) -> None:
    """Run at the smallest and the usual shapes of every profile. Raises `RunError` whose text has one of `raised`.

    Synthetic inputs may be invalid for the model, so another error is logged and left to the comparison with real
    samples. The comparison also runs the largest shapes: they take longest and run no other code.
    """
    for shapes in _shapes(profiles):
        feeds = _feeds(session.inputs, shapes)
        if feeds is None:
            continue
        try:
            session.run(feeds)
        except RunError as error:
            if any(text in f"{error} {error.log}" for text in raised):
                raise
            log(f"made-up inputs do not run: {error.message}")
    session.close()


def _shapes(profiles: Sequence[Profile]) -> Iterator[Mapping[str, tuple[int, ...]]]:
    """Yield each combination of shapes by input once."""
    tried = []
    for profile in profiles:
        for which in ("min", "opt"):
            shapes = {name: getattr(lengths, which) for name, lengths in profile.inputs.items()}
            if shapes not in tried:
                tried.append(shapes)
                yield shapes


def _feeds(inputs: Sequence[TensorSpec], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, NDArray[Any]] | None:
    """Return one array per input, None for inputs that NumPy or the profile does not know. Floats are in [-1, 1], all
    else is 1, valid almost everywhere as a length, an index or an unmasked position."""
    feeds: dict[str, NDArray[Any]] = {}
    for spec in inputs:
        if spec.name not in shapes or not hasattr(np, spec.dtype) or spec.dtype == "string":
            return None
        dtype, shape = np.dtype(spec.dtype), shapes[spec.name]
        random = np.random.default_rng(0).uniform(-1, 1, shape)
        feeds[spec.name] = random.astype(dtype) if dtype.kind == "f" else np.ones(shape, dtype)
    return feeds
