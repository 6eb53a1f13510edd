"""Plan says before a run what it will need: known numbers, the right warnings, real memory."""

import json
import subprocess
import sys

import pytest

from benchmarks.plan_memory import Held, held_by_rank, planned_for
from mixer_dist import cli
from mixer_dist.cli.plan import CALIBRATION
from mixer_dist.config import load_config
from mixer_dist.errors import ConfigError
from mixer_dist.operations.plan.cards import CARDS, card_named
from mixer_dist.operations.plan.communication import all_reduce_s, gather_s, groups
from mixer_dist.operations.plan.data_rates import Samples
from mixer_dist.operations.plan.forecast import forecast, scaling
from mixer_dist.operations.plan.memory import state_memory
from mixer_dist.operations.plan.micro_batch import (
    batch_without_values,
    micro_batch,
    recorded,
    shallow_model,
)
from mixer_dist.operations.plan.partition import sizes_of
from mixer_dist.operations.plan.rates import Rates, load_rates
from mixer_dist.operations.plan.run_plan import plan_run
from mixer_dist.operations.plan.setup import set_up
from mixer_dist.operations.plan.table import forecast_lines
from tests.ranks import ROOT

H14 = str(ROOT / "configs/pretrain_h14.yaml")
SAMPLE = "data.train.0.manifest=nowhere/manifest.json"
ENGINES = ("ddp", "fsdp", "hsdp", "zero1", "zero2", "zero3")


def h14(*overrides):
    return load_config(H14, ["model.num_classes=1000", SAMPLE, *overrides])


def planned(num_gpus, *overrides, engine=None, rates=None, card="h100"):
    setup = set_up(h14(*overrides), num_gpus, card_named(card), rates or Rates(), engine)
    return plan_run(setup, Samples(1e5, "given", is_assumed=False), price_per_gpu_hour=None)


def warnings(num_gpus, *overrides, **options):
    return "\n".join(planned(num_gpus, *overrides, **options).warnings)


def test_the_arithmetic_of_h14():
    config = h14()
    assert sizes_of(config).whole == 432_350_952
    assert micro_batch(config, 4).flops / 4 == pytest.approx(725.6e9, rel=1e-4)
    assert 12 * sizes_of(config).whole == pytest.approx(5.19e9, rel=1e-3)


def test_activations_grow_with_images_and_halve_with_bf16():
    config = h14()
    two, eight = (micro_batch(config, n).saved_bytes for n in (2, 8))
    assert eight == pytest.approx(4 * two, rel=0.01)
    fp32 = micro_batch(h14("engine.precision=fp32"), 8)
    assert fp32.saved_bytes == pytest.approx(2 * eight, rel=0.02)
    assert micro_batch(config, 8).peak_bytes >= eight


def test_computing_blocks_again_takes_memory_off_and_a_third_more_work():
    plain, again = (h14("engine.recompute=" + value) for value in ("false", "true"))
    before, after = (micro_batch(config, 8) for config in (plain, again))
    assert after.flops == pytest.approx(before.flops * 4 / 3, rel=0.01)
    block_inputs = 33 * 8 * 256 * 1280 * 2
    assert after.saved_bytes == pytest.approx(block_inputs, rel=0.1)
    assert after.peak_bytes < before.peak_bytes / 4
    slower, faster = (planned(8, "engine.recompute=" + value) for value in ("true", "false"))
    assert slower.images_per_s < 0.85 * faster.images_per_s
    assert slower.mfu / faster.mfu == pytest.approx(slower.images_per_s / faster.images_per_s)


def test_blocks_that_were_not_run_cost_what_they_cost_when_they_are():
    sizes = ("patch_size=4", "hidden_dim=16", "num_blocks=5", "tokens_mlp_dim=8",
             "channels_mlp_dim=32", "image_size=16", "variant=null")  # fmt: skip
    config = h14(*(f"model.{size}" for size in sizes), "engine.precision=fp32")
    batch = batch_without_values(config.model, 2, num_masked_blocks=None, is_mixed=False)
    whole = recorded(shallow_model(config.model, num_blocks=5), batch, config.loss)
    found = micro_batch(config, 2)
    assert found.forward == whole.forward
    assert found.backward == whole.backward
    assert (found.saved_bytes, found.peak_bytes) == (whole.saved_bytes, whole.peak_bytes)


def test_state_is_shared_as_each_engine_shares_it():
    def bytes_of(engine, num_gpus):
        state = state_memory(set_up(h14(), num_gpus, card_named("h100"), Rates(), engine))
        return state.weights + state.moments

    whole = 12 * 432_350_952
    assert bytes_of("ddp", 64) == whole
    assert bytes_of("hsdp", 64) == pytest.approx(whole / 8, rel=1e-3)
    for engine in ("fsdp", "zero1", "zero2", "zero3"):
        assert bytes_of(engine, 64) == pytest.approx(whole / 64, rel=2e-3)


@pytest.mark.parametrize("engine", ["fsdp", "hsdp", "zero2", "zero3"])
def test_more_gpus_never_need_more_memory(engine):
    totals = [planned(count, engine=engine).memory.total for count in (8, 64, 256)]
    assert totals == sorted(totals, reverse=True)


def test_a_better_card_is_faster_and_a_larger_one_takes_more_images():
    a100, h100, h200 = (planned(8, card=name) for name in ("a100", "h100", "h200"))
    assert a100.step.total > h100.step.total > h200.step.total
    assert h200.largest_micro_batch > h100.largest_micro_batch
    for plan in (a100, h100, h200):
        assert 0 < plan.mfu < Rates().matmul_efficiency


@pytest.mark.parametrize("num_classes", [1000, 18291])
def test_the_largest_micro_batch_fits_and_the_next_does_not(num_classes):
    def of(size):
        share = (f"global_batch_size={8 * size}", f"micro_batch_size={size}")
        return planned(8, *share, f"model.num_classes={num_classes}")

    largest = of(8).largest_micro_batch
    memory = CARDS["h100"].memory_bytes
    assert of(largest).memory.total <= memory < of(largest + 2).memory.total


def test_auto_is_the_largest_micro_batch_that_fits():
    card = card_named("h100")
    plans = forecast(h14("micro_batch_size=auto"), (8, 64), card, Rates()).plans
    assert [plan.grad_accum_steps for plan in plans] == [2, 1]
    assert [plan.micro_batch_size for plan in plans] == [256, 64]  # of 512 and 64 images a GPU
    assert 256 < plans[0].largest_micro_batch < 512
    assert all(plan.memory.total <= card.memory_bytes for plan in plans)


def test_keeping_the_state_on_a_node_scales_farther_than_sharing_it_among_all():
    curves = scaling(h14(), card_named("h100"), Rates())
    assert curves.keys() == set(ENGINES)
    speed = {engine: dict(curve) for engine, curve in curves.items()}
    assert speed["hsdp"][512] > speed["fsdp"][512]
    assert max(speed["fsdp"]) == 2048  # 4,096 GPUs cannot share 4,096 images
    for engine in ENGINES:
        assert speed[engine][64] > 4 * speed[engine][8]


def test_collectives_take_longer_between_nodes_and_twice_as_long_to_all():
    setup = set_up(h14(), 32, card_named("h100"), Rates())
    card = setup.card
    (copies, within), (_, among) = groups((4, 8), card), groups((1, 32), card)
    assert (copies.num_nodes, copies.ranks_per_node) == (4, 1)
    assert (within.num_nodes, within.num_ranks, among.num_nodes) == (1, 8, 4)
    assert gather_s(1e9, among, setup) > gather_s(1e9, within, setup)
    assert gather_s(1e9, within, setup) == pytest.approx(7 / 8 * 1e9 / 360e9, rel=0.02)
    assert all_reduce_s(1e9, within, setup) == pytest.approx(
        2 * gather_s(1e9, within, setup), rel=0.02
    )


def test_what_stands_in_the_way_is_said():
    assert warnings(8, "micro_batch_size=64") == ""
    assert "does not fit" in warnings(8, "micro_batch_size=512")
    assert "set micro_batch_size=" in warnings(8, "micro_batch_size=512")
    uneven = warnings(48, "micro_batch_size=86")
    assert "uneven slices: 48 GPUs take 84 or 86 of 4,096" in uneven
    assert "decoders" in warnings(8, rates=Rates(images_per_core_s=5))
    assert "the store is the bottleneck" in warnings(8, rates=Rates(store_bytes_per_s=1e6))
    assert "wait for the host" in warnings(64, rates=Rates(launch_s=1e-3))
    assert "wait for communication" in warnings(1024)
    assert "checkpoint.every_steps" in warnings(8, "checkpoint.every_steps=1")


def test_gpus_that_cannot_share_the_batch_are_left_out_and_named():
    found = forecast(h14(), [8, 4096], card_named("h100"), Rates())
    assert [plan.num_gpus for plan in found.plans] == [8]
    assert "at most 2048 ranks" in "\n".join(forecast_lines(found))


def test_what_was_measured_replaces_what_is_assumed(tmp_path, capsys):
    measured = tmp_path / "rates.json"
    measured.write_text(json.dumps({"matmul_efficiency": 0.4, "activation_bytes_per_image": 1e8}))
    arguments = ["plan", H14, SAMPLE, "--gpus", "8", "--gpu", "h100", "--json"]
    assert cli.main(arguments) == 0
    assumed = json.loads(capsys.readouterr().out)
    assert cli.main([*arguments, "--calibrate", str(measured)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert "matmul_efficiency" not in found["assumed"]
    assert found["plans"][0]["memory"]["activations"] == 64 * 1e8
    assert found["plans"][0]["step"]["total"] > assumed["plans"][0]["step"]["total"]


def test_all_rates_that_help_names_are_known_and_the_other_way_round():
    assert {name for name in Rates.model_fields if name in CALIBRATION} == set(Rates.model_fields)
    indented = [line.split("  ")[1] for line in CALIBRATION.splitlines() if line.startswith("  ")]
    named = {name.strip() for names in indented for name in names.split(",")}
    assert named == set(Rates.model_fields)


def test_json_holds_what_the_table_shows(tmp_path, capsys):
    picture = tmp_path / "curve.png"
    arguments = ["plan", H14, SAMPLE, "--gpus", "8,64", "--gpu", "H100",
                 "--price-per-gpu-hour", "2"]  # fmt: skip
    assert cli.main([*arguments, "--plot", str(picture)]) == 0
    table = capsys.readouterr().out
    assert cli.main([*arguments, "--json"]) == 0
    tree = json.loads(capsys.readouterr().out)
    for plan in tree["plans"]:
        assert f"{plan['memory']['total'] / 1e9:,.2f} GB" in table
        assert f"{plan['step']['total'] * 1e3:,.1f} ms" in table
        assert f"{plan['images_per_s']:,.0f}" in table
        assert f"{plan['schedule']['cost']:,.0f}" in table
        assert plan["schedule"]["cost"] == pytest.approx(2 * plan["schedule"]["gpu_hours"])
    assert "~ step" in table and "\n  checkpoint " in table
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--gpu", "h100"], "needs --gpus N"),
        (["--gpus", "8"], "needs --gpu CARD"),
        (["--gpus", "0", "--gpu", "h100"], "numbers from 1 on"),
        (["--gpus", "8;9", "--gpu", "h100"], "got '8;9'"),
        (["--gpus", "8", "--gpu", "h1000"], "a100, a100-40, h100"),
        (["--gpus", "8", "--gpu", "h100", "--price-per-gpu-hour", "-1"], "from 0 on"),
        (["--gpus", "8", "--gpu", "h100", "--plot", "no/such/folder.png"], "no folder"),
        (["--gpus", "8", "--gpu", "h100", "--plot", "configs"], "configs is no file"),
        (["--gpus", "8", "--gpu", "h100", "--plot", "curve.foo"], "writes a .png file"),
        (["--gpus", "8", "--gpu", "h100", "--calibrate", "no.json"], "cannot read no.json"),
        (["--gpus", "8192", "--gpu", "h100"], "at most 2048 ranks"),
        (["--gpus", "8", "--gpu", "h100", "engine.name=single"], "take ddp or fsdp"),
    ],
)
def test_wrong_arguments_are_refused_in_a_line(options, expected, capsys):
    assert cli.main(["plan", H14, SAMPLE, *options]) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert len(error.splitlines()) == 1


def test_a_config_without_model_is_refused_before_torch_is_imported(tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text("run_dir: runs/x\n")
    script = (
        "import sys; from mixer_dist import cli; "
        f"code = cli.main(['plan', {str(config)!r}, '--gpus', '8', '--gpu', 'h100']); "
        "sys.exit(code if 'torch' not in sys.modules else 99)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "model: required, but not given" in done.stderr


def test_misspelt_rates_are_named(tmp_path, capsys):
    rates = tmp_path / "rates.json"
    rates.write_text('{"matmul_eficiency": 0.5}')
    options = ["--gpus", "8", "--gpu", "h100", "--calibrate", str(rates)]
    assert cli.main(["plan", H14, *options]) == 2
    assert "did you mean 'matmul_efficiency'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"launch_s": true}', "no JSON object of numbers"),
        ('{"launch_s": "0.6"}', "no JSON object of numbers"),
        ("[1]", "no JSON object of numbers"),
        ('{"launch_s": NaN}', "NaN is no number"),
        ('{"setting": "Step: ddp", "rates": {}, "notes": []}', "holds no rates"),
    ],
)
def test_rates_that_are_none_are_refused(tmp_path, text, expected):
    (tmp_path / "rates.json").write_text(text)
    with pytest.raises(ConfigError, match=expected):
        load_rates([str(tmp_path / "rates.json")])


def test_advice_fits_what_memory_does_not_suffice_for():
    assert "set engine.recompute=true" in warnings(8, "model.image_size=3360")
    assert "take more GPUs" in warnings(8, "model.image_size=8960")
    large = (
        "model.variant=null", "model.patch_size=14", "model.hidden_dim=8192",
        "model.channels_mlp_dim=32768", "model.tokens_mlp_dim=640", "micro_batch_size=2",
    )  # fmt: skip
    for num_blocks, engine, mend in [
        (8, "ddp", "fsdp"),
        (40, "fsdp", "zero2"),
        (80, "zero2", "zero3"),
    ]:
        size = f"model.num_blocks={num_blocks}"
        assert f"set engine.name={mend}" in warnings(64, *large, size, engine=engine)
        assert "does not fit" not in warnings(64, *large, size, engine=mend)


def test_memory_is_what_a_rank_really_holds(ranks):
    held = Held(*ranks.run(2, held_by_rank, "fsdp", "bf16")[0])
    assert held == pytest.approx(planned_for("fsdp", 2, "bf16"), rel=0.05)
