"""What checkpoints are judged by."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from mixer_dist.sections import (
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Section,
    Url,
    not_empty,
)


class EvaluationConfig(Section):
    """One evaluation task."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    """Results lie at run_dir/evals/<name>/."""
    kind: Literal["fewshot"]
    train: Url
    """Manifest whose images give the few examples a class."""
    test: Url
    """Manifest whose images are classified."""
    shots: PositiveInt = 5
    seeds: Annotated[tuple[NonNegativeInt, ...], AfterValidator(not_empty)] = (0, 1, 2)
    l2: PositiveFloat = 1024.0
    resize: PositiveInt | None = None
    """Images become squares of this side before the central crop; by default 8/7 of image_size."""
