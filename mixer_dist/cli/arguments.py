"""What all verbs share: how they are declared, their configuration, how they begin."""

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from mixer_dist.errors import MixerError, RefusedError

if TYPE_CHECKING:
    from mixer_dist.config import RunConfig, Suite

EXIT_CODES = """\
exit codes:
  0 done    1 failed while running    2 refused before any work    130 interrupted
  3 superseded by a newer start    75 stopped by a signal: the same command goes on
"""


def check_output(option: str, path: str | None, suffix: str = "") -> None:
    """Refuse an option's file that could not be written, before any work."""
    if path is None:
        return
    folder = Path(path).absolute().parent
    if not folder.is_dir():
        raise RefusedError(f"{option}: there is no folder {folder}")
    if Path(path).is_dir() or not os.access(folder, os.W_OK):
        raise RefusedError(f"{option}: {path} is no file that can be written; name another one")
    if not path.endswith(suffix):
        raise RefusedError(f"{option} writes a {suffix} file, got {path}; name it so")


def write_output(option: str, path: str, data: bytes) -> None:
    """Write an option's file; MixerError where the place does not take it."""
    try:
        Path(path).write_bytes(data)
    except OSError as error:
        raise MixerError(f"{option}: cannot write {path}: {error.strerror}") from None


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, like all others."""

    def parse(self, argv: Sequence[str] | None) -> argparse.Namespace:
        """The arguments; options may stand between overrides, which argparse does not allow."""
        found, rest = self.parse_known_args(argv)
        if any(each.startswith("-") for each in rest) or (rest and "overrides" not in found):
            self.error(f"unrecognized arguments: {' '.join(rest)}")
        if rest:
            found.overrides += rest
        return found

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; try '{self.prog} --help'\n")


def add_verb(
    verbs: Any, name: str, run: Callable[[argparse.Namespace], None], summary: str, example: str
) -> argparse.ArgumentParser:
    """Declare a verb that `run` carries out; its parser, for further options."""
    parser: argparse.ArgumentParser = verbs.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=f"example:\n  {example}\n\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(verb=run)
    return parser


def add_config(parser: argparse.ArgumentParser) -> None:
    """Declare CONFIG, its overrides and --print-config."""
    parser.add_argument("config", metavar="CONFIG", help="a YAML file, such as those in configs/")
    parser.add_argument(
        "overrides",
        nargs="*",
        default=[],
        metavar="key.path=value",
        help="settings that replace the file's",
    )
    parser.add_argument(
        "--print-config", action="store_true", help="print the whole configuration and stop"
    )


def config_of(arguments: argparse.Namespace) -> "RunConfig":
    """The configuration that was given; ConfigError."""
    from mixer_dist.config import load_config, with_suite

    config, suite = load_config(arguments.config, arguments.overrides), suite_of(arguments)
    return with_suite(config, suite) if suite else config


def add_suite(parser: argparse.ArgumentParser) -> None:
    """Declare --suite and --datasets."""
    parser.add_argument(
        "--suite",
        metavar="FILE",
        help="also the tasks of a suite, such as those in configs/suites/",
    )
    parser.add_argument(
        "--datasets", metavar="ROOT", default="datasets",
        help="folder or URL that holds the suite's datasets (default: datasets)",
    )  # fmt: skip


def suite_of(arguments: argparse.Namespace) -> "Suite | None":
    """The suite that was given; ConfigError."""
    if not getattr(arguments, "suite", None):
        return None
    from mixer_dist.config import load_suite

    return load_suite(arguments.suite, arguments.datasets)


def is_printed(arguments: argparse.Namespace, config: "RunConfig") -> bool:
    """Whether --print-config was asked for, and done."""
    if arguments.print_config:
        from mixer_dist.sections import dump_config

        print(dump_config(config), end="")
    return bool(arguments.print_config)


def begin(config: "RunConfig", *, output_is_data: bool = False) -> None:
    """What a process sets up for itself before its work."""
    from mixer_dist.logs import start_logging

    start_logging(output_is_data=output_is_data)
    if config.umask is not None:
        os.umask(int(config.umask, 8))
