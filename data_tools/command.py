"""How a tool ends: an error is one line on stderr, and the exit code says what kind it was."""

import sys
from collections.abc import Callable

from mixer_dist.errors import MixerError

INTERRUPTED = 130


def exit_code_of(tool: str, work: Callable[[], int], *, if_interrupted: str) -> int:
    """Do the work; its exit code, or that of the error which ended it."""
    try:
        return work()
    except MixerError as error:
        print(f"{tool}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"{tool}: interrupted; {if_interrupted}", file=sys.stderr)
        return INTERRUPTED
