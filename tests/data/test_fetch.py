"""Spans of samples: the right bytes, few requests, damage told apart from other errors."""

import hashlib
import itertools
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from mixer_dist.data import fetch
from mixer_dist.data.fetch import ChunkReader
from mixer_dist.data.manifest import Dataset, load_dataset
from mixer_dist.data.members import read_members
from mixer_dist.errors import DataError
from mixer_dist.storage import Storage
from tests.data.handmade import (
    CountingStorage,
    files_of,
    flip_byte,
    good_sample,
    write_dataset,
)


@pytest.fixture
def make_reader():
    """Makes readers and ends their threads."""
    readers = []

    def make(storage, dataset, chunk_samples, capacity_bytes=10**8):
        readers.append(ChunkReader(storage, dataset, chunk_samples, capacity_bytes))
        return readers[-1]

    yield make
    for reader in readers:
        reader.close()


def dataset_at(*manifests: object) -> Dataset:
    return load_dataset(Storage(), [(str(manifest), 1) for manifest in manifests])


@pytest.fixture
def small(tmp_path) -> Dataset:
    """Four shards of 5, 0, 3 and 4 samples."""
    numbers = itertools.count()
    shards = [[good_sample(next(numbers)) for _ in range(size)] for size in (5, 0, 3, 4)]
    return dataset_at(write_dataset(tmp_path, shards))


@pytest.mark.parametrize("chunk_samples", [1, 40, 1000])
def test_every_sample_has_the_bytes_that_tarfile_reads(digits, make_reader, chunk_samples):
    folder = digits / "test"
    reader = make_reader(Storage(), dataset_at(folder / "manifest.json"), chunk_samples)
    expected = files_of(folder)
    assert len(expected) == 296
    assert [read_members(reader.take(n).data) for n in range(296)] == expected


def test_a_bucket_gives_the_same_as_a_disk(digits, digits_s3, s3, make_reader):
    here = make_reader(Storage(), dataset_at(digits / "test" / "manifest.json"), 50)
    storage = s3.storage()
    dataset = load_dataset(storage, [(f"{digits_s3}/test/manifest.json", 1)])
    there = make_reader(storage, dataset, 50)
    for sample in range(0, 296, 7):
        assert there.take(sample) == here.take(sample)


def test_a_span_names_its_shard_and_index(small, make_reader):
    reader = make_reader(Storage(), small, 5)
    spans = [reader.take(n) for n in range(12)]
    places = [(0, 0), (0, 1), (0, 2), (0, 3), (0, 4), (2, 0), (2, 1), (2, 2)]
    places += [(3, 0), (3, 1), (3, 2), (3, 3)]
    assert [(span.shard, span.index) for span in spans] == places
    assert [reader.place(n) for n in range(12)] == places
    assert [read_members(span.data)["__key__"] for span in spans] == [f"s{n:03}" for n in range(12)]
    assert reader.shard_name(2).endswith("shard-000002.tar")


def test_a_chunk_is_one_read_and_one_more_for_each_shard_border(small, make_reader):
    storage = CountingStorage()
    reader = make_reader(storage, small, 4)
    for sample in range(12):
        reader.take(sample)
    names = [name for name, _, _ in storage.ranges]
    assert names == [f"shard-00000{shard}.tar" for shard in (0, 0, 2, 3)]
    assert reader.num_requests == 4


def test_threads_and_prefetching_share_each_read(digits, make_reader):
    storage = CountingStorage()
    reader = make_reader(storage, dataset_at(digits / "test" / "manifest.json"), 37)
    for sample in range(0, 296, 37):
        reader.prefetch(sample)
    samples = np.random.default_rng(0).permutation(296).tolist()
    with ThreadPoolExecutor(8) as pool:
        spans = list(pool.map(reader.take, samples))
    keys = [sample["__key__"] for sample in files_of(digits / "test")]
    assert [read_members(span.data)["__key__"] for span in spans] == [keys[n] for n in samples]
    assert len(storage.ranges) == 8  # one a chunk, since the shards' border is a chunk's
    assert sorted(storage.reads) == ["shard-000000.idx", "shard-000001.idx"]


def test_only_so_many_bytes_stay_in_memory(small, make_reader):
    """The chunk that was asked for longest ago goes first."""
    span_bytes = len(make_reader(Storage(), small, 3).take(0).data)
    storage = CountingStorage()
    reader = make_reader(storage, small, 3, capacity_bytes=5 * span_bytes)
    for sample in (0, 3, 1, 6, 2, 4):  # of chunks 0, 1, 0, 2, 0, 1
        reader.take(sample)
    names = [name for name, _, _ in storage.ranges]
    chunk_0, chunk_1 = ["shard-000000.tar"], ["shard-000000.tar", "shard-000002.tar"]
    chunk_2 = ["shard-000002.tar", "shard-000003.tar"]
    assert names == chunk_0 + chunk_1 + chunk_2 + chunk_1


def test_a_sample_may_be_taken_twice(small, make_reader):
    storage = CountingStorage()
    reader = make_reader(storage, small, 4)
    found = [reader.take(sample) for sample in (1, 2, 1, 2, 0, 3)]
    assert found[:2] == found[2:4]
    assert len(storage.ranges) == 2  # the second serves all that is left


def test_what_is_taken_leaves_room(small, make_reader):
    span_bytes = len(make_reader(Storage(), small, 2).take(0).data)
    storage = CountingStorage()
    reader = make_reader(storage, small, 2, capacity_bytes=3 * span_bytes)
    for sample in (0, 2, 1, 4, 3, 5):  # half of each chunk is taken before the next comes
        reader.take(sample)
    assert len(storage.ranges) == 4  # the third chunk lies in two shards


def test_samples_at_hand_ask_for_no_index_again(small, make_reader, monkeypatch):
    """With more shards in turn than indexes are kept, each sample would fetch its index anew."""
    monkeypatch.setattr(fetch, "INDEX_BYTES", 1)
    storage = CountingStorage()
    reader = make_reader(storage, small, 1)
    for sample in (0, 5, 8):
        reader.prefetch(sample)
    for sample in (0, 5, 8):
        reader.take(sample)
    assert len(storage.reads) == 3


def test_neighbours_are_the_rest_of_the_chunk_and_then_those_behind_it(small, make_reader):
    reader = make_reader(Storage(), small, 5)
    found = [list(reader.neighbours(sample)) for sample in (0, 3, 9, 10, 11)]
    assert found == [
        [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11],
        [3, 4, 0, 1, 2, 5, 6, 7, 8, 9, 10, 11],
        [9, 5, 6, 7, 8, 10, 11, 0, 1, 2, 3, 4],
        [10, 11, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9],  # the last chunk is short
        [11, 10, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9],
    ]


def test_damage_on_the_way_is_read_again(small, make_reader):
    storage = CountingStorage(num_damaged=2)
    reader = make_reader(storage, small, 4)
    assert read_members(reader.take(3).data)["__key__"] == "s003"
    assert len(storage.ranges) == 3


def test_lasting_damage_is_told_after_three_reads(small, make_reader, tmp_path):
    first_of_two = int(np.frombuffer((tmp_path / "shard-000002.idx").read_bytes(), "<u8")[2])
    flip_byte(tmp_path / "shard-000002.tar", first_of_two + 700)
    storage = CountingStorage()
    reader = make_reader(storage, small, 4)
    assert not reader.take(6).is_right
    assert len(storage.ranges) == 2 + 2  # its chunk, in two shards, and twice the sample alone
    assert read_members(reader.take(5).data)["__key__"] == "s005"
    assert read_members(reader.take(7).data)["__key__"] == "s007"


def rewritten_manifest(folder: Path, **changes: object) -> Dataset:
    """The dataset with other statements about its last shard."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["shards"][-1] |= changes
    path.write_text(json.dumps(manifest))
    return dataset_at(path)


def test_a_crc_of_zero_means_unchecked(small, make_reader, tmp_path):
    """As for tars that others wrote and of which only the headers were read."""
    path = tmp_path / "shard-000003.idx"
    rows = np.frombuffer(path.read_bytes(), "<u8,<u4,<u4").copy()
    rows["f2"] = 0
    path.write_bytes(rows.tobytes())
    sha256 = hashlib.sha256(rows.tobytes()).hexdigest()
    dataset = rewritten_manifest(tmp_path, index_sha256=sha256)
    flip_byte(tmp_path / "shard-000003.tar", 600)
    span = make_reader(Storage(), dataset, 4).take(8)
    assert span.crc32 == 0 and read_members(span.data)["__key__"] == "s008"


def cut_short(folder: Path) -> None:
    path = folder / "shard-000003.tar"
    path.write_bytes(path.read_bytes()[:-512])


def made_longer(folder: Path) -> None:
    with (folder / "shard-000003.tar").open("ab") as stream:
        stream.write(bytes(512))


def other_index(folder: Path) -> None:
    (folder / "shard-000003.idx").write_bytes((folder / "shard-000002.idx").read_bytes())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut_short, "does not match its manifest: expected"),
        (made_longer, "does not match its manifest: expected"),
        (lambda folder: (folder / "shard-000003.tar").unlink(), "a shard is missing"),
        (lambda folder: (folder / "shard-000003.idx").unlink(), "the index of .* is missing"),
        (other_index, "is not the index that the manifest names"),
    ],
)
def test_a_shard_that_is_not_the_manifests_stops_the_run(
    small, make_reader, tmp_path, damage, message
):
    good = {path: path.read_bytes() for path in tmp_path.iterdir()}
    damage(tmp_path)
    reader = make_reader(Storage(), small, 4)
    assert read_members(reader.take(0).data)["__key__"] == "s000"
    reader.prefetch(11)  # in the background nobody hears of it
    for _ in range(2):
        with pytest.raises(DataError, match=message) as caught:
            reader.take(11)
        assert "shard-000003" in str(caught.value) and "\n" not in str(caught.value)
    for path, content in good.items():
        path.write_bytes(content)
    assert read_members(reader.take(11).data)["__key__"] == "s011"  # no failure is kept


def test_an_index_with_other_rows_than_the_manifest_says_stops_the_run(
    small, make_reader, tmp_path
):
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    manifest["shards"][-1]["num_samples"] = 5
    manifest["num_samples"] += 1
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    reader = make_reader(Storage(), dataset_at(tmp_path / "manifest.json"), 4)
    with pytest.raises(DataError, match="expected 5 rows, found 4"):
        reader.take(11)


def test_a_shard_that_vanishes_during_the_run_stops_it(small, make_reader, tmp_path):
    reader = make_reader(Storage(), small, 2)
    reader.take(8)
    (tmp_path / "shard-000003.tar").unlink()
    with pytest.raises(DataError, match="a shard is missing"):
        reader.take(11)


def test_closing_ends_the_reading_threads(small):
    before = set(threading.enumerate())
    reader = ChunkReader(Storage(), small, 2, 8)
    for sample in range(12):
        reader.prefetch(sample)
    reader.close()
    assert set(threading.enumerate()) == before
