"""pretrain.sh and pretrain_h14.sh on a real Slurm: two ranks on two nodes, through gloo."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import psutil
import pytest
import yaml

from mixer_dist.metrics import read_events, read_metrics
from mixer_dist.run_dir import RunDir, attempt_numbers, read_attempt
from mixer_dist.storage import Storage
from tests.launchers.cluster import ROOT, Cluster, needs_slurm, wait_for

pytestmark = [*needs_slurm, pytest.mark.timeout(900)]
STORAGE = Storage()
STEPS = 40
EVERY = 5
PATIENCE_S = 240
TWO_RANKS = ("--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=1")
SLOW_STAGE = """
import time
from pathlib import Path

def slow(samples):
    for sample in samples:
        if Path(__file__).with_name("slow").exists():
            time.sleep(0.05)
        yield sample
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path_factory.mktemp("job") / "cluster")
    cluster.up("--nodes=3", "--node-timeout=60")
    yield cluster
    cluster.down()


@dataclass(frozen=True)
class Project:
    """A copy of the project, a small run in it, and a stage that is slow while `slow` exists."""

    folder: Path
    cluster: Cluster

    @property
    def slow(self) -> Path:
        return self.folder / "slow"

    @property
    def run_dir(self) -> RunDir:
        return RunDir(str(self.folder / "run"))

    def call(self, *words: str, **settings: str) -> str:
        """What a command prints in the project."""
        environment = {
            **self.cluster.environment, "PYTHON": sys.executable, "PYTHONPATH": str(self.folder),
            "OMP_NUM_THREADS": "1", **settings,
        }  # fmt: skip
        result = subprocess.run(
            words, env=environment, cwd=self.folder, capture_output=True, text=True, timeout=120
        )
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    def log(self) -> str:
        [path] = [*self.folder.glob("logs/*.out"), *self.folder.glob("*.out")]
        return path.read_text()

    def committed(self, attempt: int) -> list[int]:
        """Steps that an attempt has saved."""
        events = read_events(STORAGE, self.run_dir, attempt)
        return [event["step"] for event in events if event["event"] == "save"]

    def wait_for_end(self, job: str) -> str:
        """The job's last state."""
        wait_for(lambda: self.cluster.state(job) == "", PATIENCE_S)
        words = self.cluster.slurm("scontrol", "show", "job", job).split()
        return next(word for word in words if word.startswith("JobState=")).partition("=")[2]


@pytest.fixture
def project(cluster: Cluster, digits: Path, tmp_path: Path) -> Project:
    folder = tmp_path / "project"
    ignored = shutil.ignore_patterns("site.env", "__pycache__")
    for name in ("launchers", "mixer_dist"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    tree = {
        "run_dir": "run",
        "total_steps": STEPS,
        "global_batch_size": 16,
        "micro_batch_size": 8,
        "model": {"patch_size": 8, "hidden_dim": 8, "num_blocks": 1, "tokens_mlp_dim": 8,
                  "channels_mlp_dim": 8, "image_size": 32, "num_classes": 10},
        "data": {"train": [{"manifest": str(digits / "train" / "manifest.json")}]},
        "optimizer": {"learning_rate": 0.001},
        "engine": {"name": "ddp", "precision": "fp32"},
        "checkpoint": {"every_steps": EVERY},
        "logging": {"every_steps": 1},
    }  # fmt: skip
    (folder / "small.yaml").write_text(yaml.safe_dump(tree))
    (folder / "slow_stage.py").write_text(SLOW_STAGE)
    return Project(folder, cluster)


def processes(cluster: Cluster) -> Iterator[tuple[int, list[str], dict[str, str]]]:
    """Pid, words and environment of each process that uses this cluster."""
    for process in psutil.process_iter():
        try:
            words, environment = process.cmdline(), process.environ()
        except psutil.Error:
            continue
        if environment.get("SLURM_CONF") == cluster.environment["SLURM_CONF"]:
            yield process.pid, words, environment


def rank_pids(cluster: Cluster, rank: int) -> list[int]:
    """Processes that train as a rank."""
    return [
        pid
        for pid, words, environment in processes(cluster)
        if environment.get("SLURM_PROCID") == str(rank) and "--exit-file" in words
    ]


def deputy_node(cluster: Cluster) -> str | None:
    """Where a deputy runs, if there is one."""
    for _, words, environment in processes(cluster):
        if any(word.endswith("/deputy.sh") for word in words) and "srun" not in words:
            return environment["SLURMD_NODENAME"]
    return None


def start_soon(cluster: Cluster, job: str) -> None:
    """End the two minutes that a requeued job has to wait; Slurm may set them anew."""
    words = ("squeue", "--noheader", "--format=%r %S", f"--jobs={job}")
    wait_for(lambda: cluster.slurm(*words).startswith("BeginTime"), PATIENCE_S)

    def is_started() -> bool:
        reason, _, start = cluster.slurm(*words).partition(" ")
        soon = (datetime.now() + timedelta(seconds=30)).isoformat()
        if reason == "BeginTime" and soon < start < "N/A":
            cluster.slurm("scontrol", "update", f"JobId={job}", "StartTime=now+5")
        return reason != "BeginTime"

    wait_for(is_started, PATIENCE_S)


def test_the_launcher_of_h14_runs_as_it_is_with_a_small_config(project, tmp_path):
    python = tmp_path / "venv" / "bin" / "python"  # as it is packed for the nodes
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    tar = shutil.make_archive(str(tmp_path / "venv"), "tar", tmp_path / "venv")
    words = ["sbatch", "--parsable", *TWO_RANKS, "launchers/pretrain_h14.sh", "total_steps=5"]
    job = project.call(*words, CONFIG="small.yaml", VENV_TAR=tar, TMPDIR=str(tmp_path)).strip()
    assert project.wait_for_end(job) == "COMPLETED"
    assert [line["step"] for line in read_metrics(STORAGE, project.run_dir)] == [1, 2, 3, 4, 5]
    assert (project.folder / f"run/code/pretrain_h14-{job}.tar").is_file()
    assert not list(tmp_path.glob("mixer_dist-*"))  # of the nodes' own folders


def test_a_job_goes_on_after_a_kill_and_a_preemption_and_sees_no_edit(project):
    project.slow.touch()
    words = ["launchers/pretrain.sh", "small.yaml", "--hold", *TWO_RANKS]
    job = project.call(*words, "data.stages=[slow_stage.slow]").split()[-1]
    (project.folder / "small.yaml").write_text("edited")
    for name in ("mixer_dist/__init__.py", "launchers/job/restarts.sh"):
        (project.folder / name).write_text("edited")
    project.cluster.slurm("scontrol", "release", job)

    wait_for(lambda: project.committed(1) != [], PATIENCE_S)
    [pid] = rank_pids(project.cluster, rank=1)
    os.kill(pid, 9)
    wait_for(lambda: project.committed(2) != [], PATIENCE_S)
    assert project.cluster.state(job) == "RUNNING"
    assert "Restarts=0" in project.cluster.slurm("scontrol", "show", "job", job)

    project.cluster.slurm("scancel", "--batch", "--signal=USR2", job)
    wait_for(lambda: project.cluster.state(job) != "RUNNING", PATIENCE_S)
    project.slow.unlink()
    start_soon(project.cluster, job)
    assert project.wait_for_end(job) == "COMPLETED"

    lines = read_metrics(STORAGE, project.run_dir)
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert attempt_numbers(STORAGE, project.run_dir) == [1, 2, 3]
    resumed_from = [read_attempt(STORAGE, project.run_dir, n).resumed_from for n in (2, 3)]
    assert resumed_from == [project.committed(1)[-1], project.committed(2)[-1]]
    kinds = [event["event"] for event in read_events(STORAGE, project.run_dir, 2)]
    assert kinds[-1] == "preempt"
    assert resumed_from[1] == max(line["step"] for line in lines if line["attempt"] == 2)


def stand_in(project: Project, training: str) -> str:
    """A Python whose ranks run these lines of shell instead of training; $exit is --exit-file."""
    script = project.folder / "stand_in"
    script.write_text(
        f'#!/bin/sh\nfor exit in "$@"; do :; done\n'
        f'case $* in *--exit-file*) {training}\nexit;; esac\nexec {sys.executable} "$@"\n'
    )
    script.chmod(0o755)
    return str(script)


def test_a_run_that_fails_at_every_start_ends_with_a_line(project):
    words = ["launchers/pretrain.sh", "small.yaml", *TWO_RANKS]
    job = project.call(*words, PYTHON=stand_in(project, "exit 1"), RETRY_S="0").split()[-1]
    assert project.wait_for_end(job) == "FAILED"
    line = "gave up: the last 3 starts went on from step 0 and saved nothing"
    assert project.log().splitlines()[-1] == f"launchers/pretrain.sh: {line}"
    assert project.log().count("rank 0 at") == 3


def test_a_node_that_fails_twice_is_left_out(project):
    training = """
        [ $SLURMD_NODENAME != n2 ] || kill -9 $$
        case $SLURM_NODELIST in *2*) sleep 60; exit 1;; esac
        [ $SLURM_PROCID != 0 ] || echo '{"exit_code": 0, "message": "done"}' >$exit"""
    words = ["launchers/pretrain.sh", "small.yaml", *TWO_RANKS, "--nodelist=n1"]
    job = project.call(*words, PYTHON=stand_in(project, training), RETRY_S="0").split()[-1]
    start_soon(project.cluster, job)
    assert project.wait_for_end(job) == "COMPLETED"
    shown = project.cluster.slurm("scontrol", "show", "job", job)
    assert "ExcNodeList=n2" in shown
    assert " NodeList=n[1,3]" in shown
    [failures] = project.folder.glob("logs/*/failures")
    assert failures.read_text() == "n2\nn2\n"


@pytest.mark.parametrize(("min_nodes", "expected"), [("2", "n2"), ("", None)])
def test_a_job_that_slurm_lets_lose_nodes_has_a_deputy(project, min_nodes, expected):
    """Also where it has no node to spare: it was submitted with --no-kill all the same."""
    training = "sleep 5; [ $SLURM_PROCID != 0 ] || echo '{\"exit_code\": 0}' >$exit"
    words = ["launchers/pretrain.sh", "small.yaml", *TWO_RANKS, "--nodelist=n1,n2"]
    python = stand_in(project, training)
    job = project.call(*words, PYTHON=python, MIN_NODES=min_nodes).split()[-1]
    wait_for(lambda: rank_pids(project.cluster, rank=1) != [], PATIENCE_S)
    time.sleep(2)
    assert deputy_node(project.cluster) == expected
    assert project.wait_for_end(job) == "COMPLETED"
    assert deputy_node(project.cluster) is None


def test_a_job_that_lost_the_node_of_its_shell_is_requeued(project):
    """The deputy looks for a node that the job has not got: as if Slurm had taken it away."""
    script = "DEPUTY_POLL_S=1 bash launchers/job/deputy.sh n1; sleep 100"
    words = ["sbatch", "--parsable", "--nodelist=n2", "--requeue", f"--wrap={script}"]
    job = project.call(*words).strip()
    shown = ("scontrol", "show", "job", job)
    wait_for(lambda: "Restarts=1" in project.cluster.slurm(*shown), PATIENCE_S)
    project.cluster.slurm("scancel", job)


def test_a_job_that_has_the_node_of_its_shell_is_left_alone(project):
    script = "DEPUTY_POLL_S=0.2 timeout 3 bash launchers/job/deputy.sh n2"
    job = project.call("sbatch", "--parsable", "--nodelist=n2", f"--wrap={script}").strip()
    assert project.wait_for_end(job) == "FAILED"  # of the timeout, not before
    assert "Restarts=0" in project.cluster.slurm("scontrol", "show", "job", job)
