"""A stage that gives steps of a tiny model the length of real ones, as long as a file exists."""

import os
import time
from collections.abc import Iterable, Iterator
from typing import Any

WAIT_S = 0.02  # a sample


def wait(samples: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The samples, unchanged."""
    for sample in samples:
        if os.path.exists(os.environ["SOAK_SLOW"]):
            time.sleep(WAIT_S)
        yield sample
