"""Which tars a command line means: braces, globs, files and URLs."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from urllib.parse import urlsplit

from braceexpand import braceexpand

from mixer_dist.errors import ConfigError, MissingError
from mixer_dist.storage import Storage, join, parent

_COMPRESSED = (".gz", ".tgz", ".bz2", ".tbz2", ".xz", ".txz", ".zst", ".lz4", ".zip")


def expand_tars(storage: Storage, patterns: Sequence[str]) -> list[str]:
    """Every tar's URL or absolute path, in the order given; ConfigError, MissingError."""
    urls = [url for pattern in patterns for url in _expand(storage, pattern)]
    for url in urls:
        if file_name(url).lower().endswith(_COMPRESSED):
            raise ConfigError(f"{url} is compressed: only plain tars can be read from the middle")
    if twice := [url for url, count in Counter(urls).items() if count > 1]:
        raise ConfigError(f"{twice[0]} is given {urls.count(twice[0])} times; expected each once")
    return urls


def whole_path(url: str) -> str:
    """A URL as it is, a path from the root on."""
    return url if "://" in url else os.path.abspath(url)


def file_name(url: str) -> str:
    """The last part of a path or URL, without what follows a question mark in one."""
    path = urlsplit(url).path if "://" in url else url
    return path.rpartition("/")[2]


def _expand(storage: Storage, pattern: str) -> Iterator[str]:
    if pattern.startswith("pipe:"):
        raise ConfigError(f"{pattern!r}: give the URL itself instead of a command that reads it")
    try:
        expanded = list(braceexpand(pattern))
    except ValueError as error:
        raise ConfigError(f"{pattern!r}: {error}") from error
    for each in expanded:
        url = whole_path(each)
        yield from _matching(storage, url) if "*" in url else [url]


def _matching(storage: Storage, pattern: str) -> list[str]:
    """Files of a folder, sorted, that a pattern such as s3://bucket/train-*.tar stands for."""
    folder, name = parent(pattern), file_name(pattern)
    if "*" in folder:
        raise ConfigError(f"{pattern}: expected * in the file's name only, not in its folder")
    found = [join(folder, each) for each in storage.names(folder) if fnmatch(each, name)]
    if not found:
        raise MissingError(f"no file matches {pattern}")
    return found
