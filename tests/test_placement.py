"""A process finds its place under srun without anything being exported."""

import pytest

from mixer_dist.distributed.placement import Placement, first_host, placement, set_main_address
from mixer_dist.errors import RefusedError

STEP = {
    "SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "7", "SLURM_LOCALID": "1", "SLURM_NODEID": "2",
    "SLURM_STEP_TASKS_PER_NODE": "2(x3),1", "SLURM_STEP_NODELIST": "gpu[007-010]",
    "SLURM_JOB_ID": "123456", "SLURM_STEP_ID": "3",
}  # fmt: skip


def test_the_tasks_of_each_node_are_its_ranks():
    assert placement(STEP) == Placement(rank=5, world_size=7, local_rank=1, local_world_size=2)
    last = STEP | {"SLURM_NODEID": "3", "SLURM_PROCID": "6", "SLURM_LOCALID": "0"}
    assert placement(last) == Placement(rank=6, world_size=7, local_rank=0, local_world_size=1)


def test_what_torchrun_says_goes_before():
    given = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    assert placement(STEP | given) == Placement(1, 2, 1, 2)


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("n1", "n1"), ("n1,n2", "n1"), ("n[1-4]", "n1"), ("gpu[007-009,12],x", "gpu007"),
        ("gpu[3,5]-ib", "gpu3-ib"), ("a-b-12", "a-b-12"),
    ],
)  # fmt: skip
def test_the_first_node_of_a_step_is_found(nodes, host):
    assert first_host(nodes) == host


def test_all_ranks_of_a_step_find_the_same_address(monkeypatch):
    for name, value in STEP.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    monkeypatch.setenv("MASTER_PORT", "1")  # restored afterwards
    monkeypatch.delenv("MASTER_PORT")
    host, port = set_main_address().split(":")
    assert host == "gpu007" and 10_000 <= int(port) < 30_000
    monkeypatch.delenv("MASTER_PORT")
    monkeypatch.setenv("SLURM_STEP_ID", "4")
    assert set_main_address() != f"{host}:{port}"  # the next step of the job
    monkeypatch.setenv("MASTER_ADDR", "given")
    monkeypatch.setenv("MASTER_PORT", "29500")
    assert set_main_address() == "given:29500"


def test_without_a_launcher_the_address_is_asked_for(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name, value in {"RANK": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    for name in ("MASTER_ADDR", "MASTER_PORT", "SLURM_STEP_NODELIST"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(RefusedError, match="needs MASTER_ADDR and MASTER_PORT: start with"):
        set_main_address()
