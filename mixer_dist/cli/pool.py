"""The verb pool, and what a worker of a pool does under the verb evaluate."""

import argparse
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from mixer_dist.cli.arguments import (
    add_config,
    add_suite,
    add_verb,
    begin,
    config_of,
    is_printed,
)
from mixer_dist.cli.exit_file import exit_recorded
from mixer_dist.errors import MissingError, RefusedError
from mixer_dist.stop_requests import StopRequests

if TYPE_CHECKING:
    from mixer_dist.config import RunConfig
    from mixer_dist.eval.pool.run_watch import RunWatch
    from mixer_dist.storage import Storage


def add_pool(verbs: Any) -> None:
    """pool."""
    parser = add_verb(
        verbs, "pool", _pool, "evaluate every checkpoint on every task of evals, once",
        "mixer-dist pool configs/quickstart.yaml pool.max_workers=2",
    )  # fmt: skip
    add_config(parser)
    add_suite(parser)
    parser.add_argument(
        "--run", metavar="RUN_DIR", action="append", default=[],
        help="look after this run instead of the config's, with its own model; may be repeated",
    )  # fmt: skip
    parser.add_argument("--once", action="store_true", help="stop when nothing is left to do")
    parser.add_argument("--dry-run", action="store_true", help="print what is left to do and stop")
    parser.add_argument("--exit-file", metavar="PATH", help=argparse.SUPPRESS)  # for launchers


def _pool(arguments: argparse.Namespace) -> None:
    with StopRequests() as stop_requests, exit_recorded(arguments.exit_file):
        config = config_of(arguments)
        if not is_printed(arguments, config):
            _check_and_work(arguments, config, stop_requests)


def _check_and_work(
    arguments: argparse.Namespace, config: "RunConfig", stop_requests: StopRequests
) -> None:
    if not config.evals:
        raise RefusedError("pool needs tasks: add evals: to the config, or give --suite")
    from mixer_dist.eval.pool.pool import Pool, executor_for
    from mixer_dist.storage import Storage

    runs = list(_runs(arguments, config, Storage(config.storage)))
    if arguments.dry_run:
        for run in runs:
            print("\n".join(run.description()))
        return
    begin(config)
    Pool(runs, executor_for(config.pool), config.pool).run(stop_requests, once=arguments.once)


def _runs(
    arguments: argparse.Namespace, config: "RunConfig", storage: "Storage"
) -> Iterator["RunWatch"]:
    """The config's own run, or those that are named."""
    from mixer_dist.eval.pool.run_watch import RunWatch
    from mixer_dist.run_dir import RunDir

    given = [arguments.config, *arguments.overrides]
    if arguments.suite:
        given += [f"--suite={arguments.suite}", f"--datasets={arguments.datasets}"]
    for url in arguments.run or [None]:
        run_dir = RunDir(url or config.run_dir)
        own = _overrides_of(arguments, storage, run_dir) if url else []
        yield RunWatch(storage, run_dir, config.evals, config.pool, [*given, *own])


def _overrides_of(arguments: argparse.Namespace, storage: "Storage", run_dir: Any) -> list[str]:
    """What makes the config fit another run: where it lies, and its model."""
    from mixer_dist.config import load_config
    from mixer_dist.run_dir import attempt_numbers, read_attempt

    numbers = attempt_numbers(storage, run_dir)
    if not numbers:
        raise MissingError(f"{run_dir.attempts} holds no start of a run: is {run_dir.url} one?")
    model = read_attempt(storage, run_dir, numbers[-1]).config.model
    own = [f"run_dir={json.dumps(run_dir.url)}", f"model={model.model_dump_json()}"]
    load_config(arguments.config, [*arguments.overrides, *own])  # refused now, or by every worker
    return own
