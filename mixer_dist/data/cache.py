"""A cache bounded in bytes that makes each value once, even when many threads want it at once."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Executor, Future
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class BoundedCache(Generic[K, V]):
    """Keeps the most recently used values, up to a number of bytes."""

    def __init__(
        self, capacity_bytes: int, make: Callable[[K], V], bytes_of: Callable[[V], int]
    ) -> None:
        self._capacity_bytes = capacity_bytes
        self._make = make
        self._bytes_of = bytes_of
        self._found: OrderedDict[K, Future[V]] = OrderedDict()
        self._num_bytes: dict[K, int] = {}  # of the values that are made
        self._total_bytes = 0
        self._lock = threading.Lock()

    def get(self, key: K) -> V:
        """The value of a key, made now unless another thread has or is at it."""
        future, is_new = self._claim(key)
        if is_new:
            self._fill(key, future)
        return future.result()

    def prefetch(self, key: K, executor: Executor) -> None:
        """Have the value made in the background."""
        future, is_new = self._claim(key)
        if is_new:
            executor.submit(self._fill, key, future)

    def free(self, key: K, num_bytes: int) -> None:
        """Count bytes that a value has let go; one without any is forgotten."""
        with self._lock:
            if key in self._num_bytes:  # it may have been dropped meanwhile
                self._num_bytes[key] -= num_bytes
                self._total_bytes -= num_bytes
                if self._num_bytes[key] <= 0:
                    self._drop(key)

    def discard(self, key: K, value: V) -> None:
        """Forget a value, unless it has been made anew meanwhile."""
        with self._lock:
            if key in self._num_bytes and self._found[key].result() is value:
                self._drop(key)

    def _claim(self, key: K) -> tuple[Future[V], bool]:
        with self._lock:
            future = self._found.get(key)
            if future is None:
                self._found[key] = future = Future()
                return future, True
            self._found.move_to_end(key)
            return future, False

    def _fill(self, key: K, future: Future[V]) -> None:
        try:
            value = self._make(key)
        except BaseException as error:  # noqa: BLE001, handed to whoever asked
            with self._lock:
                self._found.pop(key, None)
            future.set_exception(error)
            return
        with self._lock:
            self._num_bytes[key] = self._bytes_of(value)
            self._total_bytes += self._num_bytes[key]
            if self._total_bytes > self._capacity_bytes:
                self._make_room(key)
        future.set_result(value)

    def _make_room(self, newest: K) -> None:
        """Drop the values that were asked for longest ago; whoever holds one may go on using it."""
        for key in list(self._found):
            if self._total_bytes <= self._capacity_bytes:
                return
            if key in self._num_bytes and key != newest:
                self._drop(key)

    def _drop(self, key: K) -> None:
        self._total_bytes -= self._num_bytes.pop(key)
        del self._found[key]
