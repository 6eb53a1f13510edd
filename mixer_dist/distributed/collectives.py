"""Small collectives among ranks, on the CPU: values, outcomes of actions, sums, votes."""

import json
import socket
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from typing import Any, NoReturn

import torch
import torch.distributed as dist
import torch.distributed.distributed_c10d as c10d
from numpy.typing import NDArray

from mixer_dist.distributed.group import is_main, rank, world_size
from mixer_dist.errors import MixerError, PeerError


def share(value: Any, group: dist.ProcessGroup | None = None) -> Any:
    """Rank 0's value (anything JSON holds), on every rank. All ranks must call this."""
    texts = [json.dumps(value) if is_main() else None]
    if world_size() > 1:
        dist.broadcast_object_list(texts, src=0, group=group, device=torch.device("cpu"))
    return json.loads(texts[0] or "null")


def on_main(action: Callable[[], Any], group: dist.ProcessGroup | None = None) -> Any:
    """Run an action on rank 0 and give its result (anything JSON holds) or its error to all.

    The other ranks raise PeerError where rank 0 raised. All ranks must call this.
    """
    outcome, failure = _outcome(action) if is_main() else ({}, None)
    outcome = share(outcome, group)
    if failure:
        raise failure
    return _value(outcome)


def on_all(action: Callable[[], Any], group: dist.ProcessGroup | None = None) -> list[Any]:
    """Run an action on every rank and give all results (anything JSON holds), in rank order.

    Where any rank raised, all do: those that did not, PeerError. All ranks must call this.
    """
    outcome, failure = _outcome(action)
    outcomes = gather(outcome, group)
    if failure:
        raise failure
    return [_value(outcome) for outcome in outcomes]


def fail_together(error: MixerError) -> NoReturn:
    """Raise an error that every rank knows of: PeerError off rank 0. All ranks must call this."""
    raise error if is_main() else PeerError(str(error), error.exit_code)


def hosts() -> list[str]:
    """The host name of each rank. All ranks must call this."""
    names: list[str] = gather(socket.gethostname())
    return names


def _outcome(action: Callable[[], Any]) -> tuple[dict[str, Any], MixerError | None]:
    """What an action gave, or its error, to be told to other ranks."""
    try:
        return {"value": action()}, None
    except MixerError as error:
        return {"error": f"rank {rank()}: {error}", "exit_code": error.exit_code}, error


def _value(outcome: dict[str, Any]) -> Any:
    if "error" in outcome:
        raise PeerError(outcome["error"], outcome["exit_code"])
    return outcome["value"]


def gather(value: Any, group: dist.ProcessGroup | None = None) -> list[Any]:
    """Every rank's value (anything JSON holds), in rank order. All ranks must call this."""
    texts: list[Any] = [None] * world_size()
    if world_size() == 1:
        return [json.loads(json.dumps(value))]
    dist.all_gather_object(texts, json.dumps(value), group=group)
    return [json.loads(text) for text in texts]


def gather_rows(rows: NDArray[Any]) -> NDArray[Any]:
    """Every rank's rows (n, ...), in rank order, for any n a rank. All ranks must call this."""
    counts = gather(len(rows))
    if world_size() == 1:
        return rows
    mine = torch.from_numpy(rows)
    padded = torch.zeros((max(counts), *mine.shape[1:]), dtype=mine.dtype)
    padded[: len(mine)] = mine
    found = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(found, padded)
    return torch.cat([part[:n] for part, n in zip(found, counts, strict=True)]).numpy()


def broadcast(tensors: Iterable[torch.Tensor]) -> None:
    """Give CPU tensors rank 0's values on every rank, in place. All ranks must call this."""
    if world_size() > 1:
        for tensor in tensors:
            dist.broadcast(tensor.detach(), src=0)


def sum_over_ranks(values: Sequence[float]) -> list[float]:
    """Elementwise sums in float64. All ranks must call this."""
    return list(_reduced(torch.tensor(values, dtype=torch.float64)).tolist())


def sum_words(words: Sequence[int]) -> list[int]:
    """Elementwise sums of 64-bit words, modulo 2^64. All ranks must call this."""
    signed = [word - (1 << 64) if word >> 63 else word for word in words]
    return [
        total % (1 << 64) for total in _reduced(torch.tensor(signed, dtype=torch.int64)).tolist()
    ]


class Vote:
    """Whether any rank said yes: the answer comes with the next question, so that nobody waits."""

    def __init__(self) -> None:
        self._flag = torch.zeros(1, dtype=torch.int32)
        self._under_way: dist.Work | None = None

    def ask(self, mine: bool) -> bool:
        """The answer to the question before this one. All ranks must call this."""
        if world_size() == 1:
            return mine
        answer = self.last()
        self._flag.fill_(int(mine))
        self._under_way = dist.all_reduce(self._flag, dist.ReduceOp.MAX, async_op=True)
        return answer

    def last(self) -> bool:
        """The answer to the last question, waited for."""
        if self._under_way is not None:
            self._under_way.wait()
        self._under_way = None
        return bool(self._flag.item())


def all_arrive(place: str, within_s: float) -> bool:
    """Whether every rank comes to a place, told without a collective: others may be in one.

    All ranks must call this, or none may go on.
    """
    store = c10d._get_default_store()
    num_arrived = store.add(place, 1)
    num_meetings, place_in_next = divmod(num_arrived - 1, world_size())
    complete = f"{place}/{num_meetings}"
    if place_in_next == world_size() - 1:
        store.set(complete, "")
    try:
        store.wait([complete], timedelta(seconds=within_s))
    except RuntimeError:
        return False
    return True


def barrier() -> None:
    """Wait for every rank. All ranks must call this."""
    _reduced(torch.zeros(1))


def _reduced(tensor: torch.Tensor) -> torch.Tensor:
    """The sum over ranks of a small CPU tensor, through gloo: it never waits for the GPU."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor
