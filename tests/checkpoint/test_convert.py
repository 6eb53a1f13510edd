"""Weights into files and back: equal bytes, and one line for a file that cannot be taken."""

import hashlib
import io
import json
import pickle

import numpy as np
import pytest
import safetensors.torch
import torch

from mixer_dist import cli
from mixer_dist.checkpoint.load import full_tensors
from mixer_dist.checkpoint.restore import verified
from mixer_dist.models.mixer import MlpMixer
from mixer_dist.models.npz import npz_bytes, to_official
from mixer_dist.models.timm_names import to_timm
from mixer_dist.storage import Storage
from tests.test_cli import refusal

PATCH_PX = 4
BYTES = {
    "npz": lambda weights: npz_bytes(to_official(weights, PATCH_PX)),
    "ours": safetensors.torch.save,
    "timm": lambda weights: safetensors.torch.save(to_timm(weights)),
}


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    """Random weights of a small Mixer, exact in bfloat16 and float16."""
    generator = torch.Generator().manual_seed(8)
    model = MlpMixer(16, PATCH_PX, 12, 2, 6, 20, 5)
    return {
        name: torch.randn(value.shape, generator=generator).bfloat16().float()
        for name, value in model.state_dict().items()
    }


@pytest.fixture
def checkpoint(weights, tmp_path) -> str:
    """The weights as a checkpoint."""
    (tmp_path / "in.safetensors").write_bytes(BYTES["ours"](weights))
    url = str(tmp_path / "step-00000000")
    assert cli.main(["checkpoint", "import", str(tmp_path / "in.safetensors"), url]) == 0
    return url


@pytest.mark.parametrize("layout", BYTES)
def test_a_file_comes_out_as_it_went_in(weights, tmp_path, layout):
    suffix = "npz" if layout == "npz" else "safetensors"
    names = ["--names", "timm"] if layout == "timm" else []
    first, second = tmp_path / f"in.{suffix}", tmp_path / f"out.{suffix}"
    first.write_bytes(BYTES[layout](weights))
    url = str(tmp_path / "checkpoint")
    assert cli.main(["checkpoint", "import", str(first), url]) == 0
    assert cli.main(["checkpoint", "export", url, str(second), *names]) == 0
    assert first.read_bytes() == second.read_bytes()
    found = full_tensors(Storage(), verified(Storage(), url))
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], value) for name, value in weights.items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("names", ["ours", "timm"])
def test_weights_are_exported_in_fewer_bits_and_come_back(
    weights, checkpoint, tmp_path, dtype, names
):
    file, again = str(tmp_path / "half.safetensors"), str(tmp_path / "again")
    options = ["--names", names, "--dtype", str(dtype).removeprefix("torch.")]
    assert cli.main(["checkpoint", "export", checkpoint, file, *options]) == 0
    assert {value.dtype for value in safetensors.torch.load_file(file).values()} == {dtype}
    assert cli.main(["checkpoint", "import", file, again]) == 0
    found = full_tensors(Storage(), verified(Storage(), again))
    assert all(torch.equal(found[name], value) for name, value in weights.items())


def test_export_and_import_say_what_they_wrote_as_json(capsys, checkpoint, tmp_path):
    file = tmp_path / "mixer.safetensors"
    capsys.readouterr()
    assert cli.main(["checkpoint", "export", checkpoint, str(file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "file": str(file),
        "names": "ours",
        "dtype": "float32",
        "num_parameters": 30,
        "num_bytes": file.stat().st_size,
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
    }
    target = str(tmp_path / "again")
    assert cli.main(["checkpoint", "import", str(file), target, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"checkpoint": target, "num_parameters": 30}


def test_weights_go_through_a_bucket(checkpoint, s3, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.endpoint_url)
    for name in ("AWS_REQUEST_CHECKSUM_CALCULATION", "AWS_RESPONSE_CHECKSUM_VALIDATION"):
        monkeypatch.setenv(name, "when_required")
    bucket = s3.new_bucket()
    file, there, back = f"{bucket}/mixer.npz", f"{bucket}/step-00000000", tmp_path / "back.npz"
    assert cli.main(["checkpoint", "export", checkpoint, file]) == 0
    assert cli.main(["checkpoint", "import", file, there]) == 0
    assert cli.main(["checkpoint", "export", there, str(back)]) == 0
    assert back.read_bytes() == s3.storage().read(file)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("mixer.npz", ["--dtype", "bfloat16"], "official names in float32"),
        ("mixer.npz", ["--names", "timm"], "official names in float32"),
        ("mixer.onnx", [], "ending in .npz or .safetensors"),
        ("mixer.pt", [], "ending in .npz or .safetensors"),
    ],
)
def test_a_format_that_cannot_be_is_refused(capsys, checkpoint, tmp_path, name, options, words):
    capsys.readouterr()
    code, line = refusal(capsys, "checkpoint", "export", checkpoint, str(tmp_path / name), *options)
    assert code == 2
    assert words in line
    assert not (tmp_path / name).exists()


def test_a_value_beyond_float16_is_refused_by_name(capsys, weights, tmp_path):
    weights = weights | {"stem.bias": torch.full((12,), 70000.0)}
    (tmp_path / "in.npz").write_bytes(BYTES["npz"](weights))
    url, file = str(tmp_path / "checkpoint"), tmp_path / "out.safetensors"
    assert cli.main(["checkpoint", "import", str(tmp_path / "in.npz"), url]) == 0
    code, line = refusal(capsys, "checkpoint", "export", url, str(file), "--dtype", "float16")
    assert code == 2
    assert "stem.bias has values beyond 65504" in line
    assert not file.exists()


def pickled(weights) -> bytes:
    buffer = io.BytesIO()
    torch.save(weights, buffer)
    return buffer.getvalue()


def pickled_npz(weights) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **{"stem/bias": np.array([print], dtype=object)})
    return buffer.getvalue()


BAD_FILES = {
    "another model": ("x.safetensors", lambda w: safetensors.torch.save({"fc": w["stem.bias"]}),
                      "no matrix, for stem.weight"),
    "a pickle": ("x.pth", pickled, "safetensors.torch.save_file"),
    "a bin file": ("x.bin", pickled, "safetensors.torch.save_file"),
    "a renamed pickle": ("x.safetensors", pickle.dumps, "does not hold the weights of a Mixer"),
    "a pickle in an archive": ("x.npz", pickled_npz, "does not hold the weights of a Mixer"),
    "nothing": ("x.safetensors", lambda _: b"", "does not hold the weights of a Mixer"),
    "a cut file": ("x.safetensors", lambda w: BYTES["ours"](w)[:-5],
                   "does not hold the weights of a Mixer"),
    "a cut archive": ("x.npz", lambda w: BYTES["npz"](w)[:-50],
                      "does not hold the weights of a Mixer"),
    "whole numbers": ("x.safetensors", lambda w: BYTES["ours"](
        {**w, "head.bias": torch.zeros(5, dtype=torch.int64)}), "head.bias is torch.int64"),
    "NaN": ("x.safetensors", lambda w: BYTES["timm"](
        {**w, "blocks.1.token_norm.bias": torch.full((12,), torch.nan)}),
        "blocks.1.token_norm.bias is not finite"),
    "a missing and a foreign tensor": ("x.safetensors", lambda w: BYTES["timm"](
        {("extra" if name == "pre_head_norm.bias" else name): w[name] for name in w}),
        "missing pre_head_norm.bias (norm.bias); unexpected extra"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_file_that_cannot_be_taken_is_refused_with_the_reason(capsys, weights, tmp_path, case):
    name, content, words = BAD_FILES[case]
    (tmp_path / name).write_bytes(content(weights))
    target = tmp_path / "checkpoint"
    code, line = refusal(capsys, "checkpoint", "import", str(tmp_path / name), str(target))
    assert code == 2
    assert words in line
    assert not target.exists()


def test_a_file_that_is_not_there_is_named(capsys, tmp_path):
    missing = str(tmp_path / "no.npz")
    code, line = refusal(capsys, "checkpoint", "import", missing, str(tmp_path / "checkpoint"))
    assert code == 2
    assert missing in line
    assert not (tmp_path / "checkpoint").exists()
