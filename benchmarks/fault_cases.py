"""What networks, stores and people do to a dataset in a bucket while it is read."""

import io
import itertools
import json
import os
import tarfile
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from mixer_dist.config import StorageConfig
from mixer_dist.storage import Storage, join
from tests.fault_proxy import Fault, FaultProxy, Kind
from tests.swift import Swift

DEADLINE_S = 8.0
ROTATION_S = 2.0  # a set of credentials lives so long
GRACE_S = 0.2  # for requests that were signed before
PAUSE_S = 0.5  # a step of training, where the clock matters
NUM_KEYS = 40
AFTER_BYTES = 3000  # of a reply: within its second sample
PROFILE = "rotating"
REFUSED = Fault("refused", status=403, methods=("GET", "HEAD"))


@dataclass
class Place:
    """A dataset in Swift, and the way to it."""

    swift: Swift
    proxy: FaultProxy
    folder: str
    shards: tuple[str, ...] = ()
    """URLs, in the manifest's order."""
    victim: str = ""
    """The shard that the faults are about."""
    profile: str | None = None

    def storage(self) -> Storage:
        """The client's, through the proxy."""
        options = {"endpoint_url": self.proxy.url, "profile": self.profile}
        return Storage({"s3://": StorageConfig(**options, deadline_s=DEADLINE_S)})

    def read(self) -> bytes:
        """The victim as it is in Swift."""
        return self.swift.storage().read(join(self.folder, self.victim))

    def write(self, data: bytes) -> None:
        """Another victim into Swift."""
        self.swift.storage().write(join(self.folder, self.victim), data)


Change = Callable[[Place], None]


@dataclass(frozen=True)
class Case:
    """One thing that goes wrong."""

    name: str
    before: Change | None = None
    midway: Change | None = None
    """When a quarter of the samples is read."""
    during: Callable[[Place], AbstractContextManager[None]] = field(default=lambda _: nullcontext())
    pause_s: float = 0.0


def fault(kind: Kind, count: float, **details: int) -> Change:
    """A fault of the proxy from the start on, for the victim."""

    def fail(place: Place) -> None:
        place.proxy.fail(Fault(kind, match=place.victim, count=count, **details))

    return fail


def cases() -> list[Case]:
    """All of them."""
    ever, at = float("inf"), {"after_bytes": AFTER_BYTES}
    return [
        Case("nothing"),
        Case("connection reset, once", fault("reset", 1, **at)),
        Case("connection reset, for ever", fault("reset", ever, **at)),
        Case("body cut, old Content-Length, once", fault("truncated", 1, **at)),
        Case("body cut, old Content-Length, for ever", fault("truncated", ever, **at)),
        Case("body cut, consistent length, once", fault("short", 1, **at)),
        Case("body cut, consistent length, for ever", fault("short", ever, **at)),
        Case("503, three times", fault("refused", 3, status=503)),
        Case("503, for ever", fault("refused", ever, status=503)),
        Case("500, three times", fault("refused", 3, status=500)),
        Case("500, for ever", fault("refused", ever, status=500)),
        Case("stall, once", fault("stall", 1, **at)),
        Case("stall, for ever", fault("stall", ever, **at)),
        Case("1 KB/s, once", fault("slow", 1, **at)),
        Case("1 KB/s, for ever", fault("slow", ever, **at)),
        Case("one bit flipped on the way", fault("flipped", 1, **at)),
        Case("one bit flipped in the store, in an image", damage("jpg", 700)),
        Case("one bit flipped in the store, in a tar header", damage("cls", -300)),
        Case("object missing", delete),
        Case("object deleted in mid-run", midway=delete),
        Case("replaced in mid-run, same size", midway=relabel),
        Case("replaced in mid-run, another size", midway=shorten),
        Case("rewritten in mid-run, same bytes, other ETag", midway=rewrite),
        Case("wrong credentials", during=wrong_credentials),
        Case("credentials revoked in mid-run", midway=revoke),
        Case(f"credentials for {ROTATION_S:g} s at a time", during=rotating, pause_s=PAUSE_S),
        Case(
            "the same, without telling when they expire",
            during=lambda place: rotating(place, tells=False),
            pause_s=PAUSE_S,
        ),
    ]


def damage(member: str, offset: int) -> Change:
    """One bit changed, at an offset from where the content of a member in the middle begins."""

    def flip(place: Place) -> None:
        data = bytearray(place.read())
        begins = [begin for name, begin, _ in members(data) if name.endswith(member)]
        data[begins[len(begins) // 2] + offset] ^= 1
        place.write(bytes(data))

    return flip


def members(data: bytes) -> list[tuple[str, int, int]]:
    """Name, begin and size of the files in a tar."""
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return [(info.name, info.offset_data, info.size) for info in tar]


def delete(place: Place) -> None:
    """The victim goes."""
    place.swift.storage().delete(join(place.folder, place.victim))


def relabel(place: Place) -> None:
    """Every sample gets another label; no byte more or less."""
    data = bytearray(place.read())
    for name, begin, _ in members(data):
        if name.endswith(".cls"):
            data[begin] = ord("0") + (data[begin] - ord("0") + 1) % 10
    place.write(bytes(data))


def shorten(place: Place) -> None:
    """The last sample goes."""
    data = place.read()
    _, begin, size = members(data)[-3]
    place.write(data[: begin + -(-size // 512) * 512] + bytes(1024))


def rewrite(place: Place) -> None:
    """The same bytes as a multipart upload, whose ETag is another one."""
    data = place.read()
    fs, path = place.swift.storage().open(join(place.folder, place.victim))
    bucket, key, _ = fs.split_path(path)
    where = {"Bucket": bucket, "Key": key}
    upload = {**where, "UploadId": fs.call_s3("create_multipart_upload", **where)["UploadId"]}
    tag = fs.call_s3("upload_part", **upload, PartNumber=1, Body=data)["ETag"]
    parts = {"Parts": [{"PartNumber": 1, "ETag": tag}]}
    fs.call_s3("complete_multipart_upload", **upload, MultipartUpload=parts)


def revoke(place: Place) -> None:
    """From now on the proxy refuses everything."""
    place.proxy.fail(REFUSED)


@contextmanager
def environment(changes: Mapping[str, str]) -> Iterator[None]:
    """Other environment variables for a while."""
    before = {name: os.environ[name] for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        os.environ.update(before)


def wrong_credentials(_: Place) -> AbstractContextManager[None]:
    """Another secret."""
    return environment({"AWS_SECRET_ACCESS_KEY": "something-else"})


@contextmanager
def rotating(place: Place, *, tells: bool = True) -> Iterator[None]:
    """An AWS credential_process hands out a new access key now and then; old ones are refused.

    The keys are users of one Swift account; the proxy refuses those whose time is over.
    """
    over = threading.Event()
    with tempfile.TemporaryDirectory() as folder:
        file, config = Path(folder, "credentials.json"), Path(folder, "config")
        config.write_text(f"[profile {PROFILE}]\ncredential_process = cat {file}\n")
        write_credentials(place, file, 0, tells=tells)
        thread = threading.Thread(target=rotate, args=(place, file, over, tells))
        thread.start()
        place.profile = PROFILE
        try:
            with environment({"AWS_CONFIG_FILE": str(config)}):
                yield
        finally:
            place.profile = None
            over.set()
            thread.join()


def rotate(place: Place, file: Path, over: threading.Event, tells: bool) -> None:
    """Hand out the next key whenever the time has come, until it is over."""
    for number in itertools.count():
        if over.wait(ROTATION_S - GRACE_S):
            return
        write_credentials(place, file, number + 1, tells=tells)
        over.wait(GRACE_S)
        refused = Fault(
            "refused", status=403, methods=("GET", "HEAD"), access_key=access_key(number)
        )
        place.proxy.fail(refused)


def access_key(number: int) -> str:
    """One of the users of the Swift account."""
    return f"test:key-{number:03d}"


def write_credentials(place: Place, file: Path, number: int, *, tells: bool) -> None:
    """What the credential_process prints, replaced at once."""
    answer = {
        "Version": 1,
        "AccessKeyId": access_key(number),
        "SecretAccessKey": place.swift.secret,
    }
    if tells:
        expires = datetime.now(UTC) + timedelta(seconds=ROTATION_S)
        answer["Expiration"] = expires.isoformat()
    unfinished = file.with_suffix(".new")
    unfinished.write_text(json.dumps(answer))
    unfinished.rename(file)
