"""What happens to a run in a soak, and what ends it: nodes come back, disks become free."""

import random
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from benchmarks.soak_site import RANK_NODES, Site, call
from mixer_dist.errors import MixerError

OUTAGE_S = 20.0

End = Callable[[], object]
"""Undoes an incident, once the run has gone on without it; no act for the run itself."""


def _nothing() -> None:
    pass


def kill_rank(site: Site, draw: random.Random) -> End:
    draw.choice(site.ranks()).kill()
    return _nothing


def kill_all_ranks(site: Site, draw: random.Random) -> End:
    for process in site.ranks():
        process.kill()
    return _nothing


def send_usr2(site: Site, draw: random.Random) -> End:
    """As Slurm does before a time limit: to the batch shell."""
    call("scancel", "--batch", "--signal=USR2", site.job)
    return _nothing


def send_term(site: Site, draw: random.Random) -> End:
    """As whoever drains a node does: to all ranks."""
    call("scancel", "--signal=TERM", site.job)
    return _nothing


def kill_node(site: Site, draw: random.Random) -> End:
    node = draw.choice(site.nodes)
    site.cluster("kill-node", node)
    return lambda: _bring_back(site, "restart-node", node)


def freeze_node(site: Site, draw: random.Random) -> End:
    node = draw.choice(site.nodes)
    site.cluster("freeze-node", node)
    return lambda: _bring_back(site, "thaw-node", node)


def cut_cable(site: Site, draw: random.Random) -> End:
    node = draw.choice(site.nodes)
    site.cluster("cut-node", node)
    return lambda: _bring_back(site, "join-node", node)


def stop_store(site: Site, draw: random.Random) -> End:
    """It keeps its connections and answers nothing."""
    site.store.suspend()
    time.sleep(OUTAGE_S)
    site.store.resume()
    return _nothing


def fill_disk(site: Site, draw: random.Random) -> End:
    """Of the store: reads go on, writes fail."""
    filler = site.disk / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(2**20)):
            pass
    time.sleep(OUTAGE_S)
    filler.unlink()
    return _nothing


def damage_newest_checkpoint(site: Site, draw: random.Random) -> End:
    """All ranks die, and a bit of what they saved last is another one when they come back."""
    kill_all_ranks(site, draw)
    checkpoints = site.disk / "soak" / "run" / "checkpoints"
    newest = max(path.parent for path in checkpoints.glob("*/manifest.json"))
    _flip_bit(draw.choice(sorted(newest.glob("*.safetensors"))), draw)
    return _nothing


def change_node_count(site: Site, draw: random.Random) -> End:
    """Its user cancels the job, and submits it for another number of nodes."""
    count = draw.choice([n for n in range(1, RANK_NODES + 1) if n != len(site.nodes)])
    call("scancel", site.job)
    while site.ranks():
        time.sleep(0.2)
    site.submit(count)
    return _nothing


class Kind(NamedTuple):
    """Something that happens to a run."""

    happen: Callable[[Site, random.Random], End]
    restarts: bool = True
    """Whether the run cannot go on without a new attempt."""


KINDS = {
    "SIGKILL of a rank": Kind(kill_rank),
    "SIGKILL of all ranks": Kind(kill_all_ranks),
    "USR2": Kind(send_usr2),
    "TERM": Kind(send_term),
    "node killed": Kind(kill_node),
    "node frozen": Kind(freeze_node),
    "cable cut": Kind(cut_cable),
    "store silent for 20 s": Kind(stop_store, restarts=False),
    "disk full for 20 s": Kind(fill_disk, restarts=False),
    "newest checkpoint damaged": Kind(damage_newest_checkpoint),
    "other number of nodes": Kind(change_node_count),
}


def draw_kinds(count: int, draw: random.Random) -> list[str]:
    """Every kind as often as the others, in an order without a pattern."""
    kinds = [
        kind for _ in range(-(-count // len(KINDS))) for kind in draw.sample([*KINDS], len(KINDS))
    ]
    return kinds[:count]


def _bring_back(site: Site, command: str, node: str) -> None:
    """A node that works again, and that Slurm uses again."""
    site.cluster(command, node)
    time.sleep(2)
    with suppress(MixerError):  # it was never given up
        call("scontrol", "update", f"NodeName={node}", "State=RESUME")


def _flip_bit(path: Path, draw: random.Random) -> None:
    place = draw.randrange(path.stat().st_size)
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 1 << draw.randrange(8)]))
