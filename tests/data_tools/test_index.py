"""data_tools/index.py: tars that others wrote are read in place as they are."""

import hashlib
import itertools
import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixer_dist.data.labels import load_shard_labels
from mixer_dist.data.manifest import INDEX_ROW, load_dataset
from mixer_dist.data.members import labels_of, read_members
from mixer_dist.data.tar_headers import TarError
from mixer_dist.data.tar_index import IndexOptions, index_tar, is_in_fraction
from mixer_dist.data.tar_spans import TarHeaders, WholeTar
from mixer_dist.storage import Storage
from tests.data.handmade import CountingStorage, open_stream, png, stream_config
from tests.data_tools.foreign_tars import (
    gnu_tar,
    manifest_of,
    refused_line,
    run_index,
    samples_of,
    webdataset_tars,
)
from tests.http_ranges import serve_folder


def test_tars_on_a_web_server_train_in_place_each_sample_once(tmp_path):
    samples = webdataset_tars(tmp_path / "host")
    with serve_folder(tmp_path / "host") as url:
        pattern = f"{url}/train-{{0000..0002}}.tar"
        assert run_index(pattern, tmp_path / "data", "--num-classes", 10) == 0
        manifest = tmp_path / "data/manifest.json"
        assert samples_of(str(manifest)) == samples
        with open_stream(stream_config(str(manifest))) as stream:
            batches = list(itertools.islice(stream, 16))
    epochs = [[key for b in batches[i : i + 8] for key in b.keys] for i in (0, 8)]
    expected = [sample["__key__"] for sample in samples]
    assert sorted(epochs[0]) == sorted(epochs[1]) == expected
    assert epochs[0] != epochs[1]
    shades = {key: int(k.max()) for b in batches for key, k in zip(b.keys, b.images, strict=True)}
    assert shades == {key: number for number, key in enumerate(expected)}
    assert manifest_of(tmp_path / "data").shards[1].name == f"{url}/train-0001.tar"


def test_tars_in_a_bucket_are_named_from_the_manifest_beside_them(tmp_path, s3):
    bucket = s3.new_bucket()
    samples = webdataset_tars(tmp_path)
    for path in tmp_path.glob("*.tar"):
        s3.storage().write(f"{bucket}/set/{path.name}", path.read_bytes())
    options = s3.shard_options()
    assert run_index(f"{bucket}/set/train-*.tar", f"{bucket}/set", *options) == 0
    assert samples_of(f"{bucket}/set/manifest.json", s3.storage()) == samples
    tree = json.loads(s3.storage().read(f"{bucket}/set/manifest.json"))
    assert [shard["name"] for shard in tree["shards"]] == [f"train-000{n}.tar" for n in range(3)]
    assert s3.storage().names(f"{bucket}/set") == sorted(
        ["manifest.json"]
        + [f"train-000{n}.tar" for n in range(3)]
        + [f"00000{n}-train-000{n}.idx" for n in range(3)]
    )


LONG_NAMES = {
    f"{folder}/{number}.{kind}": content
    for number in range(6)
    for folder in [["plain", "n" * 90 + "/" + "m" * 60, "Straße/東京" * 3, "東京" * 30][number % 4]]
    for kind, content in [("cls", b"%d" % number), ("npy", b"\x93NUMPY"), ("png", png(number))]
}


@pytest.mark.parametrize("options", [["--format=gnu"], ["--format=pax"], ["--format=ustar"]])
def test_tars_of_gnu_tar(tmp_path, options):
    files = {
        name: content
        for name, content in LONG_NAMES.items()
        if options != ["--format=ustar"] or not name.startswith("東京")
    }
    gnu_tar(tmp_path / "a.tar", files, *options)
    assert run_index(tmp_path / "a.tar", tmp_path) == 0
    found = {
        f"{sample['__key__']}.{kind}": content
        for sample in samples_of(str(tmp_path / "manifest.json"))
        for kind, content in sample.items()
        if kind != "__key__"
    }
    assert found == {name: data for name, data in files.items() if not name.endswith(".npy")}


def test_a_folder_of_gnu_tar_with_its_folders_and_readme(tmp_path):
    """`tar -C folder --sort=name .`, names that begin with ./ and folders between the samples."""
    files = {"a/1.cls": b"1", "a/1.png": png(1), "b/1.cls": b"2", "b/1.png": png(2), "README": b"x"}
    gnu_tar(tmp_path / "a.tar", files, "--sort=name", names=["."])
    assert run_index(tmp_path / "a.tar", tmp_path) == 0
    keys = [sample["__key__"] for sample in samples_of(str(tmp_path / "manifest.json"))]
    assert keys == ["./a/1", "./b/1"]


def test_the_number_of_workers_changes_nothing(tmp_path):
    webdataset_tars(tmp_path / "tars")
    for workers in (1, 3):
        pattern = tmp_path / "tars/train-*.tar"
        assert run_index(pattern, tmp_path / str(workers), "--workers", workers) == 0
    [one, three] = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in "13"
    )
    assert one == three and len(one) == 4


def test_headers_only_gives_the_same_rows_without_crc_and_says_so(tmp_path, capsys):
    """And does not read the images."""
    webdataset_tars(tmp_path)
    large = {
        f"{n}.{kind}": data
        for n in range(9)
        for kind, data in [("cls", b"1"), ("png", bytes(10**5))]
    }
    gnu_tar(tmp_path / "large.tar", large)
    tars = [tmp_path / "train-*.tar", tmp_path / "large.tar"]
    for name, options in (("whole", []), ("headers", ["--headers-only"])):
        assert run_index(*tars, tmp_path / name, *options) == 0
    assert "no CRC will be checked" in capsys.readouterr().out
    whole, headers = (manifest_of(tmp_path / name) for name in ("whole", "headers"))
    assert {shard.sha256 for shard in headers.shards} == {None}
    for a, b in zip(whole.shards, headers.shards, strict=True):
        checked = np.fromfile(tmp_path / "whole" / a.index, INDEX_ROW)
        unchecked = np.fromfile(tmp_path / "headers" / b.index, INDEX_ROW)
        assert (
            checked[["offset", "num_bytes"]].tolist() == unchecked[["offset", "num_bytes"]].tolist()
        )
        assert checked["crc32"].all() and not unchecked["crc32"].any()
    storage, path = CountingStorage(), str(tmp_path / "large.tar")
    num_bytes = storage.size(path)
    index_tar(TarHeaders(storage, path, num_bytes, lambda n: None), IndexOptions(headers_only=True))
    assert sum(stop - start for _, start, stop in storage.ranges) < num_bytes / 5


def test_each_byte_is_read_once_and_soon_forgotten(tmp_path, monkeypatch):
    monkeypatch.setattr("mixer_dist.data.tar_spans.READ_BYTES", 1000)
    webdataset_tars(tmp_path, 20)
    storage, path = CountingStorage(), str(tmp_path / "train-0000.tar")
    tar = WholeTar(storage, path, storage.size(path), lambda n: None)
    index_tar(tar, IndexOptions())
    assert len(tar._held) < tar.num_bytes / 2  # the zeros at its end
    assert tar.sha256() == hashlib.sha256(Path(path).read_bytes()).hexdigest()
    ranges = [(start, stop) for _, start, stop in storage.ranges]
    assert [start for start, _ in ranges] == [0] + [stop for _, stop in ranges[:-1]]
    assert ranges[-1][1] == tar.num_bytes


@pytest.mark.parametrize(
    "change",
    [
        lambda folder, tar: tar.touch(),
        lambda folder, tar: (folder / "000001-train-0001.idx").unlink(),
        lambda folder, tar: (folder / "000001-train-0001.done.json").unlink(),
        lambda folder, tar: (folder / "000001-train-0001.done.json").write_text("{}"),
    ],
)
def test_a_stopped_run_is_gone_on_with(tmp_path, capsys, change):
    """A finished tar is not read again unless it has changed; nothing more is left at the end."""
    webdataset_tars(tmp_path / "tars")
    tars = sorted((tmp_path / "tars").glob("*.tar"))
    whole = tars[2].read_bytes()
    assert run_index(*tars, tmp_path / "expected") == 0
    tars[2].write_bytes(whole[:-11000])
    command = *tars, tmp_path / "data", "--workers", 1
    assert "cut off" in refused_line(capsys, *command)
    done = sorted((tmp_path / "data").glob("*.idx"))
    assert len(done) == 2
    for path in done:
        os.utime(path, ns=(0, 0))
    tars[2].write_bytes(whole)
    change(tmp_path / "data", tars[1])
    assert run_index(*command) == 0
    times = [path.stat().st_mtime_ns for path in sorted((tmp_path / "data").glob("*.idx"))]
    assert times[0] == 0 and times[1] and times[2]
    [found, expected] = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
        for name in ("data", "expected")
    )
    assert found == expected


def test_other_options_index_anew(tmp_path, capsys):
    webdataset_tars(tmp_path)
    command = tmp_path / "train-*.tar", tmp_path / "data", "--workers", 1
    assert "expected 0..8" in refused_line(capsys, *command, "--num-classes", 9)
    assert list((tmp_path / "data").glob("*.idx"))
    assert run_index(*command, "--headers-only") == 0
    assert {shard.sha256 for shard in manifest_of(tmp_path / "data").shards} == {None}


def test_labels_that_count_from_1_are_shifted_on_demand(tmp_path, capsys):
    samples = webdataset_tars(tmp_path, first_class=1)
    (tmp_path / "names.txt").write_text("".join(f"class {n}\n" for n in range(10)))
    command = tmp_path / "train-*.tar", tmp_path / "data", "--classes", tmp_path / "names.txt"
    line = refused_line(capsys, *command)
    assert (
        "labels run from 1 to 10, expected 0..9; as they seem to count from 1, give --first-class 1"
        in line
    )
    assert "labels run from 1 to 10, expected 2.." in refused_line(
        capsys, *command[:2], "--first-class", 2
    )
    assert run_index(*command, "--first-class", 1) == 0
    dataset = load_dataset(Storage(), [(str(tmp_path / "data/manifest.json"), 1)])
    assert dataset.classes == tuple(f"class {n}" for n in range(10))
    found = [
        labels.of(number)
        for part in dataset.parts
        for labels in [load_shard_labels(Storage(), part)]
        for number in range(part.shard.num_samples)
    ]
    expected = [labels_of(sample)[0] - 1 for sample in samples]
    assert found == [[label] for label in expected]
    with open_stream(stream_config(str(tmp_path / "data/manifest.json"))) as stream:
        batches = list(itertools.islice(stream, 8))
    trained = {key: int(n) for b in batches for key, n in zip(b.keys, b.labels, strict=True)}
    assert trained == {str(s["__key__"]): n for s, n in zip(samples, expected, strict=True)}


def test_labels_are_reported(tmp_path, capsys):
    webdataset_tars(tmp_path)
    assert run_index(tmp_path / "train-*.tar", tmp_path) == 0
    assert "labels: 0..9\n" in capsys.readouterr().out


def test_captions_without_labels_are_indexed_and_relabelling_is_named(tmp_path, capsys):
    """The members of img2dataset."""
    files = {
        f"{n}.{kind}": png(n) if kind == "png" else b"{}"
        for n in range(3)
        for kind in ("json", "png", "txt")
    }
    gnu_tar(tmp_path / "a.tar", files)
    assert run_index(tmp_path / "a.tar", tmp_path) == 0
    assert "labels: none; run data_tools/relabel.py before training" in capsys.readouterr().out
    gnu_tar(tmp_path / "b.tar", {"x.png": png(1), "x.cls": b"4"})
    assert run_index(tmp_path / "a.tar", tmp_path / "b.tar", tmp_path / "both") == 0
    out = capsys.readouterr().out
    assert f"labels: 4..4; none in 3 samples, sample 0 of {tmp_path}/a.tar first" in out


def test_samples_without_an_image_can_be_left_out(tmp_path, capsys):
    gnu_tar(tmp_path / "a.tar", {"a.cls": b"1", "b.cls": b"2", "b.png": png(2), "c.cls": b"3"})
    assert run_index(tmp_path / "a.tar", tmp_path, "--skip-without-image") == 0
    assert "1 samples in 1 tar, 0.0 MB; left out: 2 without an image" in capsys.readouterr().out
    assert [sample["__key__"] for sample in samples_of(str(tmp_path / "manifest.json"))] == ["b"]


def test_fractions_lie_within_each_other(tmp_path):
    samples = webdataset_tars(tmp_path / "tars", 200, in_tar=90)
    keys = [{sample["__key__"] for sample in samples}]
    for fraction in (0.5, 0.2, 0.05):
        folder = tmp_path / str(fraction)
        assert run_index(tmp_path / "tars/train-*.tar", folder, "--fraction", fraction) == 0
        found = samples_of(str(folder / "manifest.json"))
        assert all(sample in samples for sample in found)
        assert manifest_of(folder).num_samples == len(found)
        keys.append({sample["__key__"] for sample in found})
        assert keys[-1] < keys[-2] and abs(len(keys[-1]) - 200 * fraction) < 25
    assert [key for key in "abcdefgh" if is_in_fraction(key, 0.3)] == list("acefh")


@pytest.fixture(scope="module")
def whole_tar(tmp_path_factory) -> bytes:
    folder = tmp_path_factory.mktemp("whole")
    gnu_tar(folder / "a.tar", LONG_NAMES, "--format=gnu")
    return (folder / "a.tar").read_bytes()


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_damaged_tar_is_an_error_or_its_samples_are_found(tmp_path_factory, whole_tar, data):
    path = tmp_path_factory.getbasetemp() / "damaged.tar"
    damaged = bytearray(whole_tar)
    at = data.draw(st.integers(0, len(damaged) - 1))
    if data.draw(st.booleans()):
        del damaged[at : at + data.draw(st.sampled_from([1, 512, 1024, len(damaged)]))]
    else:
        damaged[at] ^= data.draw(st.integers(1, 255))
    path.write_bytes(damaged)
    try:
        tar = WholeTar(Storage(), str(path), len(damaged), lambda n: None)
        rows = index_tar(tar, IndexOptions()).rows
    except TarError:
        return
    assert len(rows) in (5, 6)
    for row in rows:
        begin = int(row["offset"])
        assert "png" in read_members(bytes(damaged[begin : begin + int(row["num_bytes"])]))
