"""A drawing in the four looks in which a page may show it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from mixer_dist.eval.look import DARK, LIGHT, Look

_ON_DARK = "(prefers-color-scheme: dark)"
_ON_PHONE = "(max-width: 40rem)"


@dataclass(frozen=True)
class Picture:
    """A PNG for a wide light page, and by media query what is shown instead of it."""

    png: bytes
    instead: Mapping[str, bytes]
    """The first that matches."""
    description: str


def picture(draw: Callable[[Look], bytes], description: str) -> Picture:
    """Draw in every look."""
    instead = {
        f"{_ON_DARK} and {_ON_PHONE}": draw(Look(DARK, is_wide=False)),
        _ON_PHONE: draw(Look(LIGHT, is_wide=False)),
        _ON_DARK: draw(Look(DARK)),
    }
    return Picture(draw(Look(LIGHT)), instead, description)
