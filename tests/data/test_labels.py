"""Labels beside the tars: written once, read a shard at a time, each byte of them checked."""

import hashlib
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from mixer_dist.data.labels import LabelsFile, load_shard_labels, shard_labels, write_labels
from mixer_dist.data.manifest import load_dataset
from mixer_dist.errors import ConfigError, DataError, MixerError
from mixer_dist.storage import Storage
from tests.data.handmade import CountingStorage, good_sample, write_dataset

SHARDS = [[[3], [1, 2], []], [], [[2**31 - 1]], [[0], [7]]]


def write(folder, shards):
    return write_labels(Storage(), str(folder), map(shard_labels, shards))


def read(file: LabelsFile, shards) -> list[list[list[int]]]:
    """Every sample's labels, a shard at a time."""
    firsts = np.cumsum([0, *map(len, shards)])
    found = []
    for number, samples in enumerate(shards):
        labels = file.of_shard(int(firsts[number]), len(samples), number)
        found.append([labels.of(index) for index in range(len(samples))])
    return found


def labelled_dataset(folder, shards):
    """A manifest whose labels file says other than its tars."""
    samples = [[good_sample(n) for n, _ in enumerate(shard)] for shard in shards]
    path = folder / "manifest.json"
    write_dataset(folder, samples)
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {"labels": write(folder, shards)}))
    return str(path)


@settings(max_examples=40, deadline=None)
@given(shards=st.lists(st.lists(st.lists(st.integers(0, 2**31 - 1), max_size=3), max_size=5)))
def test_labels_come_back(tmp_path_factory, shards):
    folder = tmp_path_factory.mktemp("labels")
    assert read(LabelsFile(Storage(), f"{folder}/{write(folder, shards)}"), shards) == shards


def test_the_file_is_named_after_its_bytes_and_any_safetensors_reader_takes_it(tmp_path):
    name = write(tmp_path, SHARDS)
    data = (tmp_path / name).read_bytes()
    assert name == f"labels-{hashlib.sha256(data).hexdigest()}.safetensors"
    tensors = load_file(tmp_path / name)
    assert tensors["offsets"].tolist() == [0, 1, 3, 3, 4, 5, 6]
    assert tensors["values"].tolist() == [3, 1, 2, 2**31 - 1, 0, 7]
    assert {key: str(value.dtype) for key, value in tensors.items()} == {
        "offsets": "uint64", "values": "int32", "crc32": "uint32"
    }  # fmt: skip
    assert write(tmp_path, SHARDS) == name


def test_a_shard_takes_two_reads_once_the_file_is_open(tmp_path):
    storage = CountingStorage()
    dataset = load_dataset(storage, [(labelled_dataset(tmp_path, SHARDS), 2)])
    assert [part.number for part in dataset.parts] == [0, 1, 2, 3] * 2
    found = [load_shard_labels(storage, part) for part in dataset.parts]
    for labels, samples in zip(found, SHARDS * 2, strict=True):
        assert [labels.of(index) for index in range(len(samples))] == samples
    assert len(storage.ranges) <= 3 + 2 * len(dataset.parts)


def test_a_dataset_without_a_labels_file_has_none(tmp_path):
    [part] = load_dataset(Storage(), [(write_dataset(tmp_path, [[good_sample(1)]]), 1)]).parts
    assert load_shard_labels(Storage(), part) is None


def test_each_damaged_byte_is_seen(tmp_path):
    """In the shards that it belongs to; the others are read as ever."""
    path = tmp_path / write(tmp_path, SHARDS)
    good = path.read_bytes()
    for at in range(len(good)):
        for bit in (1, 0x80):
            path.write_bytes(good[:at] + bytes([good[at] ^ bit]) + good[at + 1 :])
            try:
                assert read(LabelsFile(Storage(), str(path)), SHARDS) == SHARDS
            except MixerError as error:
                assert str(path) in str(error)
            else:
                assert at < 8 + int.from_bytes(good[:8], "little")  # a space, say


@pytest.mark.parametrize("size", [0, 4, 8, 100, -4, -40])
def test_a_short_file_is_an_error_that_names_it(tmp_path, size):
    path = tmp_path / write(tmp_path, SHARDS)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(MixerError, match=path.name):
        read(LabelsFile(Storage(), str(path)), SHARDS)


def test_a_missing_file_is_an_error_that_names_it(tmp_path):
    with pytest.raises(DataError, match=r"the labels file is missing: .*labels-x"):
        LabelsFile(Storage(), str(tmp_path / "labels-x.safetensors"))


def test_the_labels_of_another_dataset_are_refused(tmp_path):
    file = LabelsFile(Storage(), f"{tmp_path}/{write(tmp_path, SHARDS)}")
    for place in [(0, 4, 0), (1, 3, 0), (0, 3, 1), (4, 9, 3), (0, 3, 4)]:
        with pytest.raises(DataError, match="labels"):
            file.of_shard(*place)


def test_a_label_that_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match=r"labels must lie in 0\.\.2147483647"):
        shard_labels([[2**31]])
