"""Which failures are retried, and after how long.

The kind of the failure decides. Never retried: bad input, a gate (it is no failure), an internal error, an
interruption, a time limit (which would be spent twice), and errors of a builder or converter, which would recur.
Retried: failures from outside the step.
"""

from __future__ import annotations

from collections.abc import Sequence

from engineworks.errors import InputError, Interrupted, StepError, StoreError, TimeLimitError

DELAYS_S: Sequence[float] = (2.0, 25.0)
"""Seconds before the second and the third try. A remote store that did not answer is not asked for 20 s
(`store.remote.DOWN_S`), so only the third try asks it again."""


def is_worth_retrying(error: BaseException) -> bool:
    """Return whether the same step may succeed if it runs again soon."""
    if isinstance(error, InputError | Interrupted | TimeLimitError):
        return False
    if isinstance(error, StepError):
        return error.crash == "outside"
    return isinstance(error, StoreError | ConnectionError | TimeoutError)
