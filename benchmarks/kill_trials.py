"""Trials: ranks that train a run on until one kills itself, and what is there afterwards."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.kill_checks import Found, find_checkpoints, starts
from benchmarks.kill_points import FINISHED, Kill, pretrain_until_killed
from benchmarks.rank_endings import HUNG, KILLED, endings_of
from mixer_dist.checkpoint.restore import newest_verified
from mixer_dist.config import RunConfig, StorageConfig
from mixer_dist.errors import CheckpointError
from mixer_dist.metrics import Line, read_metrics
from mixer_dist.run_dir import RunDir
from mixer_dist.sections import parse
from mixer_dist.storage import Storage
from tests.ranks import Ranks

WORLDS = (
    ("ddp", 2), ("fsdp", 3), ("zero2", 2), ("hsdp", 4), ("zero3", 3), ("fsdp", 2), ("zero2", 1),
    ("zero3", 2), ("ddp", 3),
)  # fmt: skip
EVERY_STEPS = 3
TOTAL_STEPS = 45
DEADLINE_S = 12.0  # of storage, before a run that does not move is ended
TIMEOUT_S = 30.0  # for a collective, as in a start where a rank is gone
LOG_CHARACTERS = 4_000
LEFT = WHOLE, TORN, NOTHING, NONE_STARTED = "whole", "torn", "nothing", "none started"

World = tuple[str, int]
"""(engine, ranks)."""


@dataclass(frozen=True)
class Place:
    """Where runs are kept."""

    name: str
    url: str
    options: dict[str, StorageConfig]
    storage: Storage
    manifest: Path
    """Of the dataset."""
    journals: Path
    """A folder on a disk."""


@dataclass(frozen=True)
class Trial:
    """What one start of a run came to."""

    kill: Kill | None
    endings: tuple[str, ...]
    """Of each rank."""
    lost_saves: int
    """Saves that were started and of which nothing is left."""
    steps_again: int
    """Steps done that have to be done again."""
    last_save: str
    """What is left of the last save: one of LEFT."""
    wrong_choices: int
    """Whether a start would choose another checkpoint than the newest whole one."""
    problems: tuple[str, ...]

    @property
    def was_killed(self) -> bool:
        return KILLED in self.endings


@dataclass
class Series:
    """A run that is started again and again, until it has reached its end."""

    place: Place
    name: str
    total_steps: int = TOTAL_STEPS
    newest: int = 0
    """Step of the newest whole checkpoint."""
    _committed: set[int] = field(default_factory=set)
    _num_starts: int = 0
    _num_trials: int = 0

    @property
    def run_dir(self) -> RunDir:
        return RunDir(f"{self.place.url}/{self.name}")

    def train(self, ranks: Ranks, world: World, kill: Kill | None = None) -> Trial:
        """Start the run once more, and look at what the kill has left."""
        self._num_trials += 1
        journal = self.place.journals / f"{self.place.name}-{self.name}-{self._num_trials}"
        config = run_config(self, world[0])
        pulls_down = kill.rank if kill and kill.is_of_all else None
        endings = endings_of(
            ranks, world[1], pulls_down, pretrain_until_killed, config, kill, str(journal)
        )
        if HUNG in endings:  # where its threads stand
            endings.append(Path(f"{journal}.log").read_text()[-LOG_CHARACTERS:])
        return self._judged(kill, endings, read_journal(journal))

    def lines(self) -> list[Line]:
        """The run's metrics."""
        return read_metrics(self.place.storage, self.run_dir)

    def _judged(
        self, kill: Kill | None, endings: Sequence[str], noted: dict[str, list[int]]
    ) -> Trial:
        storage = self.place.storage
        found = find_checkpoints(*storage.open(self.run_dir.url))
        saves = sorted({self.newest, *noted["started"]})
        self._committed |= set(noted["committed"])
        choices = wrong_choices(storage, self.run_dir, found)
        problems = [
            *strange_endings(kill, endings),
            *self._wrong_starts(storage),
            *self._missing(found, saves),
            *choices,
        ]
        last = saves[-1] if noted["started"] else None
        self.newest = found.newest
        return Trial(
            kill,
            tuple(endings),
            lost_saves=sum(step > found.newest for step in saves),
            steps_again=max([found.newest, *noted["trained"]]) - found.newest,
            last_save=state_of(last, found),
            wrong_choices=len(choices),
            problems=tuple(problems),
        )

    def _wrong_starts(self, storage: Storage) -> list[str]:
        """Starts that did not go on from the newest whole checkpoint."""
        recorded = sorted(starts(*storage.open(self.run_dir.url)))
        new, self._num_starts = recorded[self._num_starts :], len(recorded)
        return [
            f"attempt {attempt} resumed from step {step}, not {self.newest}"
            for attempt, step in new
            if step != self.newest
        ]

    def _missing(self, found: Found, saves: Sequence[int]) -> list[str]:
        """Checkpoints that have to be there."""
        gone = self._committed - found.whole.keys()
        problems = [f"step {step} was committed and is not whole" for step in sorted(gone)]
        least = saves[-2] if len(saves) > 1 else saves[-1]
        if found.newest < least:
            problems.append(f"newest is step {found.newest}, although {least} was saved before")
        return problems


def run_config(series: Series, engine: str) -> RunConfig:
    """A Mixer whose state of 13 MB goes to a bucket in several parts."""
    tree = {
        "run_dir": series.run_dir.url,
        "total_steps": series.total_steps,
        "global_batch_size": 12,
        "micro_batch_size": 4,
        "model": {
            "patch_size": 8, "hidden_dim": 128, "num_blocks": 2, "tokens_mlp_dim": 32,
            "channels_mlp_dim": 2048, "image_size": 32, "num_classes": 10, "head_bias": -2.3,
            "stochastic_depth": 0.2,
        },
        "data": {"train": [{"manifest": str(series.place.manifest)}], "num_threads": 1},
        "augment": {"mixup": 0.5},
        "optimizer": {"learning_rate": 1e-3, "warmup_steps": 5, "weight_decay": 0.1},
        "engine": {
            "name": engine, "precision": "fp32", "start_timeout_s": TIMEOUT_S,
            "hang_timeout_s": TIMEOUT_S,
            "shard_ranks": 2 if engine == "hsdp" else None,
        },
        "checkpoint": {"every_steps": EVERY_STEPS, "timeout_s": TIMEOUT_S, "grace_s": 5.0},
        "storage": {
            prefix: given.model_dump() | {"deadline_s": DEADLINE_S}
            for prefix, given in series.place.options.items()
        },
    }  # fmt: skip
    return parse(RunConfig, tree, "the benchmark")


def strange_endings(kill: Kill | None, endings: Sequence[str]) -> list[str]:
    """Those of ranks that were not killed, came to no end and gave no line that says why."""
    if kill is None:
        return [e for e in endings if e != FINISHED]
    expected = (KILLED, FINISHED, "exit code 1")  # 1: ended with the rank, its main thread stuck
    return [e for e in endings if e not in expected and not e.startswith("stopped: ")]


def wrong_choices(storage: Storage, run_dir: RunDir, found: Found) -> list[str]:
    """Whether a start would choose another checkpoint than the newest whole one."""
    try:
        chosen = newest_verified(storage, run_dir)
    except CheckpointError as error:
        return [str(error)]
    step = chosen.manifest.step if chosen else 0
    if step == found.newest:
        return []
    kind = "torn" if step in found.torn else "old"
    return [f"chose step {step}, which is {kind}, not {found.newest}"]


def state_of(step: int | None, found: Found) -> str:
    """What is left of a save."""
    if step is None:
        return NONE_STARTED
    if step in found.whole:
        return WHOLE
    return TORN if step in found.torn else NOTHING


def read_journal(path: Path) -> dict[str, list[int]]:
    """Steps by event."""
    noted: dict[str, list[int]] = defaultdict(list)
    for line in path.read_text().splitlines() if path.exists() else []:
        event, step = line.split()
        noted[event].append(int(step))
    return noted
