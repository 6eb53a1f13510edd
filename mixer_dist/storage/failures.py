"""What a failure of storage means: over in a moment, or final and then in words for the user."""

import errno

from aiohttp import ClientError, ClientResponseError
from botocore.exceptions import (
    BotoCoreError,
    ConnectionError,
    CredentialRetrievalError,
    FlexibleChecksumError,
    HTTPClientError,
    NoCredentialsError,
    PartialCredentialsError,
)

from mixer_dist.errors import AccessError, ConfigError, MissingError, MixerError, StorageError

FAILURES = (OSError, ClientError, BotoCoreError, ImportError, ValueError)
"""What an operation of an fsspec file system may raise."""

# What may be over in a moment; every other error of botocore is about the options.
_PASSING = (ConnectionError, HTTPClientError, CredentialRetrievalError, FlexibleChecksumError)
_FINAL_ERRNOS = (errno.EROFS, errno.ENAMETOOLONG, errno.ENOSPC, errno.EDQUOT)
_FINAL_CODES = ("AuthorizationHeaderMalformed", "PermanentRedirect", "InvalidBucketName", "301")
_PASSING_STATUSES = (408, 425, 429)  # of HTTP's 4xx; all 5xx pass too


def final_error(url: str, error: Exception) -> MixerError | None:
    """What the user is told of an error that trying again would not mend, else None."""
    status = error.status if isinstance(error, ClientResponseError) else None
    if isinstance(error, FileNotFoundError) or status in (404, 410):
        return MissingError(f"not there: {url} ({reason(error)})")
    is_refused = isinstance(error, PermissionError | NoCredentialsError | PartialCredentialsError)
    if is_refused or status in (401, 403):
        return AccessError(_access_line(url, error))
    if isinstance(error, IsADirectoryError | NotADirectoryError | FileExistsError):
        return ConfigError(f"{url}: a file is where a folder is expected, or a folder for a file")
    is_option = isinstance(error, BotoCoreError) and not isinstance(error, _PASSING)
    if is_option or isinstance(error, ImportError | ValueError):  # no such scheme or endpoint
        return ConfigError(f"cannot open {url!r}: {reason(error)}")
    return StorageError(f"{url}: {reason(error)}") if _is_final(error, status) else None


def _is_final(error: BaseException, status: int | None) -> bool:
    """Whether trying again is pointless."""
    reply = getattr(error.__cause__, "response", None) or {}
    code = reply.get("Error", {}).get("Code")
    is_clients_fault = status is not None and status < 500 and status not in _PASSING_STATUSES
    return is_clients_fault or code in _FINAL_CODES or is_errno(error, *_FINAL_ERRNOS)


def is_errno(error: BaseException, *numbers: int) -> bool:
    """Whether an error carries one of these numbers."""
    return getattr(error, "errno", None) in numbers


def reason(error: BaseException) -> str:
    """An error in a few words, on one line."""
    return " ".join(str(error).split()) or type(error).__name__


def hint(url: str) -> str:
    """What to look at when a place stays out of reach."""
    is_remote = "://" in url
    return "; check the network, storage.*.endpoint_url or AWS_ENDPOINT_URL" if is_remote else ""


def _access_line(url: str, error: BaseException) -> str:
    if "://" not in url:
        return f"no permission for {url} ({reason(error)})"
    if url.startswith("http"):
        return f"{url} is refused ({reason(error)}): it needs a login, or the link has expired"
    return (
        f"{url} refuses these credentials ({reason(error)}): "
        "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or storage.*.profile"
    )
