"""PyTorch's own sharding: single, ddp, fsdp and hsdp are mesh shapes of one fully_shard path."""

from collections.abc import Callable, Iterator
from functools import lru_cache

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard

from mixer_dist import distributed
from mixer_dist.checkpoint.pieces import Piece, Range, local, owners, pieces_of
from mixer_dist.config import EngineConfig, RunConfig
from mixer_dist.data.batch import Batch
from mixer_dist.errors import ConfigError
from mixer_dist.models.mixer import MlpMixer
from mixer_dist.train.engine import StepResult, do_nothing, not_finite
from mixer_dist.train.objective import summed_loss
from mixer_dist.train.optim import build_optimizer, create_moments
from mixer_dist.train.stragglers import timed_module

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
LEAST_UNIT_ELEMENTS = 10_000_000  # of weights gathered together: as many blocks as that takes


def mesh_shape(engine: EngineConfig, world_size: int) -> tuple[int, int]:
    """(dp_replicate, dp_shard) of an engine; ConfigError where the world cannot be shaped so."""
    if engine.name == "single" and world_size > 1:
        raise ConfigError(f"engine.name single runs on 1 rank, not {world_size}: take ddp or fsdp")
    if engine.name != "hsdp":
        return (1, world_size) if engine.name == "fsdp" else (world_size, 1)
    shard_ranks = engine.shard_ranks or distributed.placement().local_world_size
    if world_size % shard_ranks:
        raise ConfigError(
            f"hsdp needs groups of engine.shard_ranks={shard_ranks} ranks, and {world_size} ranks "
            "are no multiple: set engine.shard_ranks to a divisor, or take fsdp"
        )
    return world_size // shard_ranks, shard_ranks


class TorchEngine:
    """fully_shard on a 2-D mesh, with a fused optimizer on the shards."""

    def __init__(self, model: MlpMixer, config: RunConfig, micro_batch_size: int) -> None:
        self.before_update: Callable[[], None] = do_nothing
        self.guard: Callable[[Tensor], Tensor] = not_finite
        self._config = config
        self._micro_batch_size = micro_batch_size
        self._dtype = DTYPES[config.engine.precision]
        self.shapes = {fqn: tuple(p.shape) for fqn, p in model.named_parameters()}
        self._model = model.to(distributed.device())
        self._mesh = partition(self._model, config)
        # Names are taken now: after a forward the module may list gathered stand-ins.
        self._parameters = dict(model.named_parameters())
        # As plain tensors of the same memory: DTensor knows no fused SGD, and costs the host time.
        self._partitions = {fqn: nn.Parameter(local(p)) for fqn, p in self._parameters.items()}
        self._optimizer = build_optimizer(self._partitions.items(), config.optimizer)
        create_moments(self._optimizer, self._partitions.values())
        self._num_updates = torch.zeros((), device=distributed.device())

    def train_step(self, batch: Batch, learning_rate: float) -> StepResult:
        """One update from the global batch, in micro-batches. All ranks must call this."""
        loss = self._accumulate_gradients(batch)
        self.before_update()
        self._hand_over_gradients()
        grad_norm = self._clip_gradients()
        update_skipped = self.guard(grad_norm)
        # Where this is 1 the fused kernel changes nothing; the host need not know.
        self._optimizer.found_inf = update_skipped  # type: ignore[attr-defined]
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._num_updates += 1 - update_skipped
        return StepResult(loss, grad_norm, update_skipped)

    def _accumulate_gradients(self, batch: Batch) -> Tensor:
        """This rank's share of the mean loss; gradients are summed over micro-batches in fp32."""
        total = torch.zeros((), device=batch.images.device)
        num_done = 0
        for micro in batch.micro_batches(self._micro_batch_size):
            num_done += len(micro)
            set_gradient_sync(self._model, num_done == len(batch))
            loss = summed_loss(self._model, micro, self._config.loss, self._dtype)
            loss = loss / self._config.global_batch_size
            mean_over_ranks = loss * distributed.world_size()  # gradients are averaged over ranks
            mean_over_ranks.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        return total

    def _clip_gradients(self) -> Tensor:
        """Scale gradients to the maximal global norm; the norm before."""
        partitions = list(self._partitions.values())
        norm = nn.utils.get_total_norm([p.grad for p in partitions if p.grad is not None])
        if self._mesh.size(1) > 1:
            norm = norm_of(norm, self._mesh.get_group("dp_shard"))
        nn.utils.clip_grads_with_norm_(partitions, self._config.optimizer.max_grad_norm, norm)
        return norm

    def _hand_over_gradients(self) -> None:
        """From the sharded parameters, where they are reduced, to what the optimizer knows."""
        for fqn, parameter in self._parameters.items():
            self._partitions[fqn].grad = None if parameter.grad is None else local(parameter.grad)
            parameter.grad = None

    def pieces(self) -> Iterator[Piece]:
        """The ranges of the training state that this rank saves and reads, no other rank's."""
        owner = owners(self.shapes, self._mesh.size(0))
        replica = self._mesh.get_local_rank("dp_replicate")
        return (piece for piece in self._held() if owner[piece.fqn] == replica)

    def replicas(self) -> Iterator[tuple[str, Tensor]]:
        """What other ranks hold too, bit by bit, by name; nothing where no rank does."""
        has_replicas = self._mesh.size(0) > 1
        return ((f"{p.name}[{p.start}:{p.stop}]", p.tensor) for p in self._held() if has_replicas)

    @property
    def replica_set(self) -> int:
        """The same number on all ranks that hold the same replicas."""
        return self._mesh.get_local_rank("dp_shard")

    @property
    def timed_module(self) -> nn.Module:
        """A large matrix product, in whose forward no rank waits for another."""
        return timed_module(self._model, self._config.engine)

    def refresh(self, num_updates: int) -> None:
        """Bring all else up to the pieces, once they were read. All ranks must call this."""
        self._num_updates.fill_(num_updates)
        for state in self._optimizer.state.values():
            if "step" in state:
                state["step"].fill_(num_updates)
        self._send_to_replicas()
        for module in self._model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()  # gathered copies would still be the old weights

    def close(self) -> None:
        """Nothing else refers to what it holds."""

    def _send_to_replicas(self) -> None:
        """Each piece from the rank that read it to those that hold the same range."""
        group = self._mesh.get_group("dp_replicate")
        ranks = dist.get_process_group_ranks(group)
        owner = owners(self.shapes, len(ranks))
        for piece in self._held() if len(ranks) > 1 else ():
            dist.broadcast(piece.tensor, src=ranks[owner[piece.fqn]], group=group)

    @property
    def num_updates(self) -> int:
        """Updates so far; waits for the device."""
        return int(self._num_updates.item())

    def _held(self) -> Iterator[Piece]:
        for fqn, parameter in self._parameters.items():
            start, stop = partition_range(parameter)
            if start < stop:
                held = Range(fqn, start, stop, self._partitions[fqn], 0)
                yield from pieces_of(held, self._optimizer, self._config.optimizer.name)


def partition(model: MlpMixer, config: RunConfig) -> DeviceMesh:
    """Cut the weights of blocks, then the rest, over the engine's mesh; the mesh."""
    shape = mesh_shape(config.engine, distributed.world_size())
    mesh = build_mesh(dist.group.WORLD, distributed.device().type, shape)
    # On both axes it would reduce over a replica that is alone, too.
    axes = mesh if shape[0] > 1 else mesh["dp_shard"]
    policy = MixedPrecisionPolicy(DTYPES[config.engine.precision], torch.float32)
    reshard = config.engine.reshard_after_forward
    for unit in units(model):
        fully_shard(unit, mesh=axes, mp_policy=policy, reshard_after_forward=reshard)
    return mesh


@lru_cache(maxsize=1)
def build_mesh(world: dist.ProcessGroup, device: str, shape: tuple[int, int]) -> DeviceMesh:
    """The mesh of these ranks; the same one for each engine tried, as its groups stay for good."""
    return init_device_mesh(device, shape, mesh_dim_names=("dp_replicate", "dp_shard"))


def units(model: MlpMixer) -> list[list[nn.Module]]:
    """Consecutive blocks whose weights are gathered, and gradients reduced, as one; then the rest.

    Each time costs the host 0.4 ms (host_time.md) and the network its latency, whatever the size.
    """
    blocks: list[nn.Module] = list(model.blocks)
    size = num_blocks_of_unit(sum(p.numel() for p in blocks[0].parameters()))
    return [*(blocks[start : start + size] for start in range(0, len(blocks), size)), [model]]


def num_blocks_of_unit(num_elements: int) -> int:
    """How many blocks of so many elements make up a unit."""
    return -(-LEAST_UNIT_ELEMENTS // num_elements)


def norm_of(norm: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The norm of all ranks' values from each one's own, the same bits on every rank."""
    norms = [torch.empty_like(norm) for _ in range(group.size())]
    dist.all_gather(norms, norm, group=group)
    whole: Tensor = torch.linalg.vector_norm(torch.stack(norms))
    return whole


def set_gradient_sync(model: nn.Module, is_last: bool) -> None:
    """Reduce gradients over ranks in the last micro-batch only."""
    assert isinstance(model, FSDPModule)
    model.set_requires_gradient_sync(is_last)


def partition_range(parameter: nn.Parameter) -> tuple[int, int]:
    """The flat range of this rank's rows: dim 0 cut as torch.chunk cuts it, the last ones short."""
    if not isinstance(parameter, DTensor):
        return 0, parameter.numel()
    mesh_axis = next((i for i, p in enumerate(parameter.placements) if p == Shard(0)), None)
    if mesh_axis is None:
        return 0, parameter.numel()
    index = parameter.device_mesh.get_local_rank(mesh_axis)
    num_rows = parameter.shape[0]
    chunk = -(-num_rows // parameter.device_mesh.size(mesh_axis))
    row = parameter.numel() // num_rows
    return min(index * chunk, num_rows) * row, min((index + 1) * chunk, num_rows) * row
