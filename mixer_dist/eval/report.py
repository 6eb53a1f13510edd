"""A run as one web page with its curves and few-shot results, written into its directory.

It reads what trainer and evaluations left in the run directory, and changes none of it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import groupby

from mixer_dist.config import ModelConfig
from mixer_dist.eval import page
from mixer_dist.eval.figures import curves_png, fewshot_png, to_curves
from mixer_dist.eval.history import Evaluation, History, Start, read_history
from mixer_dist.eval.look import DARK, LIGHT, Look
from mixer_dist.eval.page import Column
from mixer_dist.eval.timeline import timeline_png
from mixer_dist.goodput import KINDS, Goodput, Kind
from mixer_dist.metrics import to_json_line
from mixer_dist.run_dir import RunDir
from mixer_dist.storage import Storage, join

_ON_DARK = "(prefers-color-scheme: dark)"
_ON_PHONE = "(max-width: 40rem)"
_NOT_KNOWN = "–"

HOW_TO_READ = (
    "The loss should fall and then flatten; a jump that does not come back or a gradient norm "
    "that keeps growing means trouble, and a red cross marks a step whose update was skipped "
    "because its gradient was not finite. A dotted line marks where another attempt went on from "
    "a checkpoint: curves should cross it without a break, and steps that were done twice are "
    "shown once. Throughput should be level and the time spent waiting for data close to zero, "
    "else the GPUs are idle. Few-shot accuracy is that of a linear classifier fitted to a few "
    "images a class on top of the frozen network; bars span the lowest and the highest random "
    "choice of these images, and step 0 is the untrained network. Goodput is the share of the wall "
    "time, from the first start to the last record, that went into steps that count; evaluations "
    "run beside the training and stop nothing."
)


@dataclass(frozen=True)
class Report:
    """URLs of the files that were written, and the run in four numbers."""

    page: str
    curves: str | None
    """None where no step is recorded yet."""
    fewshot: str | None
    """None where there is no evaluation yet."""
    timeline: str | None
    """None where no training is recorded yet."""
    metrics: str
    last_step: int
    total_steps: int | None
    """None where there are evaluations only."""
    last_loss: float | None
    """The last finite one."""
    num_evaluations: int
    goodput: float | None
    """The productive share of the wall time."""
    wall_s: float
    seconds: dict[Kind, float]
    """The wall time by what it went into."""
    num_lost_steps: int


@dataclass(frozen=True)
class Picture:
    """A drawing for a wide light page, and by media query what is shown instead of it."""

    png: bytes
    instead: dict[str, bytes]


def write_report(storage: Storage, run_dir: RunDir) -> Report:
    """Write report/ into a run directory; MissingError where there is nothing to report."""
    history = read_history(storage, run_dir)
    spent = history.goodput
    curves, fewshot, timeline = _curves(history), _fewshot(history), _timeline(spent)
    files = {"metrics.jsonl": "".join(map(to_json_line, history.lines)).encode()}
    files |= {"curves.png": curves.png} if curves else {}
    files |= {"fewshot.png": fewshot.png} if fewshot else {}
    files |= {"goodput.png": timeline.png} if timeline else {}
    files |= {"index.html": _page(history, spent, curves, fewshot, timeline).encode()}
    for name, data in files.items():
        storage.write(join(run_dir.report, name), data)
    return _report(history, spent, {name: join(run_dir.report, name) for name in files})


def _report(history: History, spent: Goodput, urls: dict[str, str]) -> Report:
    return Report(
        page=urls["index.html"],
        curves=urls.get("curves.png"),
        fewshot=urls.get("fewshot.png"),
        timeline=urls.get("goodput.png"),
        metrics=urls["metrics.jsonl"],
        last_step=history.last_step,
        total_steps=history.total_steps,
        last_loss=history.last_loss,
        num_evaluations=len(history.evaluations),
        goodput=spent.share,
        wall_s=spent.wall_s,
        seconds=spent.seconds,
        num_lost_steps=spent.num_lost_steps,
    )


def _picture(draw: Callable[[Look], bytes]) -> Picture:
    instead = {
        f"{_ON_DARK} and {_ON_PHONE}": draw(Look(DARK, is_wide=False)),
        _ON_PHONE: draw(Look(LIGHT, is_wide=False)),
        _ON_DARK: draw(Look(DARK)),
    }
    return Picture(draw(Look(LIGHT)), instead)


def _curves(history: History) -> Picture | None:
    if not history.lines:
        return None
    config, curves = history.starts[-1].attempt.config, to_curves(history.lines)
    limit = config.optimizer.max_grad_norm
    return _picture(lambda look: curves_png(curves, config.loss, limit, look))


def _fewshot(history: History) -> Picture | None:
    if not history.evaluations:
        return None
    groups = groupby(history.evaluations, key=lambda evaluation: evaluation.task)
    tasks = [list(group) for _, group in groups]
    return _picture(lambda look: fewshot_png(tasks, look))


def _timeline(spent: Goodput) -> Picture | None:
    return _picture(lambda look: timeline_png(spent, look)) if spent.spans else None


def _page(
    history: History,
    spent: Goodput,
    curves: Picture | None,
    fewshot: Picture | None,
    timeline: Picture | None,
) -> str:
    url = history.run_dir.url
    name = url.rstrip("/").rpartition("/")[2]
    progress = history.last_step / history.total_steps if history.total_steps else None
    return page.document(
        f"{name} – training report",
        page.header(name, url, _facts(history), progress),
        "<main>",
        page.section("Training", _training(history, curves)),
        page.section("Few-shot accuracy", *_accuracy(history, fewshot)),
        page.section("Where the time went", *_times(spent, timeline)),
        page.section("Attempts", _attempts(history)),
        "</main>",
        page.section("How to read this", page.paragraph(HOW_TO_READ), tag="footer"),
    )


def _facts(history: History) -> dict[str, str]:
    """The run at a glance."""
    facts: dict[str, str] = {}
    if history.starts:
        config = history.starts[-1].attempt.config
        facts["Progress"] = f"step {history.last_step:,} of {config.total_steps:,}"
        facts["Model"] = _model(config.model)
        facts["Engine × ranks"] = ", ".join(dict.fromkeys(map(_engine, history.starts)))
        facts["Global batch"] = f"{config.global_batch_size:,} images"
    if history.lines:
        last = history.lines[-1]
        num_skipped = sum(bool(line["update_skipped"]) for line in history.lines)
        facts["Last loss"] = _last_loss(history)
        facts["Images seen"] = f"{last['position']:,}"
        facts["Updates skipped"] = f"{num_skipped:,}"
        facts["Last recorded"] = f"{datetime.fromtimestamp(last['time'], UTC):%Y-%m-%d %H:%M} UTC"
    return facts


def _last_loss(history: History) -> str:
    return _NOT_KNOWN if history.last_loss is None else f"{history.last_loss:.4g}"


def _model(model: ModelConfig) -> str:
    size = f"{model.hidden_dim} × {model.num_blocks}, patch {model.patch_size}"
    return f"Mixer-{model.variant or size}, {model.image_size} px, {model.num_classes:,} classes"


def _engine(start: Start) -> str:
    ranks = _NOT_KNOWN if start.world_size is None else f"{start.world_size:,}"
    return f"{start.attempt.config.engine.name}\u00a0×\u00a0{ranks}"


def _training(history: History, curves: Picture | None) -> str:
    if not curves:
        return page.paragraph("No step has been recorded yet.")
    description = (
        f"Four curves up to step {history.last_step:,}: loss (at last {_last_loss(history)}), "
        "learning rate, gradient norm, and images a second with the time spent waiting for data."
    )
    return page.picture(curves.png, curves.instead, description)


def _accuracy(history: History, fewshot: Picture | None) -> Iterator[str]:
    if not fewshot:
        yield page.paragraph("No checkpoint has been evaluated yet.")
        return
    description = "Accuracy over steps for each task: the numbers of the table below."
    yield page.picture(fewshot.png, fewshot.instead, description)
    columns = (
        Column("Task"), Column("Step", True), Column("Mean", True),
        Column("Range over seeds", True), Column("Chance", True), Column("Method"),
        Column("Seeds", True),
    )  # fmt: skip
    yield page.table(columns, map(_accuracy_row, history.evaluations))


def _accuracy_row(evaluation: Evaluation) -> list[str]:
    low, high = min(evaluation.per_seed), max(evaluation.per_seed)
    return [
        evaluation.task,
        f"{evaluation.step:,}",
        f"{100 * evaluation.accuracy:.2f} %",
        f"{100 * low:.2f} – {100 * high:.2f} %",
        f"{100 / evaluation.num_classes:.3g} %",
        evaluation.method,
        str(len(evaluation.per_seed)),
    ]


def _times(spent: Goodput, timeline: Picture | None) -> Iterator[str]:
    if not timeline:
        yield page.paragraph("No training has been recorded yet.")
        return
    description = "The share of each kind over wall time: the seconds of the table below."
    yield page.picture(timeline.png, timeline.instead, description)
    columns = (Column("Used for"), Column("Share", True), Column("Time", True))
    rows = [[KINDS[kind], *_time(s, spent.wall_s)] for kind, s in spent.seconds.items()]
    yield page.table(columns, [*rows, ["in all", *_time(spent.wall_s, spent.wall_s)]])
    yield page.paragraph(f"Steps that were done again: {spent.num_lost_steps:,}.")


def _time(seconds: float, wall_s: float) -> list[str]:
    return [f"{seconds / wall_s:.1%}", str(timedelta(seconds=round(seconds)))]


def _attempts(history: History) -> str:
    if not history.starts:
        return page.paragraph("No training has been started here; there are evaluations only.")
    columns = (
        Column("Attempt", True), Column("Engine"), Column("Ranks", True), Column("Precision"),
        Column("Resumed from", True),
    )  # fmt: skip
    return page.table(columns, map(_attempt_row, history.starts))


def _attempt_row(start: Start) -> list[str]:
    attempt = start.attempt
    return [
        str(attempt.attempt),
        attempt.config.engine.name,
        _NOT_KNOWN if start.world_size is None else f"{start.world_size:,}",
        attempt.config.engine.precision,
        f"step {attempt.resumed_from:,}" if attempt.resumed_from else "the start",
    ]
