"""A file that tells a launcher how a run ended: the exit codes of srun and torchrun do not."""

import json
from collections.abc import Iterator
from contextlib import contextmanager

from mixer_dist.errors import MixerError


@contextmanager
def exit_recorded(path: str | None) -> Iterator[None]:
    """Have rank 0 write exit code and message at the block's end; nothing where it is killed.

    What is no MixerError is written by nobody either: to a launcher it is a crash.
    """
    try:
        yield
    except MixerError as error:
        _record(path, error.exit_code, str(error))
        raise
    _record(path, 0, "done")


def _record(path: str | None, exit_code: int, message: str) -> None:
    if path is None:
        return
    from mixer_dist import distributed
    from mixer_dist.storage.disk import write_to_disk

    if distributed.is_main():
        tree = {"exit_code": exit_code, "message": message}
        write_to_disk(path, [json.dumps(tree).encode()])
