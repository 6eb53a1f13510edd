"""What a micro-batch costs: the model's own forward and backward, run without values.

On the meta device every kernel is called with its shapes and allocates nothing, so that FLOPs,
bytes moved and bytes held are those of the code as it is. Blocks are alike: models of one and of
two of them tell what each further one adds.
"""

import weakref
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from mixer_dist.config import EngineConfig, ModelConfig, RunConfig
from mixer_dist.data.batch import Batch
from mixer_dist.models.mixer import MlpMixer
from mixer_dist.train.build import fit_blocks, model_dimensions
from mixer_dist.train.objective import summed_loss
from mixer_dist.train.torch_engine import DTYPES

MIXED = 0.8  # any share but 1 mixes


@dataclass(frozen=True)
class Kernel:
    """One call on the device."""

    flops: int
    """Of matrix products; 0 for all else."""
    num_bytes: int
    """Read and written."""


@dataclass(frozen=True)
class MicroBatch:
    """Forward and backward of some images on one GPU."""

    forward: Counter[Kernel]
    backward: Counter[Kernel]
    saved_bytes: int
    """Held for backward when forward ends, without weights."""
    peak_bytes: int
    """The most that is held at once, without weights and their gradients."""

    @property
    def flops(self) -> int:
        """Of the matrix products."""
        return sum(k.flops * count for k, count in (self.forward + self.backward).items())

    def deeper(self, other: "MicroBatch", num_blocks: int) -> "MicroBatch":
        """This with as many blocks more, each of which adds what `other` has more than this."""

        def add(mine: Counter[Kernel], others: Counter[Kernel]) -> Counter[Kernel]:
            return mine + Counter({k: num_blocks * n for k, n in (others - mine).items()})

        return MicroBatch(
            forward=add(self.forward, other.forward),
            backward=add(self.backward, other.backward),
            saved_bytes=self.saved_bytes + num_blocks * (other.saved_bytes - self.saved_bytes),
            peak_bytes=self.peak_bytes + num_blocks * (other.peak_bytes - self.peak_bytes),
        )


def micro_batch(config: RunConfig, num_images: int) -> MicroBatch:
    """The cost of a micro-batch of this size."""
    engine = EngineConfig(precision=config.engine.precision, recompute=config.engine.recompute)
    return _micro_batch(config.model, config.loss, engine, config.augment.mixup > 0, num_images)


def image_flops(config: RunConfig) -> float:
    """Of the matrix products of an image, forward and backward, nothing computed twice."""
    engine = config.engine.model_copy(update={"recompute": False})
    return micro_batch(config.model_copy(update={"engine": engine}), 2).flops / 2


@lru_cache(maxsize=64)
def _micro_batch(
    model: ModelConfig, loss: str, engine: EngineConfig, is_mixed: bool, num_images: int
) -> MicroBatch:
    masks = bool(model.stochastic_depth)
    one, two = (
        recorded(
            fitted_model(model, num_blocks, engine),
            batch_without_values(model, num_images, num_blocks if masks else None, is_mixed),
            loss,
        )
        for num_blocks in (1, 2)
    )
    return one.deeper(two, model_dimensions(model)["num_blocks"] - 1)


def shallow_model(config: ModelConfig, num_blocks: int) -> MlpMixer:
    """The model with few blocks, on the meta device."""
    with torch.device("meta"):
        return MlpMixer(**model_dimensions(config) | {"num_blocks": num_blocks})


def fitted_model(config: ModelConfig, num_blocks: int, engine: EngineConfig) -> MlpMixer:
    """The same as an engine calls it."""
    model = shallow_model(config, num_blocks).to(DTYPES[engine.precision])
    fit_blocks(engine, model)
    return model


def recorded(model: MlpMixer, batch: Batch, loss: str) -> MicroBatch:
    """What forward and backward of a batch without values call and hold."""
    parameters = list(model.parameters())
    for parameter in parameters:
        parameter.register_post_accumulate_grad_hook(_drop_gradient)  # type: ignore[no-untyped-call]
    with Recorder() as recorder:
        total = summed_loss(model, batch, loss, parameters[0].dtype)
        num_forward, saved = len(recorder.kernels), recorder.held_bytes
        total.backward()  # type: ignore[no-untyped-call]
    forward, backward = recorder.kernels[:num_forward], recorder.kernels[num_forward:]
    return MicroBatch(Counter(forward), Counter(backward), saved, recorder.peak_bytes)


def _drop_gradient(parameter: Tensor) -> None:
    """Engines keep gradients in places of their own, which are counted there."""
    parameter.grad = None


def batch_without_values(
    model: ModelConfig, num_images: int, num_masked_blocks: int | None, is_mixed: bool
) -> Batch:
    """Images on the meta device."""
    size = (num_images, 3, model.image_size, model.image_size)
    masks = None
    if num_masked_blocks:
        shape = (num_masked_blocks, 2, num_images)
        masks = torch.empty(shape, dtype=torch.uint8, device="meta")
    return Batch(
        images=torch.empty(size, dtype=torch.uint8, device="meta"),
        labels=torch.empty(num_images, dtype=torch.int64, device="meta"),
        weights=torch.empty(num_images, device="meta"),
        positions=torch.empty(num_images, dtype=torch.int64, device="meta"),
        depth_masks=masks,
        mixup=MIXED if is_mixed else 1.0,
    )


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes every kernel that is called within, and the memory that its results hold."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.kernels: list[Kernel] = []
        self.held_bytes = self.peak_bytes = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        inputs, outputs = tensors_in((args, kwargs)), tensors_in(out)
        own = {id(tensor.untyped_storage()) for tensor in inputs}
        made = [tensor for tensor in outputs if id(tensor.untyped_storage()) not in own]
        if made or func._schema.is_mutable:  # else it is a view
            count = flop_registry.get(func.overloadpacket)
            flops = count(*args, **(kwargs or {}), out_val=out) if count else 0
            self.kernels.append(Kernel(flops, sum(map(num_bytes, [*inputs, *outputs]))))
        self._hold(made)
        return out

    def _hold(self, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if id(storage) not in self._known:
                self._known.add(id(storage))
                weakref.finalize(storage, self._release, id(storage), storage.nbytes())
                self.held_bytes += storage.nbytes()
        self.peak_bytes = max(self.peak_bytes, self.held_bytes)

    def _release(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.held_bytes -= size


def tensors_in(tree: Any) -> list[Tensor]:
    """The tensors among a call's arguments or results."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def num_bytes(tensor: Tensor) -> int:
    """What reading or writing it once moves; an expanded tensor is read from its few values."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())
