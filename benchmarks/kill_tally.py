"""What all kills came to: kept in a file as they happen, counted in a table at the end."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.kill_points import POINTS
from benchmarks.kill_trials import LEFT, TOTAL_STEPS, Place, Trial
from mixer_dist.metrics import Line

BAR = 1e-5  # relative, of a loss


class Tally:
    """Counts what it is told, beside all that its file holds from before."""

    def __init__(self, record: Path) -> None:
        self._record = record
        self.kills: list[dict[str, Any]] = []
        """A trial's fields each, with `place` and `world`."""
        self.differences: list[float] = []
        """Largest relative difference of a loss, of each run that came to its end."""
        self.problems: list[str] = []
        lines = record.read_text().splitlines() if record.exists() else []
        for line in lines:
            self._take(**json.loads(line))

    def num_kills(self, place: Place) -> int:
        """How many there were in a place."""
        return sum(kill["place"] == place.name for kill in self.kills)

    def add(self, place: Place, world: Sequence[Any], trial: Trial) -> None:
        """Count a start, and say at once what is wrong with it."""
        if trial.was_killed and trial.kill:
            fields = asdict(trial) | trial.kill._asdict()
            self._write(kills=fields | {"place": place.name, "world": world})
        for problem in trial.problems:
            self._tell(f"{place.name}, {world}, {trial.kill}: {problem}")

    def compare(self, place: Place, lines: Sequence[Line], expected: Sequence[Line]) -> None:
        """Judge a run that has come to its end."""
        if [line["step"] for line in lines] != list(range(1, TOTAL_STEPS + 1)):
            self._tell(f"{place.name}: the metrics do not hold each step once")
            return
        pairs = list(zip(lines, expected, strict=True))
        difference = max(abs(a["loss"] - b["loss"]) / b["loss"] for a, b in pairs)
        self._write(differences=difference)
        if difference > BAR or any(a["batch_digest"] != b["batch_digest"] for a, b in pairs):
            self._tell(f"{place.name}: another run, its losses differ by {difference:.1e}")

    def _tell(self, problem: str) -> None:
        tqdm.write(problem, file=sys.stderr)
        self._write(problems=problem)

    def _write(self, **found: Any) -> None:
        self._take(**found)
        with self._record.open("a") as file:
            file.write(json.dumps(found) + "\n")

    def _take(self, **found: Any) -> None:
        for name, value in found.items():
            getattr(self, name).append(value)

    def table(self) -> str:
        """Markdown: a row for each point in each place, and what follows from all."""
        columns = [
            "point", "kept on", "kills", "of all ranks", *LEFT, "wrong one chosen",
            "saves lost, at most", "steps done again, at most",
        ]  # fmt: skip
        lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
        for point in POINTS:
            for name in dict.fromkeys(kill["place"] for kill in self.kills):
                wanted = (point, name)
                kills = [kill for kill in self.kills if (kill["point"], kill["place"]) == wanted]
                lines.append(row(point, name, kills))
        lines.append(row("all", "both", self.kills))
        return "\n".join([*lines, "", self._summary()])

    def _summary(self) -> str:
        return (
            f"{len(self.differences)} runs came to their end. Largest relative difference of a "
            f"loss: {max(self.differences, default=0.0):.1e} (bar: {BAR:.0e}). "
            f"Problems: {'; '.join(self.problems) or 'none'}."
        )


def row(point: str, name: str, kills: Sequence[dict[str, Any]]) -> str:
    """What some kills came to."""
    left = [sum(kill["last_save"] == state for kill in kills) for state in LEFT]
    most = [max((kill[f] for kill in kills), default=0) for f in ("lost_saves", "steps_again")]
    cells = [
        point, name, len(kills), sum(kill["is_of_all"] for kill in kills), *left,
        sum(kill["wrong_choices"] for kill in kills), *most,
    ]  # fmt: skip
    return f"| {' | '.join(map(str, cells))} |"
