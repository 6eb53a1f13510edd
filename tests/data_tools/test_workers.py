"""Worker processes and progress, which the tools share."""

import multiprocessing
import os
import sys
from contextlib import closing

import pytest

from data_tools import workers
from mixer_dist import progress
from mixer_dist.errors import StorageError


@pytest.mark.parametrize("num_workers", [1, 2])
def test_every_task_is_done_once(num_workers):
    tasks = [(number, 2) for number in range(20)]
    with closing(progress.Progress(len(tasks))) as counter:
        results = dict(workers.run_tasks(pow, tasks, num_workers, counter))
    assert results == {place: place**2 for place in range(20)}
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_failing_task_ends_them_all(num_workers):
    with closing(progress.Progress(9)) as counter, pytest.raises(ZeroDivisionError):
        list(workers.run_tasks(divmod, [(1, 0)] * 9, num_workers, counter))
    assert not multiprocessing.active_children()


def test_a_worker_that_dies_is_an_error():
    with pytest.raises(StorageError, match="fewer --workers"), workers.worker_pool(1) as pool:
        pool.submit(os._exit, 1).result()
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("is_terminal", [False, True])
def test_progress_is_a_bar_or_else_a_line_now_and_then(capfd, monkeypatch, is_terminal):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal)
    counter = progress.Progress(1000)
    counter.show_line()
    assert "0 of 1,000 images" not in capfd.readouterr().err
    counter._last_line -= progress.REPORT_S
    counter.show_line()
    assert ("0 of 1,000 images" in capfd.readouterr().err) == (not is_terminal)
    assert counter.until_line_s() > 0  # else waiting for workers would be a busy loop
    counter.close()


def test_what_is_watched_goes_by_as_it_is(capfd, monkeypatch):
    monkeypatch.setattr(progress, "REPORT_S", 0.0)
    assert list(progress.watch(iter("abc"), None, "files")) == ["a", "b", "c"]
    assert "2 files, " in capfd.readouterr().err
