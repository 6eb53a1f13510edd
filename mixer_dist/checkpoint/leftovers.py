"""What saves that never came to their end have left in a run directory.

Never what the newest attempt wrote: its save may be under way.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from mixer_dist.checkpoint.catalog import known_steps, read_manifest
from mixer_dist.checkpoint.layout import pieces_attempt
from mixer_dist.errors import AccessError, CheckpointError, MissingError, StorageError
from mixer_dist.run_dir import RunDir, attempt_numbers
from mixer_dist.storage import PartialWrite, Storage, join, parent

DAY_S = 86_400.0
"""No write takes that long, and no two clocks differ by so much."""


@dataclass(frozen=True)
class Leftovers:
    """Files that nobody will ever read."""

    pieces: tuple[str, ...]
    """Of attempts that are over and committed nothing with them."""
    partial_writes: tuple[PartialWrite, ...]
    """Begun more than a day ago."""
    problems: tuple[str, ...] = ()
    """Where nobody could look."""

    @property
    def urls(self) -> list[str]:
        """Each once."""
        return sorted({*self.pieces, *(partial.url for partial in self.partial_writes)})


def find_leftovers(storage: Storage, run_dir: RunDir) -> Leftovers:
    """Everything below a run directory that may go, whatever the rules are."""
    pieces = tuple(_superseded_pieces(storage, run_dir))
    try:
        partial = storage.partial_writes(run_dir.url)
    except (AccessError, StorageError) as error:  # a right of its own, which not everyone has
        return Leftovers(pieces, (), (f"unfinished uploads are not listed: {error}",))
    return Leftovers(pieces, tuple(found for found in partial if found.age_s > DAY_S))


def remove_leftovers(storage: Storage, leftovers: Leftovers) -> None:
    """Delete them, and folders that they were the last files of."""
    for url in leftovers.pieces:
        storage.delete(url)
    for partial in leftovers.partial_writes:
        storage.discard(partial)
    for folder in {parent(url) for url in leftovers.urls}:
        storage.delete_folder(folder)


def _superseded_pieces(storage: Storage, run_dir: RunDir) -> Iterator[str]:
    newest = max(attempt_numbers(storage, run_dir), default=0)
    for step in known_steps(storage, run_dir):
        url = run_dir.checkpoint(step)
        attempts = {name: pieces_attempt(name) for name in storage.names(url)}
        over = {name: a for name, a in attempts.items() if a is not None and a < newest}
        if not over:
            continue
        try:
            committed = read_manifest(storage, url).attempt
        except MissingError:
            committed = None
        except CheckpointError:  # what cannot be read may be mended
            continue
        yield from (join(url, name) for name, attempt in over.items() if attempt != committed)
