"""A user's own stages of the stream: any webdataset filter, by its dotted name."""

import importlib
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from mixer_dist.data.loader import Sample
from mixer_dist.errors import ConfigError, DataError

Stage = Callable[[Iterable[Sample]], Iterator[Sample]]


def user_stage(name: str) -> Stage:
    """The pipeline stage behind a dotted name; ConfigError where there is none."""
    module, _, attribute = name.rpartition(".")
    try:
        stage: Stage = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"data.stages: cannot import {name!r} ({error})") from None
    return stage


def check_positions(
    rows: Sequence[Sample], expected: NDArray[np.int64], stages: Sequence[str]
) -> None:
    """DataError where the stages gave not each sample back once and in order."""
    found = [row["position"] for row in rows]
    if found != expected.tolist():
        raise DataError(
            f"data.stages ({', '.join(stages)}) must give each sample back once and in order: "
            f"expected positions {expected[:3].tolist()}…, got {found[:3]}…"
        )
