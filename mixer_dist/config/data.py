"""What is read, in which order, and how it is changed at random."""

from typing import Annotated

from pydantic import AfterValidator, Field

from mixer_dist.sections import (
    Fraction,
    NonNegativeInt,
    PositiveInt,
    Section,
    Url,
    not_empty,
)


class DatasetConfig(Section):
    """One entry of the training data."""

    manifest: Url
    """URL of a manifest.json, as data_tools/shard.py writes it."""
    repeats: PositiveInt = 1
    """How often its samples stand in one epoch."""


class OrderConfig(Section):
    """The sample order's shape; what is not given is derived at the first start, then kept."""

    round_samples: PositiveInt | None = None
    """Positions dealt to all lanes in one round; by default the global batch size."""
    lanes: PositiveInt | None = None
    """Independent streams; by default the largest divisor of round_samples up to 512."""
    chunk_samples: PositiveInt | None = None
    """Neighbouring samples read in one request; by default about 4 MiB."""
    window: PositiveInt | None = None
    """Samples shuffled among each other within a lane; by default one chunk."""


def _in_order(steps: tuple[int, int]) -> tuple[int, int]:
    if steps[0] > steps[1]:
        raise ValueError("must be [first, last] with first <= last")
    return steps


Steps = Annotated[tuple[PositiveInt, PositiveInt], AfterValidator(_in_order)]


class DataConfig(Section):
    """What is read, and how."""

    train: Annotated[tuple[DatasetConfig, ...], AfterValidator(not_empty)]
    """Datasets laid end to end; their classes must agree."""
    order: OrderConfig = OrderConfig()
    num_threads: NonNegativeInt = 0
    """Threads a rank that fetch, decode and augment; 0: one a core this rank may use."""
    prefetch_batches: PositiveInt = 2
    """Batches a rank prepares ahead of the training step."""
    max_bad_fraction: Fraction = 0.001
    """Share of undecodable samples above which the run stops."""
    skip_steps: tuple[Steps, ...] = ()
    """[first, last] of steps to come, as numbered in the metrics: what they would read is never
    read, and what follows moves up. Given at a restart, and recorded with the run."""
    stages: tuple[str, ...] = ()
    """Dotted names of your own webdataset pipeline stages, run on decoded crops."""


class RandAugmentConfig(Section):
    """RandAugment as the official code does it (arXiv 1909.13719)."""

    layers: PositiveInt = 2
    """Operations applied to each image, one after the other."""
    magnitude: Annotated[int, Field(ge=0, le=30)]
    """How strong they are; the paper's runs use 10, 15 and 20."""


class AugmentConfig(Section):
    """Random changes of the training images."""

    min_crop_area: Annotated[float, Field(gt=0, le=1)] = 0.05
    """Smallest share of the image that the inception crop keeps; 1 turns cropping off."""
    resize: PositiveInt | None = None
    """In place of the inception crop: shorter side, in pixels, to which images are resized before
    a random square of image_size is cut out, as big_vision fine-tunes."""
    flip: bool = True
    """Mirror every second image, at random."""
    randaugment: RandAugmentConfig | None = None
    """Random operations on colours and shape; null turns them off."""
    mixup: Fraction = 0.0
    """p of the Beta(p, p) that mixes pairs of images; 0 turns mixup off."""
