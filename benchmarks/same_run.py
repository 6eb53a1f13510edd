"""python benchmarks/same_run.py {engines,killed}: is it the same run, whatever carries it out?

`engines`: 30 fp32 steps under every engine at 1 to 4 ranks, losses side by side.
`killed`: 40 steps that are killed under ZeRO-2 on 2 ranks, go on under FSDP on 4, are killed again
and end on one process, against a run that nobody touched; then the same engine and ranks, bitwise.

Mixup and stochastic depth are on. Prints a Markdown table; ends with 1 where a bar is missed.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a bare checkout

from data_tools import sample_data, shard
from mixer_dist.metrics import Line, read_metrics
from mixer_dist.run_dir import RunDir
from mixer_dist.storage import Storage

ROOT = Path(__file__).resolve().parents[1]
FILES = Path("runs/same_run")
ENGINES = ("ddp", "fsdp", "zero1", "zero2")
WORLD_SIZES = (1, 2, 3, 4)
BAR = 1e-5
RUN = [
    "global_batch_size=48", "micro_batch_size=8", "augment.mixup=0.5", "augment.min_crop_area=0.3",
    "model.stochastic_depth=0.2", "logging.every_steps=5", "checkpoint.every_steps=10",
    f"data.train.0.manifest={FILES}/shards/manifest.json",
]  # fmt: skip


def main() -> int:
    """Run what was asked for; the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("what", choices=("engines", "killed"))
    os.chdir(ROOT)
    make_shards()
    return {"engines": compare_engines, "killed": compare_killed}[parser.parse_args().what]()


def make_shards() -> None:
    """The digits in shards of half a megabyte."""
    shutil.rmtree(FILES, ignore_errors=True)
    sample_data.write_digits(FILES / "images", size_px=32)
    shard.main([f"{FILES}/images/train", f"{FILES}/shards", "--shard-mb", "0.5"])


def compare_engines() -> int:
    """The table of `engines`."""
    expected = whole_run("single", 1, 30)
    print("\n| engine | ranks | first loss | last loss | largest relative difference |")
    print("|---|---|---|---|---|")
    print_row("single", 1, expected, 0.0)
    worst = 0.0
    for engine in ENGINES:
        for world_size in WORLD_SIZES:
            found = whole_run(engine, world_size, 30)
            difference = largest_difference(found, expected)
            worst = max(worst, difference)
            print_row(engine, world_size, found, difference)
    print(f"\nLargest relative difference of a loss: {worst:.1e} (bar: {BAR:.0e}).")
    return int(worst > BAR)


def compare_killed() -> int:
    """The tables of `killed`."""
    expected = whole_run("single", 1, 40)
    name = "killed"
    run_until(name, "zero2", 2, 40, killed_after=10)
    run_until(name, "fsdp", 4, 40, killed_after=20)
    run_until(name, "single", 1, 40)
    across = lines_of(name)
    print("\n| step | attempt | loss, untouched | loss, killed | relative difference | digests |")
    print("|---|---|---|---|---|---|")
    for a, b in zip(expected, across, strict=True):
        equal = "equal" if a["batch_digest"] == b["batch_digest"] else "DIFFERENT"
        change = abs(a["loss"] - b["loss"]) / a["loss"]
        print(f"| {a['step']} | {b['attempt']} | {a['loss']:.7f} | {b['loss']:.7f} "
              f"| {change:.1e} | {equal} |")  # fmt: skip
    worst = largest_difference(across, expected)
    digests = all(
        a["batch_digest"] == b["batch_digest"] for a, b in zip(across, expected, strict=True)
    )
    print(f"\nAcross engines and ranks: largest relative difference {worst:.1e} (bar: {BAR:.0e}), "
          f"digests {'equal at every step' if digests else 'DIFFERENT'}.")  # fmt: skip
    bitwise = compare_bitwise()
    return int(worst > BAR or not digests or not bitwise)


def compare_bitwise() -> bool:
    """Whether each engine, killed and resumed on 2 ranks, gives the very same numbers."""
    all_equal = True
    for engine in ENGINES:
        expected = whole_run(engine, 2, 40)
        run_until(f"bitwise-{engine}", engine, 2, 40, killed_after=20)
        run_until(f"bitwise-{engine}", engine, 2, 40)
        columns = ("loss", "grad_norm", "batch_digest")
        pairs = zip(lines_of(f"bitwise-{engine}"), expected, strict=True)
        equal = all(a[c] == b[c] for a, b in pairs for c in columns)
        all_equal &= equal
        print(
            f"{engine} on 2 ranks, killed and resumed: {'bitwise equal' if equal else 'DIFFERENT'}"
        )
    return all_equal


def whole_run(engine: str, world_size: int, num_steps: int) -> list[Line]:
    """Metrics of an uninterrupted run."""
    name = f"{engine}-{world_size}-{num_steps}"
    run_until(name, engine, world_size, num_steps)
    return lines_of(name)


def run_until(
    name: str, engine: str, world_size: int, num_steps: int, killed_after: int | None = None
) -> None:
    """Train to the end, or until a checkpoint is committed and every rank is killed."""
    process = start(name, engine, world_size, num_steps)
    manifest = FILES / name / f"checkpoints/step-{killed_after or 0:08d}/manifest.json"
    while killed_after and process.poll() is None and not manifest.exists():
        time.sleep(0.02)
    if killed_after:
        kill(process)
    elif code := process.wait():
        raise SystemExit(f"{engine} on {world_size} ranks ended with {code}")


def start(name: str, engine: str, world_size: int, num_steps: int) -> psutil.Popen:
    """A training on so many ranks."""
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(world_size)]
    command = [
        sys.executable, *(launcher if world_size > 1 else []), "-m", "mixer_dist", "pretrain",
        "configs/quickstart.yaml", *RUN, f"run_dir={FILES}/{name}", f"engine.name={engine}",
        f"total_steps={num_steps}",
    ]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    return psutil.Popen(command, env=environment, stdout=subprocess.DEVNULL)


def kill(process: psutil.Popen) -> None:
    """SIGKILL to every rank."""
    processes = [*process.children(recursive=True), process]
    for each in processes:
        each.kill()
    psutil.wait_procs(processes)


def lines_of(name: str) -> list[Line]:
    """A run's metrics, a line a step."""
    return read_metrics(Storage(), RunDir(str(FILES / name)))


def largest_difference(found: Sequence[Line], expected: Sequence[Line]) -> float:
    """Relative, over all steps."""
    pairs = zip(found, expected, strict=True)
    return max(abs(a["loss"] - b["loss"]) / b["loss"] for a, b in pairs)


def print_row(engine: str, world_size: int, lines: Sequence[Line], difference: float) -> None:
    """A row of `engines`."""
    first, last = lines[0]["loss"], lines[-1]["loss"]
    print(f"| {engine} | {world_size} | {first:.7f} | {last:.7f} | {difference:.1e} |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
