"""eval_pool.sh on a real Slurm: a job that watches, and a job for each evaluation."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from mixer_dist import cli
from tests.launchers.cluster import ROOT, Cluster, needs_slurm, wait_for

pytestmark = [*needs_slurm, pytest.mark.timeout(900)]
PATIENCE_S = 400


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path_factory.mktemp("pool") / "cluster")
    cluster.up("--nodes=2", "--node-timeout=60")
    yield cluster
    cluster.down()


@pytest.fixture
def project(digits: Path, ranks, tmp_path: Path) -> Path:
    """A copy of the project, and a run of one checkpoint."""
    folder = tmp_path / "project"
    ignored = shutil.ignore_patterns("site.env", "__pycache__")
    for name in ("launchers", "mixer_dist"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    manifest = str(digits / "test" / "manifest.json")
    task = {"kind": "fewshot", "resize": 32, "train": manifest, "test": manifest}
    tree = {
        "run_dir": str(folder / "run"), "total_steps": 2,
        "global_batch_size": 8, "micro_batch_size": 8,
        "model": {"patch_size": 16, "hidden_dim": 8, "num_blocks": 1, "tokens_mlp_dim": 4,
                  "channels_mlp_dim": 4, "image_size": 32, "num_classes": 10},
        "data": {"train": [{"manifest": manifest}]},
        "optimizer": {"learning_rate": 0.001},
        "engine": {"name": "single", "precision": "fp32"},
        "evals": [{**task, "name": "one", "shots": 1}, {**task, "name": "five"}],
        "pool": {"poll_s": 2, "max_workers": 1, "slurm": {"parameters": {"mem": "1G"}}},
    }  # fmt: skip
    (folder / "small.yaml").write_text(yaml.safe_dump(tree))
    assert ranks.run(1, cli.main, ["pretrain", str(folder / "small.yaml")]) == [0]
    return folder


def submit(cluster: Cluster, project: Path, *words: str) -> str:
    """Call the launcher; the watcher's job."""
    environment = {**cluster.environment, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    command = ["launchers/eval_pool.sh", "small.yaml", *words]
    result = subprocess.run(
        command, env=environment, cwd=project, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout.split()[-1]


def jobs(cluster: Cluster) -> list[str]:
    """Names of all jobs that wait or run."""
    return cluster.slurm("squeue", "--noheader", "--format=%j").split()


def state(cluster: Cluster, job: str) -> dict[str, str]:
    """What Slurm says of a job."""
    words = cluster.slurm("scontrol", "show", "job", job).split()
    return dict(word.partition("=")[::2] for word in words)


def test_a_stopped_watcher_is_requeued_and_the_next_finds_its_workers(cluster, project):
    first = submit(cluster, project)
    wait_for(lambda: len(jobs(cluster)) == 2, PATIENCE_S)
    cluster.slurm("scancel", "--batch", "--signal=USR2", first)
    wait_for(lambda: state(cluster, first)["Restarts"] == "1", PATIENCE_S)
    cluster.slurm("scancel", first)

    second = submit(cluster, project)
    wait_for(lambda: cluster.state(second) == "", PATIENCE_S)
    [log] = project.glob(f"logs/*-{second}.out")
    assert state(cluster, second)["JobState"] == "COMPLETED", log.read_text()
    assert "nothing is left to do: 2 results" in log.read_text()
    wait_for(lambda: jobs(cluster) == [], PATIENCE_S)
    for task in ("one", "five"):
        result = json.loads((project / f"run/evals/{task}/step-00000002.json").read_text())
        assert 0 < result["accuracy"] < 1
    assert not list(project.glob("run/evals/*/failures/*"))
    assert len(list(project.glob("logs/pool/*/*_result.pkl"))) == 2  # no job was submitted twice


def test_what_sbatch_refuses_is_said(cluster, project):
    job = submit(cluster, project, "pool.slurm.partition=none")
    wait_for(lambda: cluster.state(job) == "", PATIENCE_S)
    [log] = project.glob(f"logs/*-{job}.out")
    assert state(cluster, job)["JobState"] == "FAILED"
    assert "sbatch has not taken eval-" in log.read_text()
    assert "invalid partition" in log.read_text()
