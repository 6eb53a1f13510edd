"""What is to be proved: the steps, how the run is started, and what happens to it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch

from mixer_dist.config import RunConfig
from mixer_dist.config.training import EngineName
from mixer_dist.errors import RefusedError
from mixer_dist.operations.verify_resume.incidents import Incident, draw_incidents
from mixer_dist.train.build import check_engine

CHECKPOINTS = 6  # in the steps of a trial
CPU_RANKS = 2


@dataclass(frozen=True)
class Start:
    """An engine on a number of ranks."""

    engine: EngineName
    num_ranks: int

    def __str__(self) -> str:
        return f"{self.engine}:{self.num_ranks}"


@dataclass(frozen=True)
class Plan:
    """What is to be proved, and where."""

    config: RunConfig
    num_steps: int
    starts: Sequence[Start]
    """The first is that of the run left alone; the starts of the other take turns."""
    incidents: Sequence[Incident]
    out: Path
    run_dirs: str
    """Where the runs are written: a directory or a URL."""


def make_plan(
    config: RunConfig,
    *,
    num_steps: int,
    num_incidents: int,
    seed: int,
    starts: Sequence[str],
    out: Path,
    run_dirs: str | None,
) -> Plan:
    """A plan from what a user gave; RefusedError where it cannot be."""
    if not 2 <= num_steps <= config.total_steps:
        raise RefusedError(
            f"--steps must be from 2 to total_steps={config.total_steps}, got {num_steps}"
        )
    if not 1 <= num_incidents < num_steps:
        raise RefusedError(
            f"--incidents must be from 1 to {num_steps - 1} in {num_steps} steps, "
            f"got {num_incidents}"
        )
    return Plan(
        config=config,
        num_steps=num_steps,
        starts=[_start(text, config) for text in starts] or [_default_start(config)],
        incidents=draw_incidents(num_steps, num_incidents, seed),
        out=out,
        run_dirs=run_dirs or str(out),
    )


def _start(text: str, config: RunConfig) -> Start:
    """From ENGINE:RANKS."""
    engine, _, ranks = text.partition(":")
    for known in get_args(EngineName):
        if engine == known and ranks.isdecimal() and int(ranks):
            return _checked(Start(known, int(ranks)), config)
    raise RefusedError(
        f"--starts takes ENGINE:RANKS, such as fsdp:2, got {text!r}; "
        f"engines: {', '.join(get_args(EngineName))}"
    )


def _default_start(config: RunConfig) -> Start:
    """The configuration's engine on every GPU."""
    engine = config.engine.name
    num_ranks = 1 if engine == "single" else torch.cuda.device_count() or CPU_RANKS
    return _checked(Start(engine, num_ranks), config)


def _checked(start: Start, config: RunConfig) -> Start:
    check_engine(trial_config(config, "", start.engine, 1), start.num_ranks)
    return start


def trial_config(config: RunConfig, run_dir: str, engine: EngineName, num_steps: int) -> RunConfig:
    """The configuration as it is, but for places, engine and what does not change the weights."""
    changes: dict[str, dict[str, Any]] = {
        "engine": {"name": engine},
        "checkpoint": {
            "every_steps": max(1, num_steps // CHECKPOINTS),
            "keep_last": None, "keep_every": None, "keep_best": None,
        },
        "logging": {"every_steps": 1, "tensorboard": False},
    }  # fmt: skip
    sections = {
        name: getattr(config, name).model_copy(update=values) for name, values in changes.items()
    }
    return config.model_copy(update={"run_dir": run_dir, **sections})


def plan_lines(plan: Plan) -> list[str]:
    """The plan in words."""
    starts = list(map(str, plan.starts))
    return [
        f"left alone    {plan.num_steps} steps under {starts[0]}",
        f"planned       {'; '.join(map(str, plan.incidents))}",
        f"starts        {', '.join(starts)}{', in turn' if len(starts) > 1 else ''}",
        f"runs          {plan.run_dirs}",
    ]
