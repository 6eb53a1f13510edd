"""A run directory on a disk and in a bucket."""

import pytest

from mixer_dist.run_dir import RunDir
from mixer_dist.storage import Storage
from tests.checkpoint.handmade import HandmadeRun


@pytest.fixture(scope="session")
def s3_storage(s3) -> Storage:
    """One for all tests, since connecting takes longer than most of them."""
    return s3.storage()


@pytest.fixture
def disk_run(tmp_path) -> HandmadeRun:
    return HandmadeRun(Storage(), RunDir(str(tmp_path / "run")))


@pytest.fixture
def s3_run(s3, s3_storage) -> HandmadeRun:
    return HandmadeRun(s3_storage, RunDir(f"{s3.new_bucket()}/run"))


@pytest.fixture(params=["disk", "s3"])
def run(request) -> HandmadeRun:
    return request.getfixturevalue(f"{request.param}_run")


class Clock:
    """A clock that a test moves on."""

    def __init__(self) -> None:
        self.time_s = 1000.0

    def __call__(self) -> float:
        return self.time_s

    def wait(self, seconds: float, reason: str = "") -> None:
        self.time_s += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()
