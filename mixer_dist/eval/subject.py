"""The model that is judged: a checkpoint held under a lease, or the run's untrained model."""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch

from mixer_dist import distributed
from mixer_dist.checkpoint.catalog import Checkpoint, run_and_step
from mixer_dist.checkpoint.layout import MANIFEST_NAME
from mixer_dist.checkpoint.leases import leased
from mixer_dist.checkpoint.load import full_tensors
from mixer_dist.checkpoint.restore import check_same_model, newest_verified, verified
from mixer_dist.config import RunConfig
from mixer_dist.errors import CheckpointError, MissingError, RefusedError
from mixer_dist.models.mixer import MlpMixer
from mixer_dist.run_dir import RunDir
from mixer_dist.storage import Storage, join
from mixer_dist.train.build import empty_model
from mixer_dist.train.init_from import first_model

UNTRAINED = "untrained"


@dataclass(frozen=True)
class Subject:
    """The model that is judged, and where it comes from."""

    checkpoint: str
    """Its URL."""
    sha256: str
    """Of the checkpoint's manifest, which names the hash of every file."""
    step: int
    is_of_run: bool
    """Whether its results belong into the run's directory."""
    model: Callable[[], MlpMixer]
    """Reads the weights, in fp32, on this rank's device. All ranks must call this."""


@contextmanager
def judged(
    config: RunConfig, storage: Storage, run_dir: RunDir, checkpoint: str | None
) -> Iterator[Subject]:
    """The subject, not removed as long as this lasts; MissingError. All ranks must call this."""
    if checkpoint == UNTRAINED:
        yield _untrained(config, storage)
        return
    with ExitStack() as leases:
        if checkpoint:
            _lease(leases, storage, checkpoint)
            found = verified(storage, checkpoint)
        else:
            found = _newest(storage, run_dir)
            _lease(leases, storage, found.url)
        yield _subject(config, storage, run_dir, found)


def _untrained(config: RunConfig, storage: Storage) -> Subject:
    model, init_from_hash = first_model(config, storage)
    decided_by = config.model.model_dump(), config.seed, init_from_hash
    sha256 = hashlib.sha256(json.dumps(decided_by, sort_keys=True).encode()).hexdigest()
    model = model.to(distributed.device()).eval()
    return Subject(UNTRAINED, sha256, 0, True, lambda: model)


def _newest(storage: Storage, run_dir: RunDir) -> Checkpoint:
    found = newest_verified(storage, run_dir)
    if found is None:
        raise MissingError(
            f"no checkpoint in {run_dir.checkpoints}: pretrain first, or give --checkpoint "
            f"URL or --checkpoint {UNTRAINED}"
        )
    return found


def _lease(leases: ExitStack, storage: Storage, url: str) -> None:
    """Rank 0 holds a run's checkpoint; one that lies elsewhere is nobody's to remove."""
    if _run_of(url):
        distributed.on_main(lambda: leases.enter_context(leased(storage, url)) and None)


def _run_of(url: str) -> RunDir | None:
    try:
        return run_and_step(url)[0]
    except RefusedError:
        return None


def _subject(config: RunConfig, storage: Storage, run_dir: RunDir, found: Checkpoint) -> Subject:
    num_classes = found.manifest.shapes.get("head.weight", (0,))[0]  # whatever the config says
    model = empty_model(config.model.model_copy(update={"num_classes": num_classes}))
    check_same_model(found, {fqn: tuple(p.shape) for fqn, p in model.named_parameters()})
    manifest_url = join(found.url, MANIFEST_NAME)
    sha256 = distributed.on_main(lambda: hashlib.sha256(storage.read(manifest_url)).hexdigest())
    return Subject(
        checkpoint=found.url,
        sha256=sha256,
        step=found.manifest.step,
        is_of_run=_run_of(found.url) == RunDir(run_dir.url.rstrip("/")),
        model=lambda: _restored(storage, found, model),
    )


def _restored(storage: Storage, checkpoint: Checkpoint, model: MlpMixer) -> MlpMixer:
    def fill() -> None:
        try:
            model.load_state_dict(full_tensors(storage, checkpoint), assign=True)
        except MissingError as error:
            raise CheckpointError(
                f"{checkpoint.url} was removed while it was read: evaluate another ({error})"
            ) from None

    distributed.on_all(fill)
    return model.to(distributed.device(), torch.float32).eval()
