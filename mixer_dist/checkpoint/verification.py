"""Are a checkpoint's files those that its manifest names? Every byte is hashed once."""

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from mixer_dist.checkpoint.catalog import Checkpoint
from mixer_dist.checkpoint.layout import FileEntry
from mixer_dist.errors import MissingError, StorageError
from mixer_dist.storage import Storage, join

HASH_BYTES = 8 * 2**20  # read at a time
NUM_THREADS = 4

Advance = Callable[[int], None]
"""Told how many bytes more have been checked, from any thread."""

Verify = Callable[[Checkpoint], list[str]]
"""What is wrong with a checkpoint's files, a line each."""


def _unseen(num_bytes: int) -> None:
    pass


def damages(storage: Storage, checkpoint: Checkpoint, advance: Advance = _unseen) -> list[str]:
    """What is wrong with a checkpoint's files, a line each."""
    return file_problems(storage, checkpoint.url, checkpoint.manifest.files, advance)


def file_problems(
    storage: Storage, url: str, entries: Sequence[FileEntry], advance: Advance = _unseen
) -> list[str]:
    """What is wrong with some of its files, a line each; several are read at once."""
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        checked = pool.map(lambda entry: file_problem(storage, url, entry, advance), entries)
        return [problem for problem in checked if problem]


def file_problem(
    storage: Storage, url: str, entry: FileEntry, advance: Advance = _unseen
) -> str | None:
    """Why a file is not the one that the manifest names, or None."""
    location = join(url, entry.name)
    try:
        num_bytes = storage.size(location)
        if num_bytes != entry.num_bytes:
            return f"{entry.name} has {num_bytes} bytes, expected {entry.num_bytes}"
        if _sha256(storage, location, num_bytes, advance) != entry.sha256:
            return f"{entry.name} does not have its SHA-256: bytes were changed"
    except (MissingError, StorageError) as error:
        return str(error)
    return None


def _sha256(storage: Storage, location: str, num_bytes: int, advance: Advance) -> str:
    """Each part is hashed while the next is read."""
    digest = hashlib.sha256()
    starts = range(0, num_bytes, HASH_BYTES)

    def read(start: int) -> bytes:
        return storage.read_range(location, start, min(start + HASH_BYTES, num_bytes))

    with ThreadPoolExecutor(1) as reader:
        coming = reader.submit(read, 0)
        for start in starts:
            part = coming.result()
            if start != starts[-1]:
                coming = reader.submit(read, start + HASH_BYTES)
            digest.update(part)
            advance(len(part))
    return digest.hexdigest()
