"""All checks, on all ranks: each looks at itself, then they look at each other."""

import logging
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace

from mixer_dist import distributed
from mixer_dist.config import RunConfig
from mixer_dist.errors import MixerError
from mixer_dist.liveness import peers_watched
from mixer_dist.operations.doctor import gpu, machine, storage, versions
from mixer_dist.operations.doctor.clocks import clocks
from mixer_dist.operations.doctor.finding import Finding, finding_lines, summed, trouble
from mixer_dist.operations.doctor.links import links

JOIN_S = 120.0

logger = logging.getLogger(__name__)

OF_A_RANK: tuple[Callable[[RunConfig | None], Iterator[Finding]], ...] = (
    machine.host_name,
    machine.open_files,
    machine.locked_memory,
    machine.shared_memory,
    machine.free_disk,
    machine.cores,
    machine.compile_locks,
    versions.least_versions,
    gpu.gpus,
    storage.run_directory,
    storage.training_data,
)
OF_ALL_RANKS: tuple[Callable[[Sequence[str]], Iterator[Finding]], ...] = (
    versions.same_versions,
    clocks,
    links,
)


@dataclass(frozen=True)
class Examination:
    """What all checks came to."""

    hosts: tuple[str, ...]
    """Of each rank."""
    findings: tuple[Finding, ...]
    is_joint: bool = True
    """Whether it is that of all ranks, and not of one that could not join them."""

    @property
    def num_troubles(self) -> int:
        return sum(not finding.ok for finding in self.findings)


def examine(config: RunConfig | None) -> Examination:
    """Look at this rank, then with all others at the whole. All ranks must call this.

    A rank that cannot join the others answers for itself.
    """
    mine = [finding for check in OF_A_RANK for finding in check(config)]
    if distributed.placement().world_size > 1:
        logger.info("waiting for all ranks, %.0f s at most", JOIN_S)
    try:
        with distributed.connected(JOIN_S), peers_watched():
            return _joined(mine)
    except MixerError as error:
        rank = distributed.placement().rank
        mend = "see that every rank was started, and MASTER_ADDR and MASTER_PORT can be reached"
        alone = [*mine, trouble("joining", f"rank {rank}: {error}", mend)]
        return Examination((socket.gethostname(),), tuple(alone), is_joint=False)


def _joined(mine: Sequence[Finding]) -> Examination:
    hosts = distributed.hosts()
    of_ranks = distributed.gather([asdict(finding) for finding in mine])
    findings = summed([[Finding(**tree) for tree in trees] for trees in of_ranks])
    of_all = [finding for check in OF_ALL_RANKS for finding in check(hosts)]
    trees = distributed.share([asdict(finding) for finding in [*findings, *of_all]])
    shared = [replace(Finding(**tree), ranks=tuple(tree["ranks"])) for tree in trees]
    return Examination(tuple(hosts), tuple(shared))


def examination_lines(found: Examination) -> list[str]:
    """Every finding, then their number."""
    hosts = list(dict.fromkeys(found.hosts))
    lines = [line for finding in found.findings for line in finding_lines(finding, found.hosts)]
    ranks = f"{len(found.hosts)} rank{'s' * (len(found.hosts) > 1)} on {', '.join(hosts)}"
    return [*lines, f"{ranks}: {len(found.findings)} findings, {found.num_troubles} of them bad"]
