"""The command line's options for object storage, the same for every verb and tool."""

import argparse
from typing import TYPE_CHECKING, Any

from mixer_dist.errors import RefusedError

if TYPE_CHECKING:
    from mixer_dist.storage import Storage

PREFIXES = ("s3://", "s3a://")
OPTIONS = ("endpoint_url", "profile", "region", "addressing_style", "checksum")


def add_storage_options(parser: argparse.ArgumentParser) -> Any:
    """Add them, as a group of their own, to which more may be added."""
    group = parser.add_argument_group("S3", "credentials come from the AWS chain")
    group.add_argument("--endpoint-url", metavar="URL", help="of a store other than AWS")
    group.add_argument("--profile", help="in ~/.aws/config")
    group.add_argument("--region")
    group.add_argument("--addressing-style", choices=("auto", "path", "virtual"))
    group.add_argument(
        "--checksum",
        choices=("when_supported", "when_required"),
        help="when_required suits older stores",
    )
    return group


def add_storage_arguments(parser: argparse.ArgumentParser) -> None:
    """Add them, or instead of them the configuration of a run."""
    add_storage_options(parser).add_argument(
        "--config", metavar="CONFIG", help="a run's YAML file: take its storage: section instead"
    )


def storage_of(arguments: argparse.Namespace) -> "Storage":
    """Storage as --config or the other options say; RefusedError for both."""
    if arguments.config is None:
        return open_storage(arguments)
    if given := given_options(arguments):
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise RefusedError(f"--config says how to reach storage: leave out {flags}")
    from mixer_dist.config import load_config
    from mixer_dist.storage import Storage

    return Storage(load_config(arguments.config).storage)


def open_storage(arguments: argparse.Namespace) -> "Storage":
    """Storage that opens every S3 URL as the options say."""
    from mixer_dist.config import StorageConfig
    from mixer_dist.sections import parse
    from mixer_dist.storage import Storage

    options = parse(StorageConfig, given_options(arguments), "S3 options")
    return Storage(dict.fromkeys(PREFIXES, options))


def given_options(arguments: argparse.Namespace) -> dict[str, str]:
    """The options that are there."""
    given = {name: getattr(arguments, name) for name in OPTIONS}
    return {name: value for name, value in given.items() if value is not None}
