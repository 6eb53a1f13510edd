"""python benchmarks/timm_logits.py: timm's own Mixers beside ours, with the same random weights.

Needs timm, which no test of ours does: timm imports torchvision, whose wheel for CUDA fails beside
a torch for CPUs, unless the operators that it then lacks are declared (benchmarks/peer_models.py).
Our model is the checkpoint that timm's file was imported to. Prints Markdown; ends with 1
where logits differ by more than 2e-6, or features by more than 1e-5.
"""

import sys
import tempfile
from functools import partial
from importlib.metadata import version
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a bare checkout

from benchmarks.peer_models import timm_mixer
from mixer_dist.checkpoint.catalog import read_checkpoint
from mixer_dist.checkpoint.convert import import_weights
from mixer_dist.checkpoint.load import full_tensors
from mixer_dist.checkpoint.weights_file import weights_format
from mixer_dist.models.mixer import build_mixer
from mixer_dist.storage import Storage

VARIANTS = ("S/32", "B/16", "L/16")
NUM_IMAGES = 4
NUM_CLASSES = 1000
LOGITS_BAR, FEATURES_BAR = 2e-6, 1e-5


def main() -> int:
    """Compare each model; the exit code."""
    print(f"timm {version('timm')}, torch {torch.__version__}, {NUM_IMAGES} images\n")
    columns = ("model", "largest logit", "largest difference", "of features")
    more = ("of logits with timm's default GELU", "file comes out equal")
    print(f"| {' | '.join(columns + more)} |\n|---|---|---|---|---|---|")
    are_within = [compare(variant) for variant in VARIANTS]
    return int(not all(are_within))


def compare(variant: str) -> bool:
    """Print a row of the table; whether logits and features are within the bars."""
    torch.manual_seed(0)
    tanh_gelu = partial(nn.GELU, approximate="tanh")
    theirs = timm_mixer(variant, NUM_CLASSES, act_layer=tanh_gelu).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():  # timm's biases and head begin at zero
            scale = 0.1 if parameter.dim() == 1 else parameter[0].numel() ** -0.5
            parameter.add_(torch.randn_like(parameter) * scale)
    images = torch.rand(NUM_IMAGES, 3, 224, 224) * 2 - 1
    ours, is_equal = converted(theirs.state_dict(), variant)
    with torch.inference_mode():
        found, expected = ours(images), theirs(images)
        pre_logits = theirs.forward_head(theirs.forward_features(images), pre_logits=True)
        of_features = float((ours.features(images) - pre_logits).abs().max())
        for module in theirs.modules():
            if isinstance(module, nn.GELU):
                module.approximate = "none"
        exact_gelu = theirs(images)
    difference = float((found - expected).abs().max())
    print(
        f"| {variant} | {float(expected.abs().max()):.2f} | {difference:.1e} | {of_features:.1e} "
        f"| {float((found - exact_gelu).abs().max()):.1e} | {'yes' if is_equal else 'no'} |"
    )
    return difference <= LOGITS_BAR and of_features <= FEATURES_BAR


def converted(weights: dict[str, Tensor], variant: str) -> tuple[nn.Module, bool]:
    """Our model from a checkpoint of timm's weights; whether they come out byte for byte."""
    with tempfile.TemporaryDirectory() as folder:
        file = f"{folder}/timm.safetensors"
        safetensors.torch.save_file(weights, file)
        storage, url = Storage(), f"{folder}/imported"
        import_weights(storage, file, url)
        model = build_mixer(variant, NUM_CLASSES).eval()
        model.load_state_dict(full_tensors(storage, read_checkpoint(storage, url)))
        back = weights_format("x.safetensors", "timm").encode(model.state_dict())
        return model, back == Path(file).read_bytes()


if __name__ == "__main__":
    sys.exit(main())
