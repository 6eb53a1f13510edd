"""Pipeline stages that work ahead in threads and keep the order."""

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future
from itertools import islice
from typing import Any, Generic, TypeVar

A = TypeVar("A")
B = TypeVar("B")

_WAIT_S = 0.1
GROUP = 8  # items a task: handing one over to a thread costs as much as some of them


def mapped(
    function: Callable[[A], B], executor: Executor, depth: int
) -> Callable[[Iterable[A]], Iterator[B]]:
    """A stage that applies a function in an executor, `depth` items ahead, results in order."""

    def of_group(items: Sequence[A]) -> tuple[list[B], BaseException | None]:
        """The results up to the first failure, and that."""
        done: list[B] = []
        try:
            for item in items:
                done.append(function(item))
        except BaseException as error:  # noqa: BLE001, raised again where its result is due
            return done, error
        return done, None

    def stage(items: Iterable[A]) -> Iterator[B]:
        pending: deque[Future[tuple[list[B], BaseException | None]]] = deque()
        stream = iter(items)
        while group := list(islice(stream, GROUP)):
            pending.append(executor.submit(of_group, group))
            if len(pending) * GROUP > depth:
                yield from _results(pending.popleft())
        while pending:
            yield from _results(pending.popleft())

    return stage


def _results(group: "Future[tuple[list[B], BaseException | None]]") -> Iterator[B]:
    done, error = group.result()
    yield from done
    if error:
        raise error


class Ahead(Generic[A]):
    """Iterates in a thread of its own, up to `depth` items ahead; close it to end the thread."""

    def __init__(self, items: Iterable[A], depth: int) -> None:
        self._queue: queue.Queue[tuple[str, Any]] = queue.Queue(depth)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(items,), name="ahead", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[A]:
        return self

    def __next__(self) -> A:
        if self._stopped.is_set():
            raise StopIteration
        kind, value = self._queue.get()
        if kind == "item":
            result: A = value
            return result
        self._queue.put((kind, value))  # whoever asks again gets the same end
        raise value if kind == "error" else StopIteration

    def close(self) -> None:
        """Stop the thread and wait for it."""
        self._stopped.set()
        self._thread.join()

    def _run(self, items: Iterable[A]) -> None:
        try:
            for item in items:
                self._put(("item", item))
                if self._stopped.is_set():
                    return
            self._put(("end", None))
        except BaseException as error:  # noqa: BLE001, raised again where the item is taken
            self._put(("error", error))

    def _put(self, entry: tuple[str, Any]) -> None:
        while not self._stopped.is_set():
            try:
                return self._queue.put(entry, timeout=_WAIT_S)
            except queue.Full:
                continue
        return None
