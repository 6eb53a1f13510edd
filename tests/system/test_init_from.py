"""A run that begins with weights from elsewhere, on two ranks."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch

from mixer_dist import cli
from mixer_dist.checkpoint.load import full_tensors
from mixer_dist.checkpoint.restore import verified
from mixer_dist.checkpoint.weights_file import weights_format
from mixer_dist.models.initial import initialize
from mixer_dist.models.mixer import MlpMixer
from mixer_dist.models.npz import npz_bytes, save_npz, to_official
from mixer_dist.models.resolution import change_resolution
from mixer_dist.run_dir import RunDir, read_attempt
from mixer_dist.storage import Storage
from tests.test_cli import refusal

CONFIG = "configs/quickstart.yaml"
SIZES = {
    "image_size": 16, "patch_size": 4, "hidden_dim": 32, "num_blocks": 2, "tokens_mlp_dim": 12,
    "channels_mlp_dim": 40,
}  # fmt: skip


def source_model(num_classes: int = 10) -> MlpMixer:
    model = MlpMixer(**SIZES, num_classes=num_classes)
    initialize(model, seed=77, head_bias=0.5)
    return model


def arguments(digits: Path, run_dir: Path, *more: str) -> list[str]:
    """One step, whose learning rate is 0: its checkpoint holds the weights it began with."""
    return [
        CONFIG, f"run_dir={run_dir}", "engine.name=fsdp", "total_steps=2",
        "optimizer.warmup_steps=1", "global_batch_size=16", "micro_batch_size=8",
        "checkpoint.every_steps=1", f"data.train.0.manifest={digits}/train/manifest.json",
        *[f"model.{name}={size}" for name, size in SIZES.items()], *more,
    ]  # fmt: skip


def pretrain(given: list[str]) -> int:
    """The verb, on one rank; its exit code."""
    return cli.main(["pretrain", *given])


def weights_at(run_dir: Path, step: int) -> dict[str, torch.Tensor]:
    url = RunDir(str(run_dir)).checkpoint(step)
    return full_tensors(Storage(), verified(Storage(), url))


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_a_run_begins_with_a_files_weights_then_goes_on_from_its_own(ranks, digits, tmp_path):
    file, run_dir = tmp_path / "official.npz", tmp_path / "run"
    save_npz(source_model(), file)
    given = arguments(digits, run_dir, f"init_from={file}")
    assert ranks.run(2, pretrain, [*given, "engine.name=zero2"]) == [0, 0]
    assert_same(weights_at(run_dir, 1), source_model().state_dict())
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    file.unlink()  # is no longer needed
    shutil.rmtree(run_dir / "checkpoints/step-00000002")
    assert ranks.run(1, pretrain, given) == [0]
    first, second = (read_attempt(Storage(), RunDir(str(run_dir)), n) for n in (1, 2))
    assert second.resumed_from == 1
    assert first.init_from_hash == second.init_from_hash == sha256


def test_another_run_gives_its_newest_weights_to_a_larger_image(ranks, digits, tmp_path):
    file, first, second = tmp_path / "timm.safetensors", tmp_path / "first", tmp_path / "second"
    data = weights_format(str(file), "timm").encode(source_model(7).state_dict())
    file.write_bytes(data)
    head = ["model.head_bias=0", f"init_from={file}"]
    assert ranks.run(1, pretrain, arguments(digits, first, "engine.name=single", *head)) == [0]
    begun = weights_at(first, 1)
    assert not begun["head.weight"].any()
    assert not begun["head.bias"].any()
    larger = ["model.image_size=32", "model.tokens_mlp_dim=48", f"init_from={first}"]
    assert ranks.run(2, pretrain, arguments(digits, second, *larger)) == [0, 0]
    source = MlpMixer(**SIZES, num_classes=10)
    source.load_state_dict(weights_at(first, 2))
    assert_same(weights_at(second, 1), change_resolution(source, 32).state_dict())


def test_the_untrained_model_is_the_one_that_the_run_begins_with(digits, tmp_path, capsys):
    file = tmp_path / "official.npz"
    save_npz(source_model(), file)
    task = ["--task", "digits", "--checkpoint", "untrained", "--json"]
    tests = [f"evals.0.{key}={digits}/test/manifest.json" for key in ("train", "test")]
    results = []
    for init_from in (f"init_from={file}", "seed=77"):
        given = arguments(digits, tmp_path / "run", "engine.name=single", *tests, init_from)
        assert cli.main(["evaluate", *given, *task]) == 0
        results.append(json.loads(capsys.readouterr().out)["per_seed"])
    assert results[0] == results[1]


@pytest.fixture
def misfit(tmp_path) -> Path:
    """A file that lacks a tensor, has another, and one of another shape."""
    arrays = to_official(source_model().state_dict(), 4)
    arrays["MixerBlock_1/LayerNorm_0/kernel"] = arrays.pop("MixerBlock_1/LayerNorm_0/scale")
    arrays["stem/bias"] = arrays["stem/bias"][:5]
    file = tmp_path / "misfit.npz"
    file.write_bytes(npz_bytes(arrays))
    return file


def test_a_file_that_does_not_fit_is_refused_with_every_name(capsys, ranks, digits, misfit):
    run_dir = misfit.parent / "run"
    given = arguments(digits, run_dir, "engine.name=single", f"init_from={misfit}")
    code, line = refusal(capsys, "pretrain", *given)
    assert code == 2
    assert "missing blocks.1.token_norm.weight (MixerBlock_1/LayerNorm_0/scale)" in line
    assert "unexpected MixerBlock_1/LayerNorm_0/kernel" in line
    assert "stem.bias (stem/bias) has shape (5,), expected (32,)" in line
    assert not (run_dir / "attempts").exists()
    assert ranks.run(2, pretrain, [*given, "engine.name=fsdp"]) == [2, 2]


@pytest.mark.parametrize(
    ("name", "words"),
    [("none", "no weights at"), ("model.pth", "pickle"), ("empty", "no checkpoint is complete")],
)
def test_a_place_without_weights_is_refused(capsys, digits, tmp_path, name, words):
    (tmp_path / "empty/checkpoints/step-00000001").mkdir(parents=True)
    run_dir = tmp_path / "run"
    given = arguments(digits, run_dir, "engine.name=single", f"init_from={tmp_path / name}")
    code, line = refusal(capsys, "pretrain", *given)
    assert code == 2
    assert words in line
    assert not (run_dir / "attempts").exists()


def test_what_a_run_began_with_cannot_change(capsys, digits, tmp_path):
    file, run_dir = tmp_path / "official.npz", tmp_path / "run"
    save_npz(source_model(), file)
    given = arguments(digits, run_dir, "engine.name=single", f"init_from={file}")
    assert pretrain(given) == 0
    capsys.readouterr()
    code, line = refusal(capsys, "pretrain", *given, f"init_from={tmp_path}/other.npz")
    assert code == 2
    assert "init_from: " in line
    shutil.rmtree(run_dir / "checkpoints")  # as if it had been killed before its first
    save_npz(source_model(7), file)
    assert pretrain(given) == 0  # nothing is committed that would have begun with the old one
    hashes = [read_attempt(Storage(), RunDir(str(run_dir)), n).init_from_hash for n in (1, 2)]
    assert None not in hashes and hashes[0] != hashes[1]
