"""python benchmarks/plan_memory.py: the memory that `plan` computes, beside what a rank holds.

A small Mixer takes two steps of two micro-batches on 2 and 4 ranks over gloo. Counted are the live
tensors of rank 0: masters, moments, the weights that forward uses, gradients (at the update or
between micro-batches, whichever is more), what one forward saves for backward, and DeepSpeed's
bucket where it outlives a step.

Prints a Markdown table; ends with 1 where a quantity is off by more than 5%.
"""

import argparse
import gc
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a bare checkout

from mixer_dist import distributed
from mixer_dist.checkpoint.pieces import local
from mixer_dist.config import RunConfig
from mixer_dist.operations.plan.cards import card_named
from mixer_dist.operations.plan.memory import BUCKET_ELEMENTS, state_memory
from mixer_dist.operations.plan.micro_batch import micro_batch
from mixer_dist.operations.plan.rates import Rates
from mixer_dist.operations.plan.setup import set_up
from mixer_dist.train.drawn_batch import drawn_batch
from tests import ranks
from tests.tiny import tiny_config, tiny_engine

ENGINES = ("ddp", "fsdp", "zero1", "zero2", "zero3")
MODEL = {
    "patch_size": 8, "hidden_dim": 256, "num_blocks": 4, "tokens_mlp_dim": 128,
    "channels_mlp_dim": 1024, "image_size": 64, "num_classes": 100,
}  # fmt: skip
MICRO_BATCH_SIZE, NUM_MICRO_BATCHES = 8, 2
BAR = 0.05
TIMEOUT_S = 900.0
REST_S = 0.2  # gloo's threads let go of what they reduced


class Held(NamedTuple):
    """Bytes of a rank."""

    weights: int
    moments: int
    compute_weights: int
    gradients: int
    saved: int
    """For backward by one forward."""


def main() -> int:
    """Measure, plan and print; 1 where they differ."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4])
    given = parser.parse_args()
    ranks.TIMEOUT_S = TIMEOUT_S
    print("| engine | ranks | " + " | ".join(Held._fields) + " | total |")
    print("|---|---|" + "---|" * (len(Held._fields) + 1))
    missed = False
    cases = [(engine, size) for size in given.ranks for engine in ENGINES]
    for engine, size in tqdm(cases, "cases", disable=None):
        held = ranks.Ranks().run(size, held_by_rank, engine, given.precision)[0]
        planned = planned_for(engine, size, given.precision)
        pairs = [*zip(held, planned, strict=True), (sum(held), sum(planned))]
        print(f"| {engine} | {size} | " + " | ".join(map(in_words, pairs)) + " |", flush=True)
        missed |= any(abs(found - plan) > BAR * found for found, plan in pairs)
    return int(missed)


def in_words(pair: tuple[int, int]) -> str:
    """Measured, planned, and by how much the plan is off."""
    found, plan = pair
    off = plan / found - 1 if found else 0.0
    return f"{found / 1e6:.2f} / {plan / 1e6:.2f} MB ({off:+.1%})"


def config_of(engine: str, precision: str, num_ranks: int) -> RunConfig:
    """A run of the small Mixer whose steps have two micro-batches."""
    batch = MICRO_BATCH_SIZE * NUM_MICRO_BATCHES * num_ranks
    return tiny_config(
        engine, precision, model=MODEL, global_batch_size=batch, micro_batch_size=MICRO_BATCH_SIZE
    )


def planned_for(engine: str, num_ranks: int, precision: str) -> Held:
    """The same as `plan` says it."""
    config = config_of(engine, precision, num_ranks)
    setup = set_up(config, num_ranks, card_named("h100"), Rates())
    state = state_memory(setup)
    saved = micro_batch(setup.config, MICRO_BATCH_SIZE).saved_bytes
    return Held(state.weights, state.moments, state.compute_weights, state.gradients, saved)


def held_by_rank(engine_name: str, precision: str) -> Held:
    """What this rank holds in a step, after one that made all buffers. All ranks must call this."""
    with distributed.connected(TIMEOUT_S):
        others = set(live())
        num_ranks = distributed.world_size()
        config = config_of(engine_name, precision, num_ranks)
        engine, batch = tiny_engine(config), drawn_batch(config)
        others |= set(storages([batch.images, batch.labels, batch.weights, batch.positions]))
        engine.train_step(batch, 1e-3)
        gc.collect()
        census = Census(engine, others)
        engine.train_step(batch, 1e-3)
        return census.held()


class Census:
    """Counts an engine's live tensors at rest, after each forward and before the update."""

    def __init__(self, engine: Any, others: set[int]) -> None:
        self._engine, self._others = engine, others
        self._model = engine._model
        self._at_rest = self._live()
        self._masters = storages(masters(engine))
        self._moments = storages(moments(engine))
        self._weights_at_rest = self._weights()
        self._weights_in_forward: dict[int, int] = {}
        self._extra: list[int] = []
        self._saved: dict[int, int] = {}
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)
        # Before ZeRO-3's own, which begins to gather.
        self._model.register_forward_pre_hook(self._begin_forward, prepend=True)
        self._model.register_forward_hook(self._end_forward)
        engine.before_update = self._before_update

    def held(self) -> Held:
        """What the step came to."""
        weights = self._weights_at_rest | self._weights_in_forward
        is_own = self._masters.keys().isdisjoint(weights)
        kept = {**self._masters, **self._moments, **(self._weights_at_rest if is_own else {})}
        left = {key: size for key, size in self._at_rest.items() if key not in kept}
        gradients = {key: size for key, size in left.items() if not is_bucket(size)}
        return Held(
            weights=sum(self._masters.values()),
            moments=sum(self._moments.values()),
            compute_weights=sum(size for key, size in weights.items() if key not in self._masters),
            gradients=sum(gradients.values()) + max(self._extra),
            saved=sum(size for key, size in self._saved.items() if key not in weights),
        )

    def _live(self) -> dict[int, int]:
        return {key: size for key, size in live().items() if key not in self._others}

    def _weights(self) -> dict[int, int]:
        """Of the model as it is now; ZeRO-3 keeps a rank's part beside what it gathers."""
        parameters = list(self._model.parameters())
        parts = [p.ds_tensor for p in parameters if hasattr(p, "ds_tensor")]
        return storages([*parameters, *parts])

    def _pack(self, tensor: Tensor) -> Tensor:
        self._saved.update(storages([tensor]))
        return tensor

    def _begin_forward(self, _: Any, inputs: tuple[Any, ...]) -> None:
        self._saved = {}
        self._others |= set(storages(each for each in inputs if isinstance(each, Tensor)))
        self._count_gradients()
        self._hooks.__enter__()

    def _end_forward(self, *_: Any) -> None:
        self._hooks.__exit__()
        self._weights_in_forward = self._weights()

    def _before_update(self) -> None:
        self._count_gradients()

    def _count_gradients(self) -> None:
        """All that came to what is there at rest, at moments when nothing else does."""
        time.sleep(REST_S)
        known = self._at_rest.keys() | self._weights().keys()
        more = {key: size for key, size in self._live().items() if key not in known}
        self._extra.append(sum(size for size in more.values() if not is_bucket(size)))


def masters(engine: Any) -> list[Tensor]:
    """What the optimizer updates."""
    if hasattr(engine, "_state"):
        return list(engine._state.flat_tensors())
    return [local(parameter) for parameter in engine._parameters.values()]


def moments(engine: Any) -> list[Tensor]:
    """Adam's, of each master."""
    states = engine._optimizer.state.values()
    return [local(state[kind]) for state in states for kind in ("exp_avg", "exp_avg_sq")]


def live() -> dict[int, int]:
    """Bytes of every storage that a live tensor of Python, or its gradient, has."""
    found = [each for each in gc.get_objects() if issubclass(type(each), Tensor)]
    gradients = [each.grad for each in found if each.is_leaf and each.grad is not None]
    return storages([*found, *gradients])


def storages(tensors: Iterable[Tensor]) -> dict[int, int]:
    """Bytes by address, each storage once; of this rank's part where a tensor is distributed."""
    parts = [local(each) if isinstance(each, DTensor) else each for each in tensors]
    own = [part.untyped_storage() for part in parts if part.device.type == "cpu"]
    return {storage.data_ptr(): storage.nbytes() for storage in own if storage.nbytes()}


def is_bucket(size: int) -> bool:
    """Whether this is DeepSpeed's bucket, whose size follows no model."""
    return size >= 2 * BUCKET_ELEMENTS


if __name__ == "__main__":
    sys.exit(main())
