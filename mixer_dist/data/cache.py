"""A bounded cache that makes each value once, even when many threads ask for it together."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Executor, Future
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class BoundedCache(Generic[K, V]):
    """Keeps the most recently used values."""

    def __init__(self, capacity: int, make: Callable[[K], V]) -> None:
        self._capacity = capacity
        self._make = make
        self._found: OrderedDict[K, Future[V]] = OrderedDict()
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

    def _claim(self, key: K) -> tuple[Future[V], bool]:
        with self._lock:
            is_new = key not in self._found
            future = self._found.setdefault(key, Future())
            self._found.move_to_end(key)
            if len(self._found) > self._capacity:
                self._found.popitem(last=False)  # whoever waits for it holds its future
            return future, is_new

    def _fill(self, key: K, future: Future[V]) -> None:
        try:
            future.set_result(self._make(key))
        except BaseException as error:  # noqa: BLE001, handed to whoever asked
            with self._lock:
                self._found.pop(key, None)
            future.set_exception(error)
