"""python benchmarks/sharding.py {rates FOLDER,kills}: how fast shard.py is, and that it survives.

`rates`: images a CPU second of shard.py on a folder of class folders, with and without its decode
check, beside webdataset's ShardWriter on the same images; one process, medians of 5 in turn.
`kills`: at least 50 SIGKILLs at random moments; each run is started again until it ends, and must
end with the bytes of a run that nobody touched.

Prints Markdown; ends with 1 where a bar is missed.
"""

import argparse
import hashlib
import multiprocessing
import os
import random
import shutil
import signal
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import webdataset

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a bare checkout

from data_tools import sample_data, shard, workers
from mixer_dist.data.image_folder import scan_images
from mixer_dist.data.manifest import load_manifest
from mixer_dist.storage import Storage

ROOT = Path(__file__).resolve().parents[1]
FILES = ROOT / "runs" / "sharding"
ROUNDS = 5
BAR = 0.9  # of ShardWriter's rate
SHARD_MB = 64
KILLS = 50
KILLED_OPTIONS = ["--shard-mb", "0.05", "--val-fraction", "0.2", "--deduplicate", "--workers", "1"]


def main() -> int:
    """Run what was asked for; the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    what = parser.add_subparsers(dest="what", required=True)
    what.add_parser("rates").add_argument("folder", type=Path)
    what.add_parser("kills").add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    shutil.rmtree(FILES, ignore_errors=True)
    FILES.mkdir(parents=True)
    if arguments.what == "rates":
        return compare_rates(arguments.folder)
    return kill_often(random.Random(arguments.seed))


def compare_rates(folder: Path) -> int:
    """The table of `rates`."""
    num_images = len(scan_images(folder).images)
    ways: dict[str, Callable[[], object]] = {
        "webdataset.ShardWriter": lambda: write_with_webdataset(folder),
        "shard.py --no-decode-check": lambda: run_shard(folder, "--no-decode-check"),
        "shard.py": lambda: run_shard(folder),
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(1 + ROUNDS):
        for name, write in ways.items():
            rate = num_images / cpu_seconds(write)
            if number:  # the first round reads the files into memory and imports what is needed
                rates[name].append(rate)
    print(f"\n{num_images:,} images, shards of {SHARD_MB} MB, medians of {ROUNDS}:\n")
    print("| | images/CPU s | of ShardWriter | lowest to highest |\n|---|---|---|---|")
    medians = {name: statistics.median(found) for name, found in rates.items()}
    first = next(iter(medians.values()))
    for name, median in medians.items():
        low, high = min(rates[name]), max(rates[name])
        print(f"| {name} | {median:,.0f} | {median / first:.2f} | {low:,.0f} to {high:,.0f} |")
    return int(medians["shard.py --no-decode-check"] < BAR * first)


def cpu_seconds(write: Callable[[], object]) -> float:
    """CPU time of this process and its children, user and system; into an empty folder."""
    shutil.rmtree(FILES / "out", ignore_errors=True)
    before = sum(os.times()[:4])
    write()
    return sum(os.times()[:4]) - before


def run_shard(folder: Path, *options: str) -> None:
    """The tool, in this process."""
    arguments = [str(folder), str(FILES / "out"), "--workers", "1", "--shard-mb", str(SHARD_MB)]
    with redirect_stdout(sys.stderr):
        assert shard.main([*arguments, *options]) == 0


def write_with_webdataset(folder: Path) -> None:
    """The same members in tars of the same size, as webdataset's own examples do it."""
    (FILES / "out").mkdir()
    pattern = str(FILES / "out" / "shard-%06d.tar")
    with webdataset.ShardWriter(pattern, maxsize=SHARD_MB * 1e6, verbose=0) as writer:
        for image in scan_images(folder).images:
            data = (folder / image.path).read_bytes()
            writer.write({"__key__": image.key, "jpg": data, "cls": image.labels[0]})


def kill_often(generator: random.Random) -> int:
    """The table of `kills`."""
    source, whole = FILES / "images/train", FILES / "whole"
    sample_data.write_digits(source.parent, size_px=32)
    start(source, whole).join()  # starts the fork server too
    shutil.rmtree(whole)
    began = time.monotonic()
    start(source, whole).join()
    longest_s = time.monotonic() - began
    expected = contents(whole)

    moments: Counter[str] = Counter()
    num_runs = num_wrong = 0
    while moments.total() < KILLS:
        num_runs += 1
        folder = FILES / f"run-{num_runs}"
        while run_and_kill(source, folder, generator.uniform(0, longest_s)):
            moments[moment(folder)] += 1
            num_wrong += not says_true(folder)
        num_wrong += contents(folder) != expected
    print(f"\n{moments.total()} kills in {num_runs} runs, each of {len(expected)} files and "
          f"{longest_s:.1f} s where nobody disturbs it:\n")  # fmt: skip
    print("| killed | times |\n|---|---|")
    for name, count in sorted(moments.items()):
        print(f"| {name} | {count} |")
    print(f"\nRuns that ended with other bytes, or looked complete and were not: {num_wrong}.")
    return int(num_wrong > 0)


def start(source: Path, folder: Path) -> ForkServerProcess:
    """The tool in a process of its own, forked from one that has imported all it needs."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*workers.PRELOADED, "data_tools.shard"])
    process = context.Process(target=shard_quietly, args=([str(source), str(folder)],))
    process.start()
    return process


def shard_quietly(places: list[str]) -> None:
    """The tool; only what goes wrong is printed."""
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        sys.exit(shard.main([*places, *KILLED_OPTIONS]))


def run_and_kill(source: Path, folder: Path, seconds: float) -> bool:
    """Whether it was still running after so many seconds, and was killed."""
    process = start(source, folder)
    process.join(seconds)
    process.kill()
    process.join()
    return process.exitcode == -signal.SIGKILL


def moment(folder: Path) -> str:
    """Where a run was killed, by what it left."""
    num_shards = len(list(folder.rglob("INCOMPLETE.*shard-*")))
    if list(folder.rglob("manifest.json")):
        return "4 after the first manifest"
    if list(folder.rglob(".*.tmp")):
        return "3 while a file was being written"
    if num_shards:
        return "2 between two files"
    return "1 before the first shard was finished"


def says_true(folder: Path) -> bool:
    """Whether every manifest that is there names only what is there."""
    return all(
        hashlib.sha256(manifest.with_name(each.name).read_bytes()).hexdigest() == each.sha256
        for manifest in folder.rglob("manifest.json")
        for each in load_manifest(Storage(), str(manifest)).shards
    )


def contents(folder: Path) -> dict[str, bytes]:
    """All files by their paths."""
    files: Iterator[Path] = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


if __name__ == "__main__":
    sys.exit(main())
