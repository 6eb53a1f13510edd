"""Memory that a step on a CPU frees stays with the process, for the next step.

glibc's malloc hands large blocks back to the kernel, which zeroes each page anew when the next
step asks for them: up to a twentieth of a step of Mixer-S/16, more beside threads that decode.
"""

import ctypes
from collections.abc import Callable

# <malloc.h>; no other C library has these.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_NEVER = -1  # becomes the largest size_t


def keep_freed_memory() -> bool:
    """Have malloc give nothing back to the kernel from now on; whether it can be told so."""
    mallopt = _function("mallopt")
    return bool(mallopt(_TRIM_THRESHOLD, _NEVER) and mallopt(_MMAP_MAX, 0))


def give_back_freed_memory() -> None:
    """Give the kernel what is free now, kept or not."""
    _function("malloc_trim")(0)


def _function(name: str) -> Callable[..., int]:
    """One of the C library, or one that does nothing where it is not glibc."""
    found: Callable[..., int] = getattr(ctypes.CDLL(None), name, lambda *_: 0)
    return found
