"""data_tools/relabel.py: other labels for the same tars, all of them or none."""

import json
from pathlib import Path

import pytest

from data_tools import index, relabel
from mixer_dist.data.labels import load_shard_labels
from mixer_dist.data.manifest import load_dataset
from mixer_dist.storage import Storage
from tests.data.handmade import png
from tests.data_tools.foreign_tars import gnu_tar, webdataset_tars
from tests.http_ranges import serve_folder


@pytest.fixture
def old(tmp_path) -> Path:
    """48 samples train/00000 to train/00047 of classes 0 to 9."""
    webdataset_tars(tmp_path / "tars")
    assert index.main([f"{tmp_path}/tars/train-*.tar", f"{tmp_path}/old"]) == 0
    return tmp_path / "old/manifest.json"


def run(old: Path, labels: Path, output: object, *options: str) -> int:
    return relabel.main([str(old), str(labels), "--output", str(output), *options])


def csv_of(path: Path, labels: dict[int, object], header: str = "key,label") -> Path:
    lines = [header, *(f"train/{number:05d},{label}" for number, label in labels.items())]
    path.write_text("\n".join(lines) + "\n")
    return path


def labels_of(manifest: Path) -> list[list[int]]:
    """Of every sample, in storage order."""
    dataset = load_dataset(Storage(), [(str(manifest), 1)])
    return [
        labels.of(sample)
        for part in dataset.parts
        for labels in [load_shard_labels(Storage(), part)]
        for sample in range(part.shard.num_samples)
    ]


def test_all_samples_get_their_new_labels_and_nothing_old_is_touched(old, tmp_path, capsys):
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    new = tmp_path / "new"
    assert run(old, csv_of(tmp_path / "l.csv", {n: 900 - n for n in range(48)}), new) == 0
    assert "48 of 48 samples have labels of the list" in capsys.readouterr().out
    assert labels_of(new / "manifest.json") == [[900 - n] for n in range(48)]
    [a, b] = (load_dataset(Storage(), [(str(path), 1)]) for path in (old, new / "manifest.json"))
    assert [p.url for p in a.parts] == [p.url for p in b.parts]
    assert [p.index_url for p in a.parts] == [p.index_url for p in b.parts]
    assert a.fingerprint != b.fingerprint
    assert {path: path.read_bytes() for path in before} == before


def test_several_labels_as_csv_or_as_json_lines(old, tmp_path):
    expected = [[n, n % 7] if n % 3 else [] for n in range(48)]
    rows = {n: " ".join(map(str, labels)) for n, labels in enumerate(expected)}
    assert run(old, csv_of(tmp_path / "l.csv", rows, "key,labels"), tmp_path / "csv") == 0
    lines = [{"key": f"train/{n:05d}", "labels": labels} for n, labels in enumerate(expected)]
    (tmp_path / "l.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert run(old, tmp_path / "l.jsonl", tmp_path / "jsonl") == 0
    for name in ("csv", "jsonl"):
        assert labels_of(tmp_path / name / "manifest.json") == expected
    [one, two] = (
        {p.name: p.read_bytes() for p in (tmp_path / n).iterdir()} for n in ("csv", "jsonl")
    )
    assert one == two


def test_samples_that_are_not_listed_are_an_error_or_keep_their_labels(old, tmp_path, capsys):
    some = csv_of(tmp_path / "l.csv", {n: 70 + n for n in range(0, 48, 2)})
    assert run(old, some, tmp_path / "new") == 1
    [line] = capsys.readouterr().err.splitlines()
    assert "24 samples get no label: train/00001, train/00003" in line and "19 more" in line
    assert not (tmp_path / "new").exists()
    assert run(old, some, tmp_path / "new", "--keep-others") == 0
    expected = [[n % 10] if n % 2 else [70 + n] for n in range(48)]
    assert labels_of(tmp_path / "new/manifest.json") == expected
    again = csv_of(tmp_path / "l.csv", {5: 3})
    assert run(tmp_path / "new/manifest.json", again, tmp_path / "newer", "--keep-others") == 0
    assert labels_of(tmp_path / "newer/manifest.json") == [*expected[:5], [3], *expected[6:]]


def test_captions_become_a_labelled_dataset(tmp_path, capsys):
    """The tars of img2dataset have no labels that could be kept."""
    files = {
        f"train/{n:05d}.{kind}": png(n) if kind == "png" else b"{}"
        for n in range(3)
        for kind in ("json", "png")
    }
    gnu_tar(tmp_path / "a.tar", files)
    assert index.main([f"{tmp_path}/a.tar", f"{tmp_path}/old"]) == 0
    old = tmp_path / "old/manifest.json"
    two = csv_of(tmp_path / "two.csv", {0: 5, 2: 6})
    assert run(old, two, tmp_path / "new", "--keep-others") == 1
    assert "1 samples get no label: train/00001" in capsys.readouterr().err
    three = csv_of(tmp_path / "three.csv", {0: 5, 1: 4, 2: 6})
    assert run(old, three, tmp_path / "new") == 0
    assert labels_of(tmp_path / "new/manifest.json") == [[5], [4], [6]]


def test_keys_that_no_tar_has_are_counted_and_named(old, tmp_path, capsys):
    assert run(old, csv_of(tmp_path / "l.csv", dict.fromkeys(range(50), 0)), tmp_path / "new") == 0
    assert "2 keys of the list are in no tar: train/00048, train/00049\n" in capsys.readouterr().out


def test_tars_elsewhere_stay_elsewhere(tmp_path, capsys, s3):
    webdataset_tars(tmp_path / "host", 4)
    with serve_folder(tmp_path / "host") as url:
        assert index.main([f"{url}/train-0000.tar", f"{tmp_path}/old"]) == 0
        labels = csv_of(tmp_path / "l.csv", dict.fromkeys(range(4), 8))
        old = tmp_path / "old/manifest.json"
        assert run(old, labels, tmp_path / "new") == 0
        assert run(old, labels, s3.new_bucket(), *s3.shard_options()) == 2
    assert "old/000000-train-0000.idx lies on this machine" in capsys.readouterr().err
    [part] = load_dataset(Storage(), [(str(tmp_path / "new/manifest.json"), 1)]).parts
    assert part.url == f"{url}/train-0000.tar"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("name,label\na,1\n", "l.csv, line 2: expected a key and a label"),
        ("key,class\na,1\n", "l.csv, line 2: expected a key and a label"),
        ("key,label\na,1\nb,cat\n", "l.csv, line 3: expected a key and a label (a number)"),
        ("key,label\na,-1\n", "line 2: expected a key and a label"),
        ("key,label\na,1.5\n", "line 2: expected a key and a label"),
        ("key,label\na\n", "line 2: expected a key and a label"),
        ("key,label\na,1,2\n", "line 2: expected a key and a label"),
        (f"key,label\na,{2**31}\n", "line 2: expected a key and a label"),
        ("key,label\na,1\na,2\n", "line 3: 'a' has had a line before"),
        ("key,label\n\xe9,1\n", "is no UTF-8 text"),
        ("", "names no key"),
    ],
)
def test_a_wrong_list_is_one_line_that_names_it(old, tmp_path, capsys, text, reason):
    (tmp_path / "l.csv").write_bytes(text.encode("latin-1"))
    assert run(old, tmp_path / "l.csv", tmp_path / "new") == 2
    [line] = capsys.readouterr().err.splitlines()
    assert reason in line and not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "text",
    [
        "[",
        "3",
        "null",
        '{"key": 3, "label": 1}',
        '{"key": "a", "labels": 3}',
        '{"key": "a", "label": 1.5}',
    ],
)
def test_wrong_json_lines_are_named_too(old, tmp_path, capsys, text):
    (tmp_path / "l.jsonl").write_text('{"key": "train/00000", "label": 1}\n' + text + "\n")
    assert run(old, tmp_path / "l.jsonl", tmp_path / "new") == 2
    assert "l.jsonl, line 2: expected a key and a label" in capsys.readouterr().err


def test_labels_must_fit_the_classes(old, tmp_path, capsys):
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    all_twos = csv_of(tmp_path / "l.csv", dict.fromkeys(range(48), 2))
    assert run(old, all_twos, tmp_path / "new", "--classes", f"{tmp_path}/names.txt") == 1
    assert "labels run from 2 to 2, expected 0..1" in capsys.readouterr().err
    ones = csv_of(tmp_path / "l.csv", dict.fromkeys(range(48), 1))
    assert run(old, ones, tmp_path / "new", "--classes", f"{tmp_path}/names.txt") == 0
    dataset = load_dataset(Storage(), [(str(tmp_path / "new/manifest.json"), 1)])
    assert dataset.classes == ("cat", "dog")


def test_the_old_folder_is_refused(old, tmp_path, capsys):
    labels = csv_of(tmp_path / "l.csv", dict.fromkeys(range(48), 1))
    assert run(old, labels, old.parent) == 2
    assert "already holds a dataset" in capsys.readouterr().err
    assert run(old, tmp_path / "missing.csv", tmp_path / "new") == 2
    assert "cannot read" in capsys.readouterr().err
