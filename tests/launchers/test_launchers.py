"""The shell launchers as far as they go without Slurm, and the configuration of Mixer-H/14."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from mixer_dist.config import RunConfig, load_config
from tests.launchers.cluster import wait_for

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted((ROOT / "launchers").glob("*.sh"))
PARTS = sorted((ROOT / "launchers").glob("*/*.sh"))
H14 = ROOT / "configs" / "pretrain_h14.yaml"
TOOLS = (
    "basename",
    "bash",
    "cat",
    "cp",
    "date",
    "dirname",
    "env",
    "mkdir",
    "mv",
    "rm",
    "sed",
    "sh",
    "tar",
)
MANIFEST = "s3://bucket/data/manifest.json"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of what the launchers use, without the site.env of whoever runs the tests."""
    folder = tmp_path / "project"
    ignored = shutil.ignore_patterns("site.env", "__pycache__")
    for name in ("launchers", "configs", "mixer_dist"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    return folder


@pytest.fixture
def path_without_slurm(tmp_path: Path) -> str:
    """A PATH on which the launchers find what they need, and no sbatch."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in TOOLS:
        (folder / tool).symlink_to(shutil.which(tool) or tool)
    return str(folder)


def run(
    script: Path, *arguments: str, cwd: Path | None = None, **settings: str
) -> subprocess.CompletedProcess[str]:
    """Run a script in an environment that holds these settings and no other."""
    environment = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), **settings}
    return subprocess.run(
        [script, *arguments], env=environment, cwd=cwd, capture_output=True, text=True, timeout=240
    )


def assert_refused(result: subprocess.CompletedProcess[str], *words: str) -> None:
    """Exit code 2, and one line that holds these words."""
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (2, "", 1), result
    assert all(word in result.stderr for word in words), result.stderr


@dataclass(frozen=True)
class Submission:
    """A job as it was handed to sbatch, which a script stands in for."""

    words: list[str]
    """What sbatch was called with."""
    folder: Path
    """The job's copy of code and config."""
    checks: list[str]
    """What Python was called with."""

    @property
    def config(self) -> RunConfig:
        overrides = shlex.split((self.folder / "overrides").read_text())
        return load_config(self.folder / "given.yaml", overrides)


def submission(project: Path, path: str, *arguments: str, **settings: str) -> Submission:
    """Submit on a login node whose sbatch and Python only note what they are called with."""
    for name in ("sbatch", "python"):
        script = Path(path) / name
        script.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" >>{project}/{name}.words\n')
        script.chmod(0o755)
    settings = {"PYTHON": f"{path}/python", "PATH": path, **settings}
    result = run(project / "launchers" / "pretrain_h14.sh", *arguments, **settings)
    assert result.returncode == 0, result.stderr
    [folder] = (project / "logs").iterdir()
    words, checks = (
        (project / f"{name}.words").read_text().splitlines() for name in ("sbatch", "python")
    )
    return Submission(words, folder, checks)


@pytest.mark.parametrize("script", [*SCRIPTS, *PARTS], ids=lambda script: script.name)
def test_bash_accepts_it(script):
    subprocess.run(["bash", "-n", script], check=True)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_help_says_what_to_type(script):
    result = run(script, "--help")
    assert result.returncode == 0
    assert f"launchers/{script.name}" in result.stdout
    assert "launchers/local.sh configs/quickstart.yaml" in result.stdout
    assert "#" not in result.stdout


def test_the_example_of_site_env_is_bash_and_sets_nothing(project, path_without_slurm):
    shutil.copy(project / "launchers" / "site.env.example", project / "launchers" / "site.env")
    assert_refused(run(project / "launchers" / "pretrain_h14.sh"), "DATA")


def test_without_data_nothing_is_submitted(project):
    assert_refused(run(project / "launchers" / "pretrain_h14.sh"), "set DATA")


def test_without_data_a_job_ends_at_once(project, tmp_path):
    script = shutil.copy(project / "launchers" / "pretrain_h14.sh", tmp_path / "slurm_script")
    job = {"SLURM_JOB_ID": "7", "SLURM_SUBMIT_DIR": str(project)}
    assert_refused(run(script, **job), "set DATA")


def test_a_job_from_another_directory_ends_at_once(project, tmp_path):
    script = shutil.copy(project / "launchers" / "pretrain_h14.sh", tmp_path / "slurm_script")
    job = {"SLURM_JOB_ID": "7", "SLURM_SUBMIT_DIR": str(tmp_path), "DATA": MANIFEST}
    assert_refused(run(script, **job), str(tmp_path), "call sbatch in the project's root")


def test_a_job_whose_sbatch_options_were_lost_ends_at_once(project):
    job = {"SLURM_JOB_ID": "7", "SLURM_SUBMIT_DIR": str(project), "DATA": MANIFEST}
    result = run(project / "launchers" / "pretrain_h14.sh", "--nodes=2", **job)
    assert_refused(result, "--nodes=2", "before the script")


@pytest.mark.parametrize("gpus", ["4", "h100:4"])
def test_a_job_with_more_tasks_than_gpus_ends_at_once(project, gpus):
    job = {"SLURM_JOB_ID": "7", "SLURM_SUBMIT_DIR": str(project), "DATA": MANIFEST}
    job |= {"SLURM_JOB_NUM_NODES": "2", "SLURM_NTASKS": "16", "SLURM_GPUS_PER_NODE": gpus}
    result = run(project / "launchers" / "pretrain_h14.sh", **job)
    assert_refused(result, "--ntasks-per-node=8", "--gpus-per-node=4")


def test_nodes_with_unequal_tasks_are_refused(project):
    job = {"SLURM_JOB_ID": "7", "SLURM_SUBMIT_DIR": str(project), "DATA": MANIFEST}
    job |= {"SLURM_TASKS_PER_NODE": "8(x3),4"}
    result = run(project / "launchers" / "pretrain_h14.sh", **job)
    assert_refused(result, "8(x3),4 tasks", "--ntasks-per-node")


def test_without_python_nothing_is_submitted(project):
    result = run(project / "launchers" / "pretrain_h14.sh", DATA=MANIFEST)
    assert_refused(result, str(project / ".venv"), "PYTHON")
    assert not list(project.glob("logs/*"))


def test_without_a_config_nothing_is_submitted(project):
    assert_refused(run(project / "launchers" / "pretrain.sh"), "give a config")
    assert_refused(run(project / "launchers" / "pretrain.sh", "no.yaml"), "no config at no.yaml")


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("optimizer.learning_rat=1", "configs/pretrain_h14.yaml: optimizer.learning_rat: unknown"),
        ("--nodes=1000", "8000 ranks cannot share a global_batch_size of 4096"),
        ("--nodes=2-1000", "8000 ranks cannot share a global_batch_size of 4096"),
        ("--nodes=x", "--nodes=x: expected a whole number"),
        ("-N2", "-N2: expected options as --name=value"),
    ],
)
def test_what_cannot_train_is_not_submitted(project, argument, message):
    settings = {"DATA": MANIFEST, "PYTHON": sys.executable}
    result = run(project / "launchers" / "pretrain_h14.sh", argument, **settings)
    assert result.returncode == 2
    assert message in result.stderr
    assert not list(project.glob("logs/*"))


def test_it_needs_sbatch(project, path_without_slurm):
    settings = {"PATH": path_without_slurm, "DATA": MANIFEST, "CHECK": "0"}
    result = run(project / "launchers" / "pretrain_h14.sh", **settings)
    assert_refused(result, "no sbatch here", "launchers/local.sh")


def test_settings_become_overrides_and_what_is_typed_comes_last(project, path_without_slurm):
    first, second = "s3://bucket/it's#1,{a}.json", "/data/two/manifest.json"
    job = submission(
        project, path_without_slurm, "--nodes=2", "seed=7", "--ntasks-per-node=4", "seed=8",
        DATA=f" {first}\n {second}", NUM_CLASSES="10", RUN_DIR="/runs/it's: 1",
    )  # fmt: skip
    assert [entry.manifest for entry in job.config.data.train] == [first, second]
    assert (job.config.model.num_classes, job.config.seed) == (10, 8)
    assert job.config.run_dir == "/runs/it's: 1"
    assert job.words[1:] == [
        "--nodes=2", "--ntasks-per-node=4", "launchers/pretrain_h14.sh",
        f"--job-folder={job.folder}",
    ]  # fmt: skip
    assert job.checks[job.checks.index("--world-size") + 1] == "8"


def test_without_settings_only_the_data_are_replaced(project, path_without_slurm):
    job = submission(project, path_without_slurm, DATA=MANIFEST)
    assert job.config == load_config(H14, [f"data.train=[{{manifest: '{MANIFEST}'}}]"])
    assert job.checks[job.checks.index("--world-size") + 1] == "256"


def test_fewer_nodes_may_do_only_if_slurm_does_not_end_the_job(project, path_without_slurm):
    job = submission(project, path_without_slurm, DATA=MANIFEST, MIN_NODES="30")
    assert "--no-kill" in job.words


def test_the_environment_wins_over_site_env_which_need_not_be_strict(project, path_without_slurm):
    lines = [f"DATA={MANIFEST}", "RUN_DIR=/site", "NUM_CLASSES=10", "false", "echo $UNSET >&2"]
    (project / "launchers" / "site.env").write_text("\n".join(lines))
    job = submission(project, path_without_slurm, RUN_DIR="/mine")
    assert [entry.manifest for entry in job.config.data.train] == [MANIFEST]
    assert (job.config.run_dir, job.config.model.num_classes) == ("/mine", 10)
    assert (job.folder / "launchers" / "site.env").is_file()


def test_local_refuses_in_one_line(project):
    script = project / "launchers" / "local.sh"
    assert_refused(run(script), "give a config")
    assert_refused(run(script, "configs/quickstart.yaml"), str(project / ".venv"), "VENV")


def local_settings() -> dict[str, str]:
    venv = str(Path(sysconfig.get_path("scripts")).parent)
    return {"VENV": venv, "NPROC": "2", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}


def test_local_tells_what_a_rank_has_met_without_a_traceback(tmp_path):
    words = [f"run_dir={tmp_path}", "data.train.0.manifest=no.json", "engine.name=ddp"]
    command = [str(ROOT / "launchers/local.sh"), str(ROOT / "configs/quickstart.yaml"), *words]
    result = subprocess.run(
        command, env=os.environ | local_settings(), cwd=tmp_path, capture_output=True, text=True
    )
    assert result.returncode == 2, result.stderr
    assert "mixer-dist: not there: no.json" in result.stderr
    assert "Traceback" not in result.stderr


def test_local_trains_two_ranks_from_any_directory_until_it_is_stopped(digits, tmp_path):
    tree = {
        "run_dir": "run",
        "total_steps": 10**6,
        "global_batch_size": 16,
        "micro_batch_size": 8,
        "model": {"patch_size": 8, "hidden_dim": 8, "num_blocks": 1, "tokens_mlp_dim": 8,
                  "channels_mlp_dim": 8, "image_size": 32, "num_classes": 10},
        "data": {"train": [{"manifest": str(digits / "train" / "manifest.json")}]},
        "optimizer": {"learning_rate": 0.001},
        "engine": {"name": "ddp", "precision": "fp32"},
    }  # fmt: skip
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tree))
    command = [str(ROOT / "launchers" / "local.sh"), "tiny.yaml", "checkpoint.every_steps=10"]
    with subprocess.Popen(
        command, env=os.environ | local_settings(), cwd=tmp_path, stdout=subprocess.PIPE, text=True,
        start_new_session=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:  # fmt: skip
        saved = tmp_path / "run" / "checkpoints" / "step-00000010" / "manifest.json"
        wait_for(lambda: saved.is_file() or process.poll() is not None, 200)
        os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 75, output
    assert "2 ranks take 16 images a step" in output
    [events] = (tmp_path / "run" / "events" / "attempt-0001").iterdir()
    assert '"event": "preempt"' in events.read_text().splitlines()[-1]


def test_h14_is_the_papers_run():
    config = load_config(H14)
    assert config.total_steps == -(-14 * 300_000_000 // 4096)  # 14 epochs, section 3
    assert config.global_batch_size == 4096
    assert (config.model.variant, config.model.num_classes) == ("H/14", 18291)
    assert (config.augment.mixup, config.model.stochastic_depth) == (0, 0)
    optimizer = config.optimizer
    assert (optimizer.learning_rate, optimizer.warmup_steps) == (1e-3, 10_000)
    assert (optimizer.decay, optimizer.weight_decay) == ("linear", 0.03)
    assert (optimizer.betas, optimizer.max_grad_norm) == ((0.9, 0.999), 1.0)
