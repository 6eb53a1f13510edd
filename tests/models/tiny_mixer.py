"""A model of a few numbers, with parameters under the official names.

B batch.
"""

import math

import numpy as np
import torch

from mixer_dist.models import npz
from mixer_dist.models.mixer import MlpMixer
from tests.models import reference

TINY = {
    "patch_size": 4,
    "hidden_dim": 16,
    "num_blocks": 3,
    "tokens_mlp_dim": 5,
    "channels_mlp_dim": 24,
    "num_classes": 7,
}


def official_parameters(image_size):
    """Random parameters under the official names, for TINY on images of this size."""
    num_tokens = math.prod(image_size) // TINY["patch_size"] ** 2
    return reference.random_parameters(num_tokens=num_tokens, **TINY)


def tiny_model(image_size, dtype=torch.float64):
    """The TINY model that holds `official_parameters`."""
    model = MlpMixer(image_size, **TINY).to(dtype)
    model.load_state_dict(npz.from_official(official_parameters(image_size)))
    return model


def random_images(image_size, batch=2):
    """NumPy images (B, H, W, 3) in [-1, 1], exact in float32."""
    images = np.random.default_rng(1).uniform(-1.0, 1.0, size=(batch, *image_size, 3))
    return images.astype(np.float32).astype(np.float64)


def to_torch(images, dtype=torch.float64):
    """NumPy images (B, H, W, 3) as a tensor (B, 3, H, W)."""
    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).to(dtype)
