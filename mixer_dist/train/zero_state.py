"""Where DeepSpeed keeps a rank's part of the training state: flat ranges, found on the spot.

Stages 1 and 2 cut the buffer of a whole parameter group, stage 3 every parameter by itself.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mixer_dist.checkpoint.pieces import Range


class ZeroState(Protocol):
    """A rank's part of the training state, whatever the stage."""

    def flat_tensors(self) -> list[Tensor]:
        """What the optimizer updates; looked up anew, since DeepSpeed replaces it at times."""
        ...

    def ranges(self, parameters: Mapping[str, nn.Parameter]) -> Iterator[Range]:
        """This rank's part of each parameter."""
        ...

    def refresh(self) -> None:
        """Gather the weights that forward uses, as a step does. All ranks must call this."""
        ...


class FragmentState:
    """Stages 1 and 2."""

    def __init__(self, zero: Any, optimizer: torch.optim.Optimizer) -> None:
        self._zero = zero
        self._optimizer = optimizer

    def flat_tensors(self) -> list[Tensor]:
        """This rank's cut of each parameter group."""
        return [p for group in self._optimizer.param_groups for p in group["params"]]

    def ranges(self, parameters: Mapping[str, nn.Parameter]) -> Iterator[Range]:
        """DeepSpeed's fragments; their addresses know the group's order and its padding."""
        flats = self.flat_tensors()
        for fqn, parameter in parameters.items():
            fragment = getattr(parameter, "_hp_mapping", None)
            if fragment is not None:
                lp, hp = fragment.lp_fragment_address, fragment.hp_fragment_address
                flat = flats[fragment.param_group_index]
                yield Range(fqn, lp.start, lp.start + lp.numel, flat, hp.start)

    def refresh(self) -> None:
        """Gather the weights that forward uses, as a step does. All ranks must call this."""
        self._zero.update_lp_params()


class PartitionState:
    """Stage 3."""

    def __init__(self, zero: Any) -> None:
        self._zero = zero

    def flat_tensors(self) -> list[Tensor]:
        """The buffer of each sub-group; the optimizer's own groups are empty between steps."""
        return list(self._zero.fp32_partitioned_groups_flat)

    def ranges(self, parameters: Mapping[str, nn.Parameter]) -> Iterator[Range]:
        """Equal parts of each parameter, padded at the end, one after the other in its buffer."""
        names = {id(parameter): fqn for fqn, parameter in parameters.items()}
        for group, flat in zip(self._zero.fp16_groups, self.flat_tensors(), strict=True):
            offset = 0
            for parameter in group:
                length = parameter.partition_numel()
                start = dist.get_rank(parameter.ds_process_group) * length
                stop = min(start + length, parameter.ds_numel)
                if start < stop:
                    yield Range(names[id(parameter)], start, stop, flat, offset)
                offset += length

    def refresh(self) -> None:
        """Gather the weights that forward uses, as a step does. All ranks must call this."""
        self._zero.checkpoint_event_prologue()  # small parameters stay gathered between steps
        for number in range(len(self._zero.fp16_groups)):
            self._zero._reassign_or_swap_out_partitioned_parameters(number)
        self._zero.checkpoint_event_epilogue()
