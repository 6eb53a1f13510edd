"""What a write leaves that never came to its end: a temporary file, or an upload without an end."""

from typing import NamedTuple


class PartialWrite(NamedTuple):
    """A file that was begun and is not there."""

    url: str
    """Of the temporary file, or of what the upload would have become."""
    age_s: float
    upload_id: str | None = None
