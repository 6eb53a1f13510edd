"""A tree of image files, one folder a class."""

import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from mixer_dist.data.image_files import (
    ImageFile,
    ImageSource,
    Watch,
    printable,
    sample_keys,
    unwatched,
)
from mixer_dist.errors import AccessError, ConfigError, MissingError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp")

_NO_FILE = -1


def scan_images(
    source: Path, classes: Sequence[str] | None = None, watch: Watch = unwatched
) -> ImageSource:
    """Find all images; an image's class is its first folder below `source`.

    Classes are numbered in the order given, by default sorted by name.
    """
    if not source.is_dir():
        raise MissingError(f"no folder at {source}; expected one with a sub-folder for each class")
    files = sorted(watch(_files(source), None, "files"))
    found = [file for file in files if file[1] != _NO_FILE and _is_image(file[0])]
    paths = [path for path, _, _ in found]
    _check_layout(source, paths)
    names = sorted({path.split("/")[0] for path in paths}) if classes is None else list(classes)
    labels = {name: label for label, name in enumerate(names)}
    _check_classes(source, paths, labels)
    images = tuple(
        ImageFile(path, key, (labels[path.split("/")[0]],), num_bytes, modified_ns)
        for (path, num_bytes, modified_ns), key in zip(found, sample_keys(paths), strict=True)
    )
    ignored = len(files) - len(images)
    return ImageSource(str(source), tuple(map(printable, names)), images, num_ignored=ignored)


def _files(source: Path) -> Iterator[tuple[str, int, int]]:
    """Path below the source, size and time of each file, links followed."""
    for folder, subfolders, names in os.walk(source, followlinks=True, onerror=_refuse):
        subfolders[:] = [name for name in subfolders if not _leads_back(folder, name)]
        below = os.path.relpath(folder, source)
        for name in names:
            path = name if below == "." else f"{below}/{name}"
            yield path, *_size_and_time(os.path.join(folder, name))


def _refuse(error: OSError) -> None:
    raise AccessError(f"cannot read the folder {error.filename}: {error.strerror}") from error


def _leads_back(folder: str, name: str) -> bool:
    """Whether a link points to a folder that it lies in."""
    path = os.path.join(folder, name)
    return os.path.islink(path) and Path(folder).resolve().is_relative_to(Path(path).resolve())


def _size_and_time(path: str) -> tuple[int, int]:
    try:
        found = os.stat(path)
    except OSError:
        return 0, 0  # a broken link: reading it will name the reason
    return found.st_size if stat.S_ISREG(found.st_mode) else _NO_FILE, found.st_mtime_ns


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


def _check_classes(source: Path, paths: Sequence[str], labels: dict[str, int]) -> None:
    unknown = sorted({path.split("/")[0] for path in paths} - labels.keys())
    if unknown:
        raise ConfigError(
            f"{source}/{printable(unknown[0])} is none of the {len(labels):,} names of --classes: "
            "add it to that file, or leave --classes out to have all folders as classes"
        )
