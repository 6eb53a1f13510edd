"""Kills of one rank while DeepSpeed saves a checkpoint of its own, and what loading makes of it."""

import io
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.kill_points import die, quiet
from benchmarks.rank_endings import endings_of
from mixer_dist import distributed
from tests.ranks import Ranks
from tests.tiny import take_steps, tiny_config, tiny_engine

ENGINE = "zero2"
FIRST, SECOND = 2, 4  # steps after which it saves; a kill comes in the second save
TIMEOUT_S = 20.0  # of a collective that waits for a rank that is gone
HEADER = "| killed rank | of its file | `latest` names | rank 0 then | rank 1 then |\n" + "|---" * 5


def deepspeed_table(ranks: Ranks, folder: Path, num_kills: int) -> str:
    """Markdown: a row for each kill of one of two ranks in the middle of its own file."""
    lines = [f"{HEADER}|"]
    for number in tqdm(range(num_kills), "kills, DeepSpeed"):
        victim, share = number % 2, (number + 1) / (num_kills + 1)
        run_dir = folder / f"deepspeed-{number}"
        run_dir.mkdir()
        endings_of(ranks, 2, None, save_and_die, str(run_dir), victim, share)
        latest = run_dir / "latest"
        loaded = endings_of(ranks, 2, None, load_latest, str(run_dir))
        tag = latest.read_text() if latest.exists() else "nothing"
        lines.append(f"| {victim} | {share:.0%} | {tag} | {' | '.join(loaded)} |")
    return "\n".join(lines)


def save_and_die(run_dir: str, victim: int, share: float) -> str:
    """Save once, then die in the middle of the second save. All ranks must call this."""
    quiet(f"{run_dir}/log")
    with distributed.connected(TIMEOUT_S):
        config = tiny_config(ENGINE)
        engine = tiny_engine(config)
        take_steps(engine, config, 0, FIRST)
        save(engine, run_dir, FIRST)
        take_steps(engine, config, FIRST, SECOND)
        if distributed.rank() == victim:
            torch.save = dying_save(share)
        save(engine, run_dir, SECOND)
    return "saved"


def save(engine: Any, run_dir: str, step: int) -> None:
    """DeepSpeed's own checkpoint. All ranks must call this."""
    engine._engine.save_checkpoint(run_dir, tag=f"step-{step}")


def dying_save(share: float) -> Any:
    """torch.save, which dies when it has written so much of an optimizer's file."""
    whole_save = torch.save

    def write(state: Any, path: str, **options: Any) -> None:
        if "optim_states" not in path:
            whole_save(state, path, **options)
            return
        buffer = io.BytesIO()
        whole_save(state, buffer, **options)
        with open(path, "wb") as file:
            file.write(buffer.getvalue()[: int(share * buffer.tell())])
        die()

    return write


def load_latest(run_dir: str) -> str:
    """What a fresh start comes to. All ranks must call this."""
    quiet(f"{run_dir}/log")
    with distributed.connected(TIMEOUT_S):
        engine: Any = tiny_engine(tiny_config(ENGINE))
        try:
            path, _ = engine._engine.load_checkpoint(run_dir)
        except Exception as error:  # noqa: BLE001, whatever a user would meet
            return f"{type(error).__name__}: {' '.join(str(error).split())[:60]}"
        return f"loaded {Path(path).parent.name}" if path else "nothing loaded"
