"""Damaged samples are replaced, named and counted; what is worse than damage stops the run."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mixer_dist.data.batch import BadSample
from mixer_dist.data.order import batch_digest, sample_hashes
from mixer_dist.data.run_data import sample_order
from mixer_dist.errors import DataError
from tests.data.handmade import (
    PLACES,
    batches_of,
    dataset_of,
    flip_byte,
    png,
    stream_config,
    twelve,
)

INDEX_ROW = "<u8,<u4,<u4"


def check_replaced(folder: Path, manifest: str, number: int, by: int, key: str, reason: str):
    """Everything about the one bad sample, in the epoch that holds it once."""
    config = stream_config(manifest, augment__flip=False, augment__min_crop_area=1.0)
    batches = batches_of(config, 2)
    samples = sample_order(config, dataset_of(config)).samples(np.arange(12))[1].tolist()
    position = samples.index(number)
    used = [by if n == number else n for n in samples]
    assert [key for batch in batches for key in batch.keys] == [f"s{n:03}" for n in used]
    assert torch.cat([batch.images for batch in batches])[:, 0, 0, 0].tolist() == used
    [bad] = [bad for batch in batches for bad in batch.bad_samples]
    shard = str(folder / f"shard-{PLACES[number][0]:06d}.tar")
    index = PLACES[number][1]
    assert bad == BadSample(position, number, shard, index, key, reason, replaced_by=by)
    crcs = [np.fromfile(folder / f"shard-{s:06d}.idx", INDEX_ROW)["f2"] for s in range(3)]
    columns = np.array([(*PLACES[n], crcs[PLACES[n][0]][PLACES[n][1]]) for n in used]).T
    total = sum(batch.digest for batch in batches) % 2**64
    assert total == batch_digest(sample_hashes(np.arange(12), *columns))


@pytest.mark.parametrize(("number", "by"), [(0, 1), (2, 3), (3, 0), (6, 7), (7, 4), (11, 8)])
def test_a_flipped_byte_is_replaced_by_the_next_sample_of_its_chunk(tmp_path, number, by):
    manifest = twelve(tmp_path, {})
    shard, index = PLACES[number]
    begins = np.fromfile(tmp_path / f"shard-{shard:06d}.idx", INDEX_ROW)["f0"]
    flip_byte(tmp_path / f"shard-{shard:06d}.tar", int(begins[index]) + 600)
    reason = "its CRC is wrong, however often it is read"
    check_replaced(tmp_path, manifest, number, by, f"s{number:03}", reason)


@pytest.mark.parametrize(
    ("members", "key", "reason"),
    [
        (
            {"jpg": b"<html>404</html>", "cls": b"1"},
            "s005",
            "not decodable: neither JPEG, PNG nor WebP",
        ),
        ({"png": png(5)}, "s005", "no label: expected a number in .cls or labels in .json"),
        (
            {"png": png(5), "cls": b"1", "pyd": b"\x80\x04N."},
            "",
            "s005.pyd: a member of type .pyd is never read",
        ),
    ],
)
def test_a_sample_that_cannot_be_used_is_replaced_with_its_reason(tmp_path, members, key, reason):
    check_replaced(tmp_path, twelve(tmp_path, {5: members}), 5, 6, key, reason)


def test_a_replaced_image_keeps_the_crop_of_its_position(tmp_path):
    """So that the good samples around a bad one see the same pixels as ever."""
    text = {"jpg": b"text", "cls": b"1"}
    rich = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(rich).save(buffer, "PNG")
    both = {"png": buffer.getvalue(), "cls": b"1"}
    good = stream_config(twelve(tmp_path / "good", {6: both, 7: both}))
    holed = stream_config(twelve(tmp_path / "holed", {6: text, 7: both}))
    for a, b in zip(batches_of(good, 2), batches_of(holed, 2), strict=True):
        assert torch.equal(a.images, b.images) and torch.equal(a.depth_masks, b.depth_masks)


def test_a_whole_chunk_of_damage_falls_to_the_samples_after_it(tmp_path):
    text = {"jpg": b"text", "cls": b"1"}
    manifest = twelve(tmp_path, {8: text, 9: text, 10: text, 11: text})
    bad = [bad for batch in batches_of(stream_config(manifest), 2) for bad in batch.bad_samples]
    assert sorted(record.sample for record in bad) == [8, 9, 10, 11]
    assert {record.replaced_by for record in bad} == {0}


def test_a_damaged_stand_in_is_recorded_at_its_own_position_only(tmp_path):
    text = {"jpg": b"text", "cls": b"1"}
    manifest = twelve(tmp_path, {5: text, 6: text})
    bad = [bad for batch in batches_of(stream_config(manifest), 2) for bad in batch.bad_samples]
    assert sorted((record.sample, record.replaced_by) for record in bad) == [(5, 7), (6, 7)]


def test_nothing_but_damage_stops_the_run(tmp_path):
    text = {"jpg": b"text", "cls": b"1"}
    manifest = twelve(tmp_path, dict.fromkeys(range(12), text))
    with pytest.raises(DataError, match=r"no good sample to stand in .*shard-00000\d\.tar"):
        batches_of(stream_config(manifest), 2)


def test_a_label_out_of_range_stops_the_run(tmp_path):
    manifest = twelve(tmp_path, {5: {"png": png(5), "cls": b"10"}})
    with pytest.raises(DataError, match=r"s005: label 10 is not in 0\.\.9; set model.num_classes"):
        batches_of(stream_config(manifest), 2)


def test_a_missing_shard_stops_the_run(tmp_path):
    manifest = twelve(tmp_path, {})
    (tmp_path / "shard-000001.tar").unlink()
    with pytest.raises(DataError, match="shard-000001"):
        batches_of(stream_config(manifest), 2)
