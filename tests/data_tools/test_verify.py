"""data_tools/verify.py: whatever is wrong with a dataset is found and named, all of it."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from data_tools import index, relabel, verify
from mixer_dist.data.manifest import INDEX_ROW
from tests.data.handmade import flip_byte, good_sample, png, write_dataset
from tests.data_tools.foreign_tars import manifest_of, webdataset_tars


@pytest.fixture
def manifest(tmp_path) -> Path:
    """Two shards of three samples and one, of classes a and b."""
    shards = [[good_sample(n, n % 2) for n in (1, 2, 3)], [good_sample(4)]]
    return Path(write_dataset(tmp_path, shards, ["a", "b"]))


def damages_of(capsys, manifest: Path, *options: str) -> list[tuple[str, int | None, str, str]]:
    """(shard, index, key, reason) of all that is found, as JSON says it."""
    code = verify.main([str(manifest), "--json", *options])
    damages = json.loads(capsys.readouterr().out)["damages"]
    assert code == (1 if damages else 0)
    return [(Path(d["shard"]).name, d["index"], d["key"], d["reason"]) for d in damages]


def rows_of(manifest: Path, shard: int) -> np.ndarray:
    return np.fromfile(manifest.parent / f"shard-{shard:06d}.idx", INDEX_ROW)


def replace_index(manifest: Path, rows: np.ndarray) -> None:
    """Another index of the first shard, as if the manifest had always named it."""
    (manifest.parent / "shard-000000.idx").write_bytes(rows.tobytes())
    tree = json.loads(manifest.read_text())
    tree["shards"][0]["index_sha256"] = hashlib.sha256(rows.tobytes()).hexdigest()
    manifest.write_text(json.dumps(tree))


def test_a_whole_dataset_is_whole(manifest, capsys):
    assert verify.main([str(manifest), "--decode"]) == 0
    out = capsys.readouterr().out
    assert "4 samples in 2 shards" in out and "no damage found" in out


def test_a_bucket_is_verified_too(digits_s3, s3, capsys):
    assert verify.main([f"{digits_s3}/test/manifest.json", "--decode", *s3.shard_options()]) == 0
    assert "296 samples" in capsys.readouterr().out


def test_every_byte_counts(manifest, capsys):
    """Also the zeros at a tar's end, which are in no sample."""
    tar = manifest.parent / "shard-000001.tar"
    for at in range(0, tar.stat().st_size, 101):
        flip_byte(tar, at)
        damages = damages_of(capsys, manifest)
        assert ("shard-000001.tar", None, "", "its SHA-256 is not the manifest's") in damages
        row = rows_of(manifest, 1)[0]
        is_inside = bool(row["offset"] <= at < row["offset"] + row["num_bytes"])
        assert [reason for _, sample, _, reason in damages if sample == 0] == [
            "CRC wrong"
        ] * is_inside
        flip_byte(tar, at)
    assert not damages_of(capsys, manifest)


def test_all_damage_is_named_and_not_only_the_first(manifest, capsys):
    first = manifest.parent / "shard-000000.tar"
    for row in rows_of(manifest, 0)[[0, 2]]:
        flip_byte(first, int(row["offset"] + row["num_bytes"] - 1))
    (manifest.parent / "shard-000001.tar").unlink()
    assert verify.main([str(manifest)]) == 1
    out, err = capsys.readouterr()
    assert sorted(err.splitlines()) == [
        f"damaged: {first}, sample 0, s001: CRC wrong",
        f"damaged: {first}, sample 2, s003: CRC wrong",
        f"damaged: {first}: its SHA-256 is not the manifest's",
        f"damaged: {manifest.parent}/shard-000001.tar: missing",
    ]
    assert "damaged: 2 samples; 2 shards or files as a whole" in out


@pytest.mark.parametrize("change", [-100, 100])
def test_another_size_is_named(manifest, capsys, change):
    tar = manifest.parent / "shard-000001.tar"
    data = tar.read_bytes()
    tar.write_bytes(data[:change] if change < 0 else data + bytes(change))
    reasons = [reason for *_, reason in damages_of(capsys, manifest)]
    assert f"expected {len(data)} bytes, found {len(data) + change}" in reasons


def test_a_damaged_or_missing_index_is_named(manifest, capsys):
    path = manifest.parent / "shard-000000.idx"
    flip_byte(path, 3)
    [(shard, sample, _, reason)] = damages_of(capsys, manifest)
    assert (shard, sample) == ("shard-000000.tar", None) and "is not the index that" in reason
    path.unlink()
    [(shard, _, _, reason)] = damages_of(capsys, manifest)
    assert shard == "shard-000000.tar" and "is missing" in reason


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda rows: rows[::-1], "overlap or are out of order"),
        (lambda rows: rows[[0, 0, 2]], "overlap or are out of order"),
        (lambda rows: [rows.__setitem__(2, (2**64 - 8, 16, 0)), rows][1], "out of order"),
        (lambda rows: [rows["num_bytes"].__setitem__(2, 2**31), rows][1], "its index ends at byte"),
    ],
)
def test_rows_that_cannot_be_are_named(manifest, capsys, change, reason):
    replace_index(manifest, np.array(change(rows_of(manifest, 0))))
    [(shard, sample, _, found)] = damages_of(capsys, manifest)
    assert (shard, sample) == ("shard-000000.tar", None) and reason in found


def test_rows_of_other_spans_are_named(manifest, capsys):
    """Which have no CRC, so that only the members tell."""
    rows = rows_of(manifest, 0)
    rows["crc32"] = 0
    rows["num_bytes"][0] -= 1024
    rows["offset"][1] += 1024
    rows["num_bytes"][1] -= 1024
    replace_index(manifest, rows)
    assert [sample for _, sample, _, _ in damages_of(capsys, manifest)] == [0, 1]


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({"png": png(1), "cls": b"2"}, "label 2 is not in 0..1"),
        ({"png": png(1), "cls": b"-1"}, "label -1 is not in 0..1"),
        ({"png": png(1), "cls": b"cat"}, "no label: "),
        ({"cls": b"0"}, "no image among its members"),
        ({"png": png(1), "cls": b"0", "pyd": b""}, "a member of type .pyd is never read"),
    ],
)
def test_samples_that_training_could_not_use_are_named(tmp_path, capsys, members, reason):
    path = write_dataset(tmp_path, [[good_sample(1), ("bad", members)]], ["a", "b"])
    [(_, sample, _, found)] = damages_of(capsys, Path(path))
    assert sample == 1 and reason in found


def test_images_are_decoded_on_demand(tmp_path, capsys):
    text = {"jpg": b"<html>404</html>", "cls": b"0"}
    path = Path(write_dataset(tmp_path, [[good_sample(1), ("bad", text)]]))
    assert damages_of(capsys, path) == []
    [(_, sample, key, reason)] = damages_of(capsys, path, "--decode")
    assert (sample, key) == (1, "bad") and reason.startswith("not decodable: neither JPEG")


def test_a_labels_file_is_verified(manifest, capsys, tmp_path):
    (tmp_path / "l.csv").write_text("key,label\ns001,1\ns002,1\ns003,0\ns004,0\n")
    assert relabel.main([str(manifest), f"{tmp_path}/l.csv", "--output", f"{tmp_path}/new"]) == 0
    capsys.readouterr()
    new = tmp_path / "new/manifest.json"
    assert damages_of(capsys, new) == []
    [labels] = new.parent.glob("labels-*")
    flip_byte(labels, labels.stat().st_size - 1)
    damages = damages_of(capsys, new)
    assert damages[0] == (labels.name, None, "", "its SHA-256 is not the one in its name")
    assert [shard for shard, *_ in damages[1:]] == ["shard-000001.tar"]
    labels.unlink()
    damages = damages_of(capsys, new)
    assert damages[0] == (labels.name, None, "", "missing")


def test_what_headers_cannot_tell_is_said(tmp_path, capsys):
    webdataset_tars(tmp_path)
    assert index.main([f"{tmp_path}/train-*.tar", str(tmp_path), "--headers-only"]) == 0
    assert verify.main([f"{tmp_path}/manifest.json"]) == 0
    assert "3 shards are indexed by headers only: CRCs are unchecked" in capsys.readouterr().out
    assert manifest_of(tmp_path).num_samples == 48


def test_a_missing_manifest_is_one_line(tmp_path, capsys):
    assert verify.main([f"{tmp_path}/manifest.json"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("verify.py: not there: ")
