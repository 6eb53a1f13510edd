"""Runs as trainer and evaluations leave them, written by hand, and pages as a reader sees them."""

import json
import time
from html.parser import HTMLParser
from typing import Any

from mixer_dist.config import RunConfig
from mixer_dist.metrics import EventLog, MetricsLog
from mixer_dist.run_dir import Attempt, RunDir, write_attempt
from mixer_dist.storage import Storage

STORAGE = Storage()
BATCH = 64


def config(url: str, engine: str) -> RunConfig:
    return RunConfig.model_validate(
        {
            "run_dir": url,
            "total_steps": 40,
            "global_batch_size": BATCH,
            "micro_batch_size": BATCH,
            "model": {"variant": "S/32", "num_classes": 10},
            "data": {"train": [{"manifest": "manifest.json"}]},
            "optimizer": {"learning_rate": 1e-3},
            "engine": {"name": engine},
        }
    )


def begin(
    run_dir: RunDir,
    number: int,
    resumed_from: int,
    engine: str,
    world_size: int,
    storage: Storage = STORAGE,
) -> None:
    """Record an attempt as the trainer does."""
    attempt = Attempt(
        attempt=number, attempt_id=f"id-{number}", resumed_from=resumed_from, dataset="d",
        config=config(run_dir.url, engine),
    )  # fmt: skip
    write_attempt(storage, run_dir, attempt)
    kind = "resume" if resumed_from else "start"
    log = EventLog(storage, run_dir, number, rank=0)
    log.write(kind, step=resumed_from, world_size=world_size)
    log.close()


def train(run_dir: RunDir, number: int, steps: range, skipped: int | None = None) -> None:
    """Metrics of some steps, one a second; the loss tells attempt and step."""
    log = MetricsLog(STORAGE, run_dir, number)
    for step in steps:
        number_or_nan = float("nan") if step == skipped else number + step / 1000
        log.add(
            {
                "attempt": number,
                "step": step,
                "position": step * BATCH,
                "global_batch_size": BATCH,
                "loss": number_or_nan,
                "learning_rate": 1e-3 * (1 - step / 40),
                "grad_norm": number_or_nan,
                "images_per_s": 1000.0,
                "data_wait_share": 0.1,
                "batch_digest": "0" * 16,
                "update_skipped": step == skipped,
                "time": time.time() + step,
            }
        )
    log.flush()


def add_evaluation(
    run_dir: RunDir, task: str, step: int, per_seed: list[float], **other: Any
) -> None:
    result = {
        "task": task, "kind": "fewshot", "step": step, "checkpoint": run_dir.checkpoint(step),
        "shots": 5, "l2": 1024.0, "accuracy": sum(per_seed) / len(per_seed), "per_seed": per_seed,
        "seeds": list(range(len(per_seed))), "num_train": 9, "num_test": 9, "num_classes": 10,
        "time": 1.7e9,
    }  # fmt: skip
    url = run_dir.evaluation(task, step)
    STORAGE.write(url, json.dumps(result | other).encode())


class Page(HTMLParser):
    """What a reader sees of a page: its text by element, and the elements' attributes."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.text: list[str] = []
        self._is_cell = False
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        self._is_cell = tag in ("td", "th")

    def handle_endtag(self, tag):
        self._is_cell = False

    def handle_data(self, data):
        self.text.append(data)
        if self._is_cell:
            self.rows[-1].append(data)
