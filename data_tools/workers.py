"""A function called on worker processes that end when this process does, however it ends."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, TypeVar

from mixer_dist.errors import StorageError
from mixer_dist.progress import Progress

PRELOADED = ["mixer_dist.data.image_shards", "webdataset"]  # once, before workers are forked

T = TypeVar("T")


def run_tasks(
    function: Callable[..., T],
    tasks: Sequence[tuple[Any, ...]],
    num_workers: int,
    progress: Progress,
) -> Iterator[tuple[int, T]]:
    """Call `function(*task)` for each task; yields the task's place and result as each is done.

    One worker is this process itself. The function must be importable, for other processes.
    """
    if min(num_workers, len(tasks)) <= 1:
        for place, task in enumerate(tasks):
            yield place, function(*task)
            progress.show_line()
        return
    with worker_pool(min(num_workers, len(tasks))) as pool:
        places = {pool.submit(function, *task): place for place, task in enumerate(tasks)}
        for future in _as_done(set(places), progress):
            yield places.pop(future), future.result()


def _as_done(pending: set[Future[T]], progress: Progress) -> Iterator[Future[T]]:
    while pending:
        done, pending = wait(pending, progress.until_line_s(), FIRST_COMPLETED)
        yield from done
        progress.show_line()


@contextmanager
def worker_pool(num_workers: int) -> Iterator[ProcessPoolExecutor]:
    """Worker processes; StorageError where one of them is killed."""
    context = multiprocessing.get_context("forkserver")  # a plain fork would break s3fs
    context.set_forkserver_preload(PRELOADED)
    others = set(multiprocessing.active_children())
    environment = dict(os.environ)  # the fork server may have started before it was changed
    pool = ProcessPoolExecutor(num_workers, context, _follow_parent, (environment,))
    try:
        yield pool
        pool.shutdown()
    except BaseException as error:
        pool.shutdown(wait=False, cancel_futures=True)
        for worker in set(multiprocessing.active_children()) - others:
            worker.terminate()
            worker.join()
        if isinstance(error, BrokenProcessPool):
            raise StorageError(
                "a worker was killed, perhaps for its memory: give fewer --workers, or let each "
                "hold smaller shards, and run again"
            ) from error
        raise


def _follow_parent(environment: dict[str, str]) -> None:
    """Workers leave Ctrl-C to the parent, and do not go on writing when it was killed."""
    import torch  # which the fork server has loaded

    torch.set_num_threads(1)  # there is a process for each core
    os.environ.clear()
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
