"""Evaluation reads everything once, in storage order, and replaces nothing."""

import io
import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from PIL import Image

from mixer_dist.config import RunConfig
from mixer_dist.data.augment import resized_as_evaluated
from mixer_dist.data.batch import Batch
from mixer_dist.data.evaluation_stream import EvaluationShare, evaluation_stream
from mixer_dist.data.manifest import load_dataset
from mixer_dist.errors import DataError
from mixer_dist.storage import Storage
from tests.data.handmade import files_of, flip_byte, png, stream_config, twelve

SIZE_PX = 16


def evaluation(
    config: RunConfig, manifest: str, num_rows: int, resize_px: int = 18
) -> Iterator[Batch]:
    dataset = load_dataset(Storage(), [(manifest, 1)])
    return evaluation_stream(
        config, dataset, Storage(), resize_px=resize_px, share=EvaluationShare(0, 1, num_rows)
    )


def test_evaluation_reads_every_image_once_in_storage_order(digits):
    manifest = str(digits / "test" / "manifest.json")
    config = stream_config(manifest, model__image_size=SIZE_PX)
    batches = list(evaluation(config, manifest, num_rows=64))
    samples = files_of(digits / "test")
    assert [len(batch) for batch in batches] == [64] * 5
    assert torch.cat([batch.weights for batch in batches]).tolist() == [1.0] * 296 + [0.0] * 24
    real = torch.cat([batch.positions for batch in batches])
    assert real.tolist() == [*range(296), *[-1] * 24]
    images = torch.cat([batch.images for batch in batches])
    for found, sample in zip(images, samples, strict=False):
        pixels = np.array(Image.open(io.BytesIO(sample["png"])).convert("RGB"))
        assert torch.equal(found, resized_as_evaluated(pixels, 18, SIZE_PX))
    assert not images[296:].any()
    labels = torch.cat([batch.labels for batch in batches])[:296]
    assert labels.tolist() == [int(sample["cls"]) for sample in samples]
    keys = [key for batch in batches for key in batch.keys]
    assert keys == [sample["__key__"] for sample in samples]


@pytest.mark.parametrize("kind", ["byte", "text"])
def test_evaluation_names_the_damaged_image_and_ends(tmp_path, kind):
    manifest = twelve(tmp_path, {6: {"jpg": b"text", "cls": b"1"}} if kind == "text" else {})
    if kind == "byte":
        begins = np.fromfile(tmp_path / "shard-000001.idx", "<u8,<u4,<u4")["f0"]
        flip_byte(tmp_path / "shard-000001.tar", int(begins[1]) + 600)
    before = set(threading.enumerate())
    batches = evaluation(stream_config(manifest), manifest, num_rows=4, resize_px=8)
    assert next(batches).keys == ("s000", "s001", "s002", "s003")
    with pytest.raises(DataError, match=r"damaged: .*shard-000001\.tar, sample 1, ") as caught:
        next(batches)
    assert "s006" in str(caught.value)
    del caught
    assert set(threading.enumerate()) == before


def test_evaluation_of_several_labels_without_named_classes_takes_little_memory(tmp_path):
    several = {"png": png(5), "json": b'{"labels": [3, 7]}'}
    manifest = twelve(tmp_path, {5: several})
    [batch] = evaluation(stream_config(manifest), manifest, num_rows=12, resize_px=8)
    assert batch.labels.shape == (12, 8) and batch.labels[5].tolist() == [0, 0, 0, 1, 0, 0, 0, 1]


def test_a_stopped_evaluation_leaves_no_thread(tmp_path):
    manifest = twelve(tmp_path, {})
    before = set(threading.enumerate())
    batches = evaluation(stream_config(manifest), manifest, num_rows=2, resize_px=8)
    next(batches)
    batches.close()
    assert set(threading.enumerate()) == before


@pytest.mark.parametrize("world_size", [2, 3, 5, 9])
def test_every_world_size_reads_every_image_once_in_the_same_batches(digits, world_size):
    manifest = str(digits / "test" / "manifest.json")
    config = stream_config(manifest, model__image_size=SIZE_PX)
    dataset = load_dataset(Storage(), [(manifest, 1)])

    def of_rank(rank: int, world_size: int) -> list[Batch]:
        share = EvaluationShare(rank, world_size, num_rows=40)
        return list(evaluation_stream(config, dataset, Storage(), resize_px=18, share=share))

    alone = of_rank(0, 1)
    ranks = [of_rank(rank, world_size) for rank in range(world_size)]
    assert {len(batches) for batches in ranks} == {-(-8 // world_size)}  # for collectives' sake
    together = [batch for batches in ranks for batch in batches if batch.keys]
    assert [batch.keys for batch in together] == [batch.keys for batch in alone]
    for found, expected in zip(together, alone, strict=True):
        assert torch.equal(found.images, expected.images)
        assert torch.equal(found.weights, expected.weights)
    empty = [batch for batches in ranks for batch in batches if not batch.keys]
    assert not any(batch.weights.any() for batch in empty)
