"""python benchmarks/reshard.py: from a checkpoint of 2 ranks to 4 ranks that are ready to step.

Ours and DeepSpeed's own are saved and loaded under ZeRO-2, PyTorch's DCP under FSDP: a Mixer with
its Adam moments. DeepSpeed has to convert with `ds_to_universal` first; it runs in a process that
has all imports. Before each load the files are put out of memory. Medians of rounds in turn.

Prints a Markdown table; ends with 1 where a bar is missed.
"""

import argparse
import multiprocessing
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a bare checkout

from benchmarks import drawn_state
from benchmarks.drawn_state import cleared, drawn_engine, fingerprint, variant_config
from mixer_dist import distributed
from mixer_dist.checkpoint.load import load_pieces
from mixer_dist.checkpoint.restore import newest_verified, read_checkpoint
from mixer_dist.checkpoint.save import Saver
from mixer_dist.run_dir import RunDir
from mixer_dist.storage import Storage
from mixer_dist.train.engine import Engine
from tests import ranks

WRITERS, READERS = 2, 4
TIMES_FASTER_BAR = 5
BYTES_BAR = 1.05
TIMEOUT_S = 600.0


class Loaded(NamedTuple):
    """What a load came to, on one rank."""

    seconds: float
    verify_s: float = 0.0
    """Part of it: hashing the files."""
    num_read: int = 0
    """Bytes, those that were hashed apart."""
    num_needed: int = 0
    fingerprint: tuple[float, ...] = ()


@dataclass(frozen=True)
class Format:
    """A way to save under one world size and to load under another."""

    name: str
    engine: str
    save: Callable[[Engine, str], None]
    convert: Callable[[str], float]
    """Seconds of what has to be done between, in one process."""
    load: Callable[[Engine, str], Loaded]


def main() -> int:
    """Save once, load in rounds, print the table; 1 where a bar is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--variant", default="B/16")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    ranks.TIMEOUT_S = TIMEOUT_S
    started = ranks.Ranks()
    with tempfile.TemporaryDirectory(dir=".") as folder:
        places = {name: f"{folder}/{name}" for name in FORMATS}
        expected = {
            name: started.run(WRITERS, save_drawn, name, arguments.variant, place)[0]
            for name, place in tqdm(places.items(), "saves", disable=None)
        }
        rounds: dict[str, list[tuple[float, list[Loaded]]]] = {name: [] for name in FORMATS}
        for _ in tqdm(range(arguments.rounds), "rounds", disable=None):
            for name, place in places.items():
                forget(place)
                convert_s = started.run(1, FORMATS[name].convert, place)[0]
                forget(place)
                loaded = started.run(READERS, load_cleared, name, arguments.variant, place)
                assert drawn_state.is_same(loaded[0].fingerprint, expected[name]), name
                rounds[name].append((convert_s, loaded))
    return print_table(rounds)


def print_table(rounds: dict[str, list[tuple[float, list[Loaded]]]]) -> int:
    """Seconds by format; the exit code."""
    print("| checkpoint | convert, s | load, s | together, s | of ours |\n|---|---|---|---|---|")
    together = {
        name: [convert_s + loaded[0].seconds for convert_s, loaded in found]
        for name, found in rounds.items()
    }
    ratios = {
        name: statistics.median(a / b for a, b in zip(found, together["mixer_dist"], strict=True))
        for name, found in together.items()
    }
    for name, found in rounds.items():
        convert_s = statistics.median(convert_s for convert_s, _ in found)
        load_s = statistics.median(loaded[0].seconds for _, loaded in found)
        print(f"| {name} | {convert_s:.2f} | {load_s:.2f} | "
              f"{statistics.median(together[name]):.2f} | {ratios[name]:.1f} |")  # fmt: skip
    ours = rounds["mixer_dist"]
    verify_s = statistics.median(loaded[0].verify_s for _, loaded in ours)
    of_needed = max(one.num_read / one.num_needed for _, loaded in ours for one in loaded)
    print(f"\nmixer_dist: {verify_s:.2f} s of it to verify every byte; then bytes read over bytes "
          f"needed {of_needed:.3f} on the worst rank (bar: {BYTES_BAR}); DeepSpeed takes "
          f"{ratios['DeepSpeed']:.1f} times as long (bar: {TIMES_FASTER_BAR}).")  # fmt: skip
    return int(of_needed > BYTES_BAR or ratios["DeepSpeed"] < TIMES_FASTER_BAR)


def save_drawn(name: str, variant: str, place: str) -> list[float]:
    """Save drawn state; its fingerprint. All ranks must call this."""
    with distributed.connected(TIMEOUT_S):
        engine = drawn_engine(variant_config(variant, FORMATS[name].engine))
        FORMATS[name].save(engine, place)
        return fingerprint(engine)


def load_cleared(name: str, variant: str, place: str) -> Loaded:
    """Load into an engine that holds nothing. All ranks must call this."""
    with distributed.connected(TIMEOUT_S):
        engine = drawn_engine(variant_config(variant, FORMATS[name].engine))
        cleared(engine)
        distributed.barrier()
        began = time.monotonic()
        loaded = FORMATS[name].load(engine, place)
        distributed.barrier()
        seconds = time.monotonic() - began
        return loaded._replace(seconds=seconds, fingerprint=tuple(fingerprint(engine)))


class CountingStorage(Storage):
    """Counts what is read through it."""

    def __init__(self) -> None:
        super().__init__()
        self.num_read = 0
        self._lock = Lock()

    def read_versioned(self, url: str, start: int, stop: int) -> Any:
        with self._lock:
            self.num_read += stop - start
        return super().read_versioned(url, start, stop)

    def read(self, url: str, num_bytes: int | None = None) -> bytes:
        data = super().read(url, num_bytes)
        self.num_read += len(data)
        return data


def save_ours(engine: Engine, place: str) -> None:
    storage, run_dir = Storage(), RunDir(place)
    attempt = drawn_state.begin_attempt(storage, run_dir, engine._config)  # type: ignore[attr-defined]
    pieces = list(engine.pieces())
    saver = Saver(storage, run_dir, attempt, engine.shapes, pieces)
    saver.start(pieces, drawn_state.STATE)
    saver.wait()


def load_ours(engine: Engine, place: str) -> Loaded:
    began = time.monotonic()
    found = newest_verified(Storage(), RunDir(place))
    assert found is not None
    verify_s = time.monotonic() - began
    storage, pieces = CountingStorage(), list(engine.pieces())
    load_pieces(storage, read_checkpoint(storage, found.url), pieces)
    engine.refresh(found.manifest.num_updates)
    num_needed = sum(piece.tensor.nbytes for piece in pieces)
    return Loaded(0.0, verify_s, storage.num_read, num_needed)


def save_deepspeed(engine: Any, place: str) -> None:
    engine._engine.save_checkpoint(place, tag="native")


def to_universal(place: str) -> float:
    """DeepSpeed's own conversion, with its own number of workers."""
    from deepspeed.checkpoint import ds_to_universal

    shutil.rmtree(f"{place}/universal", ignore_errors=True)
    multiprocessing.set_start_method("fork", force=True)  # else its workers import all anew
    options = argparse.Namespace(
        input_folder=f"{place}/native", output_folder=f"{place}/universal", num_extract_workers=4,
        num_merge_workers=2, keep_temp_folder=False, strict=True, inject_missing_state=True,
    )  # fmt: skip
    began = time.monotonic()
    with redirect_stdout(sys.stderr):
        ds_to_universal.main(options)
    return time.monotonic() - began


def load_deepspeed(engine: Any, place: str) -> Loaded:
    engine._engine._config.load_universal_checkpoint = True
    engine._engine.load_checkpoint(place, tag="universal")
    return Loaded(0.0)


def save_dcp(engine: Any, place: str) -> None:
    model, optimizer = get_state_dict(engine._model, engine._optimizer)
    dcp.save({"model": model, "optimizer": optimizer}, checkpoint_id=place)


def load_dcp(engine: Any, place: str) -> Loaded:
    model, optimizer = get_state_dict(engine._model, engine._optimizer)
    dcp.load({"model": model, "optimizer": optimizer}, checkpoint_id=place)
    set_state_dict(
        engine._model, engine._optimizer, model_state_dict=model, optim_state_dict=optimizer
    )
    return Loaded(0.0)


def nothing_to_convert(place: str) -> float:
    return 0.0


def forget(place: str) -> None:
    """Have the next read of each file come from the disk."""
    os.sync()
    for path in Path(place).rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


FORMATS = {
    "mixer_dist": Format("mixer_dist", "zero2", save_ours, nothing_to_convert, load_ours),
    "DeepSpeed": Format("DeepSpeed", "zero2", save_deepspeed, to_universal, load_deepspeed),
    "DCP": Format("DCP", "fsdp", save_dcp, nothing_to_convert, load_dcp),
}


if __name__ == "__main__":
    sys.exit(main())
