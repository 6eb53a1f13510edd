"""Training's data from a store with faults: the same samples, or one line that names the place."""

import itertools
import json
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import enumerate as threads
from typing import Any

import psutil
import pytest

from mixer_dist import cli
from mixer_dist.config import StorageConfig
from mixer_dist.data.batch import Batch
from mixer_dist.data.fetch import ChunkReader
from mixer_dist.data.run_data import training_data
from mixer_dist.data.stream import Cursor, Share, TrainStream
from mixer_dist.errors import DataError, MixerError, StorageError
from mixer_dist.storage import Storage, join
from tests.data.handmade import good_sample, stream_config, write_dataset
from tests.fault_proxy import Fault, FaultProxy
from tests.ranks import free_port, receive
from tests.swift import Swift

NUM_STEPS = 40  # of 6 images, of which some ten are read ahead
ORDER = {"data__order__chunk_samples": 8, "data__order__window": 8}
VICTIM = "shard-000001"
DEADLINE_S = 8.0  # which a store that only has much to do meets
SOON_S = 40.0  # on any machine, and far below the 120 s that a store may be away by default
AT = 1000  # bytes into a reply of some 8 kB


@dataclass(frozen=True)
class Place:
    """240 samples in three shards in Swift, read through a proxy."""

    swift: Swift
    proxy: FaultProxy
    folder: str

    def storage(self, deadline_s: float = DEADLINE_S) -> Storage:
        options = StorageConfig(endpoint_url=self.proxy.url, deadline_s=deadline_s)
        return Storage({"s3://": options})

    def stream(self, deadline_s: float = DEADLINE_S) -> TrainStream:
        storage = self.storage(deadline_s)
        config = stream_config(f"{self.folder}/manifest.json", total_steps=NUM_STEPS, **ORDER)
        share = Share(rank=0, world_size=1, num_rows=6)
        return TrainStream(config, training_data(config, storage), storage, Cursor(), share, [0.0])

    def batches(self, midway: Callable[[], None] = lambda: None, **options: Any) -> list[Any]:
        """What makes a batch, of each."""
        with self.stream(**options) as stream:
            found = [content(next(stream.__iter__()))]
            midway()
            return found + [content(batch) for batch in stream]

    def victim(self) -> str:
        return f"{self.folder}/{VICTIM}.tar"


def content(batch: Batch) -> tuple[Any, ...]:
    return batch.keys, batch.digest, batch.images.tolist(), batch.labels.tolist()


@pytest.fixture(scope="module")
def folder(swift: Swift, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The URL of the dataset."""
    numbers = itertools.count()
    shards = [[good_sample(next(numbers)) for _ in range(80)] for _ in range(3)]
    made = tmp_path_factory.mktemp("dataset")
    write_dataset(made, shards)
    url = swift.new_bucket()
    for path in made.iterdir():
        swift.storage().write(join(url, path.name), path.read_bytes())
    return url


@pytest.fixture
def place(swift: Swift, proxy: FaultProxy, folder: str) -> Place:
    return Place(swift, proxy, folder)


@pytest.fixture(scope="module")
def clean(swift: Swift, folder: str) -> list[Any]:
    """Every batch of a run without faults."""
    return Place(swift, FaultProxy("", swift.endpoint_url), folder).batches()


BROKEN = [
    Fault("reset", ".tar", 1, AT),
    Fault("truncated", ".tar", 1, AT),
    Fault("short", ".tar", 1, AT),
    Fault("flipped", ".tar", 1, AT),
    Fault("short", ".idx", 1, 7),
    Fault("flipped", ".idx", 1, 9),
]
REFUSED = [
    Fault("refused", ".tar", 3, status=503),
    Fault("refused", ".idx", 1, status=503),
    Fault("refused", "manifest", 2, status=500, methods=("HEAD",)),
]
SLOW = [
    Fault("stall", ".tar", 1, AT),
    Fault("slow", ".tar", 1, AT),
    Fault("stall", "manifest", 1, methods=("HEAD",)),
]


@pytest.mark.parametrize("faults", [BROKEN, REFUSED, SLOW], ids=["broken", "refused", "slow"])
def test_what_passes_changes_nothing(place, clean, faults):
    for fault in faults:
        place.proxy.fail(fault)
    assert place.batches() == clean
    for fault in faults:
        assert sum(one.fault is fault for one in place.proxy.exchanges) == fault.count


@pytest.mark.parametrize(
    "fault",
    [
        Fault("short", VICTIM, after_bytes=AT),
        Fault("refused", VICTIM, status=503, methods=("GET", "HEAD")),
        Fault("stall", VICTIM, methods=("GET", "HEAD")),
    ],
    ids=lambda fault: fault.kind,
)
def test_what_lasts_stops_the_run_with_a_line(place, fault):
    place.proxy.fail(fault)
    began = time.monotonic()
    line = stopped(StorageError, lambda: place.batches())
    assert f"{place.folder}/{VICTIM}" in line and f"for {DEADLINE_S:g} s" in line
    assert time.monotonic() - began < DEADLINE_S + SOON_S
    assert len(place.proxy.seen(VICTIM)) < 40


def stopped(kind: type[MixerError], run: Callable[[], Any]) -> str:
    """The one line that a run ends with."""
    with pytest.raises(kind) as caught:
        run()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def restored(place: Place) -> Any:
    """The victim's bytes, written back after the test."""
    data = place.swift.storage().read(place.victim())
    yield data
    place.swift.storage().write(place.victim(), data)


def test_an_object_replaced_by_one_of_the_same_size_stops_the_run(place, restored):
    other = restored.replace(b"IDAT", b"JDAT")

    def replace() -> None:
        wait_until(lambda: bool(place.proxy.seen(f"{VICTIM}.tar")), 20.0)
        place.swift.storage().write(place.victim(), other)

    line = stopped(DataError, lambda: place.batches(replace))
    assert f"{place.victim()} was replaced" in line


def test_an_object_rewritten_with_the_same_samples_changes_nothing(place, restored, clean):
    """As one multipart upload, whose ETag is another one."""

    def rewrite() -> None:
        fs, path = place.swift.storage().open(place.victim())
        bucket, key, _ = fs.split_path(path)
        where = {"Bucket": bucket, "Key": key}
        upload = {**where, "UploadId": fs.call_s3("create_multipart_upload", **where)["UploadId"]}
        tag = fs.call_s3("upload_part", **upload, PartNumber=1, Body=restored)["ETag"]
        parts = {"Parts": [{"PartNumber": 1, "ETag": tag}]}
        fs.call_s3("complete_multipart_upload", **upload, MultipartUpload=parts)

    assert place.batches(rewrite) == clean


def test_an_object_that_vanishes_stops_the_run(place, restored):
    delete = place.swift.storage().delete
    line = stopped(DataError, lambda: place.batches(lambda: delete(place.victim())))
    assert f"a shard is missing: not there: {place.victim()}" in line


def test_revoked_credentials_stop_the_run(place):
    def revoke() -> None:
        place.proxy.fail(Fault("refused", status=403, methods=("GET", "HEAD")))

    line = stopped(DataError, lambda: place.batches(revoke))
    assert place.folder in line and "AWS_SECRET_ACCESS_KEY" in line


def test_credentials_may_be_rotated_while_many_threads_read(
    place, credentials, tmp_path, monkeypatch
):
    """All are refused at once; the first asks the AWS chain anew, the others go on with that."""
    file, config = tmp_path / "credentials.json", tmp_path / "config"
    config.write_text(f"[profile rotating]\ncredential_process = cat {file}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    write_key(file, credentials.key, credentials.secret)
    options = StorageConfig(endpoint_url=place.proxy.url, profile="rotating")
    storage = Storage({"s3://": options})
    expected = storage.read_range(place.victim(), 0, 100)
    place.proxy.fail(
        Fault("refused", status=403, methods=("GET", "HEAD"), access_key=credentials.key)
    )
    write_key(file, "test:other", credentials.secret)
    with ThreadPoolExecutor(16) as pool:
        read = [pool.submit(storage.read_range, place.victim(), 0, 100) for _ in range(16)]
    assert [each.result() for each in read] == [expected] * 16


def write_key(file: Path, key: str, secret: str) -> None:
    answer = {"Version": 1, "AccessKeyId": key, "SecretAccessKey": secret}
    file.write_text(json.dumps(answer))


def test_a_damaged_list_of_files_is_asked_for_again(place):
    bucket = place.folder.removeprefix("s3://")
    place.proxy.fail(Fault("short", bucket, 6, after_bytes=300))  # s3fs itself asks five times
    assert len(place.storage(deadline_s=60.0).names(place.folder)) == 7


def test_reads_under_way_and_those_in_line_end_at_once(place):
    """Closing does not wait for a stalled store, once for each read."""
    storage = place.storage(deadline_s=600.0)
    dataset = training_data(stream_config(f"{place.folder}/manifest.json"), storage)
    reader = ChunkReader(storage, dataset, 1, 10**6)
    reader.take(0)  # with the first index
    place.proxy.fail(Fault("stall"))
    for sample in range(16):
        reader.prefetch(sample)
    wait_for_stall(place.proxy)
    began = time.monotonic()
    reader.close()
    assert time.monotonic() - began < SOON_S
    num_requests = len(place.proxy.exchanges)
    with pytest.raises(StorageError, match="no longer wanted"):
        reader.take(200)
    assert len(place.proxy.exchanges) == num_requests


def wait_until(holds: Callable[[], bool], limit_s: float) -> None:
    """Return when something holds; a failure where it never does."""
    give_up = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < give_up
        time.sleep(0.01)


def wait_for_stall(proxy: FaultProxy) -> None:
    """Return when a client waits for a reply that does not come."""
    wait_until(lambda: any(one.fault for one in list(proxy.exchanges)), 20.0)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("match", [".tar", ".idx"])
def test_an_error_in_the_loop_ends_all_threads_of_a_stalled_stream(place, error, match):
    place.storage().read(f"{place.folder}/manifest.json")  # starts the event loop's thread
    before = set(threads())
    began = time.monotonic()
    place.proxy.fail(Fault("stall", match, methods=("GET", "HEAD")))
    with pytest.raises(error), place.stream(deadline_s=600.0):
        wait_for_stall(place.proxy)
        began = time.monotonic()
        raise error
    assert time.monotonic() - began < SOON_S
    assert set(threads()) == before


def pretrain(arguments: list[str]) -> int:
    """The verb, on one rank; its exit code."""
    return cli.main(["pretrain", "configs/quickstart.yaml", *arguments])


def test_ctrl_c_ends_a_run_whose_store_stalls(place, ranks, tmp_path):
    storage = {"s3://": {"endpoint_url": place.proxy.url, "deadline_s": 600}}
    arguments = [
        "engine.hang_timeout_s=900",
        f"run_dir={tmp_path}/run", "engine.name=single", "total_steps=100000",
        "global_batch_size=12", "micro_batch_size=12", "model.num_blocks=1",
        f"storage={json.dumps(storage)}", f"data.train.0.manifest={place.folder}/manifest.json",
    ]  # fmt: skip
    process, pipe = ranks.start(1, 0, free_port(), pretrain, arguments)
    wait_until(lambda: len(place.proxy.seen(".tar")) > 5, 60.0)
    place.proxy.fail(Fault("stall"))
    wait_for_stall(place.proxy)
    run = psutil.Process(process.pid)
    children = run.children(recursive=True)
    shared = [Path(m.path) for m in run.memory_maps() if m.path.startswith("/dev/shm")]
    os.kill(process.pid, signal.SIGINT)
    began = time.monotonic()
    assert receive(process, pipe) == ("value", cli.INTERRUPTED)
    assert time.monotonic() - began < SOON_S
    assert not psutil.wait_procs(children, SOON_S)[1]
    assert process.exitcode == 0 and not any(path.exists() for path in shared)
