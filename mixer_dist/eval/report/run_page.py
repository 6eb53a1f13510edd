"""The page of one run: what it is made of, top to bottom."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from mixer_dist.eval.report import page, wording
from mixer_dist.eval.report.chosen import Chosen
from mixer_dist.eval.report.curves import curves_png, to_curves
from mixer_dist.eval.report.evaluation_section import evaluation_section
from mixer_dist.eval.report.history import History, Start
from mixer_dist.eval.report.page import Column
from mixer_dist.eval.report.picture import picture
from mixer_dist.eval.report.section import Section
from mixer_dist.eval.report.timeline import timeline_png
from mixer_dist.goodput import KINDS
from mixer_dist.progress import watch
from mixer_dist.train.description import num_parameters

HOW_TO_READ = (
    "The loss should fall and then flatten; a jump that does not come back or a gradient norm "
    "that keeps growing means trouble, and a red cross marks a step whose update was skipped "
    "because its gradient was not finite. A dotted line marks where another attempt went on from "
    "a checkpoint: curves should cross it without a break, and steps that were done twice are "
    "shown once. Throughput should be level and the time spent waiting for data close to zero, "
    "else the GPUs are idle. Evaluations judge the frozen network, fine-tuning a copy of it; bars "
    "are one standard error long, over seeds or, with a single one, over test images, and step 0 "
    "is the untrained network. GPU-hours count every rank from the start of the first process, "
    "also for work that was lost, but not between attempts. Goodput is the share of the wall "
    "time, from the first start to the last record, that went into steps that count; evaluations "
    "run beside the training and stop nothing."
)


def run_sections(history: History) -> list[Section]:
    """Everything below the head of the page."""
    makers = (_training, evaluation_section, _times, _attempts)
    return [make(history) for make in watch(makers, len(makers), "parts")]


def run_page(history: History, sections: Sequence[Section], chosen: Chosen | None) -> str:
    """The whole page."""
    facts = _facts(history)
    if chosen:
        facts[f"Best by {chosen.criterion}"] = wording.choice(chosen)
    progress = history.last_step / history.total_steps if history.total_steps else None
    return page.document(
        f"{history.name} – training report",
        page.header(history.name, history.run_dir.url, facts, progress),
        "<main>",
        *[section.html for section in sections],
        "</main>",
        page.section("How to read this", page.paragraph(HOW_TO_READ), tag="footer"),
    )


def _facts(history: History) -> dict[str, str]:
    """The run at a glance."""
    facts: dict[str, str] = {}
    if config := history.config:
        facts["Progress"] = f"step {history.last_step:,} of {config.total_steps:,}"
        facts["Model"] = wording.model(config.model)
        facts["Parameters"] = f"{num_parameters(config):,}"
        facts["Engine × ranks"] = ", ".join(dict.fromkeys(map(_engine, history.starts)))
        facts["Global batch"] = f"{config.global_batch_size:,} images"
    if history.lines:
        last = history.lines[-1]
        num_skipped = sum(bool(line["update_skipped"]) for line in history.lines)
        facts["Last loss"] = wording.brief(history.last_loss)
        facts["Samples seen"] = wording.count(history.efforts.at(last["step"]).samples)
        facts["GPU-hours"] = wording.brief(history.efforts.gpu_hours)
        facts["Updates skipped"] = f"{num_skipped:,}"
        facts["Last recorded"] = f"{datetime.fromtimestamp(last['time'], UTC):%Y-%m-%d %H:%M} UTC"
    return facts


def _engine(start: Start) -> str:
    return f"{start.attempt.config.engine.name}\u00a0×\u00a0{wording.count(start.world_size)}"


def _training(history: History) -> Section:
    heading, config = "Training", history.config
    if not history.lines or not config:
        return Section(heading, [page.paragraph("No step has been recorded yet.")])
    curves, limit = to_curves(history.lines), config.optimizer.max_grad_norm
    drawn = picture(
        lambda look: curves_png(curves, config.loss, limit, look),
        f"Four curves up to step {history.last_step:,}: loss (at last "
        f"{wording.brief(history.last_loss)}), learning rate, gradient norm, and images a second "
        "with the time spent waiting for data.",
    )
    return Section(heading, [page.picture(drawn)], {"curves.png": drawn.png})


def _times(history: History) -> Section:
    heading, spent = "Where the time went", history.goodput
    if not spent.spans:
        return Section(heading, [page.paragraph("No training has been recorded yet.")])
    drawn = picture(
        lambda look: timeline_png(spent, look),
        "The share of each kind over wall time: the seconds of the table below.",
    )
    columns = (Column("Used for"), Column("Share", True), Column("Time", True))
    rows = [[KINDS[kind], *_time(s, spent.wall_s)] for kind, s in spent.seconds.items()]
    table = page.table(columns, [*rows, ["in all", *_time(spent.wall_s, spent.wall_s)]])
    redone = page.paragraph(f"Steps that were done again: {spent.num_lost_steps:,}.")
    return Section(heading, [page.picture(drawn), table, redone], {"goodput.png": drawn.png})


def _time(seconds: float, wall_s: float) -> list[str]:
    return [f"{seconds / wall_s:.1%}", str(timedelta(seconds=round(seconds)))]


def _attempts(history: History) -> Section:
    heading = "Attempts"
    if not history.starts:
        said = "No training has been started here; there are evaluations only."
        return Section(heading, [page.paragraph(said)])
    columns = (
        Column("Attempt", True), Column("Engine"), Column("Ranks", True), Column("Precision"),
        Column("Resumed from", True),
    )  # fmt: skip
    return Section(heading, [page.table(columns, map(_attempt_row, history.starts))])


def _attempt_row(start: Start) -> list[str]:
    attempt = start.attempt
    return [
        str(attempt.attempt),
        attempt.config.engine.name,
        wording.count(start.world_size),
        attempt.config.engine.precision,
        f"step {attempt.resumed_from:,}" if attempt.resumed_from else "the start",
    ]
