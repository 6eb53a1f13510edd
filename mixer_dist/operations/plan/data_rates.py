"""What the store and the decoders must deliver."""

from dataclasses import dataclass

from mixer_dist.config import RunConfig, StorageConfig
from mixer_dist.data.run_data import training_data
from mixer_dist.errors import MixerError
from mixer_dist.operations.plan.rates import PHOTO_BYTES, Rates
from mixer_dist.operations.plan.setup import Setup
from mixer_dist.storage import Storage

RANDAUGMENT_S = 0.5e-3  # an image and layer, with Pillow (RandAugment of two layers: 1 ms)
MANIFEST_S = 4.0  # how long a manifest is tried to read


@dataclass(frozen=True)
class Samples:
    """How large samples are."""

    mean_bytes: float
    source: str
    """Where that is from."""
    is_assumed: bool


@dataclass(frozen=True)
class DataRates:
    """What must be there for no GPU to wait."""

    images_per_s: float
    bytes_per_s: float
    """From the store, all nodes together."""
    cores_per_gpu: float
    """That fetch, decode and augment."""


def samples_of(config: RunConfig, rates: Rates) -> Samples:
    """The mean size that was measured, else the manifest's, else a usual photo's."""
    if rates.sample_bytes:
        return Samples(rates.sample_bytes, "as measured", is_assumed=False)
    try:
        dataset = training_data(config, _impatient_storage(config))
    except MixerError:  # a plan is made where the data may be out of reach
        return Samples(PHOTO_BYTES, "assumed: the manifest could not be read", is_assumed=True)
    return Samples(dataset.num_bytes / dataset.num_samples, "of the manifest", is_assumed=False)


def data_rates(setup: Setup, images_per_s: float, samples: Samples) -> DataRates:
    """What a run at this speed takes in."""
    augment = setup.config.augment.randaugment
    seconds = 1 / setup.rates.images_per_core_s + (augment.layers * RANDAUGMENT_S if augment else 0)
    return DataRates(
        images_per_s=images_per_s,
        bytes_per_s=images_per_s * samples.mean_bytes,
        cores_per_gpu=images_per_s / setup.num_gpus * seconds,
    )


def _impatient_storage(config: RunConfig) -> Storage:
    options = {"s3://": StorageConfig(), **config.storage}
    return Storage(
        {url: each.model_copy(update={"deadline_s": MANIFEST_S}) for url, each in options.items()}
    )
