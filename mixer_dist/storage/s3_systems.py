"""Connections to S3: one s3fs file system for each set of options, and credentials that change.

Our own: fsspec's shared ones keep the credentials of whoever came first.
"""

import threading
from typing import Any

from s3fs import S3FileSystem

from mixer_dist.config import StorageConfig
from mixer_dist.storage.s3_options import s3_arguments


class S3Systems:
    """File systems by their options, made when they are first asked for."""

    def __init__(self) -> None:
        self._systems: dict[StorageConfig, Any] = {}
        self._proven: dict[StorageConfig, Any] = {}
        self._lock = threading.Lock()

    def get(self, options: StorageConfig) -> Any:
        """The file system with the newest credentials."""
        with self._lock:
            if options not in self._systems:
                self._systems[options] = S3FileSystem(
                    skip_instance_cache=True, **s3_arguments(options)
                )
            return self._systems[options]

    def proved(self, options: StorageConfig, system: Any) -> None:
        """Note that a file system's credentials are right."""
        if self._systems.get(options) is system:
            self._proven[options] = system

    def renew(self, options: StorageConfig, refused: Any) -> bool:
        """Whether there may be newer credentials than those that a file system was refused with.

        They were right before, so they may have been rotated; of many threads that are refused,
        the first one asks for new ones.
        """
        with self._lock:
            if self._systems.get(options) is not refused:
                return True
            if self._proven.get(options) is not refused:
                return False
            del self._systems[options]
            return True
