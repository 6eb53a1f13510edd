"""The command line's options for object storage, the same for every tool."""

import argparse

from mixer_dist.config import StorageConfig
from mixer_dist.sections import parse
from mixer_dist.storage import Storage

PREFIXES = ("s3://", "s3a://")


def add_storage_options(parser: argparse.ArgumentParser) -> None:
    """Add them, as a group of their own."""
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


def open_storage(arguments: argparse.Namespace) -> Storage:
    """Storage that opens every S3 URL as the options say."""
    names = ("endpoint_url", "region", "profile", "addressing_style", "checksum")
    given = {name: getattr(arguments, name) for name in names}
    return Storage(dict.fromkeys(PREFIXES, parse(StorageConfig, given, "S3 options")))
