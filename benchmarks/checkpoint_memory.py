"""python benchmarks/checkpoint_memory.py: what a rank's memory grows by as it saves and restores.

A Mixer with its Adam moments on 4 ranks under fsdp, ZeRO-2 and ZeRO-3. Growth is the peak of the
resident memory (VmHWM) over what the rank had before, beside its share: the bytes of its pieces.
Then, from the shapes alone, what H/14 comes to on 8, 64 and 256 ranks.

Prints Markdown tables; ends with 1 where a rank grows by more than its buffer and the requests
under way when it saves, or by more than those requests when it restores.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator
from itertools import product
from math import ceil, prod
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a bare checkout

from benchmarks import drawn_state
from benchmarks.drawn_state import cleared, drawn_engine, fingerprint, is_same, variant_config
from mixer_dist import distributed
from mixer_dist.checkpoint.layout import CheckpointManifest, FileEntry, WrittenBy, parameter_entries
from mixer_dist.checkpoint.load import NUM_REQUESTS, REQUEST_BYTES, load_pieces
from mixer_dist.checkpoint.pieces import KINDS
from mixer_dist.checkpoint.restore import newest_verified
from mixer_dist.checkpoint.save import Saver
from mixer_dist.run_dir import RunDir
from mixer_dist.storage import Storage
from mixer_dist.train.build import empty_model
from tests import ranks

ENGINES = ("fsdp", "zero2", "zero3")
WORLD_SIZE = 4
FP32_BYTES = 4
REQUESTS = 2 * NUM_REQUESTS * REQUEST_BYTES
"""Bytes of requests under way: as they arrive, and their elements on the way to their place."""
SMALL = 32 * 2**20  # headers, manifests, threads
TIMEOUT_S = 900.0


class Memory(NamedTuple):
    """Bytes of one rank."""

    share: int
    saving: int
    """Growth while it saves, the buffer for the copy included."""
    restoring: int


def main() -> int:
    """Measure and print the tables; 1 where a bar is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--variant", default="L/16")
    variant = parser.parse_args().variant
    ranks.TIMEOUT_S = TIMEOUT_S
    found = {}
    for engine in tqdm(ENGINES, "engines", disable=None):
        with tempfile.TemporaryDirectory(dir=".") as run_dir:
            found[engine] = ranks.Ranks().run(WORLD_SIZE, memory_of, engine, variant, run_dir)
    missed = print_measured(found)
    print_accounts()
    return missed


def print_measured(found: dict[str, list[Memory]]) -> int:
    """The worst rank of each engine, in megabytes; the exit code."""
    print("| engine | share | growth, saving | of share | growth, restoring | of share |")
    print("|---|---|---|---|---|---|")
    missed = 0
    for engine, of_ranks in found.items():
        share = max(memory.share for memory in of_ranks)
        saving = max(memory.saving for memory in of_ranks)
        restoring = max(memory.restoring for memory in of_ranks)
        print(f"| {engine} | {share / 1e6:.0f} MB | {saving / 1e6:.0f} MB | {saving / share:.2f} "
              f"| {restoring / 1e6:.0f} MB | {restoring / share:.2f} |")  # fmt: skip
        missed += any(memory.saving > memory.share + SMALL for memory in of_ranks)
        missed += any(memory.restoring > REQUESTS + SMALL for memory in of_ranks)
    return int(missed > 0)


def memory_of(engine: str, variant: str, run_dir: str) -> Memory:
    """Save drawn state and restore it. All ranks must call this."""
    with distributed.connected(TIMEOUT_S):
        config = variant_config(variant, engine)
        trained, storage = drawn_engine(config), Storage()
        attempt = drawn_state.begin_attempt(storage, RunDir(run_dir), config)
        pieces, expected = list(trained.pieces()), fingerprint(trained)

        def save() -> None:
            saver = Saver(storage, RunDir(run_dir), attempt, trained.shapes, pieces)
            saver.start(pieces, drawn_state.STATE)
            saver.wait()

        def restore() -> None:
            checkpoint = newest_verified(storage, RunDir(run_dir))
            assert checkpoint is not None
            load_pieces(storage, checkpoint, pieces)

        saving = growth(save)
        cleared(trained)
        restoring = growth(restore)
        assert is_same(fingerprint(trained), expected)
        return Memory(sum(piece.tensor.nbytes for piece in pieces), saving, restoring)


def growth(action: Callable[[], None]) -> int:
    """Bytes of the peak of this process's resident memory over what it had before."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins anew
    before = resident("VmRSS")
    action()
    return resident("VmHWM") - before


def resident(name: str) -> int:
    """A size in /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) * 1024


def print_accounts() -> None:
    """H/14 on many ranks: the share of the largest and of the smallest rank, and the manifest."""
    config = variant_config("H/14", "fsdp")
    shapes = {fqn: tuple(p.shape) for fqn, p in empty_model(config.model).named_parameters()}
    whole = FP32_BYTES * len(KINDS) * sum(map(prod, shapes.values()))
    print(f"\nH/14 from its shapes: {whole / 1e9:.2f} GB of state.\n")
    print("| engine | ranks | largest share = buffer | smallest | of an equal share | pieces "
          "| manifest |\n|---|---|---|---|---|---|---|")  # fmt: skip
    for engine, world_size in product(ENGINES, (8, 64, 256)):
        held = [list(RANGES[engine](shapes, rank, world_size)) for rank in range(world_size)]
        sizes = [
            FP32_BYTES * len(KINDS) * sum(stop - start for _, start, stop in of_rank)
            for of_rank in held
        ]
        assert sum(sizes) == whole, engine
        manifest = manifest_of(shapes, held, engine)
        largest, smallest = max(sizes) / 1e6, min(sizes) / 1e6
        print(f"| {engine} | {world_size} | {largest:,.1f} MB | {smallest:,.1f} MB "
              f"| {max(sizes) * world_size / whole:.3f} | {len(KINDS) * sum(map(len, held)):,} "
              f"| {len(manifest.model_dump_json()) / 1e6:.2f} MB |")  # fmt: skip


Shapes = dict[str, tuple[int, ...]]
Ranges = Iterator[tuple[str, int, int]]


def rows(shapes: Shapes, rank: int, world_size: int) -> Ranges:
    """fully_shard: dim 0 cut as torch.chunk cuts it."""
    for fqn, shape in shapes.items():
        chunk, row = ceil(shape[0] / world_size), prod(shape[1:])
        start, stop = min(rank * chunk, shape[0]), min((rank + 1) * chunk, shape[0])
        if start < stop:
            yield fqn, start * row, stop * row


def fragments(shapes: Shapes, rank: int, world_size: int) -> Ranges:
    """ZeRO-1 and 2: a parameter group end to end in equal cuts, that with weight decay first."""
    for has_decay in (True, False):
        group = {fqn: prod(shape) for fqn, shape in shapes.items() if (len(shape) > 1) == has_decay}
        cut = ceil(sum(group.values()) / world_size)
        begin = 0
        for fqn, length in group.items():
            start, stop = max(begin, rank * cut), min(begin + length, (rank + 1) * cut)
            if start < stop:
                yield fqn, start - begin, stop - begin
            begin += length


def partitions(shapes: Shapes, rank: int, world_size: int) -> Ranges:
    """ZeRO-3: each parameter in equal cuts."""
    for fqn, shape in shapes.items():
        length = ceil(prod(shape) / world_size)
        start, stop = rank * length, min((rank + 1) * length, prod(shape))
        if start < stop:
            yield fqn, start, stop


RANGES: dict[str, Callable[[Shapes, int, int], Ranges]] = {
    "fsdp": rows,
    "zero2": fragments,
    "zero3": partitions,
}


def manifest_of(
    shapes: Shapes, held: list[list[tuple[str, int, int]]], engine: str
) -> CheckpointManifest:
    """The manifest of a save on so many ranks."""
    ranges = ((*found, rank) for rank, of_rank in enumerate(held) for found in of_rank)
    file = FileEntry(name="pieces-0001-00000.safetensors", num_bytes=10**8, sha256="0" * 64)
    return CheckpointManifest(
        **drawn_state.STATE.model_dump(), attempt=1,
        config=variant_config("H/14", engine).model_dump(mode="json"), dataset="0" * 64,
        parameters=parameter_entries(shapes, ranges), files=(file,) * len(held),
        written_by=WrittenBy(engine=engine, world_size=len(held), versions={}),
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
