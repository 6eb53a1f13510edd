"""The images of one step: which they are, and how the model sees them."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import ceil, sqrt
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from mixer_dist.config import RunConfig
from mixer_dist.data.batch import Batch
from mixer_dist.data.manifest import Dataset
from mixer_dist.data.order import Window, position_after
from mixer_dist.data.run_data import sample_order, training_data
from mixer_dist.data.stream import Cursor, Share, TrainStream
from mixer_dist.errors import ConfigError
from mixer_dist.run_dir import Attempt, RunDir, attempt_numbers, read_attempt
from mixer_dist.storage import Storage
from mixer_dist.train.changes import changes_since, check_same_run, keeping_order

MIN_CELL_PX = 96
CAPTION_PX = 14
LETTER_PX = 6  # of Pillow's own font
MARGIN_PX = 4
NUM_LABELS_SHOWN = 3


@dataclass(frozen=True)
class Row:
    """One image of a batch."""

    batch_index: int
    position: int
    epoch: int
    shard: str
    index: int
    key: str
    labels: tuple[int, ...]
    names: tuple[str, ...]
    """Of the labels, where the manifest names its classes."""
    stands_in_for: str
    """Key of the damaged sample that was due, empty for none."""


@dataclass(frozen=True)
class StepData:
    """What a step trains on."""

    step: int
    mixup: float
    rows: tuple[Row, ...]
    batch: Batch


def step_data(config: RunConfig, step: int) -> StepData:
    """The batch of a step, as numbered in the metrics; ConfigError where there is no such step."""
    storage = Storage(config.storage)
    attempts = _attempts(config, storage)
    total_steps = (attempts[-1].config if attempts else config).total_steps
    if not 1 <= step <= total_steps:
        raise ConfigError(f"--step must be in 1..{total_steps}, got {step}")
    dataset = training_data(config, storage)
    if attempts:
        config, cursor = _as_trained(config, dataset, attempts, step)
    else:
        cursor = Cursor(step - 1, (step - 1) * config.global_batch_size)
    share = Share(rank=0, world_size=1, num_rows=config.global_batch_size)
    short = config.model_copy(update={"total_steps": step})
    with TrainStream(short, dataset, storage, cursor, share, depth_rates=[0.0]) as stream:
        batch = next(iter(stream))
    return StepData(step, batch.mixup, tuple(_rows(config, dataset, batch)), batch)


def _as_trained(
    given: RunConfig, dataset: Dataset, attempts: Sequence[Attempt], step: int
) -> tuple[RunConfig, Cursor]:
    """The configuration of the attempt that did a step, and where the step's data begin.

    ConfigError where the run in run_dir is another one.
    """
    newest = attempts[-1]
    whole = keeping_order(given, newest.config)
    check_same_run(changes_since(newest, whole, dataset.fingerprint, step), given.run_dir)
    attempt = [attempt for attempt in attempts if attempt.resumed_from < step][-1]
    data = attempt.config.data.model_copy(update={"train": given.data.train})
    config = attempt.config.model_copy(update={"data": data})
    skipped = tuple(Window(*window) for window in attempt.skipped)
    num_before = (step - 1 - attempt.resumed_from) * config.global_batch_size
    position = position_after(attempt.position, num_before, skipped)
    return config, Cursor(step - 1, position, skipped)


def _attempts(config: RunConfig, storage: Storage) -> list[Attempt]:
    run_dir = RunDir(config.run_dir)
    return [read_attempt(storage, run_dir, n) for n in attempt_numbers(storage, run_dir)]


def _rows(config: RunConfig, dataset: Dataset, batch: Batch) -> list[Row]:
    order = sample_order(config, dataset)
    positions = batch.positions.numpy()
    epochs, samples = order.samples(positions)
    bad = {each.position: each for each in batch.bad_samples}
    rows = []
    for at, (position, epoch, sample) in enumerate(
        zip(positions.tolist(), epochs.tolist(), samples.tolist(), strict=True)
    ):
        used = bad[position].replaced_by if position in bad else sample
        shard = int(np.searchsorted(order.ends, used, "right"))
        labels = _labels(batch, at)
        rows.append(
            Row(
                batch_index=at,
                position=position,
                epoch=epoch,
                shard=dataset.parts[shard].url,
                index=used - int(order.begins[shard]),
                key=batch.keys[at],
                labels=labels,
                names=tuple(dataset.classes[n] for n in labels) if dataset.classes else (),
                stands_in_for=bad[position].key if position in bad else "",
            )
        )
    return rows


def _labels(batch: Batch, at: int) -> tuple[int, ...]:
    label = batch.labels[at]
    return (int(label),) if label.ndim == 0 else tuple(label.nonzero()[:, 0].tolist())


def row_lines(data: StepData) -> list[str]:
    """A table of the images, as lines."""
    mixed = f"; each image i keeps {data.mixup:.3f} of itself, its pair i XOR 1 gives the rest"
    head = f"step {data.step}: {len(data.rows):,} images{mixed if data.mixup < 1 else ''}"
    return [head, "  index     position  label  key  shard", *map(_row_line, data.rows)]


def _row_line(row: Row) -> str:
    labels = ",".join(map(str, row.labels)) + (f" ({', '.join(row.names)})" if row.names else "")
    note = f", for the damaged {row.stands_in_for or 'sample'}" if row.stands_in_for else ""
    return (
        f"{row.batch_index:7d} {row.position:12d}  {labels}  {row.key}  {row.shard} "
        f"[{row.index}]{note}"
    )


def row_trees(data: StepData) -> dict[str, object]:
    """The same for JSON."""
    return {"step": data.step, "mixup": data.mixup, "images": [asdict(row) for row in data.rows]}


def write_contact_sheet(data: StepData, path: Path, num_images: int) -> None:
    """A PNG of the first images as the model gets them before mixup, with label and key."""
    rows = data.rows[:num_images]
    num_columns = max(1, ceil(sqrt(len(rows))))
    size_px = int(data.batch.images.shape[-1])
    times = max(1, -(-MIN_CELL_PX // size_px))
    wide, tall = size_px * times + MARGIN_PX, size_px * times + 2 * CAPTION_PX + MARGIN_PX
    sheet = Image.new("RGB", (num_columns * wide, -(-len(rows) // num_columns) * tall), "white")
    brush = ImageDraw.Draw(sheet)
    for row in rows:
        down, along = divmod(row.batch_index, num_columns)
        pixels = data.batch.images[row.batch_index].permute(1, 2, 0).numpy()
        cell = Image.fromarray(pixels).resize((size_px * times,) * 2, Image.Resampling.NEAREST)
        left, top = along * wide, down * tall
        sheet.paste(cell, (left, top))
        for line, text in enumerate((_caption(row), row.key)):
            shown = text[: wide // LETTER_PX]
            brush.text((left, top + size_px * times + line * CAPTION_PX), shown, fill="black")
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, "PNG")


def _caption(row: Row) -> str:
    names = row.names or tuple(map(str, row.labels))
    return ", ".join(names[:NUM_LABELS_SHOWN]) or "no label"
