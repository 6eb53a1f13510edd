"""Which checkpoints did best, by the results that evaluation has left in the run directory."""

import json
from collections.abc import Iterable

from mixer_dist.checkpoint.retention import best_steps
from mixer_dist.config import KeepBestConfig
from mixer_dist.errors import DataError, MissingError
from mixer_dist.run_dir import RunDir
from mixer_dist.storage import Storage


def best_by_evaluation(
    storage: Storage, run_dir: RunDir, best: KeepBestConfig | None, steps: Iterable[int]
) -> set[int]:
    """Of these steps the best; one without a result is not among them."""
    if best is None:
        return set()
    results = {step: _result(storage, run_dir.evaluation(best.task, step), best) for step in steps}
    return best_steps({s: result for s, result in results.items() if result is not None}, best)


def _result(storage: Storage, url: str, best: KeepBestConfig) -> float | None:
    """The number that counts, None where there is none yet; DataError for another file."""
    try:
        value = json.loads(storage.read(url))[best.metric]
        return None if value is None else float(value)
    except MissingError:
        return None
    except (ValueError, TypeError, KeyError):
        raise DataError(
            f"{url} has no number {best.metric!r}, which checkpoint.keep_best asks for: "
            "correct checkpoint.keep_best.metric, or evaluate again"
        ) from None
