"""The arguments that say how a store other than AWS is reached, the same in every tool."""

import argparse

from mixer_dist.config import StorageConfig
from mixer_dist.storage import Storage


def add_storage_arguments(parser: argparse.ArgumentParser) -> None:
    """Let a tool take them."""
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


def storage_of(arguments: argparse.Namespace) -> Storage:
    """A storage that uses them for every s3:// URL."""
    config = StorageConfig(
        endpoint_url=arguments.endpoint_url,
        region=arguments.region,
        profile=arguments.profile,
        addressing_style=arguments.addressing_style,
        checksum=arguments.checksum,
    )
    return Storage({"s3://": config, "s3a://": config})
