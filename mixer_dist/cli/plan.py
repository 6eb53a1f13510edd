"""The verb plan: what a run will need, said before it queues."""

import argparse
import json
import time
from typing import TYPE_CHECKING, Any

from mixer_dist.cli.arguments import (
    add_config,
    add_verb,
    check_output,
    config_of,
    is_printed,
    write_output,
)
from mixer_dist.errors import RefusedError

if TYPE_CHECKING:
    from mixer_dist.config import RunConfig
    from mixer_dist.operations.plan.cards import Card
    from mixer_dist.operations.plan.forecast import Forecast
    from mixer_dist.operations.plan.rates import Rates

CALIBRATION = """
FILE of --calibrate is what `mixer-dist bench … --json` prints, or a JSON object with any of these,
measured on your machines:
  matmul_efficiency, memory_efficiency     shares of the card's peaks that kernels reach
  launch_s, unit_s                         host's seconds a kernel, and a unit of fully_shard
  activation_bytes_per_image               peak of what forward and backward allocate
  reserve_bytes                            GPU memory of CUDA, NCCL, cuBLAS and fragments
  node_bytes_per_s, network_bytes_per_s    bus bandwidth a GPU, within a node and between nodes
  collective_s, node_hop_s, network_hop_s  latency of a collective, and of each hop
  images_per_core_s                        images that a core fetches, decodes and crops
  sample_bytes                             mean size of a sample
  store_bytes_per_s                        what the store gives all nodes together
  save_bytes_per_s                         what a node writes to run_dir
"""


def add_plan(verbs: Any) -> None:
    """plan."""
    parser = add_verb(
        verbs, "plan", _plan, "memory, speed, data, days and cost on so many GPUs; needs no GPU",
        "mixer-dist plan configs/pretrain_h14.yaml --gpus 8,64,256 --gpu h100 --plot curve.png",
    )  # fmt: skip
    parser.epilog = CALIBRATION.lstrip("\n") + "\n" + str(parser.epilog)
    add_config(parser)
    parser.add_argument("--gpus", metavar="N[,N…]", help="numbers of GPUs to plan for")
    parser.add_argument("--gpu", metavar="CARD", help="h100, h200, a100 and others")
    parser.add_argument("--price-per-gpu-hour", type=float, metavar="X", help="adds the cost")
    parser.add_argument(
        "--calibrate", metavar="FILE", action="append", default=[],
        help="measured rates instead of assumed; may be repeated",
    )  # fmt: skip
    parser.add_argument("--plot", metavar="FILE.png", help="draw each engine on 8 to 4,096 GPUs")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def _plan(arguments: argparse.Namespace) -> None:
    began = time.monotonic()
    config = config_of(arguments)
    if is_printed(arguments, config):
        return
    gpu_counts, price = _gpu_counts(arguments.gpus), _checked_price(arguments.price_per_gpu_hour)
    card, rates = _machine(arguments)
    check_output("--plot", arguments.plot, ".png")
    from mixer_dist.operations.plan.forecast import forecast

    _print(forecast(config, gpu_counts, card, rates, price), arguments.json, began)
    if arguments.plot:
        write_output("--plot", arguments.plot, _picture(config, card, rates))


def _machine(arguments: argparse.Namespace) -> tuple["Card", "Rates"]:
    """The card and its rates; wrong ones are answered before torch is imported."""
    from mixer_dist.operations.plan.cards import card_named
    from mixer_dist.operations.plan.rates import load_rates

    if arguments.gpu is None:
        raise RefusedError("plan needs --gpu CARD, such as --gpu h100")
    return card_named(arguments.gpu), load_rates(arguments.calibrate)


def _print(found: "Forecast", as_json: bool, began: float) -> None:
    from mixer_dist.operations.plan.forecast import forecast_tree
    from mixer_dist.operations.plan.table import forecast_lines

    seconds = time.monotonic() - began
    if as_json:
        print(json.dumps(forecast_tree(found) | {"seconds": round(seconds, 1)}))
        return
    took = f"Planned in {seconds:.1f} s, {time.process_time():.1f} s of CPU time."
    print("\n".join([*forecast_lines(found), took]), flush=True)


def _picture(config: "RunConfig", card: "Card", rates: "Rates") -> bytes:
    from mixer_dist.eval.look import Look
    from mixer_dist.operations.plan.curve import scaling_png
    from mixer_dist.operations.plan.forecast import scaling

    return scaling_png(scaling(config, card, rates), card.title, Look())


def _gpu_counts(text: str | None) -> list[int]:
    """Each number once, in their order."""
    if text is None:
        raise RefusedError("plan needs --gpus N[,N…], such as --gpus 8,64,256")
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise RefusedError(f"--gpus must be numbers from 1 on with commas between, got {text!r}")
    return list(dict.fromkeys(map(int, parts)))


def _checked_price(price: float | None) -> float | None:
    if price is not None and not 0 <= price < float("inf"):
        raise RefusedError(f"--price-per-gpu-hour must be a number from 0 on, got {price}")
    return price
