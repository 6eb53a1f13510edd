"""The best checkpoint of a run by a criterion, and its pin."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace

from mixer_dist.checkpoint.layout import MANIFEST_NAME
from mixer_dist.checkpoint.pins import pin
from mixer_dist.errors import MissingError, RefusedError
from mixer_dist.eval.report.best import Criterion, check_known, standing
from mixer_dist.eval.report.evaluation import Evaluation, Measure
from mixer_dist.eval.report.history import History
from mixer_dist.storage import Storage, join


@dataclass(frozen=True)
class Chosen:
    """A checkpoint, and the result by which it is the best."""

    criterion: Criterion
    evaluation: Evaluation
    checkpoint: str
    """Its URL."""
    is_pinned: bool = False

    @property
    def measure(self) -> Measure:
        return self.evaluation.measures[self.criterion.metric]


def choose(runs: Mapping[str, History], criterion: Criterion) -> dict[str, Chosen]:
    """The best checkpoint of each run that has one; the untrained network is none.

    RefusedError where no run has such a result.
    """
    check_known([e for history in runs.values() for e in history.evaluations], criterion)
    found = {name: _best_checkpoint(history, criterion) for name, history in runs.items()}
    return {name: chosen for name, chosen in found.items() if chosen}


def pinned(storage: Storage, chosen: Mapping[str, Chosen]) -> dict[str, Chosen]:
    """Keep them for good; MissingError where one is gone, RefusedError where it is another by now.

    No pin is set unless all can be.
    """
    for each in chosen.values():
        _check_is_judged(storage, each)
    for each in chosen.values():
        pin(storage, each.checkpoint)
    return {name: replace(each, is_pinned=True) for name, each in chosen.items()}


def _best_checkpoint(history: History, criterion: Criterion) -> Chosen | None:
    found = standing([e for e in history.evaluations if e.is_of_checkpoint], criterion)
    if found is None:
        return None
    return Chosen(criterion, found.best, history.run_dir.checkpoint(found.best.step))


def _check_is_judged(storage: Storage, chosen: Chosen) -> None:
    """A later attempt may have come to the same step with other weights."""
    url, evaluation = chosen.checkpoint, chosen.evaluation
    try:
        manifest = storage.read(join(url, MANIFEST_NAME))
    except MissingError:
        raise MissingError(
            f"{url}, the best by {chosen.criterion}, is no longer there: set checkpoint.keep_best "
            "in the config, or leave out --pin"
        ) from None
    if evaluation.checkpoint_sha256 not in (None, hashlib.sha256(manifest).hexdigest()):
        raise RefusedError(
            f"{url} was written anew since {evaluation.task} judged it: evaluate it again, or "
            "leave out --pin"
        )
