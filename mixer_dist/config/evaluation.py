"""Evaluation tasks: what checkpoints are judged by. A union by `kind`."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from mixer_dist.sections import (
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Section,
    Url,
    not_empty,
)

FEATURES = "features"  # the folder beside the results, in which features are cached


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, int) else value


def _not_reserved(name: str) -> str:
    if name == FEATURES:
        raise ValueError(f"{FEATURES!r} is the folder of cached features: choose another name")
    return name


Shots = Annotated[tuple[PositiveInt, ...], BeforeValidator(_as_list), AfterValidator(not_empty)]
Seeds = Annotated[tuple[NonNegativeInt, ...], AfterValidator(not_empty)]
Strengths = Annotated[tuple[PositiveFloat, ...], AfterValidator(not_empty)]
OpenFraction = Annotated[float, Field(gt=0, lt=1)]


class Task(Section):
    """What every task has."""

    name: Annotated[
        str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$"), AfterValidator(_not_reserved)
    ]
    """Results lie at run_dir/evals/<name>/."""
    test: Url
    """Manifest whose images are classified."""
    resize: PositiveInt | None = None
    """Images become squares of this side before the central crop; by default 8/7 of image_size."""

    @property
    def datasets(self) -> dict[str, str]:
        """URLs of the manifests that it reads, by split."""
        given = {split: getattr(self, split, None) for split in ("train", "test")}
        return {split: url for split, url in given.items() if url}


class TrainedTask(Task):
    """A task that fits a classifier to the features of training images."""

    train: Url
    """Manifest whose images the classifier learns from."""


class FewshotConfig(TrainedTask):
    """Ridge regression on a few images a class (the paper's 5-shot linear)."""

    kind: Literal["fewshot"]
    shots: Shots = (5,)
    """Images a class; of several numbers, 5 is the accuracy that counts, else the largest."""
    seeds: Seeds = (0, 1, 2)
    l2: PositiveFloat = 1024.0

    @property
    def main_shots(self) -> int:
        """Those whose accuracy is the task's."""
        return 5 if 5 in self.shots else max(self.shots)


class KnnConfig(TrainedTask):
    """Votes of the nearest training images, by cosine, weighted with exp(cosine / temperature)."""

    kind: Literal["knn"]
    k: PositiveInt = 20
    temperature: PositiveFloat = 0.07


class LinearConfig(TrainedTask):
    """Ridge regression on all training images."""

    kind: Literal["linear"]
    l2: Strengths = tuple(2.0**power for power in range(-10, 21, 3))
    """Strengths to try; the best on the held-out images is taken."""
    held_out: OpenFraction = 0.1
    """Share of the training images on which strengths are compared."""
    seed: NonNegativeInt = 0
    """Draws the held-out images."""


class FinetuneConfig(TrainedTask):
    """Training the whole model on, by SGD with momentum and a new head (the paper's section 3)."""

    kind: Literal["finetune"]
    dev: Url | None = None
    """Manifest whose images choose among several learning rates, and are then learned from too."""
    learning_rates: Strengths = (0.003, 0.01, 0.03, 0.06)
    seeds: Seeds = (0, 1, 2)
    """One run each, with the learning rate that was best on dev; the first seed chooses it."""
    total_steps: PositiveInt
    warmup_steps: NonNegativeInt = 0
    decay: Literal["cosine", "staircase"] = "cosine"
    """`staircase`, in tenths after 30, 60 and 90% of the steps, is BiT-HyperRule's."""
    global_batch_size: PositiveInt = 512
    micro_batch_size: PositiveInt | None = None
    """By default that of the run."""
    image_size: PositiveInt | None = None
    """Side of the images in pixels: the run's, or a multiple of it."""
    train_resize: PositiveInt | None = None
    """Shorter side from which training images are cut; by default 8/7 of image_size."""
    crop: bool = True
    """Cut a random square; else the whole image is squeezed into one."""
    flip: bool = True
    checkpoint_steps: PositiveInt = 500
    """What is trained is saved every so many steps, to go on from there after an interruption."""

    @property
    def datasets(self) -> dict[str, str]:
        """URLs of the manifests that it reads, by split."""
        return super().datasets | ({"dev": self.dev} if self.dev else {})

    @model_validator(mode="after")
    def _several_rates_need_dev(self) -> "FinetuneConfig":
        if len(self.learning_rates) > 1 and not self.dev:
            raise ValueError(
                f"{self.name}: {len(self.learning_rates)} learning_rates need `dev`, a manifest "
                "on which the best is chosen: give one, or a single rate"
            )
        return self


class UpstreamConfig(Task):
    """Loss and accuracy of the model's own head; an image with several labels has any of them."""

    kind: Literal["upstream"]


EvaluationConfig = Annotated[
    FewshotConfig | KnnConfig | LinearConfig | FinetuneConfig | UpstreamConfig,
    Field(discriminator="kind"),
]
