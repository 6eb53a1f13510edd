"""The command line as a user meets it: one line for a mistake, the right exit code, no traces."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mixer_dist import cli
from mixer_dist.models.mixer import MlpMixer
from mixer_dist.models.npz import load_npz, save_npz

ROOT = Path(__file__).resolve().parents[1]
CONFIG = str(ROOT / "configs/quickstart.yaml")


@pytest.fixture
def small_run(digits, tmp_path):
    """Arguments of a run of a few steps on one process, and its directory."""
    run_dir = tmp_path / "run"
    arguments = [
        CONFIG, f"run_dir={run_dir}", "engine.name=single", "total_steps=4",
        "optimizer.warmup_steps=1", "global_batch_size=16", "micro_batch_size=8",
        "model.num_blocks=1", "checkpoint.every_steps=2", "logging.every_steps=2",
        f"data.train.0.manifest={digits}/train/manifest.json",
        f"evals.0.train={digits}/train/manifest.json",
        f"evals.0.test={digits}/test/manifest.json",
    ]  # fmt: skip
    return arguments, run_dir


def refusal(capsys, *argv: str) -> tuple[int, str]:
    """Exit code and the one line on stderr."""
    try:
        code = cli.main(argv)
    except SystemExit as stop:  # argparse's own
        code = int(stop.code or 0)
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if line]
    assert lines, "nothing on stderr"
    assert "Traceback" not in error
    assert len(lines) == 1, error
    return code, lines[0]


def test_help_needs_neither_torch_nor_pydantic():
    script = (
        "import sys; from mixer_dist.cli import build_parser; build_parser().format_help(); "
        "sys.exit(bool({'torch', 'pydantic', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


@pytest.mark.parametrize(
    "argv", [["pretend"], ["pretrain"], ["report"], ["checkpoint", "lss", "x"]]
)
def test_a_wrong_command_is_one_line(capsys, argv):
    code, line = refusal(capsys, *argv)
    assert code == 2
    assert "--help" in line


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("optimizer.learning_rat=1", "did you mean 'learning_rate'?"),
        ("optimizer={warmup_steps: 3}", "optimizer.learning_rate: required"),
        ("micro_batch_size=3", "positive even"),
        ("micro_batch_size=256", "micro_batch_size (256) must be at most global_batch_size"),
        ("engine.name=zero9", "engine.name"),
        ("model.num_classes=11", "set model.num_classes=10"),
        ("data.order.lanes=7", "must divide round_samples"),
        ("data.train.0.manifest=nowhere/manifest.json", "nowhere/manifest.json"),
        ("data.stages=[no.such.stage]", "cannot import"),
    ],
)
def test_a_wrong_config_is_refused_before_anything_is_written(
    capsys, small_run, override, expected
):
    arguments, run_dir = small_run
    code = cli.main(["pretrain", *arguments, override])
    error = capsys.readouterr().err
    assert code == 2
    assert expected in error
    assert "Traceback" not in error
    assert not run_dir.exists()


@pytest.mark.parametrize(("override", "code"), [("micro_batch_size=3", 2), ("--dry-run", 0)])
def test_an_exit_file_tells_launchers_how_it_ended(small_run, tmp_path, override, code):
    path = tmp_path / "exit.json"
    assert cli.main(["pretrain", *small_run[0], override, "--exit-file", str(path)]) == code
    assert json.loads(path.read_text())["exit_code"] == code


def test_a_dry_run_tells_that_local_data_are_missing(capsys, small_run):
    arguments = ["pretrain", *small_run[0], "--dry-run"]
    assert cli.main(arguments) == 0
    assert "NO DATASET" not in capsys.readouterr().out
    assert cli.main([*arguments, "data.train.0.manifest=no.json"]) == 0
    assert "NO DATASET at no.json" in capsys.readouterr().out


def test_more_ranks_than_pairs_of_images_are_refused(capsys, small_run):
    argv = ["pretrain", *small_run[0], "engine.name=ddp", "--dry-run", "--world-size", "9"]
    code, line = refusal(capsys, *argv)
    assert code == 2
    assert "at most 8 ranks" in line


def test_a_missing_config_names_those_that_are_there(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    code, line = refusal(capsys, "pretrain", "configs/nothing.yaml")
    assert code == 2
    assert "configs/quickstart.yaml" in line


@pytest.mark.parametrize("place", ["run_dir", "data.train.0.manifest"])
def test_a_missing_bucket_is_refused(capsys, small_run, s3, place):
    storage = {"s3://": {"endpoint_url": s3.endpoint_url, "checksum": "when_required"}}
    url = "s3://no-such-bucket/manifest.json"
    argv = ["pretrain", *small_run[0], f"{place}={url}", f"storage={json.dumps(storage)}"]
    code, line = refusal(capsys, *argv)
    assert code == 2
    assert "no-such-bucket" in line


def test_wrong_credentials_are_refused(capsys, small_run, s3, digits_s3, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not the secret")
    storage = {"s3://": {"endpoint_url": s3.endpoint_url, "checksum": "when_required"}}
    arguments, run_dir = small_run
    manifest = f"data.train.0.manifest={digits_s3}/train/manifest.json"
    code, line = refusal(capsys, "pretrain", *arguments, manifest, f"storage={json.dumps(storage)}")
    assert code == 2
    assert "AWS_SECRET_ACCESS_KEY" in line
    assert not run_dir.exists()


def test_a_shard_that_is_not_the_manifests_stops_the_run(capsys, small_run, digits, tmp_path):
    shards = tmp_path / "shards"
    shards.mkdir()
    for path in (digits / "train").iterdir():
        data = path.read_bytes()
        (shards / path.name).write_bytes(data[:-1024] if path.name.endswith("0.tar") else data)
    argv = ["pretrain", *small_run[0], f"data.train.0.manifest={shards}/manifest.json"]
    code, line = refusal(capsys, *argv)
    assert code == 1
    assert "does not match its manifest" in line
    assert cli.main(["status", str(small_run[1])]) == 0
    *_, state = capsys.readouterr().out.splitlines()
    assert state.startswith("state   failed: ")
    assert "does not match its manifest" in state


def test_a_checkpoint_of_another_model_is_refused(capsys, small_run):
    arguments, run_dir = small_run
    assert cli.main(["pretrain", *arguments]) == 0
    capsys.readouterr()
    attempts = sorted((run_dir / "attempts").iterdir())
    code, line = refusal(capsys, "pretrain", *arguments, "model.hidden_dim=64", "total_steps=4")
    assert code == 2
    assert "model.hidden_dim: 96 -> 64" in line
    evaluation = ["evaluate", *arguments, "model.hidden_dim=64", "--task", "digits", "--json"]
    code, line = refusal(capsys, *evaluation)
    assert code == 2
    assert "another model" in line
    assert sorted((run_dir / "attempts").iterdir()) == attempts


def test_evaluate_and_report_after_a_run(capsys, small_run):
    arguments, run_dir = small_run
    assert cli.main(["pretrain", *arguments]) == 0
    capsys.readouterr()
    assert cli.main(["evaluate", *arguments, "--task", "digits", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    written = json.loads((run_dir / "evals/digits/step-00000004.json").read_text())
    assert written == result
    assert result["num_test"] == 296
    assert 0.1 < result["accuracy"] <= 1
    assert cli.main(["report", str(run_dir)]) == 0
    assert (run_dir / "report/index.html").exists()


def test_evaluate_without_a_task_names_the_tasks(capsys, small_run):
    code, line = refusal(capsys, "evaluate", *small_run[0], "--json")
    assert code == 2
    assert "digits" in line


def test_a_suite_names_its_tasks_and_what_is_missing(capsys, small_run, tmp_path):
    suite = str(ROOT / "configs/suites/vtab1k.yaml")
    argv = ["evaluate", *small_run[0], "--suite", suite, "--datasets", str(tmp_path), "--dry-run"]
    assert cli.main(argv) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 19
    assert all(f"There is no dataset at {tmp_path}/vtab/" in line for line in lines)


def test_evaluate_before_any_checkpoint_says_what_to_do(capsys, small_run):
    code, line = refusal(capsys, "evaluate", *small_run[0], "--task", "digits", "--json")
    assert code == 2
    assert "pretrain first" in line


def test_checkpoints_are_listed_verified_exported_and_imported(capsys, small_run, tmp_path):
    arguments, run_dir = small_run
    assert cli.main(["pretrain", *arguments]) == 0
    capsys.readouterr()
    assert cli.main(["checkpoint", "ls", str(run_dir), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["step"] for row in rows] == [4, 2]
    url = rows[0]["checkpoint"]
    assert cli.main(["checkpoint", "verify", url]) == 0
    first, second = str(tmp_path / "first.npz"), str(tmp_path / "second.npz")
    imported = str(tmp_path / "imported")
    assert cli.main(["checkpoint", "export", url, first]) == 0
    assert cli.main(["checkpoint", "import", first, imported]) == 0
    assert cli.main(["checkpoint", "export", imported, second]) == 0
    assert Path(first).read_bytes() == Path(second).read_bytes()
    capsys.readouterr()
    code, line = refusal(capsys, "checkpoint", "import", first, imported)
    assert code == 2
    assert "already" in line


def test_an_official_file_goes_in_and_comes_out_the_same(tmp_path):
    model = MlpMixer(16, 4, 12, 2, 6, 20, 5)
    torch.nn.init.normal_(model.head.weight)
    official, checkpoint, back = (str(tmp_path / name) for name in ("in.npz", "step-0", "out.npz"))
    save_npz(model, official)
    assert cli.main(["checkpoint", "import", official, checkpoint]) == 0
    assert cli.main(["checkpoint", "export", checkpoint, back]) == 0
    assert Path(official).read_bytes() == Path(back).read_bytes()
    load_npz(MlpMixer(16, 4, 12, 2, 6, 20, 5), back)


def test_a_damaged_checkpoint_is_named_and_passed_over(capsys, small_run):
    arguments, run_dir = small_run
    assert cli.main(["pretrain", *arguments]) == 0
    file = next((run_dir / "checkpoints/step-00000004").glob("*.safetensors"))
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))
    capsys.readouterr()
    code, line = refusal(capsys, "checkpoint", "verify", str(file.parent))
    assert code == 1
    assert file.name in line
    assert cli.main(["pretrain", *arguments]) == 0
    out = capsys.readouterr().out
    assert "passed over" in out
    assert "resumes from" in out
    assert "step-00000002" in out


def test_dry_run_of_the_papers_largest_model(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    argv = ["pretrain", "configs/pretrain_h14.yaml", "model.num_classes=1000", "--dry-run"]
    assert cli.main([*argv, "--world-size", "256"]) == 0
    out = capsys.readouterr().out
    assert "432,350,952 parameters" in out
    assert "1,025,391 steps" in out
    assert "accumulate over 1" in out


def test_dry_run_of_fine_tuning_at_twice_the_resolution(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    larger = ["model.image_size=448", "model.tokens_mlp_dim=1536", "init_from=s3://b/run"]
    argv = ["pretrain", "configs/pretrain_b16_i1k.yaml", *larger, "--dry-run"]
    assert cli.main([*argv, "--world-size", "8"]) == 0
    out = capsys.readouterr().out
    assert f"{86_227_392 + 769_000:,} parameters" in out
    assert "Weights: those of s3://b/run at step 0" in out


def test_a_run_whose_checkpoints_are_all_damaged_is_not_begun_anew(capsys, small_run):
    arguments, run_dir = small_run
    assert cli.main(["pretrain", *arguments]) == 0
    files = sorted((run_dir / "checkpoints").rglob("*.safetensors"))
    for file in files:
        file.write_bytes(file.read_bytes()[:-1] + b"?")
    capsys.readouterr()
    code, line = refusal(capsys, "pretrain", *arguments)
    assert code == 1
    assert "none of the 2 checkpoints" in line
    assert sorted((run_dir / "checkpoints").rglob("*.safetensors")) == files


def test_a_run_directory_that_cannot_be_is_refused(capsys, small_run, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    code, line = refusal(capsys, "pretrain", *small_run[0], f"run_dir={tmp_path}/file")
    assert code == 2
    assert str(tmp_path / "file") in line


def test_weights_are_exported_into_a_bucket(capsys, small_run, s3, monkeypatch):
    arguments, run_dir = small_run
    assert cli.main(["pretrain", *arguments]) == 0
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.endpoint_url)
    url = f"{s3.new_bucket()}/mixer.npz"
    checkpoint = str(run_dir / "checkpoints/step-00000004")
    assert cli.main(["checkpoint", "export", checkpoint, url]) == 0
    assert s3.storage().size(url) > 10_000


@pytest.fixture
def strict_umask():
    """Files are the user's alone, unless a run says otherwise."""
    before = os.umask(0o077)
    yield
    os.umask(before)


def test_a_run_may_be_shared_with_a_group(small_run, strict_umask):
    arguments, run_dir = small_run
    assert cli.main(["pretrain", *arguments, 'umask="002"']) == 0
    modes = {(path.is_dir(), path.stat().st_mode & 0o777) for path in run_dir.rglob("*")}
    assert modes == {(True, 0o775), (False, 0o664)}
