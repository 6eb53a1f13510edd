"""What broken saves have left goes; what may be under way stays."""

import os
from pathlib import Path

from mixer_dist.checkpoint import leftovers as leftovers_module
from mixer_dist.checkpoint.leftovers import find_leftovers, remove_leftovers
from tests.checkpoint.handmade import all_are_whole
from tests.unfinished_uploads import begin_upload


def test_pieces_of_superseded_attempts_go_those_of_the_newest_stay(run):
    for attempt in (1, 2, 3):
        run.start(attempt)
    run.commit(100, attempt=1)
    run.write_pieces(100, attempt=2)  # died before the commit
    run.write_pieces(200, attempt=2)
    run.write_pieces(300, attempt=3)  # under way
    found = find_leftovers(run.storage, run.run_dir)
    assert len(found.urls) == 4 and all("pieces-0002-" in url for url in found.urls)
    remove_leftovers(run.storage, found)
    assert run.steps() == [100] and all_are_whole(run)
    assert run.files(200) == []
    assert len(run.files(300)) == 2
    assert find_leftovers(run.storage, run.run_dir).urls == []


def test_temporary_files_go_after_a_day(disk_run):
    disk_run.commit(100)
    folder = Path(disk_run.run_dir.url)
    old, young, own = folder / ".a.1-2.tmp", folder / "deep/.b.3-4.tmp", folder / "mine.tmp"
    young.parent.mkdir()
    for path in (old, young, own):
        path.write_bytes(b"half")
    for path in (old, own):
        os.utime(path, (1, 1))
    remove_leftovers(disk_run.storage, find_leftovers(disk_run.storage, disk_run.run_dir))
    assert [path.exists() for path in (old, young, own)] == [False, True, True]


def test_uploads_that_nobody_completed_are_aborted_after_a_day(s3_run, monkeypatch):
    url, beside = s3_run.commit(100), f"{s3_run.run_dir.url}2/file"
    file = f"{url}/pieces-0001-00009.safetensors"
    for place in (file, beside):
        begin_upload(s3_run.storage, place)
    assert find_leftovers(s3_run.storage, s3_run.run_dir).urls == []
    monkeypatch.setattr(leftovers_module, "DAY_S", -10.0)
    found = find_leftovers(s3_run.storage, s3_run.run_dir)
    assert found.urls == [file]
    for _ in range(2):  # another collector may be faster
        remove_leftovers(s3_run.storage, found)
    assert find_leftovers(s3_run.storage, s3_run.run_dir).urls == []
    assert len(s3_run.storage.partial_writes(f"{s3_run.run_dir.url}2")) == 1
