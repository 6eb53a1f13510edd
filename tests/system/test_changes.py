"""Values that change between the starts of a run: what it reads and does is the new ones'."""

import json
import shutil
from functools import partial
from pathlib import Path

import pytest

from mixer_dist import cli
from mixer_dist.checkpoint.restore import list_checkpoints
from mixer_dist.config import load_config
from mixer_dist.operations.data_show import step_data
from mixer_dist.run_dir import RunDir, read_attempt
from mixer_dist.storage import Storage
from mixer_dist.train.optim import scheduled_rate
from tests.data.handmade import good_sample, write_dataset
from tests.system.restart_cases import (
    BATCH,
    CONFIG,
    STEPS,
    Outcome,
    metrics,
    overrides,
    pretrain,
    rewrite_manifest,
)

LATER_BATCH, LATER_STEPS = 60, 20
CHANGED_AT = 6
STORAGE = Storage()


def changed_attempt(run_dir: Path, number: int) -> list[tuple]:
    changes = read_attempt(STORAGE, RunDir(str(run_dir)), number).changes
    return [(change.step, change.key, change.old, change.new) for change in changes]


def audited(capsys, run_dir: Path) -> tuple[int, dict, str]:
    """Exit code, result and the line of the error."""
    capsys.readouterr()
    code = cli.main(["data", "audit", str(run_dir), "--json"])
    captured = capsys.readouterr()
    return code, json.loads(captured.out), captured.err


LATER = [
    f"global_batch_size={LATER_BATCH}", f"total_steps={LATER_STEPS}", "augment.mixup=0.5",
    "optimizer.learning_rate=1e-3",
]  # fmt: skip
NAMED = ["global_batch_size", "total_steps", "augment", "optimizer.learning_rate"]
CHANGES = [
    (CHANGED_AT, "augment.mixup", 0.0, 0.5),
    (CHANGED_AT, "global_batch_size", BATCH, LATER_BATCH),
    (CHANGED_AT, "optimizer.learning_rate", 3e-3, 1e-3),
    (CHANGED_AT, "total_steps", STEPS, LATER_STEPS),
]


@pytest.fixture(scope="module")
def changed(ranks, digits, tmp_path_factory) -> tuple[Path, list[str], list[Outcome]]:
    """A run on 2 ranks that goes on with other values on 1 rank, and then on 2 again."""
    run_dir = tmp_path_factory.mktemp("changed") / "run"
    arguments = overrides(digits / "test" / "manifest.json", run_dir)
    later = [*arguments, *LATER]
    named = [word for key in NAMED for word in ("--change", key)]
    ranks.run(2, partial(pretrain, fail_at=8), arguments)
    outcomes = [
        pretrain(later),
        pretrain([*later[:1], *named, *later[1:]], fail_at=13),
        *ranks.run(2, pretrain, later),
    ]
    return run_dir, later, outcomes


def test_a_change_goes_on_once_it_is_named_and_stays(changed):
    run_dir, _, (unnamed, named, *last) = changed
    assert unnamed.code == 2
    assert "trained otherwise up to step 6: augment.mixup: 0.0 -> 0.5" in unnamed.text
    assert all(f"--change {key}" in unnamed.text for key in NAMED)
    assert "Changed after step 6: " in named.text and "total_steps: 12 -> 20" in named.text
    assert [outcome.code for outcome in last] == [0, 0]
    assert "Changed after" not in last[0].text
    assert changed_attempt(run_dir, 1) == []
    assert changed_attempt(run_dir, 2) == changed_attempt(run_dir, 3) == CHANGES
    (newest, *_), _ = list_checkpoints(STORAGE, RunDir(str(run_dir)))
    assert newest.manifest.config["global_batch_size"] == LATER_BATCH
    position = CHANGED_AT * BATCH + (LATER_STEPS - CHANGED_AT) * LATER_BATCH
    assert (newest.manifest.step, newest.manifest.position) == (LATER_STEPS, position)
    assert f"20 steps, the last 14 of 60 images are {position:,} images" in named.text


def test_the_learning_rate_is_the_new_schedules_at_every_further_step(changed):
    run_dir, later, _ = changed
    old, new = load_config(CONFIG, later[1 : -len(LATER)]), load_config(CONFIG, later[1:])
    for line in metrics(run_dir):
        config = old if line["step"] <= CHANGED_AT else new
        expected = scheduled_rate(line["step"] - 1, config.total_steps, config.optimizer)
        assert line["learning_rate"] == expected
        assert line["global_batch_size"] == config.global_batch_size


def test_the_audit_is_right_across_a_change(changed, capsys):
    run_dir, _, _ = changed
    code, found, _ = audited(capsys, run_dir)
    assert code == 0 and found["difference"] is None
    assert (found["num_steps"], found["total_steps"]) == (LATER_STEPS, LATER_STEPS)
    assert [tuple(change.values()) for change in found["changes"]] == CHANGES
    assert cli.main(["data", "audit", str(run_dir)]) == 0
    assert "changed after step 6: global_batch_size: 44 -> 60" in capsys.readouterr().out


def test_each_step_is_shown_as_it_was_trained(changed):
    run_dir, later, _ = changed
    read = {line["step"]: line for line in metrics(run_dir)}
    for config in (load_config(CONFIG, later[1:]), load_config(CONFIG, later[1 : -len(LATER)])):
        for step in (1, CHANGED_AT, CHANGED_AT + 1, LATER_STEPS):
            shown = step_data(config, step)
            assert f"{shown.batch.digest:016x}" == read[step]["batch_digest"]
            assert len(shown.rows) == read[step]["global_batch_size"]
            assert shown.rows[-1].position + 1 == read[step]["position"]
            assert (shown.mixup < 1) == (step > CHANGED_AT)


def test_data_that_go_on_at_another_position_are_found(digits, tmp_path, capsys):
    """As if steps were counted with the new batch size from the beginning."""
    run_dir = tmp_path / "run"
    arguments = overrides(digits / "test" / "manifest.json", run_dir)
    pretrain(arguments, fail_at=5)
    manifest = run_dir / "checkpoints/step-00000003/manifest.json"
    rewrite_manifest(manifest, position=3 * LATER_BATCH)
    later = [*arguments, f"global_batch_size={LATER_BATCH}", "--change", "global_batch_size"]
    assert pretrain(later).code == 0
    code, found, line = audited(capsys, run_dir)
    assert code == 1 and found["num_steps"] == 3
    assert "step 4 (attempt 2) is the first that did not read what it should" in line


def test_a_change_that_an_older_checkpoint_undoes_has_to_be_named_again(changed, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(changed[0], run_dir)
    for manifest in run_dir.glob("checkpoints/step-*/manifest.json"):
        if json.loads(manifest.read_text())["attempt"] > 1 or "0006" in str(manifest):
            manifest.write_text("{")
    later = [*changed[1], f"run_dir={run_dir}"]
    named = [*later, *(word for key in NAMED for word in ("--change", key))]
    refused = pretrain(later)
    assert refused.code == 2 and "trained otherwise up to step 3" in refused.text
    again = pretrain(named, fail_at=7)
    assert "Changed after step 3" in again.text
    assert changed_attempt(run_dir, 4) == [(3, *change[1:]) for change in CHANGES]
    as_begun = pretrain([*changed[1][: -len(LATER)], f"run_dir={run_dir}"])
    assert as_begun.code == 2 and "total_steps: 20 -> 12" in as_begun.text


def test_a_finished_run_goes_on_to_more_steps(digits, tmp_path):
    run_dir = tmp_path / "run"
    arguments = overrides(digits / "test" / "manifest.json", run_dir)
    assert pretrain([*arguments, "total_steps=4"]).code == 0
    less = pretrain([*arguments, "total_steps=3", "--change", "total_steps"])
    assert less.code == 2 and "step-00000004 has 4 steps done" in less.text
    more = [*arguments, "--change", "total_steps", "total_steps=7"]
    assert pretrain(more).code == 0
    assert [line["step"] for line in metrics(run_dir)] == list(range(1, 8))
    assert changed_attempt(run_dir, 2) == [(4, "total_steps", 4, 7)]
    assert "All 7 steps are done already" in pretrain(more).text


def test_before_the_first_checkpoint_nothing_binds(tmp_path):
    """A label outside num_classes is only found when it is read; the mended value is taken."""
    shards = tmp_path / "shards"
    manifest = Path(write_dataset(shards, [[good_sample(n, label=n % 12) for n in range(96)]]))
    arguments = overrides(manifest, tmp_path / "run")
    died = pretrain(arguments)
    assert died.code == 1 and "model.num_classes" in died.text
    mended = pretrain([*arguments, "model.num_classes=12", "seed=5"])
    assert mended.code == 0
    told = "Attempt 1 has saved no checkpoint, so its values do not bind this one: "
    assert f"{told}model.num_classes: 10 -> 12; seed: 0 -> 5" in mended.text
    assert [line["attempt"] for line in metrics(tmp_path / "run")] == [2] * STEPS
