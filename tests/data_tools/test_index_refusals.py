"""data_tools/index.py: what cannot be trusted is refused in one line, with nothing left behind."""

import io
import tarfile
from pathlib import Path

import pytest

from tests.data.handmade import png
from tests.data_tools.foreign_tars import (
    gnu_tar,
    refused_line,
    run_index,
    webdataset_tars,
)
from tests.http_ranges import serve_folder

GOOD = {"s.png": png(1), "s.cls": b"1"}


def tar_with(path: Path, member: tarfile.TarInfo) -> None:
    """A tar whose second sample is bad."""
    with tarfile.open(path, "w") as tar:
        for name, content in GOOD.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        tar.addfile(member, io.BytesIO(bytes(member.size)))


def special(name: str, kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "s.png"
    return info


@pytest.mark.parametrize(
    ("member", "reason"),
    [
        (special("../t.png", tarfile.REGTYPE), "leaves the folder"),
        (special("/t.png", tarfile.REGTYPE), "an absolute name"),
        (special("t.png", tarfile.SYMTYPE), "a symbolic link"),
        (special("t.png", tarfile.LNKTYPE), "a hard link"),
        (special("t.png", tarfile.CHRTYPE), "a device"),
        (special("t.png", tarfile.FIFOTYPE), "a named pipe"),
        (special("t.pyd", tarfile.REGTYPE), "a member of type .pyd is never read"),
        (special("t.cls", tarfile.REGTYPE), "t: no image among t.cls; --skip-without-image"),
        (special("s.PNG", tarfile.REGTYPE), "s: two members of one type: s.png, s.cls, s.PNG"),
    ],
)
def test_a_bad_member_is_refused_with_tar_and_name(tmp_path, capsys, member, reason):
    tar_with(tmp_path / "bad.tar", member)
    line = refused_line(capsys, tmp_path / "bad.tar", tmp_path)
    assert line.startswith(f"index.py: {tmp_path}/bad.tar: ") and reason in line
    assert member.name.rpartition("/")[2].split(".")[0] in line
    assert not (tmp_path / "manifest.json").exists()


@pytest.mark.parametrize(
    ("order", "reason"),
    [
        (["a.png", "b.png", "a.cls", "b.cls"], "a: its files are not side by side"),
        (["a.png", "a.cls", "b.png", "b.cls", "a.png"], "a: its files are not side by side"),
        (["a.cls", "b.txt"], "a: no image among a.cls"),
        (["README"], "no images; expected members of type jpg, jpeg, png, webp"),
    ],
)
def test_a_tar_whose_samples_cannot_be_told_is_refused(tmp_path, capsys, order, reason):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in order:
            tar.addfile(tarfile.TarInfo(name))
    assert reason in refused_line(capsys, tmp_path / "a.tar", tmp_path)


def test_a_truncated_tar_is_refused_also_at_a_members_border(tmp_path, capsys):
    webdataset_tars(tmp_path, 4)
    whole = (tmp_path / "train-0000.tar").read_bytes()
    for size in (len(whole.rstrip(b"\0")) // 1024 * 1024, 1024, 700, 512):
        (tmp_path / "cut.tar").write_bytes(whole[:size])
        for options in ([], ["--headers-only"]):
            line = refused_line(capsys, tmp_path / "cut.tar", tmp_path, *options)
            assert f"{tmp_path}/cut.tar: " in line and "cut off" in line


@pytest.mark.parametrize(
    ("tars", "code", "reason"),
    [
        (["a.tar.gz"], 2, "a.tar.gz is compressed: only plain tars"),
        (["https://host/a.tgz?download=true"], 2, "is compressed"),
        (["missing.tar"], 2, "not there: "),
        (["train-*.tar"], 2, "no file matches "),
        (["*/train.tar"], 2, "expected * in the file's name only"),
        (["train-{0..3.tar"], 2, "nbalanced braces"),
        (["pipe:curl https://host/a.tar"], 2, "give the URL itself"),
        (["a.tar", "a.tar"], 2, "a.tar is given 2 times"),
        (["nothing://a.tar"], 2, "nothing"),
    ],
)
def test_wrong_tars_are_one_line(tmp_path, capsys, monkeypatch, tars, code, reason):
    monkeypatch.chdir(tmp_path)
    assert run_index(*tars, "data") == code
    [line] = capsys.readouterr().err.splitlines()
    assert reason in line
    assert not list(tmp_path.rglob("*.idx"))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--fraction", "0"], "--fraction must be above 0 and at most 1, got 0.0"),
        (["--fraction", "nan"], "--fraction must be above 0"),
        (["--num-classes", "0"], "--num-classes must be at least 1"),
        (["--classes", "missing.txt"], "--classes: cannot read missing.txt"),
        (["--classes", "blank.txt"], "--classes: expected a class name on every line"),
    ],
)
def test_wrong_options_are_one_line(tmp_path, capsys, monkeypatch, options, reason):
    monkeypatch.chdir(tmp_path)
    Path("blank.txt").write_text("cat\n\ndog\n")
    webdataset_tars(tmp_path, 2)
    assert run_index("train-0000.tar", "data", *options) == 2
    assert reason in capsys.readouterr().err
    assert not (tmp_path / "data").exists()


def test_a_dataset_that_is_there_is_never_overwritten(tmp_path, capsys):
    webdataset_tars(tmp_path, 2)
    assert run_index(tmp_path / "train-0000.tar", tmp_path) == 0
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert "already holds a dataset" in refused_line(capsys, tmp_path / "train-0000.tar", tmp_path)
    assert "is a file" in refused_line(
        capsys, tmp_path / "train-0000.tar", tmp_path / "manifest.json"
    )
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_tars_of_this_machine_are_refused_for_a_manifest_in_a_bucket(tmp_path, capsys, s3):
    webdataset_tars(tmp_path, 2)
    bucket = s3.new_bucket()
    line = refused_line(capsys, tmp_path / "train-0000.tar", bucket, *s3.shard_options())
    assert "lies on this machine" in line and s3.storage().names(bucket) == []


def test_samples_without_a_label_cannot_be_shifted(tmp_path, capsys):
    gnu_tar(tmp_path / "a.tar", {"a.cls": b"1", "a.png": png(1), "b.png": png(2)})
    line = refused_line(capsys, tmp_path / "a.tar", tmp_path / "data", "--first-class", 1)
    assert f"1 samples have no label, sample 1 of {tmp_path}/a.tar first" in line


def test_a_fraction_that_leaves_nothing_is_refused(tmp_path, capsys):
    webdataset_tars(tmp_path, 2)
    assert "no sample is left" in refused_line(
        capsys, tmp_path / "train-0000.tar", tmp_path, "--fraction", 1e-9
    )


def test_a_server_without_ranges_is_an_error_and_never_wrong_bytes(tmp_path, capsys):
    webdataset_tars(tmp_path / "host")
    with serve_folder(tmp_path / "host", has_ranges=False) as url:
        line = refused_line(capsys, f"{url}/train-0000.tar", tmp_path / "data")
    assert "/train-0000.tar" in line and "does not give ranges of a file" in line
    assert not (tmp_path / "data").exists()
