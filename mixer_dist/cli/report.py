"""The verb report: a run's page, or a comparison of several runs."""

import argparse
import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from mixer_dist.cli.arguments import add_verb
from mixer_dist.cli.storage_options import add_storage_arguments, storage_of
from mixer_dist.errors import RefusedError

if TYPE_CHECKING:
    from mixer_dist.eval.report.report import Report


def add_report(verbs: Any) -> None:
    """report."""
    parser = add_verb(
        verbs, "report", _report,
        "curves, evaluations and goodput of a run, or several runs compared, as HTML, PNG and CSV",
        "mixer-dist report runs/quickstart --best digits --pin",
    )  # fmt: skip
    parser.add_argument(
        "run_dirs", metavar="RUN_DIR", nargs="+", help="a run's directory or URL; several: compare"
    )
    parser.add_argument(
        "--out", metavar="DIR", help="by default RUN_DIR/report, of several runs ./report"
    )
    parser.add_argument(
        "--best", metavar="TASK[:METRIC]",
        help="name the best checkpoint: by accuracy, or loss, or 1-shot and the like",
    )  # fmt: skip
    parser.add_argument("--pin", action="store_true", help="keep that checkpoint from gc")
    parser.add_argument(
        "--tensorboard", action="store_true",
        help="write results beside the trainer's scalars, as with logging.tensorboard",
    )  # fmt: skip
    parser.add_argument("--wandb", metavar="PROJECT", help="log metrics and results there")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    add_storage_arguments(parser)


def _report(arguments: argparse.Namespace) -> None:
    if arguments.pin and not arguments.best:
        raise RefusedError("--pin keeps the best checkpoint: say by what, with --best TASK")
    from mixer_dist.eval.report.best import to_criterion
    from mixer_dist.eval.report.report import Wanted, write_report
    from mixer_dist.eval.report.scalars import Sinks

    wanted = Wanted(
        out=arguments.out,
        criterion=to_criterion(arguments.best) if arguments.best else None,
        is_pinned=arguments.pin,
        sinks=Sinks(arguments.tensorboard, arguments.wandb),
    )
    report = write_report(storage_of(arguments), arguments.run_dirs, wanted)
    print(json.dumps(asdict(report)) if arguments.json else "\n".join(_lines(report)))


def _lines(report: "Report") -> list[str]:
    lines = [f"left out: {reason}" for reason in report.missing]
    for run in report.runs:
        if best := run.get("best"):
            pinned = ", pinned" if best["is_pinned"] else ""
            lines.append(
                f"{run['run']}: best by {best['criterion']} is {best['checkpoint']} "
                f"({best['value']:.4g}{pinned})"
            )
    of = (
        f"step {report.runs[0]['last_step']}"
        if len(report.runs) == 1
        else f"{len(report.runs)} runs"
    )
    return [*lines, f"wrote {report.page}: {report.num_evaluations} evaluations, {of}"]
