"""python benchmarks/timm_logits.py: timm's own Mixers beside ours, with the same random weights.

Needs timm, which no test of ours does: timm imports torchvision, whose wheel for CUDA fails beside
a torch for CPUs. The operators that this wheel then lacks are declared here, as no Mixer calls
them. Prints Markdown; ends with 1 where logits differ by more than 2e-6.
"""

import sys
import tempfile
from functools import partial
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a bare checkout

from mixer_dist.checkpoint.weights_file import read_weights, weights_format
from mixer_dist.models.mixer import build_mixer
from mixer_dist.storage import Storage

MODELS = {"mixer_s32_224": "S/32", "mixer_b16_224": "B/16", "mixer_l16_224": "L/16"}
NUM_IMAGES = 4
NUM_CLASSES = 1000
BAR = 2e-6


def main() -> int:
    """Compare each model; the exit code."""
    if not torch.cuda.is_available():
        operators = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import timm

    print(f"timm {timm.__version__}, torch {torch.__version__}, {NUM_IMAGES} images\n")
    columns = ("model", "largest logit", "largest difference", "with timm's default GELU")
    print(f"| {' | '.join((*columns, 'file comes out equal'))} |\n|---|---|---|---|---|")
    return int(max([compare(timm, name) for name in MODELS]) > BAR)


def compare(timm, name: str) -> float:
    """Print a row of the table; the largest difference of logits."""
    torch.manual_seed(0)
    tanh_gelu = partial(nn.GELU, approximate="tanh")
    theirs = timm.create_model(name, num_classes=NUM_CLASSES, act_layer=tanh_gelu).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():  # timm's biases and head begin at zero
            scale = 0.1 if parameter.dim() == 1 else parameter[0].numel() ** -0.5
            parameter.add_(torch.randn_like(parameter) * scale)
    images = torch.rand(NUM_IMAGES, 3, 224, 224) * 2 - 1
    ours, is_equal = converted(theirs.state_dict(), MODELS[name])
    with torch.inference_mode():
        found, expected = ours(images), theirs(images)
        for module in theirs.modules():
            if isinstance(module, nn.GELU):
                module.approximate = "none"
        exact_gelu = theirs(images)
    difference = float((found - expected).abs().max())
    print(
        f"| {name} | {float(expected.abs().max()):.2f} | {difference:.1e} "
        f"| {float((found - exact_gelu).abs().max()):.1e} | {'yes' if is_equal else 'no'} |"
    )
    return difference


def converted(weights: dict[str, Tensor], variant: str) -> tuple[nn.Module, bool]:
    """Our model with timm's weights, and whether the export has every byte of their file."""
    with tempfile.TemporaryDirectory() as folder:
        file = f"{folder}/timm.safetensors"
        safetensors.torch.save_file(weights, file)
        tensors = read_weights(Storage(), file).tensors
        model = build_mixer(variant, NUM_CLASSES).eval()
        model.load_state_dict(tensors)
        back = weights_format("x.safetensors", "timm").encode(model.state_dict())
        return model, back == Path(file).read_bytes()


if __name__ == "__main__":
    sys.exit(main())
