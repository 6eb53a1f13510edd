"""MLP-Mixer in Flax, operation for operation that of google-research/vision_transformer.

The architecture is that of the paper's appendix E, whose listing is the official code.
B batch, S tokens (patches), C channels, K classes.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import optax

from mixer_dist.models.mixer import Variant


class Mlp(nn.Module):
    """Two linear maps of the last axis with a GELU between them."""

    hidden_dim: int

    @nn.compact
    def __call__(self, x):
        hidden = nn.gelu(nn.Dense(self.hidden_dim)(x))
        return nn.Dense(x.shape[-1])(hidden)


class Block(nn.Module):
    """Token mixing on the transposed activations, then channel mixing."""

    tokens_mlp_dim: int
    channels_mlp_dim: int

    @nn.compact
    def __call__(self, x):
        transposed = nn.LayerNorm()(x).swapaxes(1, 2)  # (B, C, S)
        x += Mlp(self.tokens_mlp_dim)(transposed).swapaxes(1, 2)  # (B, S, C)
        return x + Mlp(self.channels_mlp_dim)(nn.LayerNorm()(x))


class FlaxMixer(nn.Module):
    """Logits (B, K) of images (B, H, W, 3)."""

    variant: Variant
    num_classes: int

    @nn.compact
    def __call__(self, images):
        sizes = self.variant
        patch = (sizes.patch_size, sizes.patch_size)
        x = nn.Conv(sizes.hidden_dim, patch, strides=patch)(images)
        x = x.reshape(len(images), -1, sizes.hidden_dim)  # (B, S, C)
        for _ in range(sizes.num_blocks):
            x = Block(sizes.tokens_mlp_dim, sizes.channels_mlp_dim)(x)
        return nn.Dense(self.num_classes)(nn.LayerNorm()(x).mean(1))


def flax_step(variant: Variant, num_classes: int, images, labels) -> Callable[[], None]:
    """A compiled training step of images (B, H, W, 3); it returns when all is computed."""
    images, labels = jax.device_put((images, labels))
    model = FlaxMixer(variant, num_classes)
    parameters = model.init(jax.random.key(0), images)
    adamw = optax.adamw(1e-3, weight_decay=0.1)

    def loss(parameters):
        logits = model.apply(parameters, images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def train_step(parameters, moments):
        updates, moments = adamw.update(jax.grad(loss)(parameters), moments, parameters)
        return optax.apply_updates(parameters, updates), moments

    compiled = jax.jit(train_step, donate_argnums=(0, 1))
    state = (parameters, adamw.init(parameters))

    def step() -> None:
        nonlocal state
        state = jax.block_until_ready(compiled(*state))

    return step
