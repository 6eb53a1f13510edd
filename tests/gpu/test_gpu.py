"""What only a GPU can show: bf16 parity, and steps of each engine on CUDA at world size 1."""

import pytest
import torch

from mixer_dist.models.mixer import build_mixer
from tests.gpu import gpu_cases
from tests.tiny import SGD

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

PYTORCH_ENGINES = ["single", "ddp", "fsdp", "hsdp"]  # DeepSpeed's wait for the device each step
ENGINES = [*PYTORCH_ENGINES, "zero1", "zero2", "zero3"]


def test_bf16_features_are_those_of_fp32():
    model = build_mixer("S/16", 10).cuda().eval()
    images = torch.rand(8, 3, 224, 224, generator=torch.Generator().manual_seed(0)).cuda() * 2 - 1
    with torch.inference_mode():
        exact = model.features(images)
        rounded = model.to(torch.bfloat16).features(images.to(torch.bfloat16)).float()
    assert torch.nn.functional.cosine_similarity(exact, rounded).min() > 0.999


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_engine_takes_the_same_steps(ranks, precision):
    expected = ranks.run(1, gpu_cases.short_run, "single", precision)[0].losses
    tolerance = 2e-6 if precision == "fp32" else 5e-4
    for engine in ENGINES:
        outcome = ranks.run(1, gpu_cases.short_run, engine, precision)[0]
        assert outcome.device == "cuda"
        assert outcome.num_updates == 6
        assert outcome.losses == pytest.approx(expected, rel=tolerance), engine


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_losses_are_those_of_a_cpu(ranks, precision):
    """By SGD: AdamW's first updates have the sign of a gradient, be it a rounding's."""
    expected = ranks.run(1, gpu_cases.cpu_losses, precision, SGD)[0]
    found = ranks.run(1, gpu_cases.short_run, "single", precision, SGD)[0]
    assert found.losses == pytest.approx(expected, rel=1e-5 if precision == "fp32" else 5e-3)


@pytest.mark.parametrize("engine", PYTORCH_ENGINES)
def test_a_step_does_not_wait_for_the_gpu(ranks, engine):
    assert ranks.run(1, gpu_cases.steps_ahead_of_the_gpu, engine) == [6]
