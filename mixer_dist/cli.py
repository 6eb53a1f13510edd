"""The command line: `mixer-dist VERB …`. An error is one line on stderr and an exit code.

Verbs import what they need when they run, so that --help answers at once.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NoReturn

from mixer_dist import __version__
from mixer_dist.errors import MixerError, PeerError, RefusedError

if TYPE_CHECKING:
    from mixer_dist.config import RunConfig

INTERRUPTED = 130

EXIT_CODES = """\
exit codes:
  0 done    1 failed while running    2 refused before any work    130 interrupted
"""


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, like all others."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; try '{self.prog} --help'\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb and return its exit code."""
    arguments = build_parser().parse_args(argv)
    try:
        arguments.verb(arguments)
        return 0
    except PeerError as error:
        return error.exit_code
    except MixerError as error:
        print(f"mixer-dist: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("mixer-dist: interrupted; the same command goes on from the last checkpoint",
              file=sys.stderr)  # fmt: skip
        return INTERRUPTED


def build_parser() -> Parser:
    """All verbs and their options."""
    parser = Parser(
        prog="mixer-dist",
        description="Distributed pretraining of MLP-Mixer: exact, elastic, resumable.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"mixer-dist {__version__}")
    verbs = parser.add_subparsers(title="verbs", required=True, metavar="VERB")
    _add_pretrain(verbs)
    _add_evaluate(verbs)
    _add_report(verbs)
    _add_checkpoint(verbs)
    _add_data(verbs)
    return parser


def _add_verb(
    verbs: Any, name: str, run: Callable[[argparse.Namespace], None], summary: str, example: str
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = verbs.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=f"example:\n  {example}\n\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(verb=run)
    return parser


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", help="a YAML file, such as those in configs/")
    parser.add_argument(
        "overrides", nargs="*", metavar="key.path=value", help="settings that replace the file's"
    )
    parser.add_argument(
        "--print-config", action="store_true", help="print the whole configuration and stop"
    )


def _add_pretrain(verbs: Any) -> None:
    parser = _add_verb(
        verbs, "pretrain", _pretrain, "train, or go on training, under srun, torchrun or alone",
        "mixer-dist pretrain configs/quickstart.yaml engine.name=ddp",
    )  # fmt: skip
    _add_config(parser)
    parser.add_argument("--dry-run", action="store_true", help="say what the run comes to and stop")
    parser.add_argument("--world-size", type=int, metavar="N", help="ranks that --dry-run assumes")


def _add_evaluate(verbs: Any) -> None:
    parser = _add_verb(
        verbs, "evaluate", _evaluate, "one evaluation task on one checkpoint",
        "mixer-dist evaluate configs/quickstart.yaml --task digits --checkpoint untrained",
    )  # fmt: skip
    _add_config(parser)
    parser.add_argument("--task", metavar="NAME", help="a name in the config's evals: list")
    parser.add_argument(
        "--checkpoint", metavar="URL", help="or 'untrained'; by default the newest of the run"
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would be done and stop")
    parser.add_argument("--json", action="store_true", help="print the whole result as JSON")


def _add_report(verbs: Any) -> None:
    parser = _add_verb(
        verbs, "report", _report, "curves and evaluations of a run as HTML and PNG",
        "mixer-dist report runs/quickstart",
    )  # fmt: skip
    parser.add_argument("run_dir", metavar="RUN_DIR", help="a run's directory or URL")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def _add_checkpoint(verbs: Any) -> None:
    parser = verbs.add_parser(
        "checkpoint",
        help="list, verify, export and import checkpoints",
        description="List, verify, export and import checkpoints.",
    )
    actions = parser.add_subparsers(title="actions", required=True, metavar="ACTION")
    ls = _add_verb(
        actions, "ls", _checkpoint_ls, "the checkpoints of a run, newest first",
        "mixer-dist checkpoint ls runs/quickstart",
    )  # fmt: skip
    ls.add_argument("run_dir", metavar="RUN_DIR")
    ls.add_argument("--json", action="store_true", help="print the result as JSON")
    verify = _add_verb(
        actions, "verify", _checkpoint_verify, "hash every byte of a checkpoint",
        "mixer-dist checkpoint verify runs/quickstart/checkpoints/step-00000100",
    )  # fmt: skip
    verify.add_argument("checkpoint", metavar="CHECKPOINT")
    verify.add_argument("--json", action="store_true", help="print the result as JSON")
    export = _add_verb(
        actions, "export", _checkpoint_export,
        "weights to one file: the official .npz, or .safetensors in our names",
        "mixer-dist checkpoint export runs/quickstart/checkpoints/step-00000100 mixer.npz",
    )  # fmt: skip
    export.add_argument("checkpoint", metavar="CHECKPOINT")
    export.add_argument("file", metavar="FILE")
    import_ = _add_verb(
        actions, "import", _checkpoint_import, "a checkpoint from a .npz or .safetensors file",
        "mixer-dist checkpoint import Mixer-B_16.npz runs/official/checkpoints/step-00000000",
    )  # fmt: skip
    import_.add_argument("file", metavar="FILE")
    import_.add_argument("checkpoint", metavar="CHECKPOINT")


def _add_data(verbs: Any) -> None:
    parser = verbs.add_parser(
        "data",
        help="show a step's images; prove that a run read what it should",
        description="Show a step's images; prove that a run read what it should.",
    )
    actions = parser.add_subparsers(title="actions", required=True, metavar="ACTION")
    show = _add_verb(
        actions, "show", _data_show, "the images of a step, by key and shard, and as a picture",
        "mixer-dist data show configs/quickstart.yaml --step 41",
    )  # fmt: skip
    show.add_argument("config", metavar="CONFIG")
    show.add_argument("overrides", nargs="*", metavar="key.path=value")
    show.add_argument("--step", type=int, required=True, help="as numbered in the metrics, from 1")
    show.add_argument("--images", type=int, default=64, help="on the sheet (default: 64)")
    show.add_argument("--output", metavar="PNG", help="default: step-<number>.png, here")
    show.add_argument("--json", action="store_true", help="print the result as JSON")
    audit = _add_verb(
        actions, "audit", _data_audit, "compute every step's batch_digest anew, without any image",
        "mixer-dist data audit runs/quickstart",
    )  # fmt: skip
    audit.add_argument("run_dir", metavar="RUN_DIR", help="a run's directory or URL")
    audit.add_argument("--json", action="store_true", help="print the result as JSON")


def _config(arguments: argparse.Namespace) -> "RunConfig":
    from mixer_dist.config import load_config

    return load_config(arguments.config, arguments.overrides)


def _is_printed(arguments: argparse.Namespace, config: "RunConfig") -> bool:
    """Whether --print-config was asked for, and done."""
    if arguments.print_config:
        from mixer_dist.sections import dump_config

        print(dump_config(config), end="")
    return bool(arguments.print_config)


def _pretrain(arguments: argparse.Namespace) -> None:
    config = _config(arguments)
    if _is_printed(arguments, config):
        return
    from mixer_dist import distributed
    from mixer_dist.logs import start_logging
    from mixer_dist.train.build import check_engine
    from mixer_dist.train.description import describe
    from mixer_dist.train.pretrain import pretrain

    if arguments.dry_run:
        world_size = arguments.world_size or distributed.world_size()
        check_engine(config, world_size)
        print("\n".join(describe(config, world_size)))
        return
    start_logging()
    pretrain(config)


def _evaluate(arguments: argparse.Namespace) -> None:
    config = _config(arguments)
    if _is_printed(arguments, config):
        return
    if arguments.task is None:
        known = ", ".join(task.name for task in config.evals) or "none"
        raise RefusedError(f"evaluate needs --task NAME; tasks of this config: {known}")
    from mixer_dist import distributed
    from mixer_dist.eval.evaluate import describe_task, evaluate
    from mixer_dist.logs import start_logging

    if arguments.dry_run:
        print(describe_task(config, arguments.task, arguments.checkpoint))
        return
    start_logging(output_is_data=arguments.json)
    result = evaluate(config, arguments.task, arguments.checkpoint)
    if distributed.is_main():
        print(json.dumps(result) if arguments.json else _accuracy_line(result))


def _accuracy_line(result: dict[str, Any]) -> str:
    spread = ", ".join(f"{accuracy:.2%}" for accuracy in result["per_seed"])
    return (
        f"{result['task']}: {result['accuracy']:.2%} top-1, {result['shots']} shots of "
        f"{result['num_classes']} classes, step {result['step']} ({spread} by seed)"
    )


def _report(arguments: argparse.Namespace) -> None:
    from mixer_dist.eval.report import write_report
    from mixer_dist.run_dir import RunDir
    from mixer_dist.storage import Storage

    report = write_report(Storage(), RunDir(arguments.run_dir))
    if arguments.json:
        print(json.dumps(asdict(report)))
        return
    print(f"wrote {report.page}: {report.num_evaluations} evaluations, step {report.last_step}")


def _checkpoint_ls(arguments: argparse.Namespace) -> None:
    from mixer_dist.checkpoint.listing import list_lines, list_rows

    rows = list_rows(arguments.run_dir)
    print(json.dumps(rows) if arguments.json else "\n".join(list_lines(rows)))


def _checkpoint_verify(arguments: argparse.Namespace) -> None:
    from mixer_dist.checkpoint.restore import verified
    from mixer_dist.storage import Storage

    manifest = verified(Storage(), arguments.checkpoint).manifest
    num_bytes = sum(entry.num_bytes for entry in manifest.files)
    result = {"step": manifest.step, "num_files": len(manifest.files), "num_bytes": num_bytes}
    line = f"{arguments.checkpoint}: {len(manifest.files)} files, {num_bytes:,} bytes, all right"
    print(json.dumps(result) if arguments.json else line)


def _checkpoint_export(arguments: argparse.Namespace) -> None:
    from mixer_dist.checkpoint.convert import export_weights
    from mixer_dist.checkpoint.restore import verified
    from mixer_dist.storage import Storage

    storage = Storage()
    export_weights(storage, verified(storage, arguments.checkpoint), arguments.file)
    print(f"wrote {arguments.file}")


def _checkpoint_import(arguments: argparse.Namespace) -> None:
    from mixer_dist.checkpoint.convert import import_weights
    from mixer_dist.storage import Storage

    manifest = import_weights(Storage(), arguments.file, arguments.checkpoint)
    print(f"wrote {arguments.checkpoint}: {len(manifest.parameters)} parameters")


def _data_show(arguments: argparse.Namespace) -> None:
    config = _config(arguments)
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
    from mixer_dist.errors import DataError
    from mixer_dist.operations.data_audit import audit, audit_lines, difference_line
    from mixer_dist.run_dir import RunDir

    found = audit(RunDir(arguments.run_dir))
    print(json.dumps(asdict(found)) if arguments.json else "\n".join(audit_lines(found)))
    if found.difference:
        raise DataError(difference_line(found.difference))
