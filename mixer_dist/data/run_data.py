"""What a run reads and in which order, as its configuration says."""

from dataclasses import asdict

from mixer_dist.config import OrderConfig, RunConfig
from mixer_dist.data.manifest import Dataset, load_dataset
from mixer_dist.data.order import OrderShape, SampleOrder, default_shape
from mixer_dist.errors import ConfigError
from mixer_dist.storage import Storage


def training_data(config: RunConfig, storage: Storage) -> Dataset:
    """The manifests that the configuration names, laid end to end."""
    return load_dataset(storage, [(entry.manifest, entry.repeats) for entry in config.data.train])


def resolve_order(config: RunConfig, dataset: Dataset) -> OrderConfig:
    """The order's shape with every default filled in."""
    given = config.data.order
    size = given.round_samples or config.global_batch_size
    defaults = default_shape(size, dataset.num_samples, dataset.num_bytes, given.lanes)
    shape = {name: getattr(given, name) or value for name, value in asdict(defaults).items()}
    if given.chunk_samples and not given.window:
        shape["window"] = given.chunk_samples
    return OrderConfig(**shape)


def sample_order(config: RunConfig, dataset: Dataset) -> SampleOrder:
    """The run's order of samples; ConfigError where its shape cannot be."""
    shape = order_shape(config, dataset)
    try:
        return SampleOrder(dataset.shard_sizes, config.seed, **asdict(shape))
    except ValueError as error:
        raise ConfigError(f"data.order: {error}") from None


def order_shape(config: RunConfig, dataset: Dataset) -> OrderShape:
    """The same as what an order is made of."""
    return OrderShape(**resolve_order(config, dataset).model_dump())
