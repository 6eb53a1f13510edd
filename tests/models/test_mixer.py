"""MlpMixer against the paper's numbers and against an independent NumPy reference.

B batch, S tokens, C channels, K classes, P patch size.
"""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from mixer_dist.models import mixer, npz
from mixer_dist.models.mixer import MlpMixer, build_mixer
from tests.models import reference
from tests.models.tiny_mixer import TINY, official_parameters, random_images, tiny_model, to_torch

# Parameters without a head, with 1,000 and with 21,843 classes, and multiply-adds of one image
# with 1,000 classes: the authors' own code gives these (paper table 1 rounds them).
PAPER_COUNTS = {
    "S/32": (18_591_624, 19_104_624, 29_797_083, 1_002_426_368),
    "S/16": (18_015_264, 18_528_264, 29_220_723, 3_776_958_464),
    "B/32": (59_524_428, 60_293_428, 76_321_695, 3_237_722_112),
    "B/16": (59_111_472, 59_880_472, 75_908_739, 12_601_767_936),
    "L/32": (205_914_264, 206_939_264, 228_303_339, 11_253_293_056),
    "L/16": (207_171_168, 208_196_168, 229_560_243, 44_547_678_208),
    "H/14": (431_069_952, 432_350_952, 459_050_835, 120_989_911_040),
}
IMAGE_SIZES = [(8, 8), (8, 12), (12, 4)]
MASKS = np.array([[[1, 1], [1, 0]], [[0, 1], [1, 1]], [[0, 0], [0, 1]]], dtype=np.float64)


def official_gradients(model):
    """The model's gradients under the official names, in the official shapes."""
    patch_size = model.patch_size
    gradients = {npz.official_key(n): p.grad.double().numpy() for n, p in model.named_parameters()}
    gradients = {key: gradient.T for key, gradient in gradients.items()}
    stem = gradients["stem/kernel"]
    gradients["stem/kernel"] = stem.reshape(patch_size, patch_size, 3, -1)
    return gradients


def largest_difference(ours, theirs):
    """Largest absolute difference over a dict of arrays with the same keys and shapes."""
    assert ours.keys() == theirs.keys()
    assert all(ours[key].shape == theirs[key].shape for key in ours)
    return max(float(np.abs(ours[key] - theirs[key]).max()) for key in ours)


def both_passes(image_size, masks=None, dtype=torch.float64, rules=reference.OFFICIAL):
    """Logits and gradients, as dicts of arrays, of the model and of the reference."""
    model, images = tiny_model(image_size, dtype), random_images(image_size)
    logits_gradient = np.random.default_rng(2).normal(size=(2, TINY["num_classes"]))
    torch_masks = None if masks is None else torch.from_numpy(masks).to(dtype)
    logits = model(to_torch(images, dtype), torch_masks)
    logits.backward(torch.from_numpy(logits_gradient).to(dtype))
    theirs = reference.Mixer(official_parameters(image_size), images, masks, rules)
    return (
        {"logits": logits.detach().double().numpy(), **official_gradients(model)},
        {"logits": theirs.logits, **theirs.gradients(logits_gradient)},
    )


@pytest.mark.parametrize("variant", PAPER_COUNTS)
def test_parameter_counts_and_multiply_adds_are_the_papers(variant):
    expected = PAPER_COUNTS[variant]
    with torch.device("meta"):
        models = [build_mixer(variant, num_classes) for num_classes in (0, 1000, 21_843)]
        with FlopCounterMode(display=False) as counter:
            models[1](torch.empty(1, 3, 224, 224))
    counts = [sum(p.numel() for p in model.parameters()) for model in models]
    assert (*counts, counter.get_total_flops() // 2) == expected
    assert mixer.num_multiply_adds(**models[1].dimensions) == expected[3]


@pytest.mark.parametrize("image_size", IMAGE_SIZES)
@pytest.mark.parametrize("masks", [None, MASKS], ids=["whole", "depth-masks"])
def test_float64_logits_and_gradients_equal_the_reference(image_size, masks):
    ours, theirs = both_passes(image_size, masks)
    assert largest_difference(ours, theirs) < 1e-10


@pytest.mark.parametrize("image_size", IMAGE_SIZES)
def test_float32_logits_and_gradients_equal_the_reference(image_size):
    ours, theirs = both_passes(image_size, MASKS, torch.float32)
    assert np.abs(ours["logits"] - theirs["logits"]).max() < 2e-6
    assert largest_difference(ours, theirs) < 5e-6  # gradients reach 5 and sum over tokens


@pytest.mark.parametrize(
    "mistake",
    [{"gelu": "erf"}, {"epsilon": 1e-5}, {"stem_axes": (1, 0, 2)}],
    ids=["erf-gelu", "torch-epsilon", "stem-transposed"],
)
def test_a_known_mistake_would_be_noticed(mistake):
    ours, theirs = both_passes((8, 12), rules=replace(reference.OFFICIAL, **mistake))
    assert np.abs(ours["logits"] - theirs["logits"]).max() > 4e-6


def test_the_reference_gradients_equal_complex_steps():
    parameters, images = official_parameters((8, 12)), random_images((8, 12))
    generator = np.random.default_rng(3)
    weights = generator.normal(size=(2, TINY["num_classes"]))
    gradients = reference.Mixer(parameters, images, MASKS).gradients(weights)
    for key, value in parameters.items():
        direction = generator.normal(size=value.shape)
        stepped = {**parameters, key: value + 1e-30j * direction}
        slope = (reference.Mixer(stepped, images, MASKS).logits * weights).sum().imag / 1e-30
        expected = (gradients[key] * direction).sum()
        assert slope == pytest.approx(expected, rel=1e-10, abs=1e-10), key


def test_bfloat16_runs_throughout_and_stays_near_float64():
    images = random_images((8, 12))
    logits = tiny_model((8, 12), torch.bfloat16)(to_torch(images, torch.bfloat16))
    expected = reference.Mixer(official_parameters((8, 12)), images).logits
    assert logits.dtype == torch.bfloat16
    assert np.abs(logits.detach().double().numpy() - expected).max() < 0.1


def test_features_are_the_input_of_the_head():
    model, images = tiny_model((8, 12)), to_torch(random_images((8, 12)))
    features = model.features(images)
    assert features.shape == (2, TINY["hidden_dim"])
    assert torch.equal(model.head(features), model(images))
    headless = MlpMixer((8, 12), **{**TINY, "num_classes": 0}).double()
    headless.load_state_dict({n: p for n, p in model.state_dict().items() if "head." not in n})
    assert torch.equal(headless(images), features)


def test_permuted_patches_and_pixels_are_undone_by_permuted_weights():
    model, images = tiny_model((8, 12)), to_torch(random_images((8, 12)))
    generator = torch.Generator().manual_seed(4)
    patch_order = torch.randperm(6, generator=generator)
    pixel_order = torch.randperm(16, generator=generator)
    logits, permuted = model(images), _permuted(images, patch_order, pixel_order)
    assert (model(permuted) - logits).abs().max() > 1e-2
    with torch.no_grad():
        kernel = model.stem.weight.view(-1, 16, 3)  # (C, P*P, 3)
        kernel.copy_(kernel[:, pixel_order])
        for block in model.blocks:
            fc1, fc2 = block.token_mixing.fc1, block.token_mixing.fc2
            fc1.weight.copy_(fc1.weight[:, patch_order])
            fc2.weight.copy_(fc2.weight[patch_order])
            fc2.bias.copy_(fc2.bias[patch_order])
    assert (model(permuted) - logits).abs().max() < 1e-12


def _permuted(images, patch_order, pixel_order):
    """Shuffle the 2 x 3 patches of images (B, 3, 8, 12), and the pixels within each alike."""
    patches = F.unfold(images, 4, stride=4).view(2, 3, 16, 6)  # (B, 3, P*P, S)
    patches = patches[:, :, pixel_order][..., patch_order].reshape(2, 48, 6)
    return F.fold(patches, (8, 12), 4, stride=4)


def test_depth_rates_rise_from_zero_to_the_rate():
    assert mixer.depth_rates(5, 0.1) == pytest.approx([0, 0.025, 0.05, 0.075, 0.1])
    assert mixer.depth_rates(1, 0.1) == [0.0]


def test_kept_branches_are_not_rescaled_and_dropped_ones_vanish():
    model, images = tiny_model((8, 12)), to_torch(random_images((8, 12)))
    kept, dropped = torch.ones(3, 2, 2), torch.zeros(3, 2, 2, dtype=torch.bool)
    assert torch.equal(model(images, kept), model(images))
    stem = model.stem(mixer.patchify(images, 4))
    assert torch.equal(model.features(images, dropped), model.pre_head_norm(stem).mean(0))


def test_parameters_are_used_only_in_the_forward_of_their_owner():
    """What ZeRO-3 and FSDP need: here every parameter is NaN outside of its owner's forward."""
    model, images = tiny_model((8, 12)), to_torch(random_images((8, 12)))
    expected = model(images)
    for module in model.modules():
        own = list(module.parameters(recurse=False))
        values = [parameter.detach().clone() for parameter in own]
        _hide(module, own)
        module.register_forward_pre_hook(_shower(own, values))
        module.register_forward_hook(lambda module, *_, own=own: _hide(module, own))
    with torch.no_grad():
        assert torch.equal(model(images), expected)


def _hide(module: nn.Module, parameters: list[Tensor]) -> None:
    for parameter in parameters:
        parameter.data.fill_(math.nan)


def _shower(parameters, values):
    def show(*_):
        for parameter, value in zip(parameters, values, strict=True):
            parameter.data.copy_(value)

    return show


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        ((2, 3, 8, 8), torch.float32, r"\(batch, 3, 8, 12\), got \(2, 3, 8, 8\); resize"),
        ((2, 8, 12, 3), torch.float32, r"got \(2, 8, 12, 3\)"),
        ((3, 8, 12), torch.float32, r"got \(3, 8, 12\)"),
        ((2, 3, 8, 12), torch.uint8, "floating-point images, got torch.uint8; scale"),
    ],
)
def test_images_that_do_not_fit_are_refused(shape, dtype, message):
    with pytest.raises(ValueError, match=message):
        MlpMixer((8, 12), **TINY)(torch.zeros(shape, dtype=dtype))


def test_depth_masks_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"\(3, 2, 4\), got \(3, 4\); give"):
        MlpMixer((8, 12), **TINY)(torch.zeros(4, 3, 8, 12), torch.ones(3, 4))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size": (8, 10)}, r"divisible by the patch size 4, got \(8, 10\); choose"),
        ({"patch_size": 0}, "at least 1"),
        ({"num_classes": -1}, "no negative size"),
    ],
)
def test_sizes_that_cannot_work_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        MlpMixer(**{"image_size": 8, **TINY, **change})


def test_an_unknown_variant_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"S/32, S/16, .*, H/14, got 'B/8'"):
        build_mixer("B/8", 10)
