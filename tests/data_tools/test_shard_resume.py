"""data_tools/shard.py killed at any moment: nothing looks complete, nothing done is done again."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import psutil
import pytest

from data_tools import workers
from mixer_dist.data.manifest import load_manifest
from mixer_dist.storage import Storage
from tests.data_tools.sources import (
    SCRIPT,
    contents,
    image_bytes,
    manifest_of,
    refusal,
    run,
    small_source,
    write_files,
)

SMALL = ["--shard-mb", "0.005"]
SPLIT = [*SMALL, "--val-fraction", "0.4", "--deduplicate"]


def shard_until(number: int, folder: str, arguments: list[str]) -> None:
    """The tool, killed just before it changes something below the folder for the nth time."""
    left = number

    def watch(event: str, details: tuple[Any, ...]) -> None:
        nonlocal left
        is_change = event in ("os.rename", "os.remove")
        is_creation = event == "open" and details[2] & os.O_CREAT
        if (is_change or is_creation) and str(details[0]).startswith(folder):
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    sys.exit(run(*arguments))


def fork(function: Callable[..., None], *arguments: Any) -> ForkServerProcess:
    """A call in a process of its own, which has imported all it needs."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*workers.PRELOADED, "tests.data_tools.sources"])
    process = context.Process(target=function, args=arguments)
    process.start()
    return process


def run_and_kill(number: int, source: Path, folder: Path, options: list[str]) -> bool:
    """Whether it was killed before its end."""
    process = fork(shard_until, number, str(folder), [str(source), str(folder), *options])
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


def source_with_copies(folder: Path) -> Path:
    """Eight images; one is a copy, one unreadable."""
    return write_files(
        small_source(folder), {"a/copy.jpg": image_bytes(shade=0), "b/bad.jpg": b"no image"}
    )


def recorded_shards(folder: Path) -> dict[Path, int]:
    """The tars that are noted as finished, and when each was written."""
    tars = [
        record.with_name(record.name.removeprefix("INCOMPLETE.") + ".tar")
        for record in folder.rglob("INCOMPLETE.*")
    ]
    return {tar: tar.stat().st_mtime_ns for tar in tars}


@pytest.mark.parametrize("options", [SMALL, SPLIT], ids=["one dataset", "train and val"])
def test_killed_before_any_of_its_writes_it_goes_on_to_the_same_bytes(tmp_path, options):
    source, whole = source_with_copies(tmp_path / "source"), tmp_path / "whole"
    assert run(source, whole, *options) == 0
    expected = contents(whole)
    assert sum(name.endswith(".tar") for name in expected) >= 3

    number = 0
    while run_and_kill(number, source, folder := tmp_path / str(number), options):
        for manifest in folder.rglob("manifest.json") if folder.exists() else ():
            for each in load_manifest(Storage(), str(manifest)).shards:
                name = manifest.with_name(each.name).relative_to(folder).as_posix()
                assert contents(folder)[name] == expected[name]
        finished = recorded_shards(folder)
        assert run(source, folder, *options) == 0
        assert contents(folder) == expected, f"killed before write {number}"
        assert {tar: tar.stat().st_mtime_ns for tar in finished} == finished
        number += 1
    assert number > 20
    assert contents(folder) == expected


def test_killed_again_and_again_it_gets_there(tmp_path):
    source, whole = source_with_copies(tmp_path / "source"), tmp_path / "whole"
    assert run(source, whole, *SMALL) == 0
    folder, kills = tmp_path / "shards", 0
    while run_and_kill(10, source, folder, SMALL):
        kills += 1
        assert kills < 20
    assert kills >= 3
    assert contents(folder) == contents(whole)


@pytest.mark.parametrize(
    "change", [["--seed", "1"], ["--quality", "80"], ["--deduplicate"], "an image"], ids=str
)
def test_a_changed_plan_starts_over(tmp_path, change):
    source, folder = source_with_copies(tmp_path / "source"), tmp_path / "shards"
    assert run_and_kill(9, source, folder, SMALL)
    finished = recorded_shards(folder)
    assert finished
    if change == "an image":
        write_files(source, {"a/0.jpg": image_bytes(shade=50)})
    options = [*SMALL, *([] if change == "an image" else change)]
    assert run(source, folder, *options) == 0
    assert {tar: tar.exists() and tar.stat().st_mtime_ns for tar in finished} != finished
    assert run(source, tmp_path / "whole", *options) == 0
    assert contents(folder) == contents(tmp_path / "whole")


def test_a_finished_shard_that_was_lost_is_written_again(tmp_path):
    source, folder = source_with_copies(tmp_path / "source"), tmp_path / "shards"
    assert run_and_kill(9, source, folder, SMALL)
    tar, *_ = recorded_shards(folder)
    tar.write_bytes(tar.read_bytes()[:-1])
    assert run(source, folder, *SMALL) == 0
    assert run(source, tmp_path / "whole", *SMALL) == 0
    assert contents(folder) == contents(tmp_path / "whole")


def test_a_dry_run_leaves_what_a_killed_one_left(tmp_path):
    source, folder = source_with_copies(tmp_path / "source"), tmp_path / "shards"
    number = 9
    while not (folder / "manifest.json").exists():
        assert run_and_kill(number, source, folder, SMALL)
        before = contents(folder)
        assert run(source, folder, *SMALL, "--dry-run") == 0
        assert contents(folder) == before
        number += 1


def shard_with(environment: dict[str, str], arguments: list[str]) -> None:
    """The tool, with the credentials of a test server."""
    os.environ.update(environment)
    sys.exit(run(*arguments))


def test_killed_on_its_way_into_a_bucket_it_goes_on_there(s3, digit_images, tmp_path):
    source, url, options = digit_images / "test", f"{s3.new_bucket()}/x", ["--shard-mb", "0.02"]
    environment = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    arguments = [str(source), url, *options, *s3.shard_options()]
    process = fork(shard_with, environment, arguments)
    storage = s3.storage()
    while not (names := [n for n in storage.names(url) if n.startswith("INCOMPLETE.")]):
        assert process.is_alive()
    process.kill()
    process.join()
    assert "manifest.json" not in storage.names(url)

    first = storage.open(url)[0].info(f"{url}/shard-000000.tar")
    assert run(*arguments) == 0
    assert run(source, tmp_path / "local", *options) == 0
    expected = contents(tmp_path / "local")
    assert {name: storage.read(f"{url}/{name}") for name in storage.names(url)} == expected
    assert names[0] == "INCOMPLETE.shard-000000"
    again = storage.open(url)[0].info(f"{url}/shard-000000.tar")
    assert again["LastModified"] == first["LastModified"]


def test_a_complete_dataset_is_not_replaced_by_another_plan(tmp_path, capfd):
    source, folder = source_with_copies(tmp_path / "source"), tmp_path / "shards"
    number = 9
    while not (folder / "manifest.json").exists():
        number += 1
        assert run_and_kill(number, source, folder, SMALL)
    before = contents(folder)
    capfd.readouterr()
    assert run(source, folder, *SMALL, "--seed", "1") == 2
    assert "already holds a dataset" in refusal(capfd)
    assert contents(folder) == before


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_its_workers_end_with_it(digit_images, tmp_path, number):
    folder = tmp_path / "shards"
    command = [sys.executable, str(SCRIPT), str(digit_images / "train"), str(folder)]
    process = subprocess.Popen(
        [*command, "--shard-mb", "0.05", "--workers", "2"], stderr=subprocess.PIPE, text=True
    )
    while not (folder / "shard-000001.idx").exists():
        assert process.poll() is None
        time.sleep(0.002)
    started = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(number)
    _, complaint = process.communicate()
    assert process.returncode == (130 if number == signal.SIGINT else -number)
    assert "Traceback" not in complaint
    assert number == signal.SIGKILL or complaint.count("\n") == 1, complaint
    assert started and not psutil.wait_procs(started, timeout=10)[1]
    assert "manifest.json" not in contents(folder) and "INCOMPLETE" in contents(folder)

    assert run(digit_images / "test", folder, "--shard-mb", "1000") == 0  # fewer shards than before
    names = {"manifest.json", "quarantine.jsonl", "shard-000000.tar", "shard-000000.idx"}
    assert set(contents(folder)) == names
    assert manifest_of(folder).num_samples == 296
