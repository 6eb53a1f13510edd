"""A user's own stages, and closing: at once in any state, nothing left behind."""

import itertools
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
import torch

from mixer_dist.errors import ConfigError, DataError
from mixer_dist.storage import Storage, Version
from tests.data.handmade import batches_of, open_stream, stream_config, twelve

Samples = Iterable[dict[str, Any]]


def inverted(samples: Samples) -> Iterator[dict[str, Any]]:
    for sample in samples:
        yield sample | {"image": 255 - sample["image"]}


def dropping(samples: Samples) -> Iterator[dict[str, Any]]:
    return (sample for sample in samples if sample["position"] != 8)


def doubling(samples: Samples) -> Iterator[dict[str, Any]]:
    return (sample for sample in samples for _ in range(1 + (sample["position"] == 8)))


def swapping(samples: Samples) -> Iterator[dict[str, Any]]:
    samples = iter(samples)
    for first, second in zip(samples, samples, strict=True):
        yield from (second, first) if first["position"] == 8 else (first, second)


def test_a_stage_of_the_user_sees_decoded_samples(tmp_path):
    manifest = twelve(tmp_path, {})
    [plain] = batches_of(stream_config(manifest), 1)
    stages = {"data__stages": [f"{__name__}.inverted"]}
    [changed] = batches_of(stream_config(manifest, **stages), 1)
    assert torch.equal(changed.images, 255 - plain.images) and changed.digest == plain.digest
    twice = {"data__stages": [f"{__name__}.inverted"] * 2}
    [restored] = batches_of(stream_config(manifest, **twice), 1)
    assert torch.equal(restored.images, plain.images)


@pytest.mark.parametrize("stage", ["dropping", "doubling", "swapping"])
def test_a_stage_that_changes_which_samples_come_stops_the_run(tmp_path, stage):
    config = stream_config(twelve(tmp_path, {}), data__stages=[f"{__name__}.{stage}"])
    with open_stream(config) as stream:
        assert next(iter(stream)).positions.tolist() == [0, 1, 2, 3, 4, 5]
        with pytest.raises(DataError, match=rf"{stage}.* must give each sample back once"):
            next(iter(stream))
        with pytest.raises(DataError):  # asked again, it says so again
            next(iter(stream))


@pytest.mark.parametrize("name", ["nowhere.stage", f"{__name__}.nothing", "plain", ""])
def test_a_stage_that_is_not_there_is_refused(tmp_path, name):
    config = stream_config(twelve(tmp_path, {}), data__stages=[name])
    with pytest.raises(ConfigError, match=r"data\.stages: cannot import"):
        open_stream(config)


class SlowStorage(Storage):
    """Takes a moment for each read, so that closing finds reads under way."""

    def read_versioned(self, url: str, start: int, stop: int) -> tuple[bytes, Version]:
        time.sleep(0.002)
        return super().read_versioned(url, start, stop)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("num_taken", [0, 1, 3])
def test_closing_in_the_middle_leaves_no_thread(tmp_path, num_taken):
    config = stream_config(twelve(tmp_path, {}), data__prefetch_batches=1 + num_taken)
    before = set(threading.enumerate())
    for turn in range(15):
        with open_stream(config, storage=SlowStorage()) as stream:
            taken = list(itertools.islice(stream, num_taken))
            time.sleep(0.001 * (turn % 5))
        assert len(taken) == num_taken
        assert set(threading.enumerate()) == before
        assert next(iter(stream), None) is None  # and does not wait for what never comes


@pytest.mark.timeout(120)
def test_closing_after_an_error_leaves_no_thread(tmp_path):
    manifest = twelve(tmp_path, {})
    (tmp_path / "shard-000001.tar").unlink()
    before = set(threading.enumerate())
    for turn in range(15):
        with open_stream(stream_config(manifest), storage=SlowStorage()) as stream:
            if turn % 3 == 0:
                time.sleep(0.02)  # nobody asks, so nobody hears of the error
            elif turn % 3 == 1:
                with pytest.raises(DataError):
                    list(stream)
        assert set(threading.enumerate()) == before


@pytest.mark.timeout(120)
def test_an_error_of_the_training_step_closes_the_stream(tmp_path):
    config = stream_config(twelve(tmp_path, {}))
    before = set(threading.enumerate())
    with pytest.raises(RuntimeError, match="out of memory"), open_stream(config) as stream:
        next(iter(stream))
        raise RuntimeError("out of memory")
    assert set(threading.enumerate()) == before


def test_decoding_threads_leave_the_main_thread_its_cores():
    """They compute on one core each; a main thread not yet at work would have taken that over."""
    script = (
        "import torch; from mixer_dist.data.loader import worker_threads as workers; "
        "print(workers(1).submit(torch.get_num_threads).result(), torch.get_num_threads())"
    )
    command = [sys.executable, "-c", script]
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "2"]
