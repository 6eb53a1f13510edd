"""The verb bench: rates of this machine, and of all ranks together."""

import argparse
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mixer_dist.cli.arguments import add_config, add_verb, check_output, config_of, is_printed
from mixer_dist.errors import RefusedError

if TYPE_CHECKING:
    from mixer_dist.config import RunConfig
    from mixer_dist.operations.bench.measured import Measured

Measure = Callable[["RunConfig", argparse.Namespace], "Measured"]


def add_bench(verbs: Any) -> None:
    """The verb `bench` and what it measures."""
    summary = "measure this machine, or all ranks: step, data path, checkpoints, collectives"
    parser = verbs.add_parser(
        "bench", help=summary, description=summary[0].upper() + summary[1:] + "."
    )
    benches = parser.add_subparsers(title="benches", required=True, metavar="BENCH")
    step = _add(benches, "step", _step, "images/s, FLOP/s, share of the card's peak, memory",
                "mixer-dist bench step configs/quickstart.yaml --profile trace.json")  # fmt: skip
    step.add_argument("--times", type=int, default=5, help="steps that are timed (default: 5)")
    step.add_argument("--profile", metavar="FILE", help="write a Chrome trace of two more steps")
    data = _add(benches, "data", _data, "images/s that are read, decoded and augmented, a core",
                "mixer-dist bench data configs/quickstart.yaml --times 20")  # fmt: skip
    data.add_argument("--times", type=int, default=10, help="batches (default: 10)")
    _add(benches, "checkpoint", _checkpoint, "GB/s of a save and a load at run_dir",
         "mixer-dist bench checkpoint configs/quickstart.yaml")  # fmt: skip
    collectives = _add(
        benches, "collectives", _collectives, "bandwidth among all ranks, by size",
        "torchrun --nproc-per-node 2 -m mixer_dist bench collectives configs/quickstart.yaml",
    )  # fmt: skip
    collectives.add_argument("--times", type=int, default=10, help="of each size (default: 10)")


def _add(
    benches: Any, name: str, measure: Measure, summary: str, example: str
) -> argparse.ArgumentParser:
    def run(arguments: argparse.Namespace) -> None:
        _bench(arguments, measure)

    parser = add_verb(benches, name, run, summary, example)
    add_config(parser)
    parser.add_argument(
        "--json", action="store_true", help="print the result as JSON, for plan --calibrate"
    )
    return parser


def _bench(arguments: argparse.Namespace, measure: Measure) -> None:
    config = config_of(arguments)
    if is_printed(arguments, config):
        return
    if getattr(arguments, "times", 1) < 1:
        raise RefusedError(f"--times must be at least 1, got {arguments.times}")
    check_output("--profile", getattr(arguments, "profile", None))
    from mixer_dist import distributed
    from mixer_dist.logs import start_logging
    from mixer_dist.operations.bench.measured import measured_lines, measured_tree

    start_logging(output_is_data=arguments.json)
    found = measure(config, arguments)
    if distributed.is_main():
        lines = "\n".join(measured_lines(found))
        print(json.dumps(measured_tree(found)) if arguments.json else lines)


def _step(config: "RunConfig", arguments: argparse.Namespace) -> "Measured":
    from mixer_dist import distributed
    from mixer_dist.operations.bench.step import measure_step
    from mixer_dist.train.build import check_engine

    check_engine(config, distributed.world_size())
    with distributed.connected(config.collective_timeout_s):
        return measure_step(config, arguments.times, arguments.profile)


def _data(config: "RunConfig", arguments: argparse.Namespace) -> "Measured":
    from mixer_dist import distributed
    from mixer_dist.operations.bench.data_path import measure_data

    with distributed.connected(config.collective_timeout_s):
        return measure_data(config, arguments.times)


def _checkpoint(config: "RunConfig", _: argparse.Namespace) -> "Measured":
    from mixer_dist import distributed
    from mixer_dist.operations.bench.checkpoints import measure_checkpoints
    from mixer_dist.train.build import check_engine

    check_engine(config, distributed.world_size())
    with distributed.connected(config.collective_timeout_s):
        return measure_checkpoints(config)


def _collectives(config: "RunConfig", arguments: argparse.Namespace) -> "Measured":
    from mixer_dist import distributed
    from mixer_dist.operations.bench.collectives import check_ranks, measure_collectives

    check_ranks()
    with distributed.connected(config.collective_timeout_s):
        return measure_collectives(arguments.times)
