"""python benchmarks/reader_memory.py: what one rank's reader keeps in memory, and what it says.

Samples of 100 KB are read with 8 and with 512 lanes, each in a process of its own, at 224 px and
512 images a batch, for two windows of every lane. Prints Markdown; ends with 1 where the process
grows beyond what the stream names in its log (shards, and batches ahead) by more than 15 %.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import psutil
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a bare checkout

from benchmarks.drawn_shards import drawn_shards
from mixer_dist.data.stream import TrainStream
from tests.data.handmade import open_stream, stream_config, write_dataset

NUM_SHARDS, SHARD_SAMPLES, SAMPLE_BYTES = 20, 1000, 100_000
REPEATS = 5  # 100,000 samples, of which 512 lanes want full chunks
LANES = (8, 512)
BATCH, SIZE_PX = 512, 224
NUM_STEPS = 90  # two windows of 41 samples in each of 512 lanes, and the start of a third
LOOK_S = 0.005
BAR = 1.15


@dataclass
class Memory:
    """Bytes of one process."""

    bound: int = 0
    """Of shards, as the stream names it in its log."""
    batches: int = 0
    """Ahead of the step, as the stream names them."""
    cached: int = 0
    """Of shards in the cache, at most."""
    grown: int = 0
    """Of the whole process, at most, since it began to read."""

    @property
    def ratio(self) -> float:
        """What it grew by what was named."""
        return self.grown / (self.bound + self.batches)


def main() -> int:
    """Make the shards and print the table; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--child", nargs=2, metavar=("LANES", "MANIFEST"), help=argparse.SUPPRESS)
    if child := parser.parse_args().child:
        print(json.dumps(asdict(memory_of(int(child[0]), child[1]))))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        sizes = tqdm([SHARD_SAMPLES] * NUM_SHARDS, "shards", disable=None)
        manifest = write_dataset(Path(folder), drawn_shards(sizes, SAMPLE_BYTES))
        return print_table({lanes: in_own_process(lanes, manifest) for lanes in LANES})


def print_table(found: dict[int, Memory]) -> int:
    """Megabytes by lanes; the exit code."""
    print("| lanes | shards, bound | shards, peak | batches ahead | growth of RSS | by bound |")
    print("|---|---|---|---|---|---|")
    for lanes, memory in found.items():
        sizes = (memory.bound, memory.cached, memory.batches, memory.grown)
        columns = " | ".join(f"{size / 1e6:,.0f} MB" for size in sizes)
        print(f"| {lanes} | {columns} | {memory.ratio:.2f} |")
    return int(max(memory.ratio for memory in found.values()) > BAR)


def in_own_process(lanes: int, manifest: str) -> Memory:
    """The same, unseen by what this process has kept."""
    command = [sys.executable, __file__, "--child", str(lanes), manifest]
    return Memory(**json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout))


def memory_of(lanes: int, manifest: str) -> Memory:
    """What this process comes to keep when it reads."""
    config = stream_config(
        manifest, global_batch_size=BATCH, micro_batch_size=BATCH, model__image_size=SIZE_PX,
        data__train=[{"manifest": manifest, "repeats": REPEATS}], data__order={"lanes": lanes},
    )  # fmt: skip
    memory = Memory(batches=config.data.prefetch_batches * BATCH * 3 * SIZE_PX**2)
    began = psutil.Process().memory_info().rss
    with open_stream(config) as stream, watched(stream, memory, began):
        for _ in tqdm(islice(stream, NUM_STEPS), f"{lanes} lanes", NUM_STEPS, disable=None):
            pass
    return memory


@contextmanager
def watched(stream: TrainStream, memory: Memory, began: int) -> Iterator[None]:
    """Keeps the peaks while something else goes on."""
    cache, process, stopped = stream._loader._reader._chunks, psutil.Process(), threading.Event()
    memory.bound = cache._capacity_bytes

    def look() -> None:
        while not stopped.wait(LOOK_S):
            with cache._lock:
                memory.cached = max(memory.cached, sum(cache._num_bytes.values()))
            memory.grown = max(memory.grown, process.memory_info().rss - began)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()


if __name__ == "__main__":
    sys.exit(main())
