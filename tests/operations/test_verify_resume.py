"""verify-resume proves that interruptions change nothing, and finds a run that they change."""

import json
import math

import pytest

from mixer_dist import cli
from mixer_dist.checkpoint.catalog import read_checkpoint
from mixer_dist.operations.verify_resume.comparison import compare_steps
from mixer_dist.operations.verify_resume.incidents import KINDS, draw_incidents
from mixer_dist.run_dir import RunDir
from mixer_dist.storage import Storage


@pytest.fixture
def verify(tmp_path, digits, capsys):
    """Call the verb on a tiny run of 12 steps; (exit code, what it printed)."""
    overrides = [
        "total_steps=12", "global_batch_size=44", "micro_batch_size=22", "engine.name=ddp",
        "model.num_blocks=1", "model.hidden_dim=8", "optimizer.warmup_steps=2",
        f"data.train.0.manifest={digits / 'test' / 'manifest.json'}",
    ]  # fmt: skip

    def call(*arguments):
        options = ["--steps", "8", "--incidents", "1", "--seed", "4"]  # one rank dies after step 2
        options += ["--out", str(tmp_path / "proof"), *arguments]
        code = cli.main(["verify-resume", "configs/quickstart.yaml", *overrides, *options])
        return code, capsys.readouterr()

    return call


def test_a_run_that_is_killed_is_the_same_under_another_engine(verify, tmp_path):
    code, said = verify("--starts", "ddp:2", "single:1")
    out = tmp_path / "proof"
    assert code == 0 and "proved" in said.out, said
    found = json.loads((out / "proof.json").read_text())
    assert found["holds"] and found["starts"] == ["ddp:2", "single:1"]
    assert found["steps"]["num_same_data"] == 8
    assert found["steps"]["loss_distance"] <= found["tolerance"]["losses"] == 1e-5
    assert found["values"]["distance"] <= found["tolerance"]["values"] < 1e-2
    assert (out / "proof.png").read_bytes().startswith(b"\x89PNG")
    last = read_checkpoint(Storage(), RunDir(str(out / "interrupted")).checkpoint(8)).manifest
    assert (last.attempt, last.written_by.engine, last.written_by.world_size) == (2, "single", 1)
    assert len(found["hits"]) == 1 and found["hits"][0] >= found["incidents"][0]["after_step"]


def test_a_run_that_an_interruption_changes_is_found(verify, tmp_path):
    stage = "data.stages=[tests.operations.impure_stage.add_noise]"
    code, said = verify(stage, "--starts", "single:1", "--json")
    found = json.loads(said.out)
    assert code == 1 and not found["holds"]
    assert found["steps"]["num_same_data"] == 8  # the same samples, with other pixels
    assert found["steps"]["first_difference"] == 3  # the head is zero before its first update
    assert "interrupted run is another one" in said.err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--steps", "13"], "from 2 to total_steps=12, got 13"),
        (["--incidents", "8"], "from 1 to 7 in 8 steps, got 8"),
        (["--starts", "fsdp"], "ENGINE:RANKS, such as fsdp:2, got 'fsdp'"),
        (["--starts", "zero4:2"], "engines: single, ddp"),
        (["--starts", "fsdp:23"], "at most 22 ranks"),
        (["--starts", "single:2"], "engine.name single runs on 1 rank"),
    ],
)
def test_what_cannot_be_proved_is_refused(verify, tmp_path, arguments, expected):
    code, said = verify(*arguments)
    assert code == 2 and expected in said.err and said.err.count("\n") == 1
    assert not (tmp_path / "proof").exists()


def test_results_of_an_earlier_proof_are_not_overwritten(verify, tmp_path):
    (tmp_path / "proof").mkdir()
    (tmp_path / "proof" / "proof.json").write_text("{}")
    code, said = verify("--starts", "single:1")
    assert code == 2 and "is not empty" in said.err


def test_runs_of_an_earlier_proof_are_not_taken_for_this_one(verify, tmp_path):
    (tmp_path / "runs" / "whole").mkdir(parents=True)
    code, said = verify("--starts", "single:1", "--run-dirs", str(tmp_path / "runs"))
    assert code == 2 and "holds whole: remove it" in said.err
    assert not (tmp_path / "proof").exists()


def test_a_dry_run_says_what_would_be_done(verify, tmp_path):
    code, said = verify("--starts", "zero2:2", "fsdp:1", "--dry-run")
    assert code == 0 and "zero2:2, fsdp:1" in said.out and not (tmp_path / "proof").exists()


def test_incidents_come_from_the_seed_and_each_kind_in_turn():
    incidents = draw_incidents(num_steps=40, count=7, seed=5)
    assert incidents == draw_incidents(40, 7, 5) != draw_incidents(40, 7, 6)
    steps = [incident.after_step for incident in incidents]
    assert steps == sorted(set(steps)) and steps[0] >= 1 and steps[-1] < 40
    kinds = [incident.kind for incident in incidents]
    assert set(kinds[:3]) == set(kinds[3:6]) == set(KINDS)


def line(step, loss=1.0, digest="a"):
    return {"step": step, "loss": loss, "batch_digest": digest}


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        ([line(1), line(2)], (2, 2, 0.0, None)),
        ([line(1), line(2, digest="b")], (1, 2, 0.0, 2)),
        ([line(1, loss=0.5), line(2)], (2, 1, 0.5, 1)),
        ([line(1)], (1, 1, math.inf, 2)),
        ([line(1), line(2, loss=None)], (2, 1, math.inf, 2)),
    ],
)
def test_steps_are_the_same_in_data_and_loss(other, expected):
    found = compare_steps([line(1), line(2)], other, 2)
    assert (found.num_same_data, found.num_same_losses) == expected[:2]
    assert (found.loss_distance, found.first_difference) == expected[2:]
