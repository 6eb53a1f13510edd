"""Storage on a disk and on S3 behaves the same, and final errors are answered at once."""

import errno
import gc
import pickle
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import s3fs
from botocore.exceptions import ClientError

import mixer_dist.storage.files
from mixer_dist.config import StorageConfig
from mixer_dist.errors import AccessError, ConfigError, MissingError, MixerError, StorageError
from mixer_dist.storage import Storage, join, parent
from mixer_dist.storage.failures import final_error
from mixer_dist.storage.s3_systems import S3Systems

AT_ONCE_S = 40.0  # a final error is not retried for deadline_s


@dataclass
class Place:
    """An empty folder, and the storage that reaches it."""

    storage: Storage
    url: str

    def __truediv__(self, name: str) -> str:
        return join(self.url, name)


@pytest.fixture(scope="module")
def s3_storage(s3) -> Storage:
    """One for many tests, since connecting takes longer than most of them."""
    return s3.storage()


@pytest.fixture
def s3_place(s3, s3_storage) -> Place:
    return Place(s3_storage, s3.new_bucket())


@pytest.fixture(params=["disk", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "disk":
        return Place(Storage(), str(tmp_path))
    return request.getfixturevalue("s3_place")


def answers_at_once(expected: type[MixerError], call: Any, *arguments: Any) -> str:
    """The one line of the error that a call raises without delay."""
    began = time.monotonic()
    with pytest.raises(expected) as caught:
        call(*arguments)
    assert time.monotonic() - began < AT_ONCE_S
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("content", [b"", b"x", bytes(range(256)) * 5000])
def test_what_is_written_is_read(place, content):
    place.storage.write(place / "deep/er/file.bin", content)
    assert place.storage.read(place / "deep/er/file.bin") == content
    assert place.storage.size(place / "deep/er/file.bin") == len(content)


def test_a_file_is_replaced(place):
    place.storage.write(place / "file", b"long before")
    place.storage.write(place / "file", b"after")
    assert place.storage.read(place / "file") == b"after"


def test_ranges_give_just_their_bytes(place):
    content = bytes(range(256)) * 40
    place.storage.write(place / "file", content)
    for start, stop in [(0, 1), (10, 20), (255, 4321), (10239, 10240), (0, 10240), (7, 7)]:
        assert place.storage.read_range(place / "file", start, stop) == content[start:stop]


@pytest.mark.parametrize(("start", "stop"), [(5, 11), (10, 11), (500, 600)])
def test_a_range_past_the_end_is_an_error(place, start, stop):
    place.storage.write(place / "file", b"0123456789")
    line = answers_at_once(StorageError, place.storage.read_range, place / "file", start, stop)
    assert f"expected at least {stop} bytes, found 10" in line


def test_many_threads_share_a_storage(place):
    content = bytes(range(256)) * 40
    place.storage.write(place / "file", content)
    with ThreadPoolExecutor(8) as pool:
        read = [pool.submit(place.storage.read_range, place / "file", i, i + 99) for i in range(64)]
    assert [each.result() for each in read] == [content[i : i + 99] for i in range(64)]


def test_names_are_sorted_and_new_ones_seen(place):
    assert place.storage.names(place / "folder") == []
    for name in ("b", "a", "c/inner"):
        place.storage.write(place / f"folder/{name}", b"1")
    assert place.storage.names(place / "folder") == ["a", "b", "c"]
    assert place.storage.names(place / "folder/") == ["a", "b", "c"]
    place.storage.delete(place / "folder/b")
    assert place.storage.names(place / "folder") == ["a", "c"]


def test_existence(place):
    place.storage.write(place / "folder/file", b"1")
    found = [place.storage.exists(place / name) for name in ("folder/file", "folder", "nowhere")]
    assert found == [True, True, False]


def test_a_failed_write_leaves_the_old_file_alone(place, monkeypatch):
    def broken() -> Iterator[bytes]:
        yield b"x" * 1000
        raise RuntimeError("the disk of the source is gone")

    complaints: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", complaints.append)
    place.storage.write(place / "file", b"old")
    with pytest.raises(RuntimeError, match="source is gone"):
        place.storage.write_parts(place / "file", broken)
    gc.collect()
    assert place.storage.read(place / "file") == b"old"
    assert place.storage.names(place.url) == ["file"]
    assert not complaints  # of a half-written file that is closed after all


def test_a_large_upload_arrives_whole_or_not_at_all(s3, s3_place, monkeypatch):
    part = bytes(range(256)) * 2**12

    def broken() -> Iterator[bytes]:
        yield from [part] * 6
        raise RuntimeError("stop")

    monkeypatch.setattr(s3fs.S3FileSystem, "default_block_size", 5 * 2**20)  # several parts
    # It reads in several parts too, and takes a short one for zeros: not for us.
    monkeypatch.setattr(s3fs.S3FileSystem, "_cat_file_concurrent", None)
    storage = s3.storage()
    with pytest.raises(RuntimeError, match="stop"):
        storage.write_parts(s3_place / "file", broken)
    assert storage.names(s3_place.url) == []
    storage.write_parts(s3_place / "file", lambda: [part] * 11)
    assert storage.read(s3_place / "file") == part * 11


def test_what_is_not_there_is_missing(place):
    for call in (place.storage.read, place.storage.size):
        assert place / "nothing" in answers_at_once(MissingError, call, place / "nothing")
    answers_at_once(MissingError, place.storage.read_range, place / "nothing", 0, 5)


def test_a_missing_bucket_is_missing(s3_storage):
    file = "s3://no-such-bucket/file"
    assert file in answers_at_once(MissingError, s3_storage.read, file)
    assert file in answers_at_once(MissingError, s3_storage.read_range, file, 0, 5)
    assert file in answers_at_once(MissingError, s3_storage.write, file, b"1")
    answers_at_once(MissingError, s3_storage.check_writable, "s3://no-such-bucket")


@pytest.mark.parametrize("variable", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_wrong_credentials_are_refused(s3, s3_place, monkeypatch, variable):
    """Also after right ones were used in this process with the same options."""
    s3_place.storage.write(s3_place / "file", b"1")
    monkeypatch.setenv(variable, "something-else")
    refused = s3.storage()
    calls = [
        (refused.read, []),
        (refused.read_range, [0, 1]),
        (refused.write, [b"2"]),
        (refused.exists, []),
        (refused.delete, []),
    ]
    for call, arguments in calls:
        line = answers_at_once(AccessError, call, s3_place / "file", *arguments)
        assert s3_place / "file" in line and "AWS_SECRET_ACCESS_KEY" in line
    answers_at_once(AccessError, refused.names, s3_place.url)
    assert s3_place.storage.read(s3_place / "file") == b"1"


def test_credentials_that_were_right_are_asked_for_anew_once_for_all_threads(s3):
    systems, options = S3Systems(), s3.options()
    old = systems.get(options)
    assert not systems.renew(options, old)  # never right, so not rotated
    systems.proved(options, old)
    assert systems.renew(options, old)
    new = systems.get(options)
    systems.proved(options, new)
    assert systems.renew(options, old)  # a thread whose refusal comes late
    assert systems.get(options) is new is not old


def test_no_credentials_are_refused(s3, s3_place, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    answers_at_once(AccessError, s3.storage().read, s3_place / "file")


@pytest.mark.parametrize(
    ("url", "options"),
    [
        ("nosuchscheme://bucket/file", {}),
        ("s3://bucket/file", {"profile": "no-such-profile"}),
        ("s3://bucket/file", {"endpoint_url": "no-scheme:80"}),
        ("s3://not a bucket/file", {}),
    ],
)
def test_wrong_options_are_refused(s3, url, options):
    options = {"endpoint_url": s3.endpoint_url, **options}
    line = answers_at_once(ConfigError, Storage({"s3://": StorageConfig(**options)}).read, url)
    assert url in line


def test_the_longest_prefix_gives_the_options(s3, s3_place):
    wrong = StorageConfig(endpoint_url="no-scheme:80")
    storage = Storage({"s3://": wrong, s3_place.url: s3.options(), "s3://bucket-zz": wrong})
    storage.write(s3_place / "file", b"1")
    assert storage.read(s3_place / "file") == b"1"


def test_a_storage_travels_to_another_process_whose_files_are_seen(place):
    place.storage.write(place / "mine", b"1")
    assert place.storage.names(place.url) == ["mine"]
    other = pickle.loads(pickle.dumps(place.storage))
    other.write(place / "others", b"2")
    assert place.storage.names(place.url) == ["mine", "others"]
    assert (other.read(place / "mine"), place.storage.read(place / "others")) == (b"1", b"2")


def test_a_writable_place_is_left_as_it_was(place):
    place.storage.check_writable(place.url)
    assert place.storage.names(place.url) == []


class Unreliable:
    """A file system that fails `num_failures` times, then reads ten bytes."""

    def __init__(self, failure: OSError | bytes, num_failures: float) -> None:
        self.failure, self.num_failures, self.num_calls = failure, num_failures, 0

    def cat_file(self, path: str, start: int = 0, end: int = 10) -> bytes:
        self.num_calls += 1
        if self.num_calls > self.num_failures:
            return b"0123456789"[start:end]
        if isinstance(self.failure, OSError):
            raise self.failure
        return self.failure

    def info(self, path: str) -> dict[str, int]:
        return {"size": 10}


def unreliable_storage(monkeypatch, failure: OSError | bytes, num_failures: float) -> Storage:
    monkeypatch.setattr(mixer_dist.storage.files, "FIRST_DELAY_S", 0.01)
    storage = Storage({"": StorageConfig(deadline_s=0.5)})
    file_system = Unreliable(failure, num_failures)
    monkeypatch.setattr(storage, "open", lambda url: (file_system, url))
    return storage


@pytest.mark.parametrize("failure", [OSError("reset"), TimeoutError(), b"012"])
def test_passing_failures_and_short_replies_are_tried_again(monkeypatch, failure):
    assert unreliable_storage(monkeypatch, failure, 3).read("file") == b"0123456789"
    assert unreliable_storage(monkeypatch, failure, 3).read_range("file", 0, 5) == b"01234"


@pytest.mark.parametrize("failure", [OSError("reset"), TimeoutError(), b"012"])
def test_lasting_failures_end_at_the_deadline(monkeypatch, failure):
    storage = unreliable_storage(monkeypatch, failure, float("inf"))
    answers_at_once(StorageError, storage.read, "file")
    answers_at_once(StorageError, storage.read_range, "file", 0, 5)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.ENAMETOOLONG])
def test_what_trying_again_cannot_mend_is_not_tried_again(monkeypatch, number):
    storage = unreliable_storage(monkeypatch, OSError(number, "final"), 1)
    answers_at_once(StorageError, storage.read, "file")


def test_a_store_that_lacks_an_operation_is_not_asked_again():
    reply = {"ResponseMetadata": {"HTTPStatusCode": 501}, "Error": {"Code": "NotImplemented"}}
    error = OSError("not implemented")
    error.__cause__ = ClientError(reply, "ListMultipartUploads")
    assert isinstance(final_error("s3://bucket", error), StorageError)


def test_a_file_knows_when_it_was_written(place):
    place.storage.write(place / "file", b"1")
    assert abs(place.storage.modified(place / "file") - time.time()) < 3600
    with pytest.raises(MissingError):
        place.storage.modified(place / "nothing")


def test_what_is_gone_may_be_deleted_again(place):
    place.storage.write(place / "folder/file", b"1")
    place.storage.delete_folder(place / "folder")  # not empty: stays
    assert place.storage.names(place / "folder") == ["file"]
    for _ in range(2):
        place.storage.delete(place / "folder/file")
        place.storage.delete_folder(place / "folder")
    assert place.storage.names(place / "folder") == []


def test_names_join_and_absolute_ones_replace():
    assert join("s3://bucket/a/", "b", "c") == "s3://bucket/a/b/c"
    assert join("runs/a", "/data/b") == "/data/b"
    assert join("runs/a", "s3://bucket/b") == "s3://bucket/b"
    assert (parent("s3://bucket/a/b"), parent("file")) == ("s3://bucket/a", ".")


@pytest.mark.parametrize("expected", [0, 3, 9, 10, 11, 500])
def test_a_size_known_beforehand_may_be_wrong(place, expected):
    """It saves a request where it is right, and changes nothing where it is not."""
    place.storage.write(place / "file", b"0123456789")
    found = place.storage.read(place / "file", expected)
    assert found == (b"" if expected == 0 else b"0123456789")
