"""Bench measures what it says, on one rank and on several, and plan takes its figures."""

import json
import subprocess
import sys

import pytest

from mixer_dist import cli
from mixer_dist.config import load_config
from mixer_dist.models.mixer import num_multiply_adds
from mixer_dist.operations.bench.collectives import SIZES, link_rates
from mixer_dist.operations.bench.kernels import plain_words
from mixer_dist.operations.bench.matmuls import block_products
from mixer_dist.operations.bench.measured import Figure
from mixer_dist.operations.plan.cards import CARDS, card_of_device
from mixer_dist.train.build import model_dimensions
from mixer_dist.train.description import num_parameters
from tests.operations import bench_cases
from tests.ranks import ROOT

CONFIG = str(ROOT / "configs/quickstart.yaml")
SMALL = ["global_batch_size=8", "micro_batch_size=2", "engine.name=ddp"]


@pytest.fixture
def config(digits, tmp_path):
    """The arguments that name a small run on the digits."""
    manifest = f"data.train.0.manifest={digits}/train/manifest.json"
    return [CONFIG, f"run_dir={tmp_path}/run", manifest, *SMALL]


def measured(ranks, world_size, *arguments):
    """What rank 0 printed as JSON; the others print nothing."""
    outcomes = ranks.run(world_size, bench_cases.bench, [*arguments, "--json"])
    assert [code for code, _ in outcomes] == [0] * world_size, outcomes
    assert not any(printed for _, printed in outcomes[1:])
    return json.loads(outcomes[0][1])


def test_a_step_is_measured_on_all_ranks(ranks, config, tmp_path):
    trace = tmp_path / "trace.json"
    found = measured(ranks, 2, "step", *config, "--times", "2", "--profile", str(trace))
    sizes = model_dimensions(load_config(CONFIG).model)
    tokens = (sizes["image_size"] // sizes["patch_size"]) ** 2
    assert found["images_per_s"] == pytest.approx(8 / found["seconds"])
    assert found["tokens_per_s"] == pytest.approx(tokens * found["images_per_s"])
    flops = 6 * num_multiply_adds(**sizes) * found["images_per_s"] / 2  # a rank's share
    assert found["flops_per_s"] == pytest.approx(flops, rel=0.05)
    assert found["activation_bytes_per_image"] >= found["saved_bytes_per_image"] > 0
    assert json.loads(trace.read_text())["traceEvents"]
    assert len(found["notes"]) == 12  # ten kernels, where the trace is, that a CPU gives no rates
    assert any("matrix product" in line for line in found["notes"])


def test_the_data_path_reads_just_the_batches_asked_for(ranks, config):
    found = measured(ranks, 2, "data", *config, "--times", "3")
    assert "24 images" in found["setting"]
    assert found["num_bad_samples"] == 0
    assert found["rates"]["images_per_core_s"] == found["images_per_core_s"] > 0


def test_a_checkpoint_is_measured_where_the_run_lies_and_removed(ranks, config, tmp_path):
    found = measured(ranks, 2, "checkpoint", *config)
    state_bytes = 12 * num_parameters(load_config(CONFIG))
    assert found["num_bytes"] == state_bytes
    assert found["rates"]["save_bytes_per_s"] == pytest.approx(state_bytes / found["save_s"])
    assert not list((tmp_path / "run").glob("*"))


def test_collectives_are_measured_by_size(ranks, config):
    found = measured(ranks, 2, "collectives", *config, "--times", "1")
    for name in ("all_reduce", "all_gather", "reduce_scatter"):
        assert found[f"{name}_1024_bytes_per_s"] > 0
    assert found["rates"] == {}  # of CPUs, which no plan is for


def test_links_are_as_fast_as_their_best_and_as_slow_to_begin_as_their_smallest():
    rates = {1024: (2e-6, 5e8), **{size: (1.0, 1e9 + size) for size in SIZES[1:]}}
    figures = tuple(
        Figure(f"all_reduce_{size}_{unit}", "", value)
        for size, values in rates.items()
        for unit, value in zip(("s", "bytes_per_s"), values, strict=True)
    )
    best = 1e9 + SIZES[-1]
    assert link_rates(figures, 1) == {"node_bytes_per_s": best, "collective_s": 2e-6}
    assert link_rates(figures, 2) == {"network_bytes_per_s": best, "collective_s": 2e-6}


def test_plan_takes_what_bench_prints(ranks, config, tmp_path, capsys):
    files = []
    for bench in ("data", "checkpoint"):
        files.append(tmp_path / f"{bench}.json")
        files[-1].write_text(json.dumps(measured(ranks, 1, bench, *config)))
    options = [option for file in files for option in ("--calibrate", str(file))]
    assert cli.main(["plan", *config, "--gpus", "2", "--gpu", "h100", "--json", *options]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert not plan["assumed"].keys() & {"images_per_core_s", "sample_bytes", "save_bytes_per_s"}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["collectives", CONFIG], "at least 2 ranks"),
        (["step", CONFIG, "--times", "0"], "--times must be at least 1, got 0"),
        (["step", CONFIG, "--profile", "no/such/trace.json"], "no folder"),
        (["step", CONFIG, "--profile", "configs"], "configs is no file"),
        (["checkpoint", CONFIG, "engine.name=nothing"], "engine.name"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_a_line(arguments, expected, capsys):
    assert cli.main(["bench", *arguments]) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert len(error.splitlines()) == 1


def test_memory_that_does_not_suffice_is_told_in_a_line():
    command = f"ulimit -v 4000000; {sys.executable} -m mixer_dist bench step {CONFIG} --times 1"
    sizes = "engine.name=single global_batch_size=65536 micro_batch_size=65536"
    done = subprocess.run(
        ["bash", "-c", f"{command} {sizes}"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("mixer-dist: out of memory: set a smaller")
    assert "Traceback" not in done.stderr


def test_the_matrix_products_are_those_of_a_block():
    config = load_config(str(ROOT / "configs/pretrain_h14.yaml"), ["model.num_classes=1000"])
    products = block_products(config, 2)
    assert sum(products.values()) == 12
    flops = 32 * sum(count * product.flops for product, count in products.items()) / 2
    assert flops == pytest.approx(725.6e9, rel=0.005)  # without stem and head


def test_cards_are_known_by_their_names_and_kernels_by_theirs():
    assert card_of_device("NVIDIA H100 80GB HBM3") is CARDS["h100"]
    assert card_of_device("NVIDIA A100-SXM4-40GB") is CARDS["a100-40"]
    assert card_of_device("NVIDIA A100-SXM4-80GB") is CARDS["a100"]
    assert card_of_device("Tesla T4") is None
    assert plain_words("sm90_xmma_gemm_bf16bf16_bf16f32") == "matrix product"
    assert plain_words("aten::addmm") == "matrix product"
    assert plain_words("ncclDevKernel_AllGather_RING_LL") == "between ranks"
    assert plain_words("vectorized_layer_norm_kernel") == "LayerNorm"
