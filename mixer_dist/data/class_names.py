"""Class names and their numbers: from a file, or from the labels that occur."""

from collections.abc import Mapping, Sequence

from mixer_dist.errors import ConfigError
from mixer_dist.storage import Storage


def read_class_names(storage: Storage, url: str) -> tuple[str, ...]:
    """One name a line, in the order of their numbers; MissingError, ConfigError."""
    try:
        lines = storage.read(url).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise ConfigError(f"{url}: expected text in UTF-8, one class name a line") from None
    seen: dict[str, int] = {}
    for line, name in enumerate(map(str.strip, lines), 1):
        if not name:
            raise ConfigError(f"{url}, line {line}: expected a class name, found an empty line")
        if name in seen:
            raise ConfigError(f"{url}, line {line}: {name!r} is already in line {seen[name]}")
        seen[name] = line
    if not seen:
        raise ConfigError(f"{url}: expected one class name a line, found none")
    return tuple(seen)


def number_labels(
    places: Mapping[str, str], classes: Sequence[str] | None
) -> tuple[tuple[str, ...] | None, dict[str, int]]:
    """Classes (None where labels are numbers) and the number of each label; ConfigError.

    `places` says of each label where it first stands.
    """
    if classes is None:
        return _number_among_themselves(places)
    numbers = {name: number for number, name in enumerate(classes)}
    for label, place in places.items():
        if label not in numbers:
            numbers[label] = _number_within(len(classes), label, place)
    return tuple(classes), numbers


def _number_among_themselves(
    places: Mapping[str, str],
) -> tuple[tuple[str, ...] | None, dict[str, int]]:
    names = sorted(label for label in places if not _is_number(label))
    digits = [label for label in places if _is_number(label)]
    if names and digits:
        raise ConfigError(
            f"{places[digits[0]]}: label {digits[0]} is a number, where {places[names[0]]} has the "
            f"name {names[0]!r}: use one kind, or give --classes"
        )
    if not names:
        return None, {label: int(label) for label in digits}
    return tuple(names), {name: number for number, name in enumerate(names)}


def _number_within(num_classes: int, label: str, place: str) -> int:
    if not _is_number(label):
        raise ConfigError(f"{place}: {label!r} is none of the {num_classes:,} names of --classes")
    if int(label) >= num_classes:
        raise ConfigError(
            f"{place}: label {label} is out of range, since --classes has {num_classes:,} names, "
            "numbered from 0"
        )
    return int(label)


def _is_number(label: str) -> bool:
    return label.isascii() and label.isdigit()
