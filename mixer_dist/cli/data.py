"""Actions on a run's data: show a step, audit a run."""

import argparse
import json
from dataclasses import asdict
from typing import Any

from mixer_dist.cli.arguments import add_verb, config_of
from mixer_dist.errors import DataError, RefusedError


def add_data(verbs: Any) -> None:
    """The verb `data` and its actions."""
    parser = verbs.add_parser(
        "data",
        help="show a step's images; prove that a run read what it should",
        description="Show a step's images; prove that a run read what it should.",
    )
    actions = parser.add_subparsers(title="actions", required=True, metavar="ACTION")
    show = add_verb(
        actions, "show", _data_show, "the images of a step, by key and shard, and as a picture",
        "mixer-dist data show configs/quickstart.yaml --step 41",
    )  # fmt: skip
    show.add_argument("config", metavar="CONFIG")
    show.add_argument("overrides", nargs="*", metavar="key.path=value")
    show.add_argument("--step", type=int, required=True, help="as numbered in the metrics, from 1")
    show.add_argument("--images", type=int, default=64, help="on the sheet (default: 64)")
    show.add_argument("--output", metavar="PNG", help="default: step-<number>.png, here")
    show.add_argument("--json", action="store_true", help="print the result as JSON")
    audit = add_verb(
        actions, "audit", _data_audit, "compute every step's batch_digest anew, without any image",
        "mixer-dist data audit runs/quickstart",
    )  # fmt: skip
    audit.add_argument("run_dir", metavar="RUN_DIR", help="a run's directory or URL")
    audit.add_argument("--json", action="store_true", help="print the result as JSON")


def _data_show(arguments: argparse.Namespace) -> None:
    config = config_of(arguments)
    if arguments.images < 1:
        raise RefusedError(f"--images must be at least 1, got {arguments.images}")
    from pathlib import Path

    from mixer_dist.operations.data_show import row_lines, row_trees, step_data, write_contact_sheet

    data = step_data(config, arguments.step)
    path = Path(arguments.output or f"step-{arguments.step:08d}.png")
    write_contact_sheet(data, path, arguments.images)
    if arguments.json:
        print(json.dumps(row_trees(data) | {"contact_sheet": str(path)}))
        return
    print("\n".join(row_lines(data)))
    print(f"wrote {path}")


def _data_audit(arguments: argparse.Namespace) -> None:
    from mixer_dist.operations.data_audit import audit, audit_lines, difference_line
    from mixer_dist.run_dir import RunDir

    found = audit(RunDir(arguments.run_dir))
    print(json.dumps(asdict(found)) if arguments.json else "\n".join(audit_lines(found)))
    if found.difference:
        raise DataError(difference_line(found.difference))
