"""data_tools/shard.py: what cannot work is refused in one line, before anything is written."""

from pathlib import Path

import pytest

from data_tools import shard
from tests.data_tools.sources import refusal, run, small_source, write_files


def folder(place: Path) -> Path:
    """A good source."""
    return small_source(place / "images")


def folder_with(files: dict[str, bytes]):
    return lambda place: write_files(folder(place), files)


def listed(name: str, text: str):
    """A list beside the good source."""
    return lambda place: write_files(folder(place).parent, {name: text.encode()}) / name


def out(place: Path) -> Path:
    return place / "out"


def out_with(name: str):
    return lambda place: write_files(place / "out", {name: b"{}"})


@pytest.mark.parametrize(
    ("source", "destination", "options", "line"),
    [
        (lambda t: t / "nowhere", out, [], "no folder at"),
        (lambda t: write_files(t / "x", {"x/a.txt": b"x"}), out, [], "no images below"),
        (folder_with({"loose.jpg": b"x"}), out, [], "loose.jpg lies in no class folder"),
        (lambda t: "s3://bucket/images", out, [], "SOURCE must be a local folder"),
        (folder_with({"manifest.json": b"{}"}), out, [], "it is a dataset already"),
        (folder, out, ["--workers", "0"], "--workers must be at least 1"),
        (folder, out, ["--shard-mb", "0"], "--shard-mb must be above 0"),
        (folder, out, ["--shard-mb", "nan"], "--shard-mb must be above 0"),
        (folder, out, ["--val-fraction", "0"], "--val-fraction must lie between 0 and 1"),
        (folder, out, ["--val-fraction", "1.5"], "--val-fraction must lie between 0 and 1"),
        (folder, out, ["--val-fraction", "1e-9"], "leaves none for"),
        (folder, out, ["--resize-short-side", "0"], "--resize-short-side must be at least 1"),
        (folder, out, ["--quality", "101"], "--quality must be 1 to 100"),
        (folder, out, ["--exclude-distance", "65"], "--exclude-distance must be 0 to 64"),
        (folder, out, ["--no-decode-check", "--exclude", "x"], "leave --no-decode-check out"),
        (folder, out, ["--exclude", "nowhere/manifest.json"], "not there: nowhere/manifest.json"),
        (folder, out, ["--classes", "nowhere.txt"], "not there: nowhere.txt"),
        (folder, lambda t: t / "images/a/1.jpg", [], "lies in SOURCE"),
        (folder, lambda t: t / "images", [], "lies in SOURCE"),
        (folder, lambda t: folder(t / "x") / "a/1.jpg", [], "is a file"),
        (folder, lambda t: folder(t / "x") / "a/1.jpg/out", [], "a/1.jpg is a file"),
        (folder, out_with("manifest.json"), [], "already holds a dataset"),
        (folder, out_with("val/manifest.json"), ["--val-fraction", "0.4"], "already holds"),
        (folder, out_with("shard-000007.tar"), [], "shard-000007.tar"),
        (folder, lambda t: "nosuchscheme://x/y", [], "Protocol not known"),
        (folder, lambda t: "s3://", [], "s3://"),
    ],
)
def test_what_cannot_work_is_refused_before_any_work(
    tmp_path, capfd, source, destination, options, line
):
    arguments = [str(source(tmp_path)), str(destination(tmp_path)), *options]
    before = sorted(tmp_path.rglob("*"))
    assert shard.main(arguments) == 2
    assert line in refusal(capfd)
    assert sorted(tmp_path.rglob("*")) == before


HEAD = "path,label\n"
A, B = "images/a/0.jpg", "images/b/0.jpg"


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        ("l.csv", "", "line 1: expected path and either label or labels"),
        ("l.csv", "file,label\n", "line 1: 'file' is none of path, label, labels, key"),
        ("l.csv", "path,label,labels\n", "line 1: expected path and either label or labels"),
        ("l.csv", HEAD, "lists no images"),
        ("l.csv", f"{HEAD}{A}\n", "line 2: expected 2 fields (path,label)"),
        ("l.csv", f"{HEAD}{A},0\n{B},0,0\n", "line 3: expected 2 fields (path,label)"),
        ("l.csv", f'{HEAD}"{A},0\n', "line 2: "),
        ("l.csv", f"{HEAD},0\n", "line 2: expected a path"),
        ("l.csv", f"{HEAD}{A},\n", "line 2: expected a class name or a number from 0, found ''"),
        ("l.csv", f"{HEAD}{A},-1\n", "line 2: expected a class name or a number from 0"),
        ("l.csv", f"{HEAD}{A},0\n{B},cat\n", "line 2: label 0 is a number, where"),
        ("l.csv", f"{HEAD}{A},0\n{B},0\n{A},1\n", "line 4: images/a/0.jpg also stands in"),
        ("l.csv", f"path,label,key\n{A},0,x\n{B},0,x\n", "line 3: key 'x' also stands in"),
        ("l.csv", f"path,label,key\n{A},0,../x.y\n", "expected such as 'x_y'"),
        ("l.csv", f"path,labels\n{A},1 2 1\n", "line 2: label 1 stands there twice"),
        ("l.csv", f"{HEAD}no.jpg,0\nnot.jpg,1\n", "none of the 2 images of"),
        ("l.jsonl", "{", "line 1: expected an object such as"),
        ("l.jsonl", '\n["a"]\n', "line 2: expected an object such as"),
        ("l.jsonl", '{"path": "x"}', "line 1: expected path and either label or labels"),
        ("l.jsonl", '{"path": 3, "label": 0}', "line 1: expected a path, found 3"),
        ("l.jsonl", '{"path": "x", "label": 1.5}', "line 1: expected a class name or a number"),
        ("l.jsonl", '{"path": "x", "label": true}', "line 1: expected a class name or a number"),
        ("l.jsonl", '{"path": "x", "labels": 3}', "line 1: expected a list of labels"),
    ],
)
def test_a_wrong_list_is_refused_naming_the_line(tmp_path, capfd, name, text, line):
    source = listed(name, text)(tmp_path)
    assert run(source, tmp_path / "out") == 2
    assert line in refusal(capfd)
    assert not (tmp_path / "out").exists()


def test_a_list_in_another_encoding_is_refused(tmp_path, capfd):
    source = write_files(tmp_path, {"l.csv": b"path,label\ncaf\xe9.jpg,0\n"}) / "l.csv"
    assert run(source, tmp_path / "out") == 2
    assert "l.csv: expected text in UTF-8" in refusal(capfd)


@pytest.mark.parametrize(
    ("classes", "labels", "line"),
    [
        ("cat\ndog\n", "cat\nbird", "line 3: 'bird' is none of the 2 names of --classes"),
        ("cat\ndog\n", "cat\n2", "line 3: label 2 is out of range, since --classes has 2 names"),
        ("cat\n\ndog\n", "cat\ndog", "line 2: expected a class name, found an empty line"),
        ("cat\ndog\ncat\n", "cat\ndog", "line 3: 'cat' is already in line 1"),
        ("", "cat\ndog", "expected one class name a line, found none"),
    ],
)
def test_classes_that_clash_are_refused_naming_the_line(tmp_path, capfd, classes, labels, line):
    first, second = labels.split("\n")
    source = listed("l.csv", f"{HEAD}{A},{first}\n{B},{second}\n")(tmp_path)
    write_files(tmp_path, {"classes.txt": classes.encode()})
    assert run(source, tmp_path / "out", "--classes", str(tmp_path / "classes.txt")) == 2
    assert line in refusal(capfd)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_no_class_is_refused(tmp_path, capfd):
    classes = write_files(tmp_path, {"classes.txt": b"a\nc\n"}) / "classes.txt"
    assert run(folder(tmp_path), tmp_path / "out", "--classes", str(classes)) == 2
    assert "images/b is none of the 2 names of --classes" in refusal(capfd)


def test_an_excluded_dataset_that_is_damaged_excludes_nothing(tmp_path, capfd):
    assert run(folder(tmp_path), tmp_path / "test") == 0
    tar = tmp_path / "test/shard-000000.tar"
    data = bytearray(tar.read_bytes())
    data[1600] ^= 1
    tar.write_bytes(data)
    options = ["--exclude", str(tmp_path / "test/manifest.json")]
    assert run(folder(tmp_path), tmp_path / "out", *options) == 1
    assert "is damaged at byte" in capfd.readouterr().err
    assert not (tmp_path / "out/manifest.json").exists()


def test_s3_refusals(s3, tmp_path, capfd, monkeypatch):
    source = folder(tmp_path)
    assert run(source, "s3://no-such-bucket/x", *s3.shard_options()) == 2
    assert "no-such-bucket" in refusal(capfd)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "something-else")
    assert run(source, f"{s3.bucket_url}/x", *s3.shard_options()) == 2
    assert "refuses these credentials" in refusal(capfd)
