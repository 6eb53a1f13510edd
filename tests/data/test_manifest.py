"""What a manifest must say, and what decides a dataset's fingerprint."""

import json
from pathlib import Path

import pytest

from mixer_dist.data.labels import shard_labels, write_labels
from mixer_dist.data.manifest import load_dataset, load_manifest, name_in
from mixer_dist.errors import DataError, MissingError
from mixer_dist.storage import Storage
from tests.data.handmade import good_sample, write_dataset

ABSENT = object()


@pytest.fixture
def manifest(tmp_path):
    """Two shards of two samples."""
    return write_dataset(tmp_path, [[good_sample(n), good_sample(n + 1)] for n in (1, 3)])


def tree_of(path):
    return json.loads(Path(path).read_text())


def changed(path, **changes):
    """The manifest with other entries; one that is ABSENT goes."""
    tree = tree_of(path) | changes
    tree = {name: value for name, value in tree.items() if value is not ABSENT}
    Path(path).write_text(json.dumps(tree))
    return path


def fingerprint(path):
    return load_dataset(Storage(), [(path, 1)]).fingerprint


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"format": ABSENT}, "expected format and version"),
        ({"version": ABSENT}, "expected format and version"),
        ({"format": "mixer_dist.checkpoint"}, "format: "),
        ({"version": 2}, "version: "),
        ({"num_samples": 5}, "num_samples is 5, its shards hold 4"),
        ({"num_bytes": 5}, "num_bytes is 5, its shards hold "),
        ({"num_bytes": -1}, "num_bytes: "),
        ({"shards": ABSENT}, "shards: required"),
        ({"shards": [{"name": "a.tar"}]}, "shards.0.num_samples: required"),
        ({"labels": "labels.safetensors"}, "labels: "),
        ({"labels": f"../labels-{'0' * 64}.safetensors"}, "leaves the manifest's folder"),
        ({"extra": 1}, "extra: unknown key"),
    ],
)
def test_a_wrong_manifest_is_one_line_with_its_name(manifest, changes, problem):
    with pytest.raises(DataError) as caught:
        load_manifest(Storage(), changed(manifest, **changes))
    message = str(caught.value)
    assert problem in message and manifest in message and "\n" not in message


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "3", "[" * 100_000, "\xff\xfe"])
def test_what_is_no_manifest_is_one_line_with_its_name(tmp_path, content):
    path = tmp_path / "manifest.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(DataError, match=f"{path} is not a dataset manifest: "):
        load_manifest(Storage(), str(path))


def test_a_manifest_that_is_wrong_in_every_shard_is_still_one_line(manifest):
    path = changed(manifest, shards=[{"name": "a.tar"}] * 1000)
    with pytest.raises(DataError) as caught:
        load_manifest(Storage(), path)
    assert len(str(caught.value)) < 800


def test_a_missing_manifest_says_who_writes_one(tmp_path):
    with pytest.raises(MissingError, match=r"data_tools/shard\.py"):
        load_manifest(Storage(), str(tmp_path / "manifest.json"))


@pytest.mark.parametrize("field", ["name", "index"])
def test_names_that_leave_the_folder_are_refused(manifest, field):
    shards = tree_of(manifest)["shards"]
    shards[1][field] = "a/../../b"
    with pytest.raises(DataError, match=r"'a/\.\./\.\./b' leaves the manifest's folder"):
        load_manifest(Storage(), changed(manifest, shards=shards))


def test_the_fingerprint_is_of_content_and_not_of_names(manifest, tmp_path):
    known = fingerprint(manifest)
    shards = tree_of(manifest)["shards"]
    moved = [shard | {"name": f"https://host/{shard['name']}"} for shard in shards]
    assert fingerprint(changed(manifest, shards=moved)) == known
    labels = [shard_labels([[0], [n]]) for n in (1, 2)]
    names = [write_labels(Storage(), str(tmp_path), pair) for pair in (labels, labels[::-1])]
    others = {fingerprint(changed(manifest, labels=name)) for name in names}
    others |= {fingerprint(changed(manifest, labels=None, classes=["a", "b"]))}
    others |= {fingerprint(changed(manifest, classes=None, shards=moved[::-1]))}
    assert len(others | {known}) == 5
    folder = changed(manifest, shards=shards, labels=f"https://host/{names[0]}")
    assert fingerprint(folder) in others


def test_each_part_knows_where_its_labels_are(manifest, tmp_path):
    name = write_labels(Storage(), str(tmp_path), [shard_labels([[0], [1]])] * 2)
    plain = load_dataset(Storage(), [(manifest, 1)])
    assert {part.labels_url for part in plain.parts} == {None}
    labelled = load_dataset(Storage(), [(changed(manifest, labels=name), 2), (manifest, 1)])
    places = [(part.labels_url, part.number, part.first_sample) for part in labelled.parts]
    assert places == [(f"{tmp_path}/{name}", 0, 0), (f"{tmp_path}/{name}", 1, 2)] * 3


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("/data/set/a.tar", "a.tar"),
        ("/data/set/train/a.tar", "train/a.tar"),
        ("/data/settled/a.tar", "/data/settled/a.tar"),
        ("https://host/a.tar", "https://host/a.tar"),
    ],
)
def test_files_below_the_folder_are_named_from_it(url, name):
    assert name_in("/data/set", url) == name_in("/data/set/", url) == name
