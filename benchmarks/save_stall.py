"""python benchmarks/save_stall.py: how long a save stops training, and how long it takes.

The state of a Mixer with its Adam moments is saved by one process in turn by mixer_dist,
torch.save, DCP, DCP's asynchronous save and DeepSpeed, each time into a fresh folder on the same
disk, which is removed and synced between. `raw` is a plain write of the same bytes. Nothing trains
meanwhile, but in one row, where ours copies beside a real step of 4 images, as in training, and its
stall is what that step has to wait. A total ends when the bytes are on the disk: who does not sync
by himself is synced.

Prints a Markdown table, medians of rounds; ends with 1 where a bar is missed.
"""

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a bare checkout

from benchmarks import drawn_state
from benchmarks.drawn_state import drawn_engine, variant_config
from mixer_dist import distributed
from mixer_dist.checkpoint.save import Saver
from mixer_dist.run_dir import RunDir
from mixer_dist.storage import Storage
from mixer_dist.train.drawn_batch import drawn_batch

BESIDE_A_STEP = "mixer_dist, beside a step"
BARS = (
    ("stall", BESIDE_A_STEP, "stall", "dcp.async_save", 0.30),
    ("stall", BESIDE_A_STEP, "stall", "torch.save", 0.06),
    ("write", "mixer_dist", "total", "raw", 1.15),
)
"""A cost of one may be no more than so much of another's, as a median over rounds."""


class Cost(NamedTuple):
    """Of one save."""

    stall: float
    """Seconds until the caller may change the state."""
    total: float
    """Seconds until the bytes are on the disk."""

    @property
    def write(self) -> float:
        """Seconds beside training."""
        return self.total - self.stall


Save = Callable[[Path], Cost]


def main() -> int:
    """Measure and print the table; 1 where a bar is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--variant", default="B/16")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--folder", default=".", help="on the disk that is measured")
    arguments = parser.parse_args()
    with distributed.connected(600), tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        saves = all_saves(arguments.variant, Path(folder))
        costs: dict[str, list[Cost]] = {name: [] for name in saves}
        sizes = {name: measured(save, Path(folder))[1] for name, save in saves.items()}  # warm up
        for _ in tqdm(range(arguments.rounds), "rounds", disable=None):
            for name, save in saves.items():
                costs[name].append(measured(save, Path(folder))[0])
    return print_table(costs, sizes)


def measured(save: Save, folder: Path) -> tuple[Cost, int]:
    """What a save costs, and the bytes that it leaves."""
    place = folder / "saved"
    place.mkdir()
    os.sync()
    cost = save(place)
    num_bytes = sum(path.stat().st_size for path in files_in(place))
    shutil.rmtree(place)
    os.sync()
    return cost, num_bytes


def print_table(costs: dict[str, list[Cost]], sizes: dict[str, int]) -> int:
    """Seconds by way of saving; the exit code."""
    print("| save | stall, s | total, s | MB |\n|---|---|---|---|")
    for name, found in costs.items():
        stall, total = (statistics.median(column) for column in zip(*found, strict=True))
        print(f"| {name} | {stall:.3f} | {total:.2f} | {sizes[name] / 1e6:.0f} |")
    print()
    num_missed = 0
    for column, name, other_column, other, bar in BARS:
        found_ratio = statistics.median(
            getattr(a, column) / getattr(b, other_column)
            for a, b in zip(costs[name], costs[other], strict=True)
        )
        num_missed += found_ratio > bar
        print(f"- {name}, {column}: {found_ratio:.3f} of {other}, {other_column} (bar: {bar:.2f})")
    return int(num_missed > 0)


def all_saves(variant: str, folder: Path) -> dict[str, Save]:
    """Every way to save the same state."""
    config = variant_config(variant, "single").model_copy(update={"global_batch_size": 4})
    engine = drawn_engine(config)
    pieces = list(engine.pieces())
    state = {f"{piece.kind}.{piece.fqn}": piece.tensor for piece in pieces}
    storage, run_dir = Storage(), RunDir(str(folder / "run"))
    attempt = drawn_state.begin_attempt(storage, run_dir, config)
    saver = Saver(storage, run_dir, attempt, engine.shapes, pieces)
    engine.before_update = saver.settle
    batch = drawn_batch(config)
    zero: Any = drawn_engine(variant_config(variant, "zero2"))

    def ours(place: Path) -> Cost:
        saver.start(pieces, drawn_state.STATE)
        saver.settle()
        return ended(place)

    def beside_a_step(place: Path) -> Cost:
        saver.start(pieces, drawn_state.STATE)
        engine.train_step(batch, learning_rate=0.0)
        return ended(place)

    def ended(place: Path) -> Cost:
        saved = saver.wait()
        shutil.move(saved.url, place)
        return Cost(saved.stall_s, saved.seconds)

    def raw(place: Path) -> Cost:
        return until_synced(lambda: write_raw(place / "raw", state.values()), place)

    def torch_save(place: Path) -> Cost:
        return until_synced(lambda: torch.save(state, place / "state.pt"), place)

    def dcp_save(place: Path) -> Cost:
        return until_synced(lambda: dcp.save(state, checkpoint_id=place), place)

    def dcp_async_save(place: Path) -> Cost:
        began = time.monotonic()
        future: Any = dcp.async_save(state, checkpoint_id=place)
        stall = time.monotonic() - began
        future.result()
        return Cost(stall, time.monotonic() - began)

    def deepspeed_save(place: Path) -> Cost:
        return until_synced(lambda: zero._engine.save_checkpoint(str(place), tag="native"), place)

    return {
        "mixer_dist": ours,
        BESIDE_A_STEP: beside_a_step,
        "raw": raw,
        "torch.save": torch_save,
        "dcp.save": dcp_save,
        "dcp.async_save": dcp_async_save,
        "DeepSpeed, ZeRO-2": deepspeed_save,
    }


def write_raw(path: Path, tensors: Iterable[Tensor]) -> None:
    """The bytes alone."""
    with open(path, "wb") as stream:
        for tensor in tensors:
            stream.write(tensor.numpy().data)
        stream.flush()
        os.fsync(stream.fileno())


def until_synced(save: Callable[[], Any], place: Path) -> Cost:
    """Of a save that stalls for as long as it runs."""
    began = time.monotonic()
    save()
    stall = time.monotonic() - began
    for path in files_in(place):
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    return Cost(stall, time.monotonic() - began)


def files_in(place: Path) -> Iterable[Path]:
    """All files below a folder."""
    return (path for path in place.rglob("*") if path.is_file())


if __name__ == "__main__":
    sys.exit(main())
