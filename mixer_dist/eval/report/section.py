"""What a report is made of: parts under a heading, and the files that go with them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from mixer_dist.eval.report import page


@dataclass(frozen=True)
class Section:
    """A part of a page."""

    heading: str
    parts: Sequence[str]
    """HTML."""
    files: Mapping[str, bytes] = field(default_factory=dict)
    """Its pictures, by the names of their files."""

    @property
    def html(self) -> str:
        return page.section(self.heading, *self.parts)
