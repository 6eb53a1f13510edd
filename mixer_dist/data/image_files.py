"""Image files on their way into shards: what is known of each, its key, and who was left out."""

import os
import re
import unicodedata
from collections.abc import Container, Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal, NamedTuple, Protocol, TypeVar

from mixer_dist.storage import Storage, join

T = TypeVar("T")

Reason = Literal["missing", "unreadable", "duplicate", "excluded"]


class ImageFile(NamedTuple):
    """An image of a source."""

    path: str
    """Relative to the source's root, or a URL."""
    key: str
    """Its sample's name in a shard, such as class/name."""
    labels: tuple[int, ...]
    num_bytes: int
    modified_ns: int = 0
    """0 for a URL."""


class LeftOut(NamedTuple):
    """A line of quarantine.jsonl: an image that is in no shard."""

    path: str
    reason: Reason
    detail: str
    """What ails it, or the other image that it is a copy of."""


class Watch(Protocol):
    """Shows how far a long search is."""

    def __call__(self, items: Iterable[T], total: int | None, unit: str) -> Iterable[T]:
        """The items, counted as they go by."""


def unwatched(items: Iterable[T], total: int | None, unit: str) -> Iterable[T]:
    """The items, and nothing shown."""
    return items


@dataclass(frozen=True)
class ImageSource:
    """What a folder or a list offers."""

    root: str
    """A folder's path or URL."""
    classes: tuple[str, ...] | None
    images: tuple[ImageFile, ...]
    """Sorted by path."""
    left_out: tuple[LeftOut, ...] = ()
    num_ignored: int = 0
    """Files of a folder that are no images by their extension, or hidden."""


def read_file(storage: Storage, root: str, path: str) -> bytes:
    """An image's bytes; OSError for a file on a disk, MixerError for a URL."""
    url = join(root, path)
    if "://" in url:
        return storage.read(url)
    with open(url, "rb", buffering=0) as stream:
        return stream.read()


def sample_keys(paths: Iterable[str], given: Container[str] = ()) -> list[str]:
    """A key for each path, all different, the same in every run over the same sorted paths."""
    keys: dict[str, None] = {}
    for path in paths:
        plain = key = plain_key(os.path.splitext(path)[0])
        number = 2
        while key in keys or key in given:
            key, number = f"{plain}-{number}", number + 1
        keys[key] = None
    return list(keys)


def plain_key(text: str) -> str:
    """The text in a form that webdataset readers give back whole, and that stays in its folder."""
    parts = PurePosixPath(printable(text.partition("://")[2] or text)).parts
    *folders, name = [part for part in parts if part not in ("/", "//", "..")] or ["_"]
    name = name.replace(".", "_")  # they would cut the key at the first dot
    return re.sub("^__+", "_", "/".join((*folders, name)))  # they skip folders __like_this__


def printable(text: str) -> str:
    """Text whose control characters and undecodable bytes are written out."""
    if text.isprintable():  # nearly always
        return text
    return "".join(
        repr(char)[1:-1] if unicodedata.category(char) in ("Cc", "Cs") else char for char in text
    )
