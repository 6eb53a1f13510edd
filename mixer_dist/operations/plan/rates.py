"""What a plan assumes of machines; a measured value may stand in for each."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from mixer_dist.errors import ConfigError, MissingError
from mixer_dist.operations.plan.cards import Card
from mixer_dist.sections import NonNegativeFloat, PositiveFloat, Section, parse

NODE_LINK_SHARE = 0.8  # of the link's rate, as nccl-tests find it on NVLink
NETWORK_SHARE = 0.85
PHOTO_BYTES = 110_000.0  # ImageNet's mean

Efficiency = Annotated[float, Field(gt=0, le=1)]


class Rates(Section):
    """Rates of a machine; what is not given is assumed."""

    matmul_efficiency: Efficiency = 0.69
    """Share of the card's peak that matrix products reach: of H/14's step in a profile on an H200
    (gpu_step.md), as the next one."""
    memory_efficiency: Efficiency = 0.7
    """Share of the card's memory bandwidth that other kernels reach."""
    launch_s: NonNegativeFloat = 4.5e-5
    """Seconds in which the host issues one kernel, autograd included (host_time.md)."""
    unit_s: NonNegativeFloat = 4e-4
    """The same for a unit that fully_shard gathers and reduces."""
    activation_bytes_per_image: PositiveFloat | None = None
    """Peak of what forward and backward allocate; null counts it on the model."""
    reserve_bytes: NonNegativeFloat = 4e9
    """Of a GPU's memory: CUDA's context, NCCL's buffers, cuBLAS's workspace, fragments."""
    node_bytes_per_s: PositiveFloat | None = None
    """Bus bandwidth of collectives within a node; null takes 0.8 of the card's link."""
    network_bytes_per_s: PositiveFloat | None = None
    """The same a GPU between nodes; null takes 0.85 of its share of the network cards."""
    collective_s: NonNegativeFloat = 14e-6
    """A collective's own latency; this and the next two as in NCCL's src/graph/tuning.cc."""
    node_hop_s: NonNegativeFloat = 1.9e-6
    network_hop_s: NonNegativeFloat = 4e-6
    images_per_core_s: PositiveFloat = 500.0
    """Images that a core fetches, decodes and crops a second (benchmarks/results/data_rates.md)."""
    sample_bytes: PositiveFloat | None = None
    """Mean size of a sample; null takes the manifest's, or 110 KB where it cannot be read."""
    store_bytes_per_s: PositiveFloat | None = None
    """What the store gives all nodes together; null: not known, so not checked."""
    save_bytes_per_s: PositiveFloat = 1e9
    """What a node writes to the run directory."""

    def node_link(self, card: Card) -> float:
        """Bytes a second a GPU within a node."""
        return self.node_bytes_per_s or NODE_LINK_SHARE * card.node_bytes_per_s

    def network_link(self, card: Card) -> float:
        """Bytes a second a GPU between nodes."""
        return self.network_bytes_per_s or NETWORK_SHARE * card.network_bytes_per_s

    def assumed(self, card: Card) -> dict[str, float]:
        """What was not measured, by name."""
        links = {
            "node_bytes_per_s": self.node_link(card),
            "network_bytes_per_s": self.network_link(card),
        }
        values: dict[str, float | None] = self.model_dump() | links
        return {
            name: value
            for name, value in values.items()
            if value is not None and name not in self.model_fields_set
        }


def load_rates(paths: Sequence[str]) -> Rates:
    """Measured rates from JSON objects, of which a later one wins; MissingError, ConfigError."""
    measured: dict[str, Any] = {}
    for path in paths:
        measured |= parse(Rates, _rates_tree(path), path).model_dump(exclude_unset=True)
    return Rates(**measured)


def _rates_tree(path: str) -> Any:
    """The rates in a file, as written by hand or printed by `bench --json`."""
    try:
        tree = json.loads(Path(path).read_bytes(), parse_constant=_refuse_constant)
    except OSError as error:
        raise MissingError(f"--calibrate: cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"--calibrate: {path} is not JSON: {error}") from None
    found = tree.get("rates", tree) if isinstance(tree, dict) else None
    if not isinstance(found, dict) or not all(type(v) in (int, float) for v in found.values()):
        raise ConfigError(
            f"--calibrate: {path} is no JSON object of numbers: take what bench prints with --json"
        )
    if not found:
        raise ConfigError(
            f"--calibrate: {path} holds no rates: bench step and collectives give them on GPUs"
        )
    return found


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")
