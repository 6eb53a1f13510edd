"""MLP-Mixer and its gradients in float64 NumPy, written from the paper's equations alone.

B batch, S tokens, C channels, K classes, P patch size, D hidden units of an MLP.

Independent of the package: parameters have the official names and shapes (a convolution
kernel (P, P, 3, C), Dense kernels (in, out)), images are (B, H, W, 3), activations (B, S, C), and
token mixing really transposes (paper section 2, eq. 1; google-research/vision_transformer).
Everything but erf and the backward pass also works on complex numbers, for complex steps.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

Array = np.ndarray
Pullback = Callable[[Array], Array]


@dataclass(frozen=True)
class Rules:
    """What the official model fixes beyond the equations; a test may get one of them wrong."""

    epsilon: float = 1e-6
    gelu: str = "tanh"
    stem_axes: tuple[int, int, int] = (0, 1, 2)  # the kernel's (row, column, colour)


OFFICIAL = Rules()


class Mixer:
    """One forward pass of `parameters` on images (B, H, W, 3), remembered for `gradients`."""

    def __init__(
        self,
        parameters: Mapping[str, Array],
        images: Array,
        masks: Array | None = None,
        rules: Rules = OFFICIAL,
    ) -> None:
        self.parameters = parameters
        self.rules = rules
        self.gradients_by_key: dict[str, Array] = {}
        tokens, self._stem_back = self._stem(images)
        num_blocks = len({key.split("/")[0] for key in parameters if "MixerBlock_" in key})
        self._blocks_back: list[Pullback] = []
        for index in range(num_blocks):
            keep = (1.0, 1.0) if masks is None else masks[index][:, :, None, None]
            tokens, back = self._block(f"MixerBlock_{index}", tokens, keep)
            self._blocks_back.append(back)
        tokens, self._norm_back = self._layer_norm("pre_head_layer_norm", tokens)
        self.num_tokens = tokens.shape[1]
        self.features = tokens.mean(axis=1)  # (B, C)
        self.logits, self._head_back = self._dense("head", self.features)  # (B, K)

    def gradients(self, logits_gradient: Array) -> dict[str, Array]:
        """Return d sum(logits * logits_gradient) / d parameter for every parameter."""
        features_gradient = self._head_back(logits_gradient)  # (B, C)
        gradient = np.repeat(features_gradient[:, None], self.num_tokens, axis=1) / self.num_tokens
        gradient = self._norm_back(gradient)  # (B, S, C)
        for back in reversed(self._blocks_back):
            gradient = back(gradient)
        self._stem_back(gradient)
        return self.gradients_by_key

    def _stem(self, images: Array) -> tuple[Array, Pullback]:
        """Convolve (B, H, W, 3) with stride P, patch by patch, row by row."""
        kernel = self.parameters["stem/kernel"].transpose(*self.rules.stem_axes, 3)
        size, (_, height, width, _) = kernel.shape[0], images.shape
        patches = [
            images[:, top : top + size, left : left + size]  # (B, P, P, 3)
            for top in range(0, height, size)
            for left in range(0, width, size)
        ]
        tokens = [np.einsum("brqi,rqic->bc", patch, kernel) for patch in patches]
        stem = np.stack(tokens, axis=1) + self.parameters["stem/bias"]  # (B, S, C)

        def back(gradient: Array) -> Array:
            of_kernel = sum(
                np.einsum("brqi,bc->rqic", patch, gradient[:, token])
                for token, patch in enumerate(patches)
            )
            self.gradients_by_key["stem/kernel"] = of_kernel
            self.gradients_by_key["stem/bias"] = gradient.sum(axis=(0, 1))
            return gradient

        return stem, back

    def _block(self, name: str, x: Array, keep: tuple[Array, Array]) -> tuple[Array, Pullback]:
        """Apply one block; `keep` holds a factor (B, 1, 1) for each branch."""
        normed, token_norm_back = self._layer_norm(f"{name}/LayerNorm_0", x)
        mixed, token_back = self._mlp(f"{name}/token_mixing", normed.swapaxes(1, 2))  # (B, C, S)
        u = x + keep[0] * mixed.swapaxes(1, 2)  # (B, S, C)
        normed, channel_norm_back = self._layer_norm(f"{name}/LayerNorm_1", u)
        mixed, channel_back = self._mlp(f"{name}/channel_mixing", normed)  # (B, S, C)

        def back(gradient: Array) -> Array:
            gradient = gradient + channel_norm_back(channel_back(keep[1] * gradient))
            of_mixed = (keep[0] * gradient).swapaxes(1, 2)  # (B, C, S)
            return gradient + token_norm_back(token_back(of_mixed).swapaxes(1, 2))

        return u + keep[1] * mixed, back

    def _mlp(self, name: str, x: Array) -> tuple[Array, Pullback]:
        before, first_back = self._dense(f"{name}/Dense_0", x)  # (..., D)
        hidden, slope = gelu_tanh(before) if self.rules.gelu == "tanh" else gelu_erf(before)
        y, second_back = self._dense(f"{name}/Dense_1", hidden)
        return y, lambda gradient: first_back(second_back(gradient) * slope)

    def _dense(self, name: str, x: Array) -> tuple[Array, Pullback]:
        kernel, bias = self.parameters[f"{name}/kernel"], self.parameters[f"{name}/bias"]

        def back(gradient: Array) -> Array:
            axes = tuple(range(x.ndim - 1))
            self.gradients_by_key[f"{name}/kernel"] = np.tensordot(x, gradient, (axes, axes))
            self.gradients_by_key[f"{name}/bias"] = gradient.sum(axis=axes)
            return gradient @ kernel.T

        return x @ kernel + bias, back

    def _layer_norm(self, name: str, x: Array) -> tuple[Array, Pullback]:
        scale, bias = self.parameters[f"{name}/scale"], self.parameters[f"{name}/bias"]
        centred = x - x.mean(axis=-1, keepdims=True)
        variance = (centred**2).mean(axis=-1, keepdims=True)
        deviation = np.sqrt(variance + self.rules.epsilon)
        normed = centred / deviation

        def back(gradient: Array) -> Array:
            axes = tuple(range(x.ndim - 1))
            self.gradients_by_key[f"{name}/scale"] = (gradient * normed).sum(axis=axes)
            self.gradients_by_key[f"{name}/bias"] = gradient.sum(axis=axes)
            g = gradient * scale
            along = (g * normed).mean(axis=-1, keepdims=True)
            return (g - g.mean(axis=-1, keepdims=True) - normed * along) / deviation

        return normed * scale + bias, back


def gelu_tanh(x: Array) -> tuple[Array, Array]:
    """Return the tanh approximation of GELU and its derivative."""
    factor = math.sqrt(2.0 / math.pi)
    bent = np.tanh(factor * (x + 0.044715 * x**3))
    slope = 0.5 * (1.0 + bent) + 0.5 * x * (1.0 - bent**2) * factor * (1.0 + 3 * 0.044715 * x**2)
    return 0.5 * x * (1.0 + bent), slope


def gelu_erf(x: Array) -> tuple[Array, Array]:
    """Return the exact GELU and its derivative: not what the official model uses."""
    cumulative = 0.5 * (1.0 + np.vectorize(math.erf)(x / math.sqrt(2.0)))
    density = np.exp(-0.5 * x**2) / math.sqrt(2.0 * math.pi)
    return x * cumulative, cumulative + x * density


def random_parameters(
    *,
    num_tokens: int,
    patch_size: int,
    hidden_dim: int,
    num_blocks: int,
    tokens_mlp_dim: int,
    channels_mlp_dim: int,
    num_classes: int,
    seed: int = 0,
) -> dict[str, Array]:
    """Return official parameters with every array random, in float64 but exact in float32."""
    shapes: dict[str, tuple[int, ...]] = {"stem/kernel": (patch_size, patch_size, 3, hidden_dim)}
    norms = ["pre_head_layer_norm"]
    for block in (f"MixerBlock_{index}" for index in range(num_blocks)):
        norms += [f"{block}/LayerNorm_0", f"{block}/LayerNorm_1"]
        shapes[f"{block}/token_mixing/Dense_0/kernel"] = (num_tokens, tokens_mlp_dim)
        shapes[f"{block}/token_mixing/Dense_1/kernel"] = (tokens_mlp_dim, num_tokens)
        shapes[f"{block}/channel_mixing/Dense_0/kernel"] = (hidden_dim, channels_mlp_dim)
        shapes[f"{block}/channel_mixing/Dense_1/kernel"] = (channels_mlp_dim, hidden_dim)
    shapes["head/kernel"] = (hidden_dim, num_classes)
    shapes |= {key.replace("kernel", "bias"): shape[-1:] for key, shape in shapes.items()}
    shapes |= {f"{norm}/{leaf}": (hidden_dim,) for norm in norms for leaf in ("scale", "bias")}
    generator = np.random.default_rng(seed)
    return {key: _random_array(generator, key, shape) for key, shape in shapes.items()}


def _random_array(generator: np.random.Generator, key: str, shape: tuple[int, ...]) -> Array:
    fan_in = math.prod(shape[:-1]) if len(shape) > 1 else 25.0  # biases: standard deviation 0.2
    noise = generator.normal(size=shape) / math.sqrt(fan_in)
    values = 1.0 + noise if key.endswith("scale") else noise
    return values.astype(np.float32).astype(np.float64)
