"""Work on many tars at once: every result once, the first error ends it, progress is told."""

import sys
import threading
import time

import pytest

from data_tools import tar_pool
from mixer_dist.errors import DataError


def test_each_result_comes_once_with_its_number():
    assert dict(tar_pool.each_tar(lambda number, advance: number**2, 50, 4)) == {
        number: number**2 for number in range(50)
    }


def test_the_first_error_ends_the_work_on_the_others():
    """One that has not begun never does; one under way ends when its next bytes come."""
    begun, ended = [], []

    def work(number: int, advance: tar_pool.Advance) -> None:
        begun.append(number)
        if number == 1:
            raise DataError("tar 1")
        for _ in range(1000):
            advance(1)
            time.sleep(0.01)
        ended.append(number)

    with pytest.raises(DataError, match="tar 1"):
        list(tar_pool.each_tar(work, 10_000, 2))
    assert not ended and len(begun) < 5000  # some, on a busy machine


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_line_tells_the_state_where_there_is_no_bar(monkeypatch, capsys, is_terminal):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal)
    monkeypatch.setattr(tar_pool, "REPORT_S", 0.0)
    has_shown = threading.Event()

    def work(number: int, advance: tar_pool.Advance) -> None:
        advance(2 * 10**9)
        has_shown.wait(0.1 * number)

    list(tar_pool.each_tar(work, 2, 1))
    err = capsys.readouterr().err
    assert ("1 of 2 tars, 4.0 GB, " in err) == (not is_terminal)
    assert ("2/2" in err) == is_terminal
