"""python benchmarks/resume.py: what it costs to go on at 1 %, 50 % and 99 % of an epoch.

1,000 shards lie on a loopback S3 server; a proxy before it counts requests and bytes until the
first batch is out. Beside it webdataset, which skips to the same places by reading up to them.
Prints Markdown; ends with 1 where our requests or bytes differ by more than a tenth.
"""

import os
import secrets
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import webdataset
from s3fs import S3FileSystem
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a bare checkout

from benchmarks.drawn_shards import drawn_shards
from launchers.local_s3 import serve
from mixer_dist.data.run_data import training_data
from mixer_dist.data.stream import Cursor, Share, TrainStream
from mixer_dist.storage import Storage
from tests.data.handmade import stream_config, write_dataset
from tests.fault_proxy import serve_faults

NUM_SHARDS, SHARD_SAMPLES, SAMPLE_BYTES = 1000, 100, 5000
NUM_SAMPLES = NUM_SHARDS * SHARD_SAMPLES
PLACES = (0.01, 0.5, 0.99)
BATCH = 256
ORDER = {"lanes": 256, "chunk_samples": 8}
FOLDER = "s3://bucket/noise"
BAR = 1.1

Reader = Callable[[str, int], Iterator[Any]]  # of an endpoint, from a position on


@dataclass(frozen=True)
class Cost:
    """Until the first batch is out."""

    tar_requests: int
    other_requests: int
    """For the manifest and the indexes."""
    num_bytes: int
    waited_s: float


def main() -> int:
    """Make the shards and print the table; the exit code."""
    key, secret = "benchmark", secrets.token_hex(16)
    os.environ |= {"AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": secret}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "bucket/noise").mkdir(parents=True)
        sizes = tqdm([SHARD_SAMPLES] * NUM_SHARDS, "shards", disable=None)
        write_dataset(Path(folder) / "bucket/noise", drawn_shards(sizes, SAMPLE_BYTES))
        with serve(folder, key=key, secret=secret) as url:
            return print_table(url)


def print_table(server_url: str) -> int:
    """A line for each reader and place; the exit code."""
    print("| reader | of the epoch | tar requests | other requests | MB | s |")
    print("|---|---|---|---|---|---|")
    costs: dict[str, list[Cost]] = {}
    for reader in (mixer_dist, webdataset_skipping):
        for place in PLACES:
            cost = measured(reader, server_url, round(place * NUM_SAMPLES) // BATCH * BATCH)
            costs.setdefault(reader.__name__, []).append(cost)
            print(f"| {reader.__name__} | {place:.0%} | {cost.tar_requests:,} "
                  f"| {cost.other_requests:,} | {cost.num_bytes / 1e6:.1f} "
                  f"| {cost.waited_s:.2f} |", flush=True)  # fmt: skip
    ours = costs[mixer_dist.__name__]
    requests = spread([cost.tar_requests + cost.other_requests for cost in ours])
    num_bytes = spread([cost.num_bytes for cost in ours])
    print(f"\nmixer_dist, most to least: requests {requests:.2f}, bytes {num_bytes:.2f} "
          f"(bar: {BAR}).")  # fmt: skip
    return int(max(requests, num_bytes) > BAR)


def measured(reader: Reader, server_url: str, position: int) -> Cost:
    """What a reader asks for until its first batch is out."""
    with serve_faults(server_url) as proxy:
        began_s = time.monotonic()
        with closing(reader(proxy.url, position)) as batches:
            next(batches)
            waited_s = time.monotonic() - began_s
            seen = list(proxy.exchanges)
    num_tars = sum(exchange.path.endswith(".tar") for exchange in seen)
    num_bytes = sum(exchange.num_bytes for exchange in seen)
    return Cost(num_tars, len(seen) - num_tars, num_bytes, waited_s)


def spread(values: list[int]) -> float:
    """The largest by the smallest."""
    return max(values) / min(values)


def mixer_dist(endpoint_url: str, position: int) -> Iterator[Any]:
    """Our own stream on one rank, from a cursor alone."""
    config = stream_config(
        f"{FOLDER}/manifest.json", global_batch_size=BATCH, micro_batch_size=BATCH,
        total_steps=10**6, data__order=ORDER,
        storage={"s3://": {"endpoint_url": endpoint_url, "checksum": "when_required"}},
    )  # fmt: skip
    storage, cursor = Storage(config.storage), Cursor(position // BATCH, position)
    share = Share(rank=0, world_size=1, num_rows=BATCH)
    data = training_data(config, storage)
    with TrainStream(config, data, storage, cursor, share, depth_rates=[0.0]) as stream:
        yield from stream


def webdataset_skipping(endpoint_url: str, position: int) -> Iterator[Any]:
    """webdataset's stream of undecoded samples, those before the position thrown away."""
    system = S3FileSystem(endpoint_url=endpoint_url, skip_instance_cache=True)
    webdataset.gopen.gopen_schemes["s3"] = lambda url, mode, bufsize: system.open(url, mode)
    urls = [f"{FOLDER}/shard-{shard:06d}.tar" for shard in range(NUM_SHARDS)]
    samples = islice(webdataset.WebDataset(urls, shardshuffle=False), position, None)
    while batch := list(islice(samples, BATCH)):
        yield batch


if __name__ == "__main__":
    sys.exit(main())
