"""Writing to a disk: a file is there whole or not at all, and stays when the power goes."""

import errno
import os
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from mixer_dist.storage.failures import is_errno
from mixer_dist.storage.partial_writes import PartialWrite

WRITE_BACK_BYTES = 16 * 2**20  # after which a disk is told to begin


def write_to_disk(path: str, parts: Iterable[Any]) -> None:
    """Under a temporary name, synced, then renamed: a reader sees the old file or the new one."""
    folder, name = os.path.split(path)
    _make_folder(folder)
    temporary = f"{folder}/.{name}.{os.getpid()}-{threading.get_ident()}.tmp"
    try:
        with open(temporary, "wb") as stream:
            num_begun = 0
            for part in parts:
                stream.write(part)
                if stream.tell() - num_begun >= WRITE_BACK_BYTES:
                    num_begun = _begin_write_back(stream, num_begun)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        if os.path.exists(temporary):
            os.unlink(temporary)
        raise
    _sync_folder(folder)


def _begin_write_back(stream: BinaryIO, start: int) -> int:
    """Have the disk begin on what was written from `start` on, not only at the sync; its end."""
    stop = stream.tell()
    if hasattr(os, "posix_fadvise"):  # pages that are not wanted are written out first
        os.posix_fadvise(stream.fileno(), start, stop - start, os.POSIX_FADV_DONTNEED)
    return stop


def partial_writes_on_disk(folder: str) -> Iterator[PartialWrite]:
    """Temporary files below a folder; some may be growing now."""
    for path in Path(folder).rglob(".*.tmp"):
        with suppress(FileNotFoundError):  # renamed just now
            yield PartialWrite(str(path), time.time() - path.stat().st_mtime)


def _make_folder(folder: str) -> None:
    """Make a folder and those above it; each new name is synced into the folder that holds it."""
    if os.path.isdir(folder):
        return
    above = os.path.dirname(folder)
    _make_folder(above)
    os.makedirs(folder, exist_ok=True)  # another process may have been faster
    _sync_folder(above)


def _sync_folder(folder: str) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not is_errno(error, errno.EINVAL, errno.ENOTSUP):  # some file systems cannot, nor need
            raise
    finally:
        os.close(descriptor)
