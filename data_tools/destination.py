"""The folder that a tool writes a dataset into."""

from pathlib import Path

from mixer_dist.data.manifest import MANIFEST_NAME
from mixer_dist.errors import ConfigError, RefusedError
from mixer_dist.storage import Storage, join


def check_destination(storage: Storage, destination: str) -> None:
    """ConfigError, RefusedError where it is no folder or already holds a dataset."""
    check_is_folder(destination)
    if storage.exists(join(destination, MANIFEST_NAME)):
        raise dataset_there(destination)


def check_is_folder(destination: str) -> None:
    """ConfigError, RefusedError where it cannot be one."""
    if destination.endswith("://"):
        raise ConfigError(f"expected a bucket in {destination}")
    for place in (Path(destination), *Path(destination).parents):
        if place.is_file():
            raise RefusedError(f"{place} is a file; expected a folder or s3://bucket/prefix")


def dataset_there(destination: str) -> RefusedError:
    """What is raised rather than overwrite a complete dataset."""
    return RefusedError(
        f"{destination} already holds a dataset ({MANIFEST_NAME}): "
        "choose another destination or remove that one first"
    )


def check_reachable(urls: list[str], destination: str) -> None:
    """ConfigError for files of this machine, which a manifest elsewhere cannot name."""
    if local := [url for url in urls if "://" not in url and "://" in destination]:
        raise ConfigError(f"{local[0]} lies on this machine: so must the manifest that names it")
