"""Actions that keep a run's checkpoints in order: ls, verify, pin, unpin, gc."""

import argparse
import json
import logging
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from mixer_dist.cli.arguments import add_verb
from mixer_dist.cli.storage_options import storage_of
from mixer_dist.errors import CheckpointError

if TYPE_CHECKING:
    from mixer_dist.checkpoint.catalog import Checkpoint
    from mixer_dist.config import CheckpointConfig
    from mixer_dist.run_dir import RunDir
    from mixer_dist.storage import Storage

REPORT_S = 30.0

logger = logging.getLogger(__name__)


def add_retention(actions: Any) -> None:
    """ls, verify, pin, unpin, gc."""
    ls = add_verb(
        actions, "ls", _ls, "the checkpoints of a run, newest first",
        "mixer-dist checkpoint ls runs/quickstart",
    )  # fmt: skip
    ls.add_argument("run_dir", metavar="RUN_DIR")
    ls.add_argument("--verify", action="store_true", help="hash every byte of each")
    ls.add_argument("--json", action="store_true", help="print the result as JSON")
    verify = add_verb(
        actions, "verify", _verify, "hash every byte of a checkpoint",
        "mixer-dist checkpoint verify runs/quickstart/checkpoints/step-00000100",
    )  # fmt: skip
    verify.add_argument("checkpoint", metavar="CHECKPOINT")
    verify.add_argument("--json", action="store_true", help="print the result as JSON")
    pin = add_verb(
        actions, "pin", _pin, "keep a checkpoint for good",
        "mixer-dist checkpoint pin runs/quickstart/checkpoints/step-00000100",
    )  # fmt: skip
    pin.add_argument("checkpoint", metavar="CHECKPOINT")
    unpin = add_verb(
        actions, "unpin", _unpin, "leave a checkpoint to the rules again",
        "mixer-dist checkpoint unpin runs/quickstart/checkpoints/step-00000100",
    )  # fmt: skip
    unpin.add_argument("checkpoint", metavar="CHECKPOINT")
    _add_gc(actions)


def _add_gc(actions: Any) -> None:
    gc = add_verb(
        actions, "gc", _gc,
        "remove old checkpoints by the rules of the run's config, and what broken saves left",
        "mixer-dist checkpoint gc runs/quickstart --keep-last 3 --dry-run",
    )  # fmt: skip
    gc.add_argument("run_dir", metavar="RUN_DIR")
    gc.add_argument("--keep-last", type=int, metavar="N", help="instead of checkpoint.keep_last")
    gc.add_argument("--keep-every", type=int, metavar="K", help="instead of checkpoint.keep_every")
    gc.add_argument(
        "--lease-grace", type=float, metavar="SECONDS", help="instead of checkpoint.lease_grace_s"
    )
    gc.add_argument("--wait", action="store_true", help="wait for leases that may have lapsed")
    gc.add_argument("--dry-run", action="store_true", help="say what would go and stop")
    gc.add_argument("--json", action="store_true", help="print the result as JSON")


def _ls(arguments: argparse.Namespace) -> None:
    from mixer_dist.checkpoint.listing import list_lines, list_rows
    from mixer_dist.run_dir import RunDir

    storage = storage_of(arguments)
    verify = partial(_damages, storage) if arguments.verify else None
    rows = list_rows(storage, RunDir(arguments.run_dir), verify)
    print(json.dumps(rows) if arguments.json else "\n".join(list_lines(rows)))
    if damaged := [row["checkpoint"] for row in rows if row.get("verified") is False]:
        raise CheckpointError(f"damaged, as said above: {', '.join(damaged)}")


def _verify(arguments: argparse.Namespace) -> None:
    from mixer_dist.checkpoint.catalog import read_checkpoint

    storage, url = storage_of(arguments), arguments.checkpoint
    checkpoint = read_checkpoint(storage, url)
    damages = _damages(storage, checkpoint)
    manifest = checkpoint.manifest
    num_bytes = sum(entry.num_bytes for entry in manifest.files)
    if arguments.json:
        sizes = {"num_files": len(manifest.files), "num_bytes": num_bytes}
        print(json.dumps({"step": manifest.step, **sizes, "damages": damages}))
    elif not damages:
        print(f"{url}: {len(manifest.files)} files, {num_bytes:,} bytes, all right")
    if damages:
        raise CheckpointError(f"{url} is damaged: {'; '.join(damages)}")


def _pin(arguments: argparse.Namespace) -> None:
    from mixer_dist.checkpoint.pins import pin

    pin(storage_of(arguments), arguments.checkpoint)
    print(f"pinned {arguments.checkpoint}")


def _unpin(arguments: argparse.Namespace) -> None:
    from mixer_dist.checkpoint.pins import unpin

    unpin(storage_of(arguments), arguments.checkpoint)
    print(f"no longer pinned: {arguments.checkpoint}")


def _gc(arguments: argparse.Namespace) -> None:
    from mixer_dist.checkpoint.collector import Collector
    from mixer_dist.checkpoint.gc import collect
    from mixer_dist.checkpoint.gc_report import report_lines, report_tree
    from mixer_dist.checkpoint.leftovers import find_leftovers, remove_leftovers
    from mixer_dist.logs import start_logging
    from mixer_dist.run_dir import RunDir

    start_logging(output_is_data=True)
    storage, run_dir = storage_of(arguments), RunDir(arguments.run_dir)
    rules = _rules(arguments, storage, run_dir)
    collector = Collector(storage, run_dir, rules, verify=partial(_damages, storage))
    leftovers = find_leftovers(storage, run_dir)
    if arguments.dry_run:
        plan, outcome = collector.plan(), None
    else:
        remove_leftovers(storage, leftovers)
        plan, outcome = collect(collector, _wait, for_leases=arguments.wait)
    if arguments.json:
        print(json.dumps(report_tree(plan, outcome, leftovers)))
    else:
        print("\n".join(report_lines(plan, outcome, leftovers)))


def _rules(
    arguments: argparse.Namespace, storage: "Storage", run_dir: "RunDir"
) -> "CheckpointConfig":
    """Those of the run's newest attempt, with what the arguments replace."""
    from mixer_dist.checkpoint.gc import rules_of
    from mixer_dist.config import CheckpointConfig
    from mixer_dist.sections import parse

    given = {
        "keep_last": arguments.keep_last,
        "keep_every": arguments.keep_every,
        "lease_grace_s": arguments.lease_grace,
    }
    tree = rules_of(storage, run_dir).model_dump()
    tree |= {name: value for name, value in given.items() if value is not None}
    return parse(CheckpointConfig, tree, f"{run_dir.url}, checkpoint")


def _damages(storage: "Storage", checkpoint: "Checkpoint") -> list[str]:
    """What is wrong with a checkpoint's files, found with a bar or a line now and then."""
    from contextlib import closing
    from threading import Lock

    from mixer_dist.checkpoint.verification import damages
    from mixer_dist.progress import Progress

    lock, total = Lock(), sum(entry.num_bytes for entry in checkpoint.manifest.files)
    with closing(Progress(total, "bytes")) as progress:

        def advance(num_bytes: int) -> None:
            with lock:
                progress.add(num_bytes)
                progress.show_line()

        return damages(storage, checkpoint, advance)


def _wait(seconds: float, reason: str) -> None:
    give_up = time.monotonic() + seconds
    while (remaining_s := give_up - time.monotonic()) > 0:
        logger.info("waiting %.0f s %s", remaining_s, reason)
        time.sleep(min(remaining_s, REPORT_S))
