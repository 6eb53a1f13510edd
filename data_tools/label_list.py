"""A list of keys and their labels, as CSV with a header or as JSON Lines."""

import csv
import json
from collections.abc import Iterator, Mapping
from typing import Any

from mixer_dist.errors import ConfigError, MissingError

EXPECTED = "expected a key and a label (a number) or labels (several)"


def read_label_list(path: str) -> dict[str, tuple[int, ...]]:
    """Each key's classes; MissingError, ConfigError naming the line."""
    found: dict[str, tuple[int, ...]] = {}
    try:
        with open(path, encoding="utf-8", newline="") as stream:
            rows = _csv_rows(stream) if path.endswith(".csv") else _json_rows(stream)
            for number, row in rows:
                key, labels = _entry(row, f"{path}, line {number}")
                if key in found:
                    raise ConfigError(f"{path}, line {number}: {key!r} has had a line before")
                found[key] = labels
    except OSError as error:
        raise MissingError(f"cannot read {path}: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path} is no UTF-8 text in lines: {error}") from error
    if not found:
        raise ConfigError(f"{path} names no key; {EXPECTED} a line")
    return found


def _csv_rows(lines: Any) -> Iterator[tuple[int, Mapping[str, Any]]]:
    reader = csv.DictReader(lines)
    for row in reader:
        several = row.get("labels")
        yield reader.line_num, row | ({} if several is None else {"labels": several.split()})


def _json_rows(lines: Any) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(lines, 1):
        try:
            yield number, json.loads(line)
        except (ValueError, RecursionError):
            yield number, None


def _entry(row: Any, where: str) -> tuple[str, tuple[int, ...]]:
    """A row's key and labels; ConfigError."""
    try:
        key = row["key"]
        several = [row["label"]] if row.get("label") is not None else row["labels"]
        labels = tuple(int(str(label)) for label in several)  # 1.5 is no label
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{where}: {EXPECTED}, got {row}") from error
    has_more = None in row  # fields than the header, says csv
    if has_more or not isinstance(key, str) or any(not 0 <= label < 2**31 for label in labels):
        raise ConfigError(f"{where}: {EXPECTED}, got {row}")
    return key, labels
