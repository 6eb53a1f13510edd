"""What a pass over a run's checkpoints finds, is to do, and has done."""

from dataclasses import dataclass, field

from mixer_dist.checkpoint.holders import Holder
from mixer_dist.checkpoint.layout import Tombstone


@dataclass(frozen=True)
class Folder:
    """A checkpoint's folder as it was found."""

    step: int
    url: str
    attempt: int | None
    """Of the checkpoint in it, None where none is committed."""
    tombstone: Tombstone | None


@dataclass(frozen=True)
class Plan:
    """What is to be done, and why."""

    folders: tuple[Folder, ...]
    reasons: dict[int, tuple[str, ...]]
    """To keep a checkpoint, by step; those without go."""
    problems: tuple[str, ...]
    """Folders that are left alone."""
    holders: dict[int, list[Holder]]

    @property
    def going(self) -> list[Folder]:
        """Checkpoints that have no reason to stay."""
        return [f for f in self.folders if f.attempt is not None and not self.reasons[f.step]]

    @property
    def unfinished(self) -> list[Folder]:
        """Checkpoints whose removal another collector began."""
        return [f for f in self.folders if f.attempt is None and f.tombstone]


@dataclass
class Outcome:
    """What a pass did."""

    announced: list[int] = field(default_factory=list)
    """Steps that got a tombstone."""
    removed: list[int] = field(default_factory=list)
    called_back: list[int] = field(default_factory=list)
    """Steps whose tombstone was taken away."""
    due_in_s: list[float] = field(default_factory=list)
    """When the grace of each announced checkpoint is over."""

    def add(self, later: "Outcome") -> None:
        """What a later pass did."""
        self.announced += later.announced
        self.removed += later.removed
        self.called_back += later.called_back
        self.due_in_s = later.due_in_s
