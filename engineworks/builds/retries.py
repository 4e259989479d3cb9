"""Which failures are worth another try, and after how long: by their kind alone, so that anyone can foretell it.

Never again: bad input, a gate (it is no failure), a defect, an interruption, a time limit (it would be spent twice),
and whatever a builder or a converter said in words: it would say the same. Again: what came from outside of the step.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from engineworks.errors import InputError, Interrupted, StepError, StoreError, TimeLimitError

DELAYS_S: Sequence[float] = (2.0, 25.0)
"""Seconds before the second and before the third try. A remote store that did not answer is not asked for 20 s
(`store.service.DOWN_S`): the third try really asks."""

FROM_OUTSIDE = re.compile(r" crashed with (SIGKILL|SIGTERM|SIGBUS)\b")
"""How `child` words the end of a child that somebody else brought about: the kernel for want of memory or disk, or an
operator. A child that crashes by itself (SIGSEGV, SIGABRT) does so again."""

BY_ITSELF = re.compile(r" crashed with (SIGSEGV|SIGABRT|SIGILL|SIGFPE)\b")
"""How `child` words the crash of a library: worth another try only in another way (`step.attempts_of`)."""


def is_worth_retrying(error: BaseException) -> bool:
    """Whether the same step may succeed if it is run again in a moment."""
    if isinstance(error, InputError | Interrupted | TimeLimitError):
        return False
    if isinstance(error, StoreError):
        return True
    if isinstance(error, StepError):
        return FROM_OUTSIDE.search(error.message) is not None
    return isinstance(error, ConnectionError | TimeoutError)
