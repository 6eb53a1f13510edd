"""Runs and their results as tables of plain values, for other programs."""

import csv
import io
from collections.abc import Iterator, Sequence
from typing import Any

from mixer_dist.eval.report.best import Standing, standings
from mixer_dist.eval.report.evaluation import LOSS, Evaluation
from mixer_dist.eval.report.history import History
from mixer_dist.train.description import num_parameters

Row = dict[str, Any]


def run_row(history: History, name: str) -> Row:
    """A run at a glance; None for what nothing tells."""
    config, spent = history.config, history.goodput
    return {
        "run": name,
        "run_dir": history.run_dir.url,
        "variant": config.model.variant if config else None,
        "num_parameters": num_parameters(config) if config else None,
        "last_step": history.last_step,
        "total_steps": history.total_steps,
        "samples": history.efforts.at(history.last_step).samples,
        "gpu_hours": history.efforts.gpu_hours,
        "last_loss": history.last_loss,
        "goodput": spent.share,
        "wall_s": spent.wall_s,
        "seconds": spent.seconds,
        "num_lost_steps": spent.num_lost_steps,
        "standings": [_standing_row(standing) for standing in standings(history.evaluations)],
    }


def result_rows(history: History, name: str) -> Iterator[Row]:
    """A row for each result of a run."""
    for evaluation in history.evaluations:
        effort = history.efforts.at(evaluation.step)
        loss = evaluation.measures.get(LOSS)
        yield {
            "run": name,
            "task": evaluation.task,
            "kind": evaluation.kind,
            "step": evaluation.step,
            "samples": effort.samples,
            "gpu_hours": effort.gpu_hours,
            "accuracy": evaluation.accuracy,
            "standard_error": evaluation.standard_error,
            "per_seed": list(evaluation.per_seed),
            "loss": loss.value if loss else None,
            "shots": evaluation.shots,
            "num_judged": evaluation.num_judged,
            "num_classes": evaluation.num_classes,
            "checkpoint": evaluation.checkpoint,
            "checkpoint_sha256": evaluation.checkpoint_sha256,
            "duration_s": evaluation.duration_s,
            "time": evaluation.time,
        } | _of_shots(evaluation)


def to_csv(rows: Sequence[Row]) -> bytes:
    """Columns are those of any row; what is not known is empty, seeds are parted by spaces."""
    stream = io.StringIO(newline="")
    columns = list({name: None for row in rows for name in row})
    writer = csv.DictWriter(stream, columns, restval="", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow(row | {"per_seed": " ".join(map(repr, row["per_seed"]))})
    return stream.getvalue().encode()


def _of_shots(evaluation: Evaluation) -> Row:
    if not evaluation.has_several_shots:
        return {}
    return {
        f"{name}_{shots}_shot": getattr(found, name)
        for shots, found in sorted(evaluation.per_shots.items())
        for name in ("accuracy", "standard_error")
    }


def _standing_row(standing: Standing) -> Row:
    def told(evaluation: Evaluation) -> Row:
        measure = standing.measure(evaluation)
        return {"step": evaluation.step, "value": measure.value,
                "standard_error": measure.standard_error}  # fmt: skip

    criterion = standing.criterion
    return {
        "task": criterion.task,
        "metric": criterion.metric,
        "newest": told(standing.newest),
        "best": told(standing.best),
    }
