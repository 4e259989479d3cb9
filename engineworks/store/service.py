"""One service behind an fsspec URL: every call has a time limit, and every failure is one message.

fsspec's limits are insufficient: s3fs tries a dead endpoint 25 times, and a server that sends a byte per second never
runs into a read timeout. Asynchronous filesystems (s3, gcs, abfs, http) get a limit for the whole call; others keep
their own limits.
"""

from __future__ import annotations

import sys
import time
from typing import Any

from engineworks.errors import StoreError

REQUEST_LIMIT_S = 30.0
"""Time limit of one small request in seconds, including retries."""

SLOWEST_BYTES_PER_S = 256 * 1024
"""A transfer may take one more second per this many bytes; slower services are unusable."""

DOWN_S = 20.0
"""Seconds without another request after the service did not answer: a build of many engines fails once, not one limit
after the other."""

OPTIONS = {
    "s3": {
        "config_kwargs": {"connect_timeout": 5, "read_timeout": 15, "retries": {"max_attempts": 2, "mode": "standard"}}
    }
}
"""Options for opening a protocol's filesystem; FSSPEC_S3_… and AWS_… set the rest (endpoint, keys, region)."""

FOREIGN_ERRORS = (
    ("botocore.exceptions", "BotoCoreError"),
    ("aiohttp", "ClientError"),
    ("gcsfs.retry", "HttpError"),
    ("google.auth.exceptions", "GoogleAuthError"),
    ("azure.core.exceptions", "AzureError"),
)
"""Errors of clients that are not OSError, by the module that defines them."""

EXTRAS = {"s3": "s3", "s3a": "s3"}


class Service:
    """The filesystem of one URL. `call` runs its methods; `root` is the URL's path in it."""

    def __init__(self, url: str, *, request_limit_s: float = REQUEST_LIMIT_S) -> None:
        from fsspec.core import url_to_fs

        self.url = url
        self._request_limit_s = request_limit_s
        self._down: StoreError | None = None
        self._down_until = 0.0
        protocol = url.partition("://")[0]
        try:
            # No listings cache: another host may have written since.
            self.files, root = url_to_fs(url, use_listings_cache=False, **OPTIONS.get(protocol, {}))
        except (ImportError, ValueError) as error:
            extra = EXTRAS.get(protocol)
            hint = f"pip install 'engineworks[{extra}]'" if extra and isinstance(error, ImportError) else ""
            hint = hint or "a folder, or a URL such as s3://bucket/folder"
            raise StoreError(f"ENGINEWORKS_STORE={url}: {str(error).rstrip('.')}", hint=hint) from None
        self.root = str(root)
        if protocol in EXTRAS:
            self.files.retries = 2  # s3fs's own, around botocore's

    @property
    def is_local(self) -> bool:
        """Whether it is a folder of this host."""
        protocol = self.files.protocol
        return "file" in ((protocol,) if isinstance(protocol, str) else protocol)

    def make_folder(self, path: str) -> None:
        """Create a folder where the filesystem has folders. Object stores have none, and s3fs would create a missing
        bucket."""
        if not getattr(self.files, "async_impl", False):
            self.call("makedirs", path, exist_ok=True)

    def call(self, method: str, *arguments: Any, size: int = 0, **options: Any) -> Any:
        """Run a method of the filesystem that moves `size` bytes.

        FileNotFoundError and FileExistsError pass through as answers; other errors become a `StoreError`.
        """
        if self._down is not None and time.monotonic() < self._down_until:
            raise self._down
        if getattr(self.files, "async_impl", False):
            options["timeout"] = self._request_limit_s + size / SLOWEST_BYTES_PER_S
        try:
            return getattr(self.files, method)(*arguments, **options)
        except (FileNotFoundError, FileExistsError) as error:
            if _is_no_such_bucket(error):
                raise self._refused(error) from None
            raise
        except TimeoutError:
            limit_s = options.get("timeout", 0.0)
            raise self._gone(f"it gave no answer within {limit_s:.0f} s" if limit_s else "it timed out") from None
        except _foreign_errors() as error:
            raise (self._gone(_reason(error)) if _is_unreachable(error) else self._refused(error)) from None

    def _gone(self, reason: str) -> StoreError:
        error = StoreError(
            f"the store {self.url} does not answer: {reason}",
            hint="is it reachable from here? What was built is kept here and sent by the next build",
        )
        self._down, self._down_until = error, time.monotonic() + DOWN_S
        return error

    def _refused(self, error: Exception) -> StoreError:
        return StoreError(
            f"the store {self.url} refuses: {_reason(error)}", hint="do its bucket and these credentials exist?"
        )


def _foreign_errors() -> tuple[type[Exception], ...]:
    classes = (getattr(sys.modules.get(module), name, None) for module, name in FOREIGN_ERRORS)
    return (OSError, *(error for error in classes if error is not None))


def _is_unreachable(error: Exception) -> bool:
    names = {kind.__name__ for kind in type(error).__mro__}
    unreachable = {"HTTPClientError", "ClientConnectionError", "ConnectionError"}  # botocore, aiohttp, Python
    code = getattr(error.__cause__, "response", {}).get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return bool(names & unreachable) or code >= 500


def _is_no_such_bucket(error: Exception) -> bool:
    return bool(getattr(error.__cause__, "response", {}).get("Error", {}).get("Code") == "NoSuchBucket")


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
