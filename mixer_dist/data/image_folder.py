"""A tree of image files, one folder a class: found, named, shuffled and cut into shards."""

import hashlib
import os
import re
import stat
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from pathlib import Path
from typing import NamedTuple

from mixer_dist.errors import AccessError, ConfigError, MissingError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp")

_BLOCK = 512  # bytes; a tar consists of such blocks


class ImageFile(NamedTuple):
    """An image below a source folder."""

    path: str
    """Relative to the source folder."""
    key: str
    """Its sample's name in a shard: class/name."""
    label: int
    num_bytes: int


@dataclass(frozen=True)
class ImageFolder:
    """What a source folder holds."""

    classes: tuple[str, ...]
    images: tuple[ImageFile, ...]
    num_ignored: int
    """Files that are no images by their extension, or hidden."""


def scan_images(source: Path) -> ImageFolder:
    """Find all images; an image's class is its first folder below `source`."""
    if not source.is_dir():
        raise MissingError(f"no folder at {source}; expected one with a sub-folder for each class")
    files = sorted(_files(source))
    sizes = {path: size for path, size in files if size >= 0 and _is_image(path)}
    _check_layout(source, list(sizes))
    classes = sorted({path.split("/")[0] for path in sizes})
    labels = {name: label for label, name in enumerate(classes)}
    images = tuple(
        ImageFile(path, key, labels[path.split("/")[0]], sizes[path])
        for path, key in zip(sizes, sample_keys(sizes), strict=True)
    )
    return ImageFolder(tuple(map(printable, classes)), images, len(files) - len(images))


def _files(source: Path) -> Iterator[tuple[str, int]]:
    """Path below the source and size of each file, links followed, -1 for what is no plain file."""
    for folder, subfolders, names in os.walk(source, followlinks=True, onerror=_refuse):
        subfolders[:] = [name for name in subfolders if not _leads_back(folder, name)]
        below = os.path.relpath(folder, source)
        for name in names:
            path = name if below == "." else f"{below}/{name}"
            yield path, _size(os.path.join(folder, name))


def _refuse(error: OSError) -> None:
    raise AccessError(f"cannot read the folder {error.filename}: {error.strerror}") from error


def _leads_back(folder: str, name: str) -> bool:
    """Whether a link points to a folder that it lies in."""
    path = os.path.join(folder, name)
    return os.path.islink(path) and Path(folder).resolve().is_relative_to(Path(path).resolve())


def _size(path: str) -> int:
    try:
        found = os.stat(path)
    except OSError:
        return 0  # a broken link: reading it will name the reason
    return found.st_size if stat.S_ISREG(found.st_mode) else -1


def _is_image(path: str) -> bool:
    is_hidden = any(part.startswith(".") for part in path.split("/"))
    return path.lower().endswith(EXTENSIONS) and not is_hidden


def _check_layout(source: Path, paths: Sequence[str]) -> None:
    if not paths:
        raise ConfigError(
            f"no images below {source}: expected {source}/CLASS/NAME with a name ending in "
            f"{', '.join(EXTENSIONS)}"
        )
    if loose := next((path for path in paths if "/" not in path), None):
        raise ConfigError(
            f"{source / loose} lies in no class folder: expected {source}/CLASS/{loose}"
        )


def sample_keys(paths: Iterable[str]) -> list[str]:
    """A key for each path, all different, the same in every run over the same sorted paths."""
    taken: dict[str, None] = {}
    for path in paths:
        plain = key = _key(path)
        number = 2
        while key in taken:
            key, number = f"{plain}-{number}", number + 1
        taken[key] = None
    return list(taken)


def _key(path: str) -> str:
    """The path without its extension, in a form that webdataset readers give back whole."""
    folder, name = os.path.split(printable(path))
    stem = os.path.splitext(name)[0].replace(".", "_")  # they would cut the key at the first dot
    return re.sub("^__", "_", f"{folder}/{stem}")  # they skip folders named __like_this__


def printable(text: str) -> str:
    """Text whose control characters and undecodable bytes are written out."""
    if text.isprintable():  # nearly always
        return text
    return "".join(
        repr(char)[1:-1] if unicodedata.category(char) in ("Cc", "Cs") else char for char in text
    )


def shuffle(images: Sequence[ImageFile], seed: int) -> list[ImageFile]:
    """The images by a hash of seed and path: the same order wherever the folder lies."""

    def place(image: ImageFile) -> bytes:
        return hashlib.sha256(b"%d/%b" % (seed, os.fsencode(image.path))).digest()

    return sorted(images, key=place)


def cut(images: Sequence[ImageFile], target_bytes: float) -> list[list[ImageFile]]:
    """Runs of about equal size, none above the target by more than one image."""
    sizes = [tar_bytes(image.num_bytes) for image in images]
    total = sum(sizes)
    num_runs = int(-(-total // target_bytes))
    runs = (start * num_runs // total for start in accumulate(sizes[:-1], initial=0))
    return [
        [image for image, _ in members]
        for _, members in groupby(zip(images, runs, strict=True), key=lambda pair: pair[1])
    ]


def tar_bytes(image_bytes: int) -> int:
    """What a sample takes in a tar: a header and whole blocks for the image and for its class."""
    return 3 * _BLOCK + -(-image_bytes // _BLOCK) * _BLOCK
