"""Which Mixer: a variant of the paper, or dimensions."""

from typing import Literal, get_args

from pydantic import model_validator

from mixer_dist.sections import (
    Fraction,
    PositiveInt,
    Section,
)

Variant = Literal["S/32", "S/16", "B/32", "B/16", "L/32", "L/16", "H/14"]


class ModelConfig(Section):
    """A variant of the paper's Table 1, or a Mixer given by its dimensions."""

    variant: Variant | None = None
    """One of the paper's seven models; of the five dimensions below only tokens_mlp_dim may then
    be given, for images of K times the height and width: K*K times the variant's."""
    patch_size: PositiveInt | None = None
    """Side of a patch, in pixels."""
    hidden_dim: PositiveInt | None = None
    num_blocks: PositiveInt | None = None
    tokens_mlp_dim: PositiveInt | None = None
    channels_mlp_dim: PositiveInt | None = None
    image_size: PositiveInt = 224
    """Side of the square training images, in pixels."""
    num_classes: PositiveInt
    head_bias: float = 0.0
    """The classifier's first bias; the official runs use -6.9 (1k) and -10 (21k classes)."""
    stochastic_depth: Fraction = 0.0
    """Rate at which the last block's branches are dropped; it grows linearly from 0."""

    def dimensions(self) -> dict[str, int | None]:
        """The five dimensions as given, None where the variant gives them."""
        names = ("patch_size", "hidden_dim", "num_blocks", "tokens_mlp_dim", "channels_mlp_dim")
        return {name: getattr(self, name) for name in names}

    @model_validator(mode="after")
    def _is_one_model(self) -> "ModelConfig":
        given = {name for name, value in self.dimensions().items() if value is not None}
        missing = self.dimensions().keys() - given
        if self.variant and (fixed := given - {"tokens_mlp_dim"}):
            raise ValueError(
                f"variant {self.variant} fixes {', '.join(sorted(fixed))}: remove them"
            )
        if not self.variant and missing:
            raise ValueError(
                f"give a variant ({', '.join(get_args(Variant))}) "
                f"or also {', '.join(sorted(missing))}"
            )
        return self

    @model_validator(mode="after")
    def _image_is_whole_patches(self) -> "ModelConfig":
        patch_px = int(self.variant.split("/")[1]) if self.variant else self.patch_size
        if patch_px and self.image_size % patch_px:
            raise ValueError(f"image_size ({self.image_size}) must be a multiple of {patch_px}")
        return self
