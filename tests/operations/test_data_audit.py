"""The audit finds what a run read wrongly, by the step, and nothing in a run that is right."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from mixer_dist import cli
from mixer_dist.data.order import SampleOrder
from mixer_dist.data.stream import TrainStream
from mixer_dist.operations.data_audit import audit
from mixer_dist.run_dir import RunDir
from tests.data.handmade import flip_byte

STEPS = 24
BATCH = 44  # does not divide the 296 images of an epoch


def overrides(manifest: Path, run_dir: Path) -> list[str]:
    """Three and a half epochs of the test digits on a tiny model, a checkpoint every 6 steps."""
    return [
        f"run_dir={run_dir}", f"total_steps={STEPS}", f"global_batch_size={BATCH}",
        "micro_batch_size=22", "engine.name=ddp", "model.num_blocks=1", "model.hidden_dim=8",
        "checkpoint.every_steps=6", "logging.every_steps=3", "optimizer.warmup_steps=2",
        f"data.train.0.manifest={manifest}", "data.max_bad_fraction=1",
    ]  # fmt: skip


def pretrain(arguments: list[str], stop_at: int = 10**9, plant: str = "") -> int:
    """The verb on one rank, which may fail at a step, or read one batch otherwise."""
    if stop_at <= STEPS:
        _fail_at(stop_at)
    if plant:
        _read_wrongly(plant, first_position=15 * BATCH)
    try:
        return cli.main(["pretrain", "configs/quickstart.yaml", *arguments])
    except ZeroDivisionError:
        return -1


def _fail_at(step: int) -> None:
    whole = TrainStream.__iter__

    def broken(self):
        for batch in whole(self):
            if batch.step == step:
                raise ZeroDivisionError
            yield batch

    TrainStream.__iter__ = broken


def _read_wrongly(plant: str, first_position: int) -> None:
    """From one position on, swap two samples, or drop one and use its neighbour twice."""
    right = SampleOrder.samples

    def wrong(self, positions):
        epochs, samples = right(self, positions)
        at = np.flatnonzero(np.asarray(positions) == first_position)
        if at.size and plant == "swapped":
            samples[at[0]], samples[at[0] + 1] = samples[at[0] + 1], samples[at[0]]
        if at.size and plant == "dropped":
            samples[at[0]] = samples[at[0] + 1]
        return epochs, samples

    SampleOrder.samples = wrong


def audited(capsys, run_dir: Path) -> tuple[int, dict, str]:
    """Exit code, result and the line of the error."""
    code = cli.main(["data", "audit", str(run_dir), "--json"])
    captured = capsys.readouterr()
    return code, json.loads(captured.out), captured.err


@pytest.fixture(scope="module")
def restarted(ranks, digits, tmp_path_factory) -> Path:
    """A run of three attempts on 2, 1 and 3 ranks, two of them stopped between checkpoints."""
    run_dir = tmp_path_factory.mktemp("restarted") / "run"
    arguments = overrides(digits / "test" / "manifest.json", run_dir)
    ranks.run(2, pretrain, arguments, 10)
    ranks.run(1, pretrain, arguments, 16)
    assert ranks.run(3, pretrain, arguments) == [0, 0, 0]
    return run_dir


def test_a_run_with_restarts_is_clean(capsys, restarted):
    code, found, _ = audited(capsys, restarted)
    assert code == 0
    assert (found["num_steps"], found["attempts"]) == (STEPS, [1, 2, 3])
    assert found["difference"] is None and found["substitutions"] == []
    assert cli.main(["data", "audit", str(restarted)]) == 0
    assert "attempts 1, 2, 3: 24 of 24 steps are right" in capsys.readouterr().out


@pytest.mark.parametrize("plant", ["swapped", "dropped"])
def test_one_wrong_sample_is_found_with_its_step(ranks, digits, tmp_path, capsys, plant):
    arguments = overrides(digits / "test" / "manifest.json", tmp_path / "run")
    ranks.run(1, pretrain, arguments, 10**9, plant)
    code, found, line = audited(capsys, tmp_path / "run")
    assert code == 1
    assert found["difference"]["step"] == 16 and found["num_steps"] == 15
    assert "step 16 (attempt 1) is the first that did not read what it should" in line


def test_a_store_may_have_another_address_by_now(ranks, digits_s3, s3, tmp_path, capsys):
    storage = {"s3://": {"endpoint_url": s3.endpoint_url, "checksum": "when_required"}}
    manifest = f"data.train.0.manifest={digits_s3}/test/manifest.json"
    arguments = [
        *overrides(tmp_path, tmp_path / "run"), manifest, f"storage={json.dumps(storage)}"
    ]  # fmt: skip
    ranks.run(1, pretrain, arguments, 10)
    ranks.run(1, pretrain, arguments)
    first = tmp_path / "run" / "attempts" / "0001.yaml"
    assert s3.endpoint_url in first.read_text()
    first.write_text(first.read_text().replace(s3.endpoint_url, "http://127.0.0.1:9"))
    code, found, _ = audited(capsys, tmp_path / "run")
    assert (code, found["num_steps"], found["attempts"]) == (0, STEPS, [1, 2])


def test_another_seed_after_a_restart_is_found(ranks, digits, tmp_path, capsys):
    """As if someone had edited the record so that the trainer would not refuse it."""
    run_dir = tmp_path / "run"
    arguments = overrides(digits / "test" / "manifest.json", run_dir)
    ranks.run(1, pretrain, arguments, 10)
    first = run_dir / "attempts/0001.yaml"
    honest = first.read_text()
    first.write_text(honest.replace("\n  seed: 0\n", "\n  seed: 1\n"))
    assert ranks.run(1, pretrain, [*arguments, "seed=1"]) == [0]
    first.write_text(honest)
    second = run_dir / "attempts/0002.yaml"
    second.write_text(second.read_text().replace("\n  seed: 1\n", "\n  seed: 0\n"))
    code, found, line = audited(capsys, run_dir)
    assert code == 1
    assert (found["difference"]["step"], found["difference"]["attempt"]) == (7, 2)
    assert "step 7 (attempt 2)" in line


def test_a_missing_record_is_found(restarted, tmp_path, capsys):
    """A step that left no line cannot count as audited."""
    copy = tmp_path / "run"
    for path in restarted.rglob("*"):
        if path.is_file() and path.parent.name in ("attempts", "metrics"):
            target = copy / path.relative_to(restarted)
            target.parent.mkdir(parents=True, exist_ok=True)
            lines = path.read_text().splitlines(keepends=True)
            kept = [line for line in lines if '"step": 9,' not in line]
            target.write_text("".join(kept))
    code, found, line = audited(capsys, copy)
    assert code == 1
    assert found["difference"]["step"] == 9 and "step 9 (attempt 2) has no line in metrics/" in line


def test_damaged_samples_are_listed_and_the_run_stays_provable(ranks, digits, tmp_path, capsys):
    shards, run_dir = tmp_path / "shards", tmp_path / "run"
    shards.mkdir()
    for path in (digits / "test").iterdir():
        (shards / path.name).write_bytes(path.read_bytes())
    begins = np.fromfile(shards / "shard-000000.idx", "<u8,<u4,<u4")["f0"]
    for index in (3, 40):
        flip_byte(shards / "shard-000000.tar", int(begins[index]) + 600)
    arguments = overrides(shards / "manifest.json", run_dir)
    ranks.run(2, pretrain, arguments, 10)
    assert ranks.run(1, pretrain, arguments) == [0]
    code, found, _ = audited(capsys, run_dir)
    assert code == 0 and found["num_steps"] == STEPS
    epochs = STEPS * BATCH / 296
    bad = {(event["index"], event["position"] // 296) for event in found["substitutions"]}
    assert {index for index, _ in bad} == {3, 40}
    assert 2 * int(epochs) <= len(found["substitutions"]) == len(bad) <= 2 * (int(epochs) + 1)


def test_changed_data_are_refused(restarted, tmp_path, capsys):
    copy = tmp_path / "run"
    (copy / "attempts").mkdir(parents=True)
    text = (restarted / "attempts/0001.yaml").read_text()
    changed = "\n".join(
        f"dataset: {'f' * 64}" if line.startswith("dataset:") else line
        for line in text.splitlines()
    )
    (copy / "attempts/0001.yaml").write_text(changed)
    assert cli.main(["data", "audit", str(copy)]) == 1
    assert "the data of attempt 1 have changed since" in capsys.readouterr().err


def test_a_lost_attempt_is_no_clean_run(restarted, tmp_path, capsys):
    copy = tmp_path / "run"
    shutil.copytree(restarted, copy)
    (copy / "attempts/0001.yaml").unlink()
    assert cli.main(["data", "audit", str(copy)]) == 1
    assert "attempts/0001.yaml is missing" in capsys.readouterr().err


def test_lost_last_lines_are_no_clean_run(restarted, tmp_path, capsys):
    """The newest checkpoint says how far the run has come."""
    copy = tmp_path / "run"
    shutil.copytree(restarted, copy)
    metrics = copy / "metrics/attempt-0003-000.jsonl"
    metrics.write_text("".join(metrics.read_text().splitlines(keepends=True)[:-3]))
    code, found, line = audited(capsys, copy)
    assert code == 1 and found["num_steps"] == STEPS - 3
    assert f"step {STEPS - 2} (attempt 3) has no line in metrics/" in line


def test_a_damaged_line_is_named(restarted, tmp_path, capsys):
    copy = tmp_path / "run"
    shutil.copytree(restarted, copy)
    with (copy / "metrics/attempt-0003-000.jsonl").open("a") as stream:
        stream.write('{"step": 3')
    assert cli.main(["data", "audit", str(copy)]) == 1
    assert "attempt-0003-000.jsonl, line 13 is damaged" in capsys.readouterr().err


def test_no_run_is_refused(tmp_path, capsys):
    assert cli.main(["data", "audit", str(tmp_path / "nothing")]) == 2
    assert "no run at" in capsys.readouterr().err


def test_steps_that_were_done_again_do_not_count(restarted, tmp_path):
    """Lines of a timeline that ended with a kill, after its last checkpoint."""
    copy = tmp_path / "run"
    shutil.copytree(restarted, copy)
    metrics = copy / "metrics/attempt-0001-000.jsonl"
    lines = metrics.read_text().splitlines(keepends=True)
    wrong = json.loads(lines[-1]) | {"step": 7, "batch_digest": "f" * 16}
    metrics.write_text("".join([*lines, json.dumps(wrong) + "\n"]))
    assert audit(RunDir(str(copy))).difference is None
