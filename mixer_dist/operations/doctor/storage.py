"""Whether a run's storage can be reached with these credentials, and how fast it answers."""

import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from mixer_dist import distributed
from mixer_dist.config import RunConfig, StorageConfig
from mixer_dist.data.manifest import load_dataset
from mixer_dist.errors import AccessError, MissingError, MixerError
from mixer_dist.operations.doctor.finding import Finding, trouble, well
from mixer_dist.operations.doctor.machine import existing_parent
from mixer_dist.storage import Storage

PATIENCE_S = 20.0  # a run tries for storage.*.deadline_s
SLOW_S = 2.0  # for a small request
PROBE_BYTES = 2**20

T = TypeVar("T")


def run_directory(config: RunConfig | None) -> Iterator[Finding]:
    """A small file is written and removed, by one rank of each node."""
    if config is None or distributed.placement().local_rank:
        return
    is_local = "://" not in config.run_dir
    folder = existing_parent(config.run_dir) if is_local else config.run_dir
    try:
        _, seconds = _timed(lambda: _storage(config).check_writable(folder))
    except MixerError as error:
        yield trouble("run_dir", str(error), _mend(error, folder))
        return
    yield _pace("run_dir", f"{folder} takes a small file", seconds)


def training_data(config: RunConfig | None) -> Iterator[Finding]:
    """The manifests, and the beginning of the first shard of each."""
    if config is None or distributed.placement().local_rank:
        return
    storage = _storage(config)
    for entry in config.data.train:
        try:
            yield _first_bytes(storage, entry.manifest)
        except MixerError as error:
            yield trouble("data", str(error), _mend(error, entry.manifest))


def _first_bytes(storage: Storage, manifest: str) -> Finding:
    part = load_dataset(storage, [(manifest, 1)]).parts[0]
    num_bytes = min(PROBE_BYTES, part.shard.num_bytes)
    data, seconds = _timed(lambda: storage.read_range(part.url, 0, num_bytes))
    rate = len(data) / seconds / 1e6
    return _pace("data", f"{part.url} gives {len(data):,} bytes at {rate:,.1f} MB/s", seconds)


def _pace(name: str, what: str, seconds: float) -> Finding:
    if seconds <= SLOW_S:
        return well(name, f"{what} in {1000 * seconds:,.0f} ms")
    mend = "look at the network and the load of the store; a region nearer to the nodes helps"
    return trouble(name, f"{what}, but only in {seconds:.1f} s", mend)


def _storage(config: RunConfig) -> Storage:
    """The run's storage, which here gives up early."""
    options = {"": StorageConfig()} | config.storage
    impatient = {"deadline_s": PATIENCE_S}
    return Storage({url: each.model_copy(update=impatient) for url, each in options.items()})


def _mend(error: MixerError, url: str) -> str:
    if "://" not in url:
        return "make it, give this user the right to use it, or name another place in CONFIG"
    if isinstance(error, AccessError):
        return "export credentials that may, on every node; `storage:` in CONFIG names a profile"
    if isinstance(error, MissingError):
        return "make it, or correct the URL in CONFIG and the endpoint in its `storage:`"
    return "look at the network, the endpoint in `storage:` of CONFIG, and the store itself"


def _timed(action: Callable[[], T]) -> tuple[T, float]:
    began = time.monotonic()
    return action(), max(time.monotonic() - began, 1e-9)
