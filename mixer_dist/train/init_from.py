"""The model at step 0 with weights from elsewhere: a file of them, a checkpoint, another run."""

import logging

from mixer_dist import distributed
from mixer_dist.checkpoint.catalog import Checkpoint
from mixer_dist.checkpoint.convert import checkpoint_weights
from mixer_dist.checkpoint.layout import MANIFEST_NAME
from mixer_dist.checkpoint.restore import newest_verified, verified
from mixer_dist.checkpoint.weights_file import Weights, check_format, is_file_name, read_weights
from mixer_dist.config import RunConfig
from mixer_dist.errors import ConfigError, MissingError
from mixer_dist.models.mixer import MlpMixer
from mixer_dist.models.transfer import transfer
from mixer_dist.run_dir import RunDir
from mixer_dist.storage import Storage, join
from mixer_dist.train.build import build_model, empty_model

logger = logging.getLogger(__name__)


def first_model(config: RunConfig, storage: Storage) -> tuple[MlpMixer, str | None]:
    """The model at step 0, and the SHA-256 of what `init_from` names. All ranks must call this.

    Rank 0 alone reads a file; ConfigError names every tensor that does not match.
    """
    url = config.init_from
    if url is None:
        return build_model(config), None
    model = empty_model(config.model).to_empty(device="cpu")
    checkpoint = _find_checkpoint(storage, url)
    keeps_head = config.init_head == "keep"
    sha256 = distributed.on_main(lambda: _load(model, url, storage, checkpoint, keeps_head))
    distributed.broadcast(model.parameters())
    return model, sha256


def _find_checkpoint(storage: Storage, url: str) -> Checkpoint | None:
    """The checkpoint, or a run's newest, at a URL; None for a file. All ranks must call this."""
    kind = distributed.on_main(lambda: _kind(storage, url))
    if kind == "checkpoint":
        return verified(storage, url)
    return newest_verified(storage, RunDir(url)) if kind == "run" else None


def _kind(storage: Storage, url: str) -> str:
    if is_file_name(url):
        check_format(url)
        return "file"
    if storage.exists(join(url, MANIFEST_NAME)):
        return "checkpoint"
    if storage.names(RunDir(url).checkpoints):
        return "run"
    raise MissingError(
        f"init_from: no weights at {url}: expected a file ending in .npz or .safetensors, "
        "a checkpoint's folder, or a run_dir that holds checkpoints"
    )


def _load(
    model: MlpMixer, url: str, storage: Storage, checkpoint: Checkpoint | None, keeps_head: bool
) -> str:
    """Fill a model; the SHA-256 of what it was filled from."""
    weights = _weights(url, storage, checkpoint)
    source = checkpoint.url if checkpoint else url
    try:
        transferred = transfer(weights.tensors, model, weights.key, keep_head=keeps_head)
    except ValueError as error:
        raise ConfigError(f"init_from: {source} does not fit the model: {error}") from None
    model.load_state_dict(transferred.tensors)
    logger.info("Weights from %s: %s.", source, "; ".join(transferred.report))
    return weights.sha256


def _weights(url: str, storage: Storage, checkpoint: Checkpoint | None) -> Weights:
    if checkpoint:
        return checkpoint_weights(storage, checkpoint)
    if is_file_name(url):
        return read_weights(storage, url)
    raise MissingError(f"init_from: no checkpoint is complete in {RunDir(url).checkpoints}")
