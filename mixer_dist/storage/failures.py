"""What a failure of storage means: over in a moment, or final and then in words for the user."""

import errno

from aiohttp import ClientError, ClientPayloadError, ClientResponseError
from botocore.exceptions import (
    BotoCoreError,
    ConnectionError,
    CredentialRetrievalError,
    FlexibleChecksumError,
    HTTPClientError,
    NoCredentialsError,
    PartialCredentialsError,
)
from botocore.parsers import ResponseParserError

from mixer_dist.errors import AccessError, ConfigError, MissingError, MixerError, StorageError
from mixer_dist.storage.urls import is_s3

FAILURES = (OSError, ClientError, BotoCoreError, ResponseParserError, ImportError, ValueError)
"""What an operation of an fsspec file system may raise."""

# What may be over in a moment; every other error of botocore is about the options.
_PASSING = (ConnectionError, HTTPClientError, CredentialRetrievalError, FlexibleChecksumError)
_FINAL_ERRNOS = (errno.EROFS, errno.ENAMETOOLONG, errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_PASSING_STATUSES = (408, 409, 425, 429)  # of HTTP's 4xx; of its 5xx all but one pass
_NOT_IMPLEMENTED = 501
# S3 says these with status 400: an upload that was damaged or slow on its way.
_PASSING_CODES = ("RequestTimeout", "BadDigest", "IncompleteBody", "XAmzContentSHA256Mismatch")
# And these of credentials that are over; a HEAD has no body, so no code but its status.
_ACCESS_CODES = ("InvalidToken", "TokenRefreshRequired", "400")


def final_error(url: str, error: Exception) -> MixerError | None:
    """What the user is told of an error that trying again would not mend, else None."""
    status, code = _status_and_code(error)
    if isinstance(error, FileNotFoundError) or status in (404, 410):
        return MissingError(f"not there: {url} ({reason(error)})")
    is_refused = isinstance(error, PermissionError | NoCredentialsError | PartialCredentialsError)
    if is_refused or status in (401, 403) or code in _ACCESS_CODES:
        return AccessError(_access_line(url, error))
    if isinstance(error, IsADirectoryError | NotADirectoryError | FileExistsError):
        return ConfigError(f"{url}: a file is where a folder is expected, or a folder for a file")
    is_option = isinstance(error, BotoCoreError) and not isinstance(error, _PASSING)
    if is_option or isinstance(error, ImportError | ValueError):  # no such scheme or endpoint
        return ConfigError(f"cannot open {url!r}: {reason(error)}")
    is_final = _is_clients_fault(status, code) or is_errno(error, *_FINAL_ERRNOS)
    return StorageError(f"{url}: {reason(error)}") if is_final else None


def _status_and_code(error: BaseException) -> tuple[int | None, str | None]:
    """HTTP's status of a reply, and S3's code in it."""
    if isinstance(error, ClientResponseError):
        return error.status, None
    reply = getattr(error.__cause__, "response", None) or {}
    status = reply.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return status, reply.get("Error", {}).get("Code")


def _is_clients_fault(status: int | None, code: str | None) -> bool:
    """Whether a reply says that the request was wrong: the same one will be wrong again."""
    is_passing = status in _PASSING_STATUSES or code in _PASSING_CODES
    is_final = status is not None and (300 <= status < 500 or status == _NOT_IMPLEMENTED)
    return is_final and not is_passing


def is_errno(error: BaseException, *numbers: int) -> bool:
    """Whether an error carries one of these numbers."""
    return getattr(error, "errno", None) in numbers


def reason(error: BaseException) -> str:
    """An error in a few words, on one line."""
    if isinstance(error, ClientPayloadError):
        return "the reply broke off"
    status, _ = _status_and_code(error)
    if isinstance(error, OSError) and error.strerror and status:  # its errno is s3fs's choice
        return f"HTTP {status}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__


def hint(url: str) -> str:
    """What to look at when a place stays out of reach."""
    if is_s3(url):
        return "; check the network, storage.*.endpoint_url or AWS_ENDPOINT_URL"
    return "; check the network" if "://" in url else ""


def _access_line(url: str, error: BaseException) -> str:
    if "://" not in url:
        return f"no permission for {url} ({reason(error)})"
    if url.startswith("http"):
        return f"{url} is refused ({reason(error)}): it needs a login, or the link has expired"
    return (
        f"{url} refuses these credentials ({reason(error)}): "
        "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or storage.*.profile"
    )
