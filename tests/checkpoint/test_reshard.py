"""A checkpoint in another number of files is the same checkpoint."""

import json
import os
import shutil

import pytest
import torch

from mixer_dist import cli
from mixer_dist.checkpoint.load import read_pieces
from mixer_dist.checkpoint.pieces import KINDS, Piece
from mixer_dist.checkpoint.reshard import equal_cuts, reshard
from mixer_dist.checkpoint.restore import read_checkpoint, verified
from mixer_dist.errors import CheckpointError
from mixer_dist.run_dir import RunDir
from mixer_dist.storage import Storage
from tests.checkpoint import resume_cases


@pytest.fixture(scope="module")
def source(ranks, tmp_path_factory) -> tuple[str, list[float]]:
    """The URL of a checkpoint of two files, and the losses after it."""
    run_dir = str(tmp_path_factory.mktemp("run"))
    losses = ranks.run(2, resume_cases.train_and_save, run_dir, "zero2", "fp32")[0]
    return RunDir(run_dir).checkpoint(resume_cases.SAVED_AT), losses


def state(url: str) -> dict[str, torch.Tensor]:
    """Every tensor whole: parameters and moments."""
    checkpoint = read_checkpoint(Storage(), url)
    pieces = [
        Piece(kind, fqn, 0, entry.cuts[-1], torch.empty(entry.cuts[-1]))
        for fqn, entry in checkpoint.manifest.parameters.items()
        for kind in KINDS["adamw"]
    ]
    read_pieces(Storage(), checkpoint, pieces)
    return {piece.name: piece.tensor for piece in pieces}


@pytest.mark.parametrize("num_files", [1, 2, 5, 7])
def test_tensors_and_state_are_the_same_in_any_number_of_files(source, tmp_path, num_files):
    url = str(tmp_path / "again")
    reshard(Storage(), source[0], url, num_files)
    before, after = (read_checkpoint(Storage(), where).manifest for where in (source[0], url))
    cut_anew = {"parameters", "files"}
    assert after.model_dump(exclude=cut_anew) == before.model_dump(exclude=cut_anew)
    assert after.shapes == before.shapes
    expected, found = state(source[0]), state(url)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert any(tensor.any() for name, tensor in found.items() if name.startswith("exp_avg_sq."))


def test_files_are_of_equal_size_and_verify(source, tmp_path):
    url = str(tmp_path / "seven")
    reshard(Storage(), source[0], url, 7)
    manifest = verified(Storage(), url).manifest
    assert sorted(os.listdir(url)) == sorted([*(f.name for f in manifest.files), "manifest.json"])
    held = [0] * 7
    for entry in manifest.parameters.values():
        for number, start, stop in zip(entry.files, entry.cuts, entry.cuts[1:], strict=False):
            held[number] += stop - start
    assert max(held) - min(held) <= 1


@pytest.mark.parametrize("num_files", [1, 3, 12])
def test_cuts_cover_each_element_once(num_files):
    shapes = {"scalar": (), "empty": (0, 3), "matrix": (2, 3), "vector": (5,)}
    cuts = equal_cuts(shapes, num_files)
    covered = [(fqn, i) for held in cuts for fqn, start, stop in held for i in range(start, stop)]
    assert covered == [("scalar", 0), *(("matrix", i) for i in range(6)),
                       *(("vector", i) for i in range(5))]  # fmt: skip
    assert all(cuts)


@pytest.mark.parametrize(("engine", "world_size"), [("zero2", 2), ("fsdp", 3), ("zero3", 2)])
def test_engines_go_on_from_it(ranks, source, tmp_path, engine, world_size):
    url, losses = source
    again = RunDir(str(tmp_path)).checkpoint(resume_cases.SAVED_AT)
    reshard(Storage(), url, again, 5)
    for (resumed,) in ranks.run(
        world_size, resume_cases.restore_and_train, [str(tmp_path)], engine, "fp32"
    ):
        assert resumed.is_bitwise
        assert resumed.num_updates == resume_cases.SAVED_AT
        assert resumed.losses == pytest.approx(losses, rel=1e-5)
        assert engine != "zero2" or resumed.losses == losses


def test_the_verb_says_what_it_wrote(capsys, source, tmp_path):
    url = str(tmp_path / "three")
    assert cli.main(["checkpoint", "reshard", source[0], url, "--files", "3", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["step"], told["num_files"]) == (resume_cases.SAVED_AT, 3)
    sizes = [os.path.getsize(os.path.join(url, n)) for n in os.listdir(url) if n != "manifest.json"]
    assert told["num_bytes"] == sum(sizes)


@pytest.mark.parametrize("num_files", [0, 10**9])
def test_an_impossible_number_of_files_is_refused(capsys, source, tmp_path, num_files):
    url = tmp_path / "none"
    assert cli.main(["checkpoint", "reshard", source[0], str(url), "--files", str(num_files)]) == 2
    assert f"--files is {num_files}: expected 1 to" in capsys.readouterr().err
    assert not url.exists()


def test_a_place_that_holds_a_checkpoint_is_refused(capsys, source):
    before = state(source[0])
    assert cli.main(["checkpoint", "reshard", source[0], source[0], "--files", "3"]) == 2
    assert "holds a checkpoint already" in capsys.readouterr().err
    assert all(torch.equal(a, b) for a, b in zip(before.values(), state(source[0]).values(),
                                                 strict=True))  # fmt: skip


def flip_a_bit(path: str) -> None:
    with open(path, "r+b") as file:
        file.seek(-5, os.SEEK_END)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))


class BadDisk(Storage):
    """Keeps other bytes than it was given."""

    def write_parts(self, url, parts):
        super().write_parts(url, parts)
        if url.endswith("-00001.safetensors"):
            flip_a_bit(url)


def test_what_a_disk_has_damaged_is_not_committed(source, tmp_path):
    with pytest.raises(CheckpointError, match=r"nothing is committed.*00001"):
        reshard(BadDisk(), source[0], str(tmp_path / "again"), 3)
    assert not (tmp_path / "again" / "manifest.json").exists()


def test_a_damaged_checkpoint_is_not_written_anew(source, tmp_path):
    storage, damaged, url = Storage(), str(tmp_path / "damaged"), tmp_path / "again"
    shutil.copytree(source[0], damaged)
    flip_a_bit(f"{damaged}/{read_checkpoint(storage, damaged).manifest.files[1].name}")
    with pytest.raises(CheckpointError, match="damaged"):
        reshard(storage, damaged, str(url), 3)
    assert not list(url.glob("*"))
