"""What tests share: a loopback S3 server, and a small real dataset on a disk and in a bucket."""

import os
import secrets
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

# data_tools and launchers are no part of the installed package
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data_tools import sample_data, shard
from launchers.local_s3 import serve
from mixer_dist.config import StorageConfig
from mixer_dist.storage import Storage
from tests.ranks import Ranks
from tests.small_config import SMALL


@dataclass(frozen=True)
class LocalS3:
    """A loopback S3 server whose credentials are those of the environment."""

    endpoint_url: str
    key: str
    secret: str
    directory: Path
    """Holds a folder for each bucket."""
    bucket_url: str
    """A bucket for the whole session; `new_bucket` gives one that is empty."""

    def options(self) -> StorageConfig:
        """What a configuration has to say about this server."""
        return StorageConfig(endpoint_url=self.endpoint_url, checksum="when_required")

    def storage(self) -> Storage:
        """A storage that finds this server under s3://."""
        return Storage({"s3://": self.options()})

    def shard_options(self) -> list[str]:
        """The same for data_tools/shard.py."""
        return ["--endpoint-url", self.endpoint_url, "--checksum", "when_required"]

    def new_bucket(self) -> str:
        """The URL of an empty bucket."""
        bucket = f"bucket-{secrets.token_hex(4)}"
        (self.directory / bucket).mkdir()
        time.sleep(0.01)  # until the server has noticed
        return f"s3://{bucket}"


@dataclass(frozen=True)
class Credentials:
    """Those in the environment, which every S3 server of the tests takes."""

    key: str
    secret: str


@pytest.fixture(scope="session")
def credentials() -> Iterator[Credentials]:
    """Sets the environment; a test that wants wrong ones uses monkeypatch.setenv."""
    made = Credentials("test:key", secrets.token_hex(16))  # Swift wants account:user
    with pytest.MonkeyPatch.context() as environment:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            environment.delenv(name)
        environment.setenv("AWS_ACCESS_KEY_ID", made.key)
        environment.setenv("AWS_SECRET_ACCESS_KEY", made.secret)
        environment.setenv("AWS_CONFIG_FILE", os.devnull)
        environment.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
        environment.setenv("AWS_EC2_METADATA_DISABLED", "true")
        yield made


@pytest.fixture(scope="session")
def s3(credentials: Credentials, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalS3]:
    """A loopback S3 server."""
    directory = tmp_path_factory.mktemp("s3")
    key, secret = credentials.key, credentials.secret
    (directory / "session").mkdir()
    with serve(directory, key=key, secret=secret) as endpoint_url:
        yield LocalS3(endpoint_url, key, secret, directory, "s3://session")


@pytest.fixture(scope="session")
def digit_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """scikit-learn's digits at 32 px as an image folder: train/ and test/."""
    folder = tmp_path_factory.mktemp("images") / "digits"
    sample_data.write_digits(folder, size_px=32)
    return folder


@pytest.fixture(scope="session")
def digits(digit_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits in shards: train/manifest.json (1,501 images) and test/manifest.json (296)."""
    folder = tmp_path_factory.mktemp("digits")
    for split in ("train", "test"):
        arguments = [str(digit_images / split), str(folder / split), "--shard-mb", "0.5"]
        assert shard.main(arguments) == 0
    return folder


@pytest.fixture(scope="session")
def digits_s3(digit_images: Path, s3: LocalS3) -> str:
    """The same in a bucket: the URL of the folder that holds train/ and test/."""
    url = f"{s3.bucket_url}/digits"
    for split in ("train", "test"):
        arguments = [str(digit_images / split), f"{url}/{split}", "--shard-mb", "0.5"]
        assert shard.main([*arguments, *s3.shard_options()]) == 0
    return url


@pytest.fixture(scope="session")
def ranks() -> Ranks:
    """Runs a function on several ranks, from one warm process."""
    return Ranks()


@pytest.fixture
def small_config(tmp_path: Path) -> Path:
    """A configuration with nothing but what must be given."""
    path = tmp_path / "small.yaml"
    path.write_text(SMALL)
    return path
