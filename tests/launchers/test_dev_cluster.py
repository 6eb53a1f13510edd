"""launchers/dev_cluster.sh on the real thing: Slurm's own daemons, started as root."""

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.launchers.cluster import (
    SCRIPT,
    Cluster,
    free_port,
    missing,
    needs_slurm,
    wait_for,
)

pytestmark = needs_slurm
HOSTS = Path("/etc/hosts")
NETWORK = [Path("/run/netns"), Path("/etc/netns"), Path("/sys/class/net")]
WITHOUT_ENVIRONMENT = "env -i sh -c 'sleep 600; exit' {}"


def permits_namespaces() -> bool:
    words = ["unshare", "--net", "--uts", "--mount", "true"]
    return not missing("ip", "unshare") and subprocess.run(words).returncode == 0


needs_namespaces = pytest.mark.skipif(
    not permits_namespaces(), reason="`ip netns add` is not permitted here"
)
needs_accounting = pytest.mark.skipif(
    bool(missing("slurmdbd", "mariadbd")), reason="no slurmdbd and mariadbd here"
)


def processes_of(directory: Path) -> list[psutil.Process]:
    """Processes whose command or environment names a directory."""
    found = []
    for process in psutil.process_iter():
        try:
            words = [*process.cmdline(), *process.environ().values()]
        except psutil.Error:
            continue
        if any(str(directory) in word for word in words):
            found.append(process)
    return found


def traces() -> tuple[str, list[set[str]]]:
    """What a cluster must leave as it was: /etc/hosts, links and network namespaces."""
    return HOSTS.read_text(), [
        {entry.name for entry in folder.iterdir()} if folder.exists() else set()
        for folder in NETWORK
    ]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """Not up yet; afterwards nothing of it is left, whatever became of it."""
    before = traces()
    cluster = Cluster(tmp_path / "cluster")
    yield cluster
    cluster.down()
    assert traces() == before
    assert processes_of(cluster.directory) == []
    assert not cluster.directory.exists()


@pytest.fixture(scope="module")
def four_nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Up, and quick to give up nodes."""
    cluster = Cluster(tmp_path_factory.mktemp("dev") / "cluster")
    cluster.up("--node-timeout=3")
    yield cluster
    cluster.down()


def test_jobs_run_on_several_nodes_whose_names_resolve(four_nodes):
    words = ["srun", "--nodes=2", "sh", "-c", "echo $SLURMD_NODENAME; getent hosts n1"]
    lines = four_nodes.slurm(*words).splitlines()
    assert {line for line in lines if line.startswith("n")} == {"n1", "n2"}
    assert sum(line.split() == ["127.0.0.1", "n1"] for line in lines) == 2


def test_nodes_claim_gpus_and_a_job_sees_its_share(four_nodes):
    assert (
        four_nodes.slurm("srun", "--gres=gpu:h100:2", "printenv", "CUDA_VISIBLE_DEVICES") == "0,1"
    )


def test_up_twice_is_fine_and_other_options_are_refused(four_nodes):
    assert four_nodes.call("up").returncode == 0
    result = four_nodes.call("up", "--nodes=3")
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert "nodes=4, not 3" in result.stderr


def test_env_and_status_tell_of_it(four_nodes):
    assert (
        four_nodes.call("env").stdout
        == f"export SLURM_CONF={four_nodes.directory}/etc/slurm.conf\n"
    )
    status = four_nodes.call("status")
    assert status.returncode == 0
    assert "slurmd -N n4" in status.stdout


def test_a_job_of_the_gpu_partition_preempts_one_of_low(four_nodes):
    low = four_nodes.submit("sleep 600", "--partition=low", "--nodes=4", "--exclusive", "--requeue")
    high = four_nodes.submit("sleep 600", "--nodes=4", "--exclusive")
    wait_for(lambda: four_nodes.state(low) == "PENDING")
    four_nodes.slurm("scancel", low, high)
    wait_for(lambda: four_nodes.slurm("squeue", "--noheader") == "")


def test_a_frozen_node_stops_and_goes_on(four_nodes):
    task = four_nodes.directory / "frozen"
    job = four_nodes.submit(WITHOUT_ENVIRONMENT.format(task), "--nodelist=n3")
    wait_for(lambda: processes_of(task) != [])
    (process,) = processes_of(task)
    assert four_nodes.call("freeze-node", "n3").returncode == 0
    assert process.status() == psutil.STATUS_STOPPED
    assert four_nodes.call("thaw-node", "n3").returncode == 0
    assert process.status() != psutil.STATUS_STOPPED
    four_nodes.slurm("scancel", job)


def test_the_job_of_a_killed_node_goes_on_elsewhere_and_the_node_comes_back(four_nodes):
    task = four_nodes.directory / "killed"
    job = four_nodes.submit(WITHOUT_ENVIRONMENT.format(task), "--requeue")
    wait_for(lambda: processes_of(task) != [])
    killed = four_nodes.node_of(job)
    assert four_nodes.call("kill-node", killed).returncode == 0
    assert processes_of(task) == []
    wait_for(lambda: four_nodes.state(job) == "PENDING")

    def starts_now() -> bool:  # which Slurm accepts a while after the failure, instead of 120 s
        update = ["scontrol", "update", f"JobId={job}", "StartTime=now"]
        subprocess.run(update, env=four_nodes.environment, stderr=subprocess.DEVNULL)
        return four_nodes.state(job) == "RUNNING"

    wait_for(starts_now)
    assert four_nodes.node_of(job) != killed
    assert four_nodes.call("restart-node", killed).returncode == 0
    four_nodes.slurm("scancel", job)
    wait_for(lambda: four_nodes.slurm("srun", f"--nodelist={killed}", "echo", "up") == "up")


def test_a_node_without_a_cable_cannot_be_cut(four_nodes):
    result = four_nodes.call("cut-node", "n1")
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert "--namespaces" in result.stderr


def test_two_clusters_side_by_side(four_nodes, cluster):
    cluster.up("--nodes=1")
    job = cluster.submit("sleep 600", "--job-name=mine")
    assert cluster.node_of(job) == "n1"
    assert four_nodes.slurm("squeue", "--noheader", "--name=mine") == ""
    cluster.down()
    assert four_nodes.slurm("srun", "echo", "still up") == "still up"


def test_the_launcher_of_h14_is_accepted_as_it_is(cluster):
    cluster.up("--nodes=32")
    answer = cluster.slurm("sbatch", "--test-only", "launchers/pretrain_h14.sh")
    assert "using 2048 processors on nodes n[1-32]" in answer


def test_down_ends_jobs_as_slurm_does_and_keeps_the_logs(cluster, tmp_path):
    cluster.up("--nodes=1")
    ended = tmp_path / "ended"
    cluster.submit(f"srun sh -c 'trap \"touch {ended}; exit\" TERM; while :; do sleep 0.1; done'")
    wait_for(lambda: any("trap" in word for p in processes_of(ended) for word in p.cmdline()))
    assert cluster.call("down").returncode == 0
    assert ended.exists()
    assert (cluster.directory / "log" / "slurmctld.log").stat().st_size > 0


@pytest.mark.parametrize(
    "options", [(), pytest.param(("--namespaces",), marks=needs_namespaces)], ids=["", "namespaces"]
)
def test_down_after_a_crash_leaves_nothing_but_what_is_not_its_own(cluster, options):
    cluster.up("--nodes=2", *options)
    cluster.submit(WITHOUT_ENVIRONMENT.format(cluster.directory))
    log = str(cluster.directory / "log" / "slurmctld.log")
    with (
        cluster.started("srun", "--begin=now+1hour", "true") as waiting,
        cluster.started("tail", "-f", log) as reader,
        cluster.started("sleep", "600") as user,
    ):
        for process in processes_of(cluster.directory):
            if process.name() in ("slurmctld", "munged"):
                process.send_signal(signal.SIGKILL)
        shutil.rmtree(cluster.directory)
        assert cluster.call("down").returncode == 0
        assert waiting.wait(timeout=10) != 0
        assert (reader.poll(), user.poll()) == (None, None)


def test_down_of_nothing_is_silent(cluster):
    cluster.down()


@needs_namespaces
def test_namespaces_give_each_node_an_address_and_a_name(cluster, tmp_path):
    cluster.up("--nodes=2", "--namespaces")
    other = Cluster(tmp_path / "other")
    other.up("--nodes=2", "--namespaces")
    script = "echo $(hostname) $(getent hosts $(hostname) | cut -d ' ' -f 1)"
    words = ["srun", "--nodes=2", "sh", "-c", script]
    lines = [*cluster.slurm(*words).splitlines(), *other.slurm(*words).splitlines()]
    names, addresses = zip(*(line.split() for line in lines), strict=True)
    assert sorted(names) == ["n1", "n1", "n2", "n2"]
    assert len(set(addresses)) == 4
    other.down()


@needs_namespaces
def test_packets_of_a_node_that_is_cut_vanish(cluster):
    cluster.up("--nodes=2", "--namespaces")
    listing = cluster.slurm("scontrol", "show", "node", "n2")
    port = next(word for word in listing.split() if word.startswith("Port=")).partition("=")[2]
    connect = ["timeout", "1", "bash", "-c", f"exec 3<>/dev/tcp/n2/{port} && echo reached"]
    words = ["srun", "--nodelist=n1", "sh", "-c", '"$@" || echo silent', "_", *connect]
    answers = [cluster.slurm(*words)]
    for command in ("cut-node", "join-node"):
        assert cluster.call(command, "n2").returncode == 0
        answers.append(cluster.slurm(*words))
    assert answers == ["reached", "silent", "reached"]


@needs_accounting
def test_accounting_remembers_jobs(cluster):
    cluster.up("--nodes=1", "--accounting")
    cluster.slurm("srun", "--job-name=remembered", "true")
    sacct = ["sacct", "--allocations", "--noheader", "--parsable2", "--format=JobName,State"]
    wait_for(lambda: cluster.slurm(*sacct) == "remembered|COMPLETED")


def test_a_taken_port_is_named(cluster):
    port = free_port()
    with socket.create_server(("127.0.0.1", port + 12)):
        result = cluster.call("up", f"--port={port}")
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert f"port {port + 12} is taken" in result.stderr


def test_a_directory_that_holds_other_files_is_refused_and_kept(tmp_path):
    (tmp_path / "etc").mkdir()
    result = Cluster(tmp_path).call("up")
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert "holds other files" in result.stderr
    assert Cluster(tmp_path).call("down", "--purge").returncode == 0
    assert (tmp_path / "etc").is_dir()


def test_an_up_that_fails_leaves_nothing_but_the_log(cluster, tmp_path, monkeypatch):
    broken = tmp_path / "bin" / "slurmd"
    broken.parent.mkdir()
    broken.write_text("#!/bin/sh\necho no such node >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", f"{broken.parent}:{os.environ['PATH']}")
    result = cluster.call("up", f"--port={free_port()}")
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (1, "", 1)
    log = cluster.directory / "log"
    assert f"slurmd-n1 has not started: see {log}" in result.stderr
    assert (log / "slurmd-n1.log").read_text() == "no such node\n"
    assert processes_of(cluster.directory) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "no command"),
        (("uo",), "expected up, down, status, env"),
        (("up", "--nodes=many"), "expected a whole number"),
        (("up", "--port=65530"), "--port=65530: expected 1024 to"),
        (("up", "--node=3"), "no option --node=3"),
        (("up", "n1"), "n1 is one word too many"),
        (("down", "--nodes=3"), "nodes: only up takes this"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, words, message):
    result = Cluster(tmp_path / "cluster").call(*words)
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert message in result.stderr


def test_missing_packages_are_named(tmp_path):
    tools = tmp_path / "bin"
    tools.mkdir()
    for path in Path("/usr/bin").iterdir():
        if not path.name.startswith("srun"):
            (tools / path.name).symlink_to(path)
    result = subprocess.run(
        [SCRIPT, "up", f"--dir={tmp_path}/cluster"], env={"PATH": str(tools)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert "no srun here: apt-get install" in result.stderr


def test_what_needs_a_cluster_says_that_none_is_up(tmp_path):
    for command in ("status", "env", "kill-node"):
        result = Cluster(tmp_path / "cluster").call(command)
        assert (result.returncode, result.stderr.count("\n")) == (1, 1)
        assert "no cluster is up" in result.stderr
