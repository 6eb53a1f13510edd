"""A list of images: .csv with a header, or .jsonl; paths are relative to the list, or URLs."""

import csv
import io
import json
import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any, NamedTuple

from mixer_dist.data.class_names import number_labels
from mixer_dist.data.image_files import (
    ImageFile,
    ImageSource,
    LeftOut,
    Watch,
    plain_key,
    sample_keys,
    unwatched,
)
from mixer_dist.errors import ConfigError, MissingError
from mixer_dist.storage import Storage, join, parent

CONNECTIONS = 32  # sizes are asked for one by one: nearly all of it is waiting

_COLUMNS = ("path", "label", "labels", "key")


class _Row(NamedTuple):
    place: str
    """The list's name and the line, for messages."""
    path: str
    labels: tuple[str, ...]
    key: str


class _Stat(NamedTuple):
    seen: tuple[int, int] = (0, 0)
    """Size in bytes, time of change in ns."""
    ailment: str = ""


def is_list(url: str) -> bool:
    """Whether it is a list by its name."""
    return url.lower().endswith((".csv", ".jsonl"))


def read_image_list(
    storage: Storage, url: str, classes: Sequence[str] | None = None, watch: Watch = unwatched
) -> ImageSource:
    """The images of a list, those that are not there apart; MissingError, ConfigError."""
    read = _csv_rows if url.lower().endswith(".csv") else _jsonl_rows
    rows = sorted(read(url, _text(storage, url)), key=lambda row: row.path)
    _check_paths(url, rows)
    names, numbers = number_labels(_places(rows), classes)
    stats = _stats(storage, [join(parent(url), row.path) for row in rows], watch)
    images = tuple(
        ImageFile(row.path, key, tuple(numbers[label] for label in row.labels), *found.seen)
        for row, key, found in zip(rows, _keys(rows), stats, strict=True)
        if not found.ailment
    )
    missing = tuple(
        LeftOut(row.path, "missing", found.ailment)
        for row, found in zip(rows, stats, strict=True)
        if found.ailment
    )
    if not images:
        raise MissingError(f"none of the {len(rows):,} images of {url} is there: {missing[0].path}")
    return ImageSource(parent(url), names, images, missing)


def _text(storage: Storage, url: str) -> str:
    try:
        return storage.read(url).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{url}: expected text in UTF-8, found other bytes at {error.start}"
        ) from None


def _csv_rows(url: str, text: str) -> Iterator[_Row]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        _check_columns(f"{url}, line 1", reader.fieldnames or ())
        for fields in reader:
            place = f"{url}, line {reader.line_num}"
            if None in fields or None in fields.values():
                names = reader.fieldnames or ()
                raise ConfigError(f"{place}: expected {len(names)} fields ({','.join(names)})")
            yield _row(place, fields, _split)
    except csv.Error as error:
        raise ConfigError(f"{url}, line {reader.reader.line_num}: {error}") from None


def _split(labels: str) -> list[str]:
    """By semicolons, which leave spaces in names alone, or else by spaces."""
    return labels.split(";") if ";" in labels else labels.split()


def _jsonl_rows(url: str, text: str) -> Iterator[_Row]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        place = f"{url}, line {number}"
        try:
            fields = json.loads(line)
        except ValueError:
            fields = None
        if not isinstance(fields, dict):
            raise ConfigError(
                f'{place}: expected an object such as {{"path": "a.jpg", "label": 3}}'
            )
        _check_columns(place, list(fields))
        yield _row(place, fields, lambda labels: labels)


def _check_columns(place: str, names: Sequence[str]) -> None:
    if unknown := [name for name in names if name not in _COLUMNS]:
        raise ConfigError(f"{place}: {unknown[0]!r} is none of {', '.join(_COLUMNS)}")
    if "path" not in names or ("label" in names) == ("labels" in names):
        raise ConfigError(
            f"{place}: expected path and either label or labels, and key where wanted; "
            f"found {', '.join(names) or 'nothing'}"
        )


def _row(place: str, fields: Mapping[str, Any], split: Callable[[Any], Any]) -> _Row:
    path, key = fields["path"], fields.get("key") or ""
    if not isinstance(path, str) or not path:
        raise ConfigError(f"{place}: expected a path, found {path!r}")
    if not isinstance(key, str) or (key and plain_key(key) != key):
        raise ConfigError(
            f"{place}: {key!r} would not be read back as a key; "
            f"expected such as {plain_key(str(key))!r}"
        )
    labels = split(fields["labels"]) if "labels" in fields else [fields["label"]]
    if not isinstance(labels, list):
        raise ConfigError(f"{place}: expected a list of labels, found {labels!r}")
    names = [_label(place, label) for label in labels]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ConfigError(f"{place}: label {twice[0]} stands there twice")
    return _Row(place, path, tuple(names), key)


def _label(place: str, label: Any) -> str:
    text = str(label).strip() if isinstance(label, str | int) else ""
    is_negative = text.startswith("-") and text[1:].isdigit()
    if not text or is_negative or isinstance(label, bool):
        raise ConfigError(f"{place}: expected a class name or a number from 0, found {label!r}")
    return text


def _check_paths(url: str, rows: Sequence[_Row]) -> None:
    if not rows:
        raise ConfigError(f"{url} lists no images")
    for first, second in pairwise(rows):
        if first.path == second.path:
            raise ConfigError(
                f"{second.place}: {second.path} also stands in {first.place}; "
                "several labels of an image go into one line, under labels"
            )


def _places(rows: Sequence[_Row]) -> dict[str, str]:
    """Where each label first stands."""
    places: dict[str, str] = {}
    for row in rows:
        for label in row.labels:
            places.setdefault(label, row.place)
    return places


def _keys(rows: Sequence[_Row]) -> list[str]:
    """Those given, and of paths where none is; all different."""
    given: dict[str, str] = {}
    for row in rows:
        if row.key in given:
            raise ConfigError(f"{row.place}: key {row.key!r} also stands in {given[row.key]}")
        if row.key:
            given[row.key] = row.place
    derived = iter(sample_keys((row.path for row in rows if not row.key), given))
    return [row.key or next(derived) for row in rows]


def _stats(storage: Storage, urls: Sequence[str], watch: Watch) -> list[_Stat]:
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        stats = pool.map(lambda url: _stat(storage, url), urls)
        return list(watch(stats, len(urls), "files"))


def _stat(storage: Storage, url: str) -> _Stat:
    if "://" in url:
        try:
            return _Stat((storage.size(url), 0))
        except MissingError as error:
            return _Stat(ailment=str(error))
    try:
        found = os.stat(url)
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        return _Stat(ailment=getattr(error, "strerror", None) or str(error))
    if not stat.S_ISREG(found.st_mode):
        return _Stat(ailment="no plain file")
    return _Stat((found.st_size, found.st_mtime_ns))
