"""One worker of a pool: an assignment under a claim, its result or its failure written down."""

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from mixer_dist import distributed
from mixer_dist.checkpoint.catalog import read_checkpoint, run_and_step
from mixer_dist.config import RunConfig
from mixer_dist.errors import (
    AccessError,
    CheckpointError,
    MissingError,
    MixerError,
    PreemptedError,
    RefusedError,
    redacted,
)
from mixer_dist.eval.evaluate import Judge, find_task
from mixer_dist.eval.pool.assignments import Assignment
from mixer_dist.eval.pool.claims import Claim, claimed
from mixer_dist.eval.pool.failures import Kind, record_failure
from mixer_dist.liveness import Peers, peers_watched
from mixer_dist.storage import Storage

logger = logging.getLogger(__name__)


def work(config: RunConfig, task_name: str, checkpoint: str, holder: str) -> None:
    """Do an assignment, unless it is done or another worker does it. All ranks must call this."""
    storage, (run_dir, step) = Storage(config.storage), run_and_step(checkpoint)
    assignment = Assignment(run_dir, task_name, step)
    try:
        with distributed.connected(config.collective_timeout_s), peers_watched() as peers:
            _work_together(config, storage, peers, assignment, holder)
    except MixerError:
        if not _is_gone(storage, checkpoint):
            raise
        logger.warning("%s: %s was removed, there will be no result", assignment, checkpoint)


def _work_together(
    config: RunConfig, storage: Storage, peers: Peers, assignment: Assignment, holder: str
) -> None:
    """Rank 0 alone claims and writes. All ranks must call this."""
    claims: list[Claim] = []
    with ExitStack() as held:

        def take() -> bool:
            lease_s = config.pool.lease_s
            claim = held.enter_context(claimed(storage, assignment, holder, lease_s))
            if claim:
                claims.append(claim)
                held.enter_context(_failure_recorded(storage, assignment, holder))
            return claim is not None

        def write(url: str, data: bytes) -> None:
            claims[0].write_result(url, data)

        if distributed.on_main(take):
            task = find_task(config, assignment.task)
            Judge(config, storage, peers, write).one(task, assignment.checkpoint)


@contextmanager
def _failure_recorded(storage: Storage, assignment: Assignment, holder: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # whatever it was, pools have to count it
        is_asked = getattr(error, "exit_code", None) == PreemptedError.exit_code
        if not is_asked and not _is_gone(storage, assignment.checkpoint):
            reason = redacted(" ".join(str(error).split())) or type(error).__name__
            record_failure(storage, assignment, _kind(error), holder, reason)
        raise


def _kind(error: Exception) -> Kind:
    """What is not there may be there later, another refusal stays one."""
    is_final = isinstance(error, RefusedError) and not isinstance(error, MissingError | AccessError)
    return "refused" if is_final else "failed"


def _is_gone(storage: Storage, checkpoint: str) -> bool:
    """Whether a checkpoint was removed, or is about to be."""
    try:
        read_checkpoint(storage, checkpoint)
    except MissingError:
        return True
    except CheckpointError:  # it is damaged, which is a failure
        pass
    return False
