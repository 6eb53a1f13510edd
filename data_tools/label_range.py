"""Which labels a dataset has, and whether they fit its classes."""

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path

from mixer_dist.errors import ConfigError, DataError, MissingError


def add_class_arguments(parser: argparse.ArgumentParser) -> None:
    """Let a tool take what classes there are."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--classes", metavar="FILE", help="a class name a line; checks the labels")
    group.add_argument("--num-classes", type=int, metavar="N", help="checks them against 0..N-1")


def class_names(path: str | None) -> tuple[str, ...] | None:
    """The lines of a file; MissingError, ConfigError."""
    if path is None:
        return None
    try:
        names = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise MissingError(f"--classes: cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"--classes: {path} is not UTF-8 text") from error
    if not names or not all(name.strip() for name in names):
        raise ConfigError(f"--classes: expected a class name on every line of {path}")
    return tuple(name.strip() for name in names)


class LabelRange:
    """The smallest and the largest label of all samples seen, and how many have none."""

    def __init__(self, num_classes: int | None, first_class: int = 0) -> None:
        """`first_class` is the label that stands for the first class."""
        self._num_classes = num_classes
        self._first_class = first_class
        self._smallest: int | None = None
        self._largest = 0
        self._num_unlabelled = self._num_samples = 0
        self._first_unlabelled = ""

    def add(self, tar: str, labels: Sequence[Iterable[int] | None]) -> None:
        """Count a tar's samples; DataError where a label is out of range."""
        found = [label for each in labels if each is not None for label in each]
        if found:
            smallest, largest = min(found), max(found)
            self._smallest = min(smallest, smallest if self._smallest is None else self._smallest)
            self._largest = max(largest, self._largest)
            self._check(tar, smallest, largest)
        if None in labels and not self._num_unlabelled:
            self._first_unlabelled = f"sample {labels.index(None)} of {tar}"
        self._num_unlabelled += labels.count(None)
        self._num_samples += len(labels)

    def check_complete(self) -> None:
        """DataError where a sample has no label."""
        if self._num_unlabelled:
            raise DataError(
                f"{self._num_unlabelled:,} samples have no label, {self._first_unlabelled} first: "
                "expected a number in .cls or labels in .json; data_tools/relabel.py adds labels"
            )

    def __str__(self) -> str:
        """Sentences for the user."""
        if self._num_unlabelled == self._num_samples:
            return "labels: none; run data_tools/relabel.py before training"
        known = f"labels: {self._smallest}..{self._largest}"
        if not self._num_unlabelled:
            return known
        return (
            f"{known}; none in {self._num_unlabelled:,} samples, {self._first_unlabelled} first, "
            "which training would replace: data_tools/relabel.py adds labels"
        )

    def _check(self, tar: str, smallest: int, largest: int) -> None:
        first, count = self._first_class, self._num_classes
        is_above = count is not None and largest >= first + count
        if smallest >= first and not is_above:
            return
        last = "" if count is None else first + count - 1
        is_from_1 = first == 0 and largest == count and self._smallest != 0
        hint = "; as they seem to count from 1, give --first-class 1" if is_from_1 else ""
        raise DataError(
            f"{tar}: labels run from {smallest} to {largest}, expected {first}..{last}{hint}"
        )
