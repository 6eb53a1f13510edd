"""DeepSpeed ZeRO 1, 2 and 3, driven so that it takes the very steps that torch_engine takes."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from mixer_dist import distributed
from mixer_dist.checkpoint.pieces import Piece, pieces_of
from mixer_dist.config import RunConfig
from mixer_dist.data.batch import Batch
from mixer_dist.models.mixer import MlpMixer
from mixer_dist.train.engine import StepResult, do_nothing, not_finite
from mixer_dist.train.objective import summed_loss
from mixer_dist.train.optim import build_optimizer, create_moments
from mixer_dist.train.stragglers import timed_module
from mixer_dist.train.zero_state import FragmentState, PartitionState, ZeroState

NEVER = 2**31 - 1


def zero_stage(name: str) -> int:
    """The stage in an engine's name."""
    return int(name.removeprefix("zero"))


def deepspeed_config(
    config: RunConfig, micro_batch_size: int, grad_accum_steps: int
) -> dict[str, Any]:
    """DeepSpeed's configuration, computed from ours and never written by hand."""
    is_bf16 = config.engine.precision == "bf16"
    return {
        "train_micro_batch_size_per_gpu": micro_batch_size,
        "gradient_accumulation_steps": grad_accum_steps,
        "gradient_clipping": config.optimizer.max_grad_norm,
        "bf16": {"enabled": is_bf16},
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
        "zero_optimization": {
            "stage": zero_stage(config.engine.name),
            # Its replacement of F.linear stays in the process and changes other engines' sums.
            "memory_efficient_linear": False,
        },
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": NEVER,
    }


class ZeroEngine:
    """DeepSpeed around our model, our AdamW and our schedule."""

    def __init__(
        self, model: MlpMixer, config: RunConfig, micro_batch_size: int, grad_accum_steps: int
    ) -> None:
        distributed.prepare_deepspeed()
        import deepspeed

        self.before_update: Callable[[], None] = do_nothing
        self.guard: Callable[[Tensor], Tensor] = not_finite
        self._update_skipped: Tensor | None = None
        self._config = config
        self._micro_batch_size = micro_batch_size
        self.shapes = {fqn: tuple(p.shape) for fqn, p in model.named_parameters()}
        self._model = model = model.to(distributed.device())
        self._parameters = dict(model.named_parameters())
        initial = {fqn: p.detach().flatten().float() for fqn, p in self._parameters.items()}
        optimizer = build_optimizer(self._parameters.items(), config.optimizer)
        self._engine, self._zero, *_ = deepspeed.initialize(
            model=model,
            optimizer=optimizer,
            config=deepspeed_config(config, micro_batch_size, grad_accum_steps),
            dist_init_required=False,
        )
        self._optimizer = optimizer
        self._is_partitioned = zero_stage(config.engine.name) == 3
        self._state: ZeroState = (
            PartitionState(self._zero)
            if self._is_partitioned
            else FragmentState(self._zero, optimizer)
        )
        create_moments(optimizer, self._state.flat_tensors())
        optimizer.register_step_pre_hook(self._ask_guard)
        self._set_masters(initial)

    def train_step(self, batch: Batch, learning_rate: float) -> StepResult:
        """One update from the global batch, in micro-batches. All ranks must call this."""
        for group in self._zero.param_groups:
            group["lr"] = learning_rate
        total = torch.zeros((), device=batch.images.device)
        self._update_skipped = None
        num_done = 0
        for micro in batch.micro_batches(self._micro_batch_size):
            total += self._backward(micro)
            num_done += len(micro)
            if num_done == len(batch):
                self.before_update()
            self._engine.step()  # updates after the last micro-batch
        return StepResult(total, *self._norm_and_skip(total))

    def close(self) -> None:
        """Take DeepSpeed's hooks away, which keep it in memory; stage 3 keeps its weights still."""
        self._engine.destroy()

    def _backward(self, micro: Batch) -> Tensor:
        dtype = next(iter(self._parameters.values())).dtype
        loss = summed_loss(self._engine, micro, self._config.loss, dtype)
        loss = loss / self._config.global_batch_size
        # Gradients are averaged over ranks, and by the number of micro-batches unless told not to.
        self._engine.backward(loss * distributed.world_size(), scale_wrt_gas=False)
        return loss.detach()

    def _ask_guard(self, optimizer: Any, *_: Any) -> None:
        """Have the fused kernel change nothing where the guard says so, in every parameter group.

        DeepSpeed knows the norm by now; it does not come here where that is not finite.
        """
        if self._update_skipped is None:
            norm = torch.as_tensor(self._zero._global_grad_norm, dtype=torch.float32)
            self._update_skipped = self.guard(norm.to(distributed.device()))
        optimizer.found_inf = self._update_skipped

    def _norm_and_skip(self, like: Tensor) -> tuple[Tensor, Tensor]:
        norm = torch.as_tensor(self._engine.get_global_grad_norm(), dtype=torch.float32)
        norm = norm.to(like.device)
        return norm, not_finite(norm) if self._update_skipped is None else self._update_skipped

    def pieces(self) -> Iterator[Piece]:
        """The ranges that this rank saves and reads: all it holds, as no other rank has them."""
        for held in self._state.ranges(self._parameters):
            yield from pieces_of(held, self._optimizer, "adamw")

    def replicas(self) -> Iterator[tuple[str, Tensor]]:
        """What other ranks hold too, bit by bit, by name; nothing where no rank does."""
        is_replicated = not self._is_partitioned and distributed.world_size() > 1
        return ((fqn, p) for fqn, p in self._parameters.items() if is_replicated)

    @property
    def replica_set(self) -> int:
        """The same number on all ranks that hold the same replicas."""
        return distributed.rank() if self._is_partitioned else 0

    @property
    def timed_module(self) -> nn.Module:
        """A large matrix product, in whose forward no rank waits for another."""
        return timed_module(self._model, self._config.engine)

    def refresh(self, num_updates: int) -> None:
        """Bring all else up to the pieces, once they were read. All ranks must call this."""
        for flat in self._state.flat_tensors():
            self._optimizer.state[flat]["step"].fill_(num_updates)
        self._state.refresh()

    @property
    def num_updates(self) -> int:
        """Updates so far; waits for the device."""
        return int(self._optimizer.state[self._state.flat_tensors()[0]]["step"].item())

    def _set_masters(self, values: dict[str, Tensor]) -> None:
        """fp32 weights as they were drawn: DeepSpeed makes its own from weights rounded to bf16."""
        for held in self._state.ranges(self._parameters):
            master = held.tensor.narrow(0, held.offset, held.stop - held.start)
            master.data.copy_(values[held.fqn][held.start : held.stop])
