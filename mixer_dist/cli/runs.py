"""Verbs that act on a run: pretrain, evaluate."""

import argparse
import json
from typing import TYPE_CHECKING, Any

from mixer_dist.cli.arguments import (
    add_config,
    add_suite,
    add_verb,
    begin,
    config_of,
    is_printed,
    suite_of,
)
from mixer_dist.cli.exit_file import exit_recorded
from mixer_dist.errors import RefusedError
from mixer_dist.stop_requests import StopRequests, ended_on_request

if TYPE_CHECKING:
    from mixer_dist.config import RunConfig, Suite


def add_run_verbs(verbs: Any) -> None:
    """pretrain, evaluate."""
    _add_pretrain(verbs)
    _add_evaluate(verbs)


def _add_pretrain(verbs: Any) -> None:
    parser = add_verb(
        verbs, "pretrain", _pretrain, "train, or go on training, under srun, torchrun or alone",
        "mixer-dist pretrain configs/quickstart.yaml engine.name=ddp",
    )  # fmt: skip
    add_config(parser)
    parser.add_argument(
        "--change", metavar="KEY", action="append", default=[],
        help="go on with another value of KEY than the run was trained with; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--until", type=int, metavar="STEP", help="save after this step and stop, with code 75"
    )
    parser.add_argument("--dry-run", action="store_true", help="say what the run comes to and stop")
    parser.add_argument("--world-size", type=int, metavar="N", help="ranks that --dry-run assumes")
    parser.add_argument("--exit-file", metavar="PATH", help=argparse.SUPPRESS)  # for launchers


def _add_evaluate(verbs: Any) -> None:
    parser = add_verb(
        verbs, "evaluate", _evaluate, "one evaluation task on one checkpoint",
        "mixer-dist evaluate configs/quickstart.yaml --task digits --checkpoint untrained",
    )  # fmt: skip
    add_config(parser)
    parser.add_argument("--task", metavar="NAME", help="a name in the config's evals: list")
    add_suite(parser)
    parser.add_argument(
        "--checkpoint", metavar="URL", help="or 'untrained'; by default the newest of the run"
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would be done and stop")
    parser.add_argument("--json", action="store_true", help="print the whole result as JSON")
    parser.add_argument("--claim", metavar="HOLDER", help=argparse.SUPPRESS)  # for pools


def _pretrain(arguments: argparse.Namespace) -> None:
    # From the first moment, as the imports take seconds, until the last word is written.
    with StopRequests(arguments.until) as stop_requests, exit_recorded(arguments.exit_file):
        _check_and_pretrain(arguments, stop_requests)


def _check_and_pretrain(arguments: argparse.Namespace, stop_requests: StopRequests) -> None:
    config = config_of(arguments)
    if is_printed(arguments, config):
        return
    from mixer_dist.train.changes import check_named

    check_named(arguments.change)
    if arguments.until is not None and arguments.until < 1:
        raise RefusedError(f"--until must be a step from 1 on, got {arguments.until}")
    if arguments.dry_run:
        _describe(config, arguments.world_size)
        return
    from mixer_dist.train.pretrain import pretrain

    begin(config)
    pretrain(config, arguments.change, stop_requests)


def _describe(config: "RunConfig", world_size: int | None) -> None:
    from mixer_dist import distributed
    from mixer_dist.train.build import check_engine
    from mixer_dist.train.description import describe, missing_data

    num_ranks = world_size or distributed.world_size()
    check_engine(config, num_ranks)
    print("\n".join(describe(config, num_ranks) + missing_data(config)))


def _evaluate(arguments: argparse.Namespace) -> None:
    config, suite = config_of(arguments), suite_of(arguments)
    if is_printed(arguments, config):
        return
    if not (arguments.task or suite):
        known = ", ".join(task.name for task in config.evals) or "none"
        raise RefusedError(
            f"evaluate needs --task NAME or --suite FILE; tasks of this config: {known}"
        )
    from mixer_dist import distributed
    from mixer_dist.eval.evaluate import describe_task

    tasks = [arguments.task] if arguments.task or not suite else [t.name for t in suite.evals]
    if arguments.dry_run:
        print("\n".join(describe_task(config, task, arguments.checkpoint) for task in tasks))
        return
    begin(config, output_is_data=arguments.json)
    with ended_on_request():
        results = _results(config, suite, arguments)
    for result in results if distributed.is_main() else ():
        print(json.dumps(result) if arguments.json else _accuracy_line(result))


def _results(
    config: "RunConfig", suite: "Suite | None", arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    """To be printed: those of a pool's worker are only written."""
    from mixer_dist.eval.evaluate import evaluate, evaluate_suite
    from mixer_dist.eval.pool.worker import work

    if arguments.claim:
        work(config, arguments.task, arguments.checkpoint, arguments.claim)
        return []
    if suite and not arguments.task:
        return evaluate_suite(config, suite, arguments.checkpoint)
    return [evaluate(config, arguments.task, arguments.checkpoint)]


def _accuracy_line(result: dict[str, Any]) -> str:
    method = f"{result['shots']} shots" if "shots" in result else result["kind"]
    spread = ", ".join(f"{accuracy:.2%}" for accuracy in result["per_seed"])
    by_seed = f" ({spread} by seed)" if result["seeds"] else ""
    return (
        f"{result['task']}: {result['accuracy']:.2%} top-1, {method} of "
        f"{result['num_classes']} classes, step {result['step']}{by_seed}{_other_shots(result)}"
    )


def _other_shots(result: dict[str, Any]) -> str:
    others = [
        f"{found['accuracy']:.2%} with {shots}"
        for shots, found in result.get("per_shots", {}).items()
        if int(shots) != result["shots"]
    ]
    return "; ".join(["", *others])
