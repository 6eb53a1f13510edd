"""A checkpoint of any engine and world size goes on under any other."""

import json

import pytest
import safetensors.torch
import torch

from mixer_dist.checkpoint.catalog import list_checkpoints, read_checkpoint
from mixer_dist.checkpoint.layout import sealed, unsealed
from mixer_dist.checkpoint.load import full_tensors
from mixer_dist.checkpoint.restore import newest_verified, verified
from mixer_dist.errors import CheckpointError
from mixer_dist.run_dir import RunDir
from mixer_dist.storage import Storage
from tests.checkpoint import resume_cases

WRITERS = [
    ("single", 1), ("ddp", 3), ("fsdp", 2), ("hsdp", 4), ("zero1", 3), ("zero2", 2), ("zero3", 3),
]  # fmt: skip
READERS = [
    ("single", 1), ("ddp", 2), ("fsdp", 3), ("hsdp", 4), ("zero1", 2), ("zero2", 2), ("zero3", 2),
]  # fmt: skip


@pytest.fixture(scope="module")
def saved(ranks, tmp_path_factory):
    """run_dir and the losses after the save, for each writer; made once."""
    made = {}

    def get(engine: str, world_size: int, precision: str = "fp32"):
        key = (engine, world_size, precision)
        if key not in made:
            run_dir = str(tmp_path_factory.mktemp("run"))
            made[key] = (
                run_dir,
                ranks.run(world_size, resume_cases.train_and_save, run_dir, engine, precision)[0],
            )
        return made[key]

    return get


@pytest.mark.parametrize("reader", READERS, ids=lambda r: f"to-{r[0]}-{r[1]}")
def test_any_engine_goes_on_where_any_other_stopped(ranks, saved, reader):
    engine, world_size = reader
    run_dirs = [saved(*writer)[0] for writer in WRITERS]
    outcomes = ranks.run(world_size, resume_cases.restore_and_train, run_dirs, engine, "fp32")
    for of_rank in outcomes:
        for writer, resumed in zip(WRITERS, of_rank, strict=True):
            expected = saved(*writer)[1]
            assert resumed.is_bitwise, writer
            assert resumed.num_updates == resume_cases.SAVED_AT
            worst = max(abs(a - b) / b for a, b in zip(resumed.losses, expected, strict=True))
            assert resumed.losses == expected if writer == reader else worst < 1e-5, writer


@pytest.mark.parametrize("engine", ["ddp", "fsdp", "zero1", "zero2", "zero3"])
def test_bf16_resumes_bitwise_on_the_same_ranks(ranks, saved, engine):
    run_dir, expected = saved(engine, 2, "bf16")
    for (resumed,) in ranks.run(2, resume_cases.restore_and_train, [run_dir], engine, "bf16"):
        assert resumed.is_bitwise
        assert resumed.losses == expected


def test_the_files_are_plain_safetensors_of_fp32_pieces(saved):
    run_dir, _ = saved("zero2", 2)
    checkpoint = read_checkpoint(Storage(), RunDir(run_dir).checkpoint(resume_cases.SAVED_AT))
    names = [entry.name for entry in checkpoint.manifest.files]
    assert names == ["pieces-0001-00000.safetensors", "pieces-0001-00001.safetensors"]
    rebuilt = {}
    for name in names:
        for key, tensor in safetensors.torch.load_file(f"{checkpoint.url}/{name}").items():
            assert tensor.dtype == torch.float32
            kind_and_fqn, start = key.rsplit("@", 1)
            rebuilt.setdefault(kind_and_fqn, []).append((int(start), tensor))
    for fqn, tensor in full_tensors(Storage(), checkpoint).items():
        parts = [part for _, part in sorted(rebuilt[f"param.{fqn}"], key=lambda item: item[0])]
        assert torch.equal(torch.cat(parts).view_as(tensor), tensor)


@pytest.fixture
def checkpoint_url(saved, tmp_path):
    """A checkpoint of two files that a test may damage."""
    run_dir, _ = saved("fsdp", 2)
    storage = Storage()
    source = RunDir(run_dir).checkpoint(resume_cases.SAVED_AT)
    url = str(tmp_path / "run" / "checkpoints" / "step-00000006")
    for name in storage.names(source):
        storage.write(f"{url}/{name}", storage.read(f"{source}/{name}"))
    return url


def test_a_flipped_bit_is_found(checkpoint_url):
    storage, file = Storage(), f"{checkpoint_url}/pieces-0001-00001.safetensors"
    verified(storage, checkpoint_url)
    data = bytearray(storage.read(file))
    data[-5] ^= 1
    storage.write(file, bytes(data))
    with pytest.raises(CheckpointError, match="pieces-0001-00001"):
        verified(storage, checkpoint_url)


@pytest.mark.parametrize("cut", [0, 100])
def test_a_short_or_missing_file_is_found(checkpoint_url, cut):
    storage, file = Storage(), f"{checkpoint_url}/pieces-0001-00000.safetensors"
    data = storage.read(file)
    storage.delete(file)
    if cut:
        storage.write(file, data[:-cut])
    with pytest.raises(CheckpointError, match="pieces-0001-00000"):
        verified(storage, checkpoint_url)


def test_a_folder_without_manifest_is_no_checkpoint(checkpoint_url, tmp_path):
    storage = Storage()
    storage.delete(f"{checkpoint_url}/manifest.json")
    found, problems = list_checkpoints(storage, RunDir(str(tmp_path / "run")))
    assert not found
    assert len(problems) == 1
    assert "no manifest.json" in str(problems[0])


@pytest.mark.parametrize(
    "damage",
    [
        lambda tree: tree["parameters"]["head.bias"].update(cuts=[0, 4]),
        lambda tree: tree["parameters"]["head.bias"].update(cuts=[0, 8, 4, 10]),
        lambda tree: tree["files"][0].update(name="../../evil.safetensors"),
        lambda tree: tree.pop("position"),
    ],
)
def test_a_manifest_that_cannot_be_right_is_refused(checkpoint_url, damage):
    storage, url = Storage(), f"{checkpoint_url}/manifest.json"
    tree = unsealed(storage.read(url))
    damage(tree)
    storage.write(url, sealed(json.dumps(tree).encode()))
    with pytest.raises(CheckpointError, match="damaged manifest"):
        read_checkpoint(storage, checkpoint_url)


def test_a_run_whose_only_checkpoint_is_damaged_does_not_begin_anew(checkpoint_url, tmp_path):
    """Its steps may yet be mended, and would be overwritten."""
    storage, run_dir = Storage(), RunDir(str(tmp_path / "run"))
    assert newest_verified(storage, run_dir)
    manifest = storage.read(f"{checkpoint_url}/manifest.json")
    storage.write(f"{checkpoint_url}/manifest.json", manifest.replace(b'"step":6', b'"step":7'))
    with pytest.raises(CheckpointError, match="none of the 1 checkpoints"):
        newest_verified(storage, run_dir)


def test_a_superseded_trainer_commits_nothing(ranks, tmp_path):
    run_dir = str(tmp_path)
    (message,) = ranks.run(1, resume_cases.save_superseded, run_dir)
    assert "superseded by attempt 2" in message
    found, _ = list_checkpoints(Storage(), RunDir(run_dir))
    assert not found
