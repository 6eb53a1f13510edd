"""Storage against a strict S3 server, and that server's own coming and going."""

import psutil
import pytest
import s3fs

from mixer_dist.config import StorageConfig
from mixer_dist.errors import AccessError, MissingError, StorageError
from mixer_dist.storage import Storage
from tests.swift import Swift, serve_swift
from tests.unfinished_uploads import begin_upload

CONTENT = bytes(range(256)) * 40


@pytest.fixture(scope="module")
def storage(swift: Swift) -> Storage:
    return swift.storage()


@pytest.mark.parametrize("content", [b"", b"x", CONTENT])
def test_what_is_written_is_read_listed_and_deleted(swift, storage, content):
    bucket = swift.new_bucket()
    file = f"{bucket}/deep/er/file äöü+.bin"
    storage.write(file, content)
    assert (storage.read(file), storage.size(file)) == (content, len(content))
    assert storage.names(f"{bucket}/deep/er") == ["file äöü+.bin"]
    storage.delete(file)
    assert not storage.exists(file) and storage.names(bucket) == []


def test_a_large_file_goes_up_in_parts(swift, proxy, monkeypatch):
    monkeypatch.setattr(s3fs.S3FileSystem, "default_block_size", 5 * 2**20)
    storage = Storage({"s3://": StorageConfig(endpoint_url=proxy.url)})
    file, part = f"{swift.new_bucket()}/large", CONTENT * 100
    storage.write_parts(file, lambda: [part] * 16)
    assert len(proxy.seen("large", "PUT")) > 1
    assert storage.read(file) == part * 16
    middle = 8 * len(part)
    assert storage.read_range(file, middle - 5, middle + 5) == CONTENT[-5:] + CONTENT[:5]


def test_a_range_past_the_end_is_an_error(swift, storage):
    file = f"{swift.new_bucket()}/file"
    storage.write(file, b"0123456789")
    assert storage.read_range(file, 3, 7) == b"3456"
    for start, stop in [(5, 11), (10, 11), (500, 600)]:
        with pytest.raises(StorageError, match=f"expected at least {stop} bytes, found 10"):
            storage.read_range(file, start, stop)


@pytest.mark.parametrize("variable", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_wrong_credentials_are_refused(swift, storage, monkeypatch, variable):
    file = f"{swift.new_bucket()}/file"
    storage.write(file, b"1")
    monkeypatch.setenv(variable, "something-else")
    with pytest.raises(AccessError, match="refuses these credentials"):
        swift.storage().read(file)
    with pytest.raises(AccessError, match="refuses these credentials"):
        swift.storage().write(file, b"2")
    assert storage.read(file) == b"1"


def test_a_missing_file_or_bucket_is_missing(swift, storage):
    for file in (f"{swift.new_bucket()}/nothing", "s3://no-such-bucket/nothing"):
        with pytest.raises(MissingError, match="nothing"):
            storage.read(file)


def test_the_server_ends_with_its_context_also_after_an_error(credentials, tmp_path):
    before = psutil.Process().children()
    with (
        pytest.raises(RuntimeError, match="in the middle"),
        serve_swift(tmp_path, key=credentials.key, secret=credentials.secret),
    ):
        assert len(psutil.Process().children()) == len(before) + 4
        raise RuntimeError("in the middle")
    assert psutil.Process().children() == before


def test_unfinished_uploads_are_found_below_a_folder_and_dropped(swift, storage):
    bucket = swift.new_bucket()
    for name in ("run/deep/file", "run2/file"):
        begin_upload(storage, f"{bucket}/{name}")
    (found,) = storage.partial_writes(f"{bucket}/run")
    assert found.url == f"{bucket}/run/deep/file"
    assert -60 < found.age_s < 60
    for _ in range(2):
        storage.discard(found)
    assert storage.partial_writes(f"{bucket}/run") == []
    assert len(storage.partial_writes(bucket)) == 1
