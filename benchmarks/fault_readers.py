"""Two clients of a dataset in a bucket, and what each got: TrainStream and plain webdataset."""

import logging
import threading
import time
import zlib
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field

import psutil
import webdataset

from benchmarks.fault_cases import Place
from mixer_dist.config import RunConfig
from mixer_dist.data.batch import Batch
from mixer_dist.data.run_data import training_data
from mixer_dist.data.stream import Cursor, Share, TrainStream
from mixer_dist.errors import MixerError
from mixer_dist.sections import parse
from mixer_dist.storage import join

BATCH = 30
NUM_STEPS = 20
NUM_SAMPLES = BATCH * NUM_STEPS
SIZE_PX = 32
PATIENCE_S = 10.0  # before a client that waits is given up


@dataclass
class Outcome:
    """What a client got."""

    found: list[Hashable] = field(default_factory=list)
    """Every batch, or every sample, in the order in which it came."""
    warnings: list[str] = field(default_factory=list)
    replaced: int = 0
    """Samples that it said it replaced."""
    error: str = ""
    """Empty where it came to its end as if all were well."""
    seconds: float = 0.0
    num_requests: int = 0


def mixer_dist(place: Place, midway: Callable[[], None], pause_s: float) -> Outcome:
    """One epoch of training data."""
    outcome = Outcome()
    handler = logging.Handler()
    handler.emit = lambda record: outcome.warnings.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("mixer_dist")
    logger.addHandler(handler)
    try:
        with open_stream(place) as stream:
            for number, batch in enumerate(stream):
                outcome.found.append(content(batch))
                outcome.replaced += len(batch.bad_samples)
                if number == NUM_STEPS // 4:
                    midway()
                time.sleep(pause_s)
    except MixerError as error:
        outcome.error = f"{error} (exit {error.exit_code})"
    finally:
        logger.removeHandler(handler)
    return outcome


def content(batch: Batch) -> Hashable:
    """Keys, digest, pixels and labels of a batch."""
    pixels = zlib.crc32(batch.images.numpy().tobytes())
    return batch.keys, batch.digest, pixels, tuple(batch.labels.tolist())


def open_stream(place: Place) -> TrainStream:
    """The stream of a run on one rank."""
    tree = {
        "run_dir": "unused",
        "total_steps": NUM_STEPS,
        "global_batch_size": BATCH,
        "micro_batch_size": BATCH,
        "model": {
            "patch_size": 4, "hidden_dim": 8, "num_blocks": 1, "tokens_mlp_dim": 4,
            "channels_mlp_dim": 8, "image_size": SIZE_PX, "num_classes": 10,
        },
        "data": {
            "train": [{"manifest": join(place.folder, "manifest.json")}],
            "order": {"lanes": 6, "chunk_samples": 10, "window": 10},
        },
        "optimizer": {"learning_rate": 1e-3},
    }  # fmt: skip
    config, storage = parse(RunConfig, tree, "the benchmark"), place.storage()
    share = Share(rank=0, world_size=1, num_rows=BATCH)
    return TrainStream(config, training_data(config, storage), storage, Cursor(), share, [0.0])


def plain_webdataset(place: Place, midway: Callable[[], None], pause_s: float) -> Outcome:
    """One pass as webdataset's own documentation has it: `pipe:curl` of presigned URLs.

    -f makes curl answer refusals with an exit code instead of the refusal's text.
    """
    outcome = Outcome()
    giving_up = threading.Timer(PATIENCE_S, end_curl)
    giving_up.start()
    try:
        for number, sample in enumerate(samples(place)):
            outcome.found.append(sample)
            if number == NUM_SAMPLES // 4:
                midway()
            if number % BATCH == 0:
                time.sleep(pause_s)
    except Exception as error:  # noqa: BLE001, whatever a user of webdataset would meet
        outcome.error = str(error) if "exit" in str(error) else type(error).__name__
    finally:
        if not giving_up.is_alive():
            outcome.error = f"still waiting after {PATIENCE_S:g} s"
        giving_up.cancel()
    return outcome


def samples(place: Place) -> Iterator[Hashable]:
    """Key, pixels and label of each sample."""
    fs, _ = place.storage().open(place.folder)
    urls = [f"pipe:curl -s -f '{fs.sign(shard)}'" for shard in place.shards]
    dataset = webdataset.WebDataset(urls, shardshuffle=False).decode("rgb8")
    for key, image, label in dataset.to_tuple("__key__", "jpg", "cls"):
        yield key, zlib.crc32(image.tobytes()), label


def end_curl() -> None:
    """End the curl processes that this one started."""
    for child in psutil.Process().children(recursive=True):
        if child.name() == "curl":
            child.kill()


Client = Callable[[Place, Callable[[], None], float], Outcome]


def timed(client: Client, place: Place, midway: Callable[[], None], pause_s: float) -> Outcome:
    """What a client got, how long it took and what it asked of the store."""
    before, began = len(place.proxy.exchanges), time.monotonic()
    outcome = client(place, midway, pause_s)
    outcome.seconds = time.monotonic() - began
    outcome.num_requests = len(place.proxy.exchanges) - before
    return outcome
