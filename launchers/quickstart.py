"""python launchers/quickstart.py (or: make quickstart): the whole way on this machine.

Handwritten digits become shards in an S3 bucket on loopback; a small Mixer trains on them on two
ranks under DeepSpeed ZeRO-2, is killed half-way, and goes on under FSDP; a 5-shot evaluation
before and after shows what it learnt. No account, no GPU, about two minutes.
"""

import json
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a bare checkout

from data_tools import sample_data, shard
from launchers import local_s3
from mixer_dist.errors import MixerError

ROOT = Path(__file__).resolve().parents[1]
FILES = Path("runs/quickstart")
RUN_DIR = FILES / "run"
CONFIG = "configs/quickstart.yaml"
KILLED_AFTER = 60  # steps; of 120
NUM_RANKS = 2
PATIENCE_S = 300


def main() -> int:
    """Run every part, print a table."""
    os.chdir(ROOT)
    began = time.monotonic()
    shutil.rmtree(FILES, ignore_errors=True)  # what an earlier quickstart left
    try:
        with ExitStack() as stack:
            place = make_shards(stack)
            show("3/6 5-shot evaluation of the untrained network")
            before = mixer_dist("evaluate", place, "--task", "digits", "--checkpoint", "untrained")
            show(
                f"4/6 training on {NUM_RANKS} ranks under ZeRO-2, killed after {KILLED_AFTER} steps"
            )
            train_and_kill([*place, "engine.name=zero2"])
            show("5/6 the same run goes on under FSDP")
            train([*place, "engine.name=fsdp"]).check()
            show("6/6 5-shot evaluation of the trained network, and the report")
            after = mixer_dist("evaluate", place, "--task", "digits")
            report = mixer_dist("report", [str(RUN_DIR)], config=None)
    except MixerError as error:
        print(f"quickstart: {error}", file=sys.stderr)
        return error.exit_code
    print_table(before, after, report, time.monotonic() - began)
    return 0


def make_shards(stack: ExitStack) -> list[str]:
    """Digits as shards, in a bucket where a server can be had; overrides that point there."""
    show("1/6 writing handwritten digits as images")
    sample_data.write_digits(FILES / "images", size_px=32)
    show("2/6 sharding them into an S3 bucket on loopback")
    url, options, overrides = storage_place(stack)
    for split in ("train", "test"):
        arguments = [str(FILES / "images" / split), f"{url}/{split}", "--shard-mb", "1", *options]
        if code := shard.main(arguments):
            raise MixerError(f"data_tools/shard.py ended with {code}")
    manifests = [
        f"run_dir={RUN_DIR}",
        f"data.train.0.manifest={url}/train/manifest.json",
        f"evals.0.train={url}/train/manifest.json",
        f"evals.0.test={url}/test/manifest.json",
    ]
    return manifests + overrides


def storage_place(stack: ExitStack) -> tuple[str, list[str], list[str]]:
    """(URL, options of shard.py, overrides) of a bucket, or of a folder without a server."""
    bucket = FILES / "s3" / "quickstart"
    bucket.mkdir(parents=True)
    key, secret = "quickstart", secrets.token_hex(16)
    try:
        endpoint_url = stack.enter_context(local_s3.serve(bucket.parent, key=key, secret=secret))
    except MixerError as error:
        print(f"    no S3 server here ({error}): a plain folder takes its place")
        return str(FILES / "shards"), [], []
    os.environ |= {"AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": secret}
    storage = {"s3://quickstart": {"endpoint_url": endpoint_url, "checksum": "when_required"}}
    options = ["--endpoint-url", endpoint_url, "--checksum", "when_required"]
    return "s3://quickstart/digits", options, [f"storage={json.dumps(storage)}"]


class Training:
    """A torchrun and its ranks."""

    def __init__(self, overrides: Sequence[str]) -> None:
        command = [
            sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(NUM_RANKS),
            "-m", "mixer_dist", "pretrain", CONFIG, *overrides,
        ]  # fmt: skip
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
        self.process = psutil.Popen(command, env=environment)

    def kill(self) -> None:
        """End every rank without warning, as a node that fails does."""
        processes = [*self.process.children(recursive=True), self.process]
        for process in processes:
            process.kill()
        psutil.wait_procs(processes)

    def check(self) -> None:
        """Wait for the end; MixerError unless it was a good one."""
        if code := self.process.wait():
            raise MixerError(f"training ended with {code}; its own message stands above")


def train(overrides: Sequence[str]) -> Training:
    """Start training."""
    return Training(overrides)


def train_and_kill(overrides: Sequence[str]) -> None:
    """Train until a checkpoint is there, then kill."""
    training = train(overrides)
    manifest = RUN_DIR / "checkpoints" / f"step-{KILLED_AFTER:08d}" / "manifest.json"
    give_up = time.monotonic() + PATIENCE_S
    while not manifest.exists():
        if training.process.poll() is not None or time.monotonic() > give_up:
            training.kill()
            raise MixerError(f"training reached no checkpoint at step {KILLED_AFTER}")
        time.sleep(0.1)
    training.kill()
    print(f"    killed (SIGKILL) after step {KILLED_AFTER}")


def mixer_dist(
    verb: str, arguments: Sequence[str], *options: str, config: str | None = CONFIG
) -> Any:
    """The JSON that a verb prints."""
    command = [sys.executable, "-m", "mixer_dist", verb, *([config] if config else []), *arguments]
    done = subprocess.run([*command, *options, "--json"], stdout=subprocess.PIPE, check=False)
    if done.returncode:
        raise MixerError(
            f"mixer-dist {verb} ended with {done.returncode}; its message stands above"
        )
    return json.loads(done.stdout)


def images_per_s() -> float:
    """Throughput of the last interval of the run."""
    lines = (RUN_DIR / "report" / "metrics.jsonl").read_text().splitlines()
    return float(json.loads(lines[-1])["images_per_s"])


def print_table(before: Any, after: Any, report: Any, seconds: float) -> None:
    """What came of it."""
    rows = [
        ("5-shot accuracy, untrained", f"{before['accuracy']:.1%}"),
        (f"5-shot accuracy, step {after['step']}", f"{after['accuracy']:.1%}"),
        ("training, images/s", f"{images_per_s():.0f}"),
        ("time", f"{seconds:.0f} s"),
        ("report", report["page"]),
    ]
    print()
    for name, value in rows:
        print(f"{name:<30}{value}")


def show(line: str) -> None:
    """Announce a part."""
    print(f"\n== {line}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
