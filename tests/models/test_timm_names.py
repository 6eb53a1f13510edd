"""timm's names: its Mixer-B/16 and ours give the same logits, and its files come out as they were.

timm itself is no dependency of the tests (benchmarks/timm_logits.py runs it); its forward is
written out here from its source (timm/models/mlp_mixer.py), on the names of its state dict.
"""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mixer_dist.models.mixer import MlpMixer, build_mixer
from mixer_dist.models.timm_names import from_timm, is_timm, timm_key, to_timm


def timm_shapes(patch, hidden, num_blocks, tokens, tokens_dim, channels_dim, num_classes):
    """The state dict of timm's MlpMixer."""
    linears = {"stem.proj": (hidden, 3, patch, patch), "head": (num_classes, hidden)}
    norms = ["norm"]
    for block in (f"blocks.{index}" for index in range(num_blocks)):
        norms += [f"{block}.norm1", f"{block}.norm2"]
        linears[f"{block}.mlp_tokens.fc1"] = (tokens_dim, tokens)
        linears[f"{block}.mlp_tokens.fc2"] = (tokens, tokens_dim)
        linears[f"{block}.mlp_channels.fc1"] = (channels_dim, hidden)
        linears[f"{block}.mlp_channels.fc2"] = (hidden, channels_dim)
    shapes = {f"{name}.weight": shape for name, shape in linears.items()}
    shapes |= {f"{name}.bias": shape[:1] for name, shape in linears.items()}
    return shapes | {f"{norm}.{leaf}": (hidden,) for norm in norms for leaf in ("weight", "bias")}


def timm_state(shapes) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)

    def drawn(name: str, shape: tuple[int, ...]) -> Tensor:
        scale = 0.1 if len(shape) == 1 else torch.Size(shape[1:]).numel() ** -0.5
        is_norm = "norm" in name and name.endswith("weight")
        return torch.randn(shape, generator=generator) * scale + float(is_norm)

    return {name: drawn(name, shape) for name, shape in shapes.items()}


def timm_forward(state: dict[str, Tensor], images: Tensor, num_blocks: int) -> Tensor:
    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    def norm(name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)

    def mlp(name: str, x: Tensor) -> Tensor:
        return linear(f"{name}.fc2", F.gelu(linear(f"{name}.fc1", x), approximate="tanh"))

    patch = state["stem.proj.weight"].shape[-1]
    x = F.conv2d(images, state["stem.proj.weight"], state["stem.proj.bias"], stride=patch)
    x = x.flatten(2).transpose(1, 2)  # (B, S, C)
    for block in (f"blocks.{index}" for index in range(num_blocks)):
        mixed = mlp(f"{block}.mlp_tokens", norm(f"{block}.norm1", x).transpose(1, 2))
        x = x + mixed.transpose(1, 2)
        x = x + mlp(f"{block}.mlp_channels", norm(f"{block}.norm2", x))
    return linear("head", norm("norm", x).mean(dim=1))


@pytest.fixture(scope="module")
def tiny() -> dict[str, Tensor]:
    """timm's weights of a small Mixer on 12 px."""
    return timm_state(timm_shapes(4, 8, 2, 9, 5, 12, 7))


def test_mixer_b16_gives_the_logits_that_timm_gives():
    state = timm_state(timm_shapes(16, 768, 12, 196, 384, 3072, 1000))
    with torch.device("meta"):
        ours = build_mixer("B/16", 1000)
    ours.load_state_dict(from_timm(state), assign=True)
    images = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(4)) * 2 - 1
    with torch.inference_mode():
        expected = timm_forward(state, images, num_blocks=12)
        torch.testing.assert_close(ours(images), expected, rtol=0, atol=2e-6)
    assert float(expected.abs().max()) > 1


def test_timms_weights_come_back_the_same(tiny):
    assert is_timm(tiny)
    back = to_timm(from_timm(tiny))
    assert back.keys() == tiny.keys()
    assert all(torch.equal(back[key], value) for key, value in tiny.items())
    assert all(value.is_contiguous() for value in back.values())


def test_our_names_are_a_models_and_not_timms(tiny):
    model = MlpMixer(12, 4, 8, 2, 5, 12, 7)
    model.load_state_dict(from_timm(tiny))
    assert not is_timm(model.state_dict())
    assert {timm_key(name) for name in model.state_dict()} == tiny.keys()


@pytest.mark.parametrize("key", ["blocks.0.ls1", "blocks.0.attn.qkv.weight", "stem.norm.weight"])
def test_a_name_that_no_mixer_has_stays_as_it_is(tiny, key):
    assert torch.equal(from_timm({**tiny, key: torch.ones(2)})[key], torch.ones(2))


def test_two_names_for_one_parameter_are_not_merged(tiny):
    found = from_timm({**tiny, "pre_head_norm.bias": torch.ones(8)})
    assert torch.equal(found["pre_head_norm.bias"], torch.ones(8))
    assert torch.equal(found["norm.bias"], tiny["norm.bias"])
