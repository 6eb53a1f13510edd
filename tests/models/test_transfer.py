"""Weights fitted to another model: exact where they fit, all named where they do not."""

import pytest
import torch

from mixer_dist.models.mixer import MlpMixer
from mixer_dist.models.transfer import transfer

TINY = {
    "image_size": 8, "patch_size": 4, "hidden_dim": 6, "num_blocks": 2, "tokens_mlp_dim": 3,
    "channels_mlp_dim": 5, "num_classes": 4,
}  # fmt: skip


def drawn(**changes) -> MlpMixer:
    """A small model with every parameter random."""
    model = MlpMixer(**TINY | changes)
    generator = torch.Generator().manual_seed(6)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model


def target(**changes) -> MlpMixer:
    with torch.device("meta"):
        return MlpMixer(**TINY | changes)


def test_weights_of_the_same_model_are_taken_as_they_are():
    weights = drawn().state_dict()
    found = transfer(weights, target())
    assert found.tensors.keys() == weights.keys()
    assert all(torch.equal(found.tensors[name], value) for name, value in weights.items())
    assert found.report == ("30 tensors are taken",)


@pytest.mark.parametrize("factor", [2, 3])
def test_a_larger_image_gives_the_mean_of_its_parts(factor):
    source, size = drawn(), 8 * factor
    found = transfer(source.state_dict(), target(image_size=size, tokens_mlp_dim=3 * factor**2))
    enlarged = MlpMixer(**TINY | {"image_size": size, "tokens_mlp_dim": 3 * factor**2})
    enlarged.load_state_dict(found.tensors)
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(7))
    parts = [part for strip in images.split(8, dim=2) for part in strip.split(8, dim=3)]
    expected = torch.stack([source(part) for part in parts]).mean(0)
    torch.testing.assert_close(enlarged(images), expected, rtol=1e-4, atol=1e-5)
    assert f"{factor} x {factor} parts, from 8 to {size} px" in found.report[1]


@pytest.mark.parametrize(("old", "head_bias"), [(9, 0.0), (9, -2.5), (0, 0.0)])
def test_another_head_begins_anew_and_the_report_says_so(old, head_bias):
    weights = drawn(num_classes=old).state_dict()
    with torch.device("meta"):
        model = MlpMixer(**TINY, head_bias=head_bias)
    found = transfer(weights, model)
    assert not found.tensors["head.weight"].any()
    assert torch.equal(found.tensors["head.bias"], torch.full((4,), head_bias))
    assert torch.equal(found.tensors["stem.weight"], weights["stem.weight"])
    assert found.report[0] == "28 tensors are taken"
    assert f"4 classes (before: {old or 'none'})" in found.report[1]


def test_every_tensor_that_does_not_match_is_named_at_once():
    weights = dict(drawn().state_dict())
    del weights["head.bias"], weights["blocks.1.token_norm.bias"]
    weights["stem.weight"] = torch.zeros(7, 48)
    weights["blocks.0.token_mixing.fc1.weight"] = torch.zeros(3)
    weights["blocks.2.token_norm.bias"] = torch.zeros(6)
    with pytest.raises(ValueError, match=r"^missing ") as caught:
        transfer(weights, target(), key=lambda name: f"their/{name}")
    message = str(caught.value)
    assert "missing blocks.1.token_norm.bias (their/blocks.1.token_norm.bias)" in message
    assert "unexpected blocks.2.token_norm.bias" in message
    assert "stem.weight (their/stem.weight) has shape (7, 48), expected (6, 48)" in message
    assert "fc1.weight (their/blocks.0.token_mixing.fc1.weight) has shape (3,)" in message
    assert "\n" not in message


def test_a_larger_image_needs_a_larger_token_mlp_and_is_told_which():
    with pytest.raises(ValueError, match=r"^from 8 to 16 px .* has to be 12, not 3$"):
        transfer(drawn().state_dict(), target(image_size=16))


@pytest.mark.parametrize("image_size", [12, 4])
def test_an_image_size_of_no_whole_factor_is_refused_with_the_reason(image_size):
    with pytest.raises(ValueError, match=r"fc2\.weight has shape .*K x K x 4"):
        transfer(drawn().state_dict(), target(image_size=image_size))
