"""What system tests share: a strict S3 server, and a proxy before it that fails on demand."""

from collections.abc import Iterator

import pytest

from tests.conftest import Credentials
from tests.fault_proxy import FaultProxy, serve_faults
from tests.swift import Swift, serve_swift


@pytest.fixture(scope="session")
def swift(credentials: Credentials, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swift]:
    """OpenStack Swift, which is strict where rclone is not."""
    directory = tmp_path_factory.mktemp("swift")
    key, secret = credentials.key, credentials.secret
    with serve_swift(directory, key=key, secret=secret, others=["test:other"]) as server:
        yield server


@pytest.fixture
def proxy(swift: Swift) -> Iterator[FaultProxy]:
    """A way to Swift that has no faults yet."""
    with serve_faults(swift.endpoint_url) as faults:
        yield faults
