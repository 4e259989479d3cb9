"""Triton's messages and log: the reason why something failed, as one sentence."""

from __future__ import annotations

import re

_BEFORE = re.compile(
    r"^(?:load failed for model '[^']*': version \d+ is at \w+ state: |\[request id: [^\]]*\] |"
    r"(?:Internal|Invalid argument|Unavailable|Not found|Unknown): )"
)
"""What Triton writes before a reason."""

_AFTER = re.compile(r"\. NOTE: .*$|;$")
_OUR_CLASS = re.compile(r"^(?:TrustError|RunError|TargetError|InputError|TritonModelException): ")
"""Classes of errors whose name tells a user nothing."""

_SEVERITY = re.compile(r'^E\d{4} [\d:.]+ \d+ [\w.]+:\d+\]\s*"?(.*?)"?$')
"""An error line of the log: date, time, thread, source line, message."""

_OTHER = re.compile(r"^[EIW]\d{4} |^[+|]")
"""A line that Triton logs, or one of its tables."""

UNREACHABLE = re.compile(r"^failed to connect to all addresses; .*: (.+)$")
"""gRPC's words, of which the last say why."""

LATE = "Deadline Exceeded"
"""gRPC's words for a call that took longer than it may."""


def reason(message: str) -> str:
    """Return the reason in an error message of Triton; of a traceback the error that ended it."""
    text = next((line.strip() for line in message.splitlines() if line.strip()), "")
    while shorter := _BEFORE.match(text):
        text = text[shorter.end() :]
    return _AFTER.sub("", _OUR_CLASS.sub("", text)) or "the server gave no reason"


def last_error(log: str) -> str:
    """Return the reason in the last error line of a server's log; without one, the last line that is not Triton's
    own, such as the loader's or a shell's; '' without any."""
    lines = [line for line in log.splitlines() if line.strip()]
    found = [line for line in lines if not _OTHER.match(line)][-1:]
    found += [match[1] for line in lines if (match := _SEVERITY.match(line))]
    found += [line for line in lines if line.startswith(("error:", "tritonserver:", "Usage:"))]
    return reason(found[-1]) if found else ""
