"""What a plan is made for: a run on so many cards of a kind."""

from dataclasses import dataclass

from mixer_dist.config import RunConfig
from mixer_dist.data.stream import micro_batch_shape
from mixer_dist.operations.plan.cards import Card
from mixer_dist.operations.plan.rates import Rates
from mixer_dist.train.build import check_engine
from mixer_dist.train.torch_engine import mesh_shape

FP32_BYTES = 4
COMPUTE_BYTES = {"fp32": 4, "bf16": 2}


@dataclass(frozen=True)
class Setup:
    """A run, its engine, and where it runs."""

    config: RunConfig
    num_gpus: int
    card: Card
    rates: Rates

    @property
    def engine(self) -> str:
        """Its name."""
        return self.config.engine.name

    @property
    def is_zero(self) -> bool:
        """Whether DeepSpeed drives it."""
        return self.engine.startswith("zero")

    @property
    def micro_batch_size(self) -> int:
        """Images that a GPU takes at once."""
        return micro_batch_shape(self.config, self.num_gpus)[0]

    @property
    def grad_accum_steps(self) -> int:
        """Micro-batches of a step."""
        return micro_batch_shape(self.config, self.num_gpus)[1]

    @property
    def mesh(self) -> tuple[int, int]:
        """(copies of the training state, ranks that share one)."""
        return (1, self.num_gpus) if self.is_zero else mesh_shape(self.config.engine, self.num_gpus)

    @property
    def num_nodes(self) -> int:
        """Nodes, the last of which may be partly used."""
        return -(-self.num_gpus // self.card.gpus_per_node)

    @property
    def compute_bytes(self) -> int:
        """Of an element in forward and backward."""
        return COMPUTE_BYTES[self.config.engine.precision]


def set_up(
    config: RunConfig, num_gpus: int, card: Card, rates: Rates, engine: str | None = None
) -> Setup:
    """A run on these cards, under another engine if one is given; ConfigError where it cannot be.

    By default, hsdp shards the state within a node.
    """
    changes = {
        "name": engine or config.engine.name,
        "shard_ranks": config.engine.shard_ranks or min(num_gpus, card.gpus_per_node),
    }
    changed = config.model_copy(update={"engine": config.engine.model_copy(update=changes)})
    check_engine(changed, num_gpus)
    return Setup(changed, num_gpus, card, rates)
