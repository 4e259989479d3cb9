"""Which failures are worth another try, and after how long.

The kind of the failure decides. Never tried again: bad input, a gate (it is no failure), an internal error, an
interruption, a time limit (it would be spent twice), and what a builder or a converter reports: it would report the
same. Tried again: what came from outside of the step.
"""

from __future__ import annotations

from collections.abc import Sequence

from engineworks.errors import InputError, Interrupted, StepError, StoreError, TimeLimitError

DELAYS_S: Sequence[float] = (2.0, 25.0)
"""Seconds before the second and before the third try. A remote store that did not answer is not asked for 20 s
(`store.service.DOWN_S`): the third try really asks."""


def is_worth_retrying(error: BaseException) -> bool:
    """Whether the same step may succeed if it is run again in a moment."""
    if isinstance(error, InputError | Interrupted | TimeLimitError):
        return False
    if isinstance(error, StepError):
        return error.crash == "outside"
    return isinstance(error, StoreError | ConnectionError | TimeoutError)
