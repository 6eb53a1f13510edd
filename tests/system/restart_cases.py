"""Small real runs that tests of restarts start, some of which fail, wait or cannot write."""

import contextlib
import io
import json
import os
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from mixer_dist import cli
from mixer_dist.checkpoint.layout import sealed, unsealed
from mixer_dist.data.batch import Batch
from mixer_dist.data.stream import TrainStream
from mixer_dist.metrics import read_metrics
from mixer_dist.run_dir import RunDir
from mixer_dist.storage import Storage

CONFIG = str(Path(__file__).resolve().parents[2] / "configs/quickstart.yaml")
BATCH = 44  # does not divide the 296 images of an epoch
STEPS = 12


class Outcome(NamedTuple):
    """What a start came to."""

    code: int
    text: str


def overrides(manifest: Path, run_dir: Path) -> list[str]:
    """Twelve steps of a tiny model on the test digits, a checkpoint every 3."""
    return [
        CONFIG, f"run_dir={run_dir}", f"total_steps={STEPS}", f"global_batch_size={BATCH}",
        "micro_batch_size=22", "engine.name=ddp", "model.num_blocks=1", "model.hidden_dim=8",
        "checkpoint.every_steps=3", "logging.every_steps=3", "optimizer.warmup_steps=2",
        f"data.train.0.manifest={manifest}", f"storage={{{run_dir.parent}: {{deadline_s: 1}}}}",
    ]  # fmt: skip


def pretrain(
    arguments: list[str], fail_at: int = -1, wait_at: int = -1, gate: str = "", file_bytes: int = -1
) -> Outcome:
    """The verb on one rank; it may fail at a step, wait there for a file, or write small files."""
    if file_bytes >= 0:  # for good: only in a process of its own
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
    text = io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(text),
        contextlib.redirect_stderr(text),
    ):
        patch.setattr(
            TrainStream, "__iter__", _hooked(TrainStream.__iter__, fail_at, wait_at, gate)
        )
        try:
            code = cli.main(["pretrain", *arguments])
        except ZeroDivisionError:
            code = -1
    return Outcome(code, text.getvalue())


def _hooked(
    batches: Callable[[TrainStream], Iterator[Batch]], fail_at: int, wait_at: int, gate: str
) -> Callable[[TrainStream], Iterator[Batch]]:
    def hooked(stream: TrainStream) -> Iterator[Batch]:
        for batch in batches(stream):
            if batch.step == fail_at:
                raise ZeroDivisionError
            while batch.step == wait_at and not os.path.exists(gate):
                time.sleep(0.02)
            yield batch

    return hooked


def rewrite_manifest(path: Path, **values: Any) -> None:
    """Other values in a checkpoint's manifest, as if it had been saved so."""
    tree = unsealed(path.read_bytes())
    path.write_bytes(sealed(json.dumps(tree | values).encode()))


def metrics(run_dir: Path) -> list[dict]:
    return read_metrics(Storage(), RunDir(str(run_dir)))
