"""Doctor finds nothing where all is well, and each fault that was planted where it is not."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from itertools import combinations
from pathlib import Path

import pytest

from mixer_dist import cli
from mixer_dist.operations.doctor.clocks import judge_clocks
from mixer_dist.operations.doctor.finding import ranks_in_words, summed, trouble, well
from mixer_dist.operations.doctor.gpu import judge_gpus, parse_gpus
from mixer_dist.operations.doctor.links import Link, all_pairs, judge_links, neighbours
from tests.conftest import LocalS3
from tests.operations import doctor_cases
from tests.ranks import ROOT, free_port

CONFIG = str(ROOT / "configs/quickstart.yaml")
HOSTS = ["n1", "n1", "n2", "n2"]
NAMESPACE, CABLE = f"doctor-{os.getpid()}", f"doctor{os.getpid()}"
NETWORK = f"198.19.{os.getpid() % 256}"  # set aside for tests of networks
SLOW = "tbf rate 40mbit burst 64kb latency 400ms"  # 5 MB/s


def arguments(s3: LocalS3, digits_s3: str, run_dir: str) -> list[str]:
    """The quickstart's config with run_dir and data in buckets."""
    storage = {"s3://": {"endpoint_url": s3.endpoint_url, "checksum": "when_required"}}
    return [
        CONFIG, f"run_dir={run_dir}", f"data.train.0.manifest={digits_s3}/train/manifest.json",
        f"storage={json.dumps(storage)}", "--json",
    ]  # fmt: skip


def bad(printed: str) -> dict[str, list[int]]:
    """Ranks by the name of what is wrong with them."""
    findings = json.loads(printed)["findings"]
    assert all(finding["mend"] for finding in findings if not finding["ok"])
    return {finding["name"]: finding["ranks"] for finding in findings if not finding["ok"]}


def test_a_healthy_set_up_has_no_bad_finding(ranks, s3, digits_s3):
    run_dir = s3.new_bucket()
    outcomes = ranks.run(2, doctor_cases.doctor, arguments(s3, digits_s3, run_dir))
    assert [code for code, _ in outcomes] == [0, 0], outcomes
    assert outcomes[1][1] == ""  # rank 0 speaks for all
    found = json.loads(outcomes[0][1])
    assert bad(outcomes[0][1]) == {}
    assert {"run_dir", "data", "links", "clocks"} <= {each["name"] for each in found["findings"]}
    assert s3.storage().names(run_dir) == []  # nothing of the probe is left


def may_make_networks() -> bool:
    words = ["unshare", "--net", "--mount", "true"]
    return os.geteuid() == 0 and bool(shutil.which("tc")) and not subprocess.run(words).returncode


def command(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)


def remove_network() -> None:
    for words in (["netns", "delete", NAMESPACE], ["link", "delete", CABLE]):
        subprocess.run(["ip", *words], capture_output=True)


@pytest.fixture
def slow_link() -> Iterator[None]:
    """A network namespace whose cable to this machine carries 5 MB/s."""
    remove_network()
    command("ip", "netns", "add", NAMESPACE)
    command("ip", "link", "add", CABLE, "type", "veth", "peer", "name", "eth0", "netns", NAMESPACE)
    command("ip", "address", "add", f"{NETWORK}.1/24", "dev", CABLE)
    command("ip", "link", "set", CABLE, "up")
    command("ip", "-n", NAMESPACE, "address", "add", f"{NETWORK}.2/24", "dev", "eth0")
    for name in ("eth0", "lo"):
        command("ip", "-n", NAMESPACE, "link", "set", name, "up")
    command("tc", "qdisc", "add", "dev", CABLE, "root", *SLOW.split())
    command("tc", "-n", NAMESPACE, "qdisc", "add", "dev", "eth0", "root", *SLOW.split())
    yield
    remove_network()


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    folder = tmp_path / "small"
    folder.mkdir()
    command("mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder))
    yield folder
    command("umount", str(folder))


def plant_lock(folder: Path) -> None:
    """What a compilation leaves that was killed."""
    (folder / "py311_cpu" / "fused_adam").mkdir(parents=True)
    (folder / "py311_cpu" / "fused_adam" / "lock").touch()


def plant_version(folder: Path) -> None:
    """Metadata of a numpy that another rank does not have."""
    (folder / "numpy-2.0.77.dist-info").mkdir(parents=True)
    text = "Metadata-Version: 2.1\nName: numpy\nVersion: 2.0.77\n"
    (folder / "numpy-2.0.77.dist-info" / "METADATA").write_text(text)


def plant_clock(library: Path) -> None:
    """A library that sets the clock of whoever loads it an hour ahead."""
    source = library.with_suffix(".c")
    source.write_text(
        "#define _GNU_SOURCE\n#include <time.h>\n#include <unistd.h>\n#include <sys/syscall.h>\n"
        "int clock_gettime(clockid_t clock, struct timespec *now) {\n"
        "  int failed = syscall(SYS_clock_gettime, clock, now);\n"
        "  if (clock == CLOCK_REALTIME) now->tv_sec += 3600;\n  return failed;\n}\n"
    )
    command("gcc", "-shared", "-fPIC", "-o", str(library), str(source))


@pytest.mark.skipif(not may_make_networks(), reason="needs root, tc and network namespaces")
@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")
def test_seven_planted_faults_are_seven_findings(s3, digits_s3, slow_link, full_disk, tmp_path):
    plant_lock(tmp_path / "extensions")
    plant_version(tmp_path / "packages")
    plant_clock(tmp_path / "clock.so")
    shared = {
        **os.environ, "WORLD_SIZE": "3", "LOCAL_WORLD_SIZE": "3", "OMP_NUM_THREADS": "1",
        "MASTER_ADDR": f"{NETWORK}.1", "MASTER_PORT": str(free_port()), "PYTHONPATH": str(ROOT),
        "GLOO_SOCKET_IFNAME": CABLE, "TORCH_EXTENSIONS_DIR": str(tmp_path / "none"),
    }  # fmt: skip
    of_ranks = [
        {"TORCH_EXTENSIONS_DIR": str(tmp_path / "extensions")},
        {"TMPDIR": str(full_disk), "LD_PRELOAD": str(tmp_path / "clock.so")},
        {"PYTHONPATH": f"{tmp_path / 'packages'}:{ROOT}", "GLOO_SOCKET_IFNAME": "eth0"},
    ]
    before = [[], ["prlimit", "--nofile=300"], ["ip", "netns", "exec", NAMESPACE]]
    words = [sys.executable, "-m", "mixer_dist", "doctor"]
    words += arguments(s3, digits_s3, "s3://no-such-bucket/run")
    started = [
        subprocess.Popen(
            [*before[rank], *words], stdout=subprocess.PIPE, text=True, cwd=ROOT,
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank), **of_ranks[rank]},
        )
        for rank in range(3)
    ]  # fmt: skip
    printed = [process.communicate(timeout=120)[0] for process in started]
    assert [process.returncode for process in started] == [1, 1, 1]
    assert printed[1:] == ["", ""]
    assert bad(printed[0]) == {
        "compile locks": [0], "run_dir": [0], "open files": [1], "disk": [1], "clocks": [1],
        "same packages": [2], "links": [2],
    }  # fmt: skip


def test_a_rank_that_cannot_join_says_what_it_knows(capsys, monkeypatch, tmp_path):
    plant_lock(tmp_path)
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    place = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    assert cli.main(["doctor"]) == 1
    printed = capsys.readouterr().out
    assert f"mend: rm {tmp_path}" in printed
    assert "needs MASTER_ADDR" in printed


def test_a_lock_that_a_process_holds_is_no_finding(capsys, monkeypatch, tmp_path):
    plant_lock(tmp_path)
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    with open(tmp_path / "py311_cpu" / "fused_adam" / "lock"):
        cli.main(["doctor", "--json"])  # whatever else this machine lacks
    assert "compile locks" not in bad(capsys.readouterr().out)
    assert cli.main(["doctor", "--json"]) == 1
    assert "compile locks" in bad(capsys.readouterr().out)


@pytest.mark.parametrize("world_size", range(2, 12))
def test_every_pair_meets_once_and_nobody_twice_at_a_time(world_size):
    rounds = all_pairs(world_size)
    met = [pair for pairs in rounds for pair in pairs]
    assert sorted(met) == list(combinations(range(world_size), 2))
    for pairs in rounds:
        busy = [rank for pair in pairs for rank in pair]
        assert len(busy) == len(set(busy))


def test_rings_run_within_nodes_and_between_them():
    pairs = {pair for pairs in neighbours(HOSTS) for pair in pairs}
    assert pairs == {(0, 1), (1, 2), (2, 3), (0, 2), (1, 3)}


def network(slow: set[tuple[int, int]]) -> list[Link]:
    """Links of four ranks, some of them at a tenth of the others' pace."""
    return [
        Link(low, high, *((5e-3, 9e7) if (low, high) in slow else (1e-4, 9e8)))
        for low, high in combinations(range(4), 2)
    ]


def test_the_rank_that_slow_links_share_is_named():
    (finding,) = judge_links("links", network({(0, 2), (1, 2), (2, 3)}), HOSTS)
    assert not finding.ok
    assert finding.ranks == (2,)
    assert "slow to 3 others: 5.00 ms and 90 MB/s" in finding.text
    assert "usual are 0.10 ms and 900 MB/s" in finding.text


def test_a_single_slow_pair_is_named():
    (finding,) = judge_links("links", network({(1, 3)}), HOSTS)
    assert finding.ranks == (1, 3)
    assert "(1 and 3)" in finding.text


def test_links_between_nodes_may_be_slower_than_within():
    between = {(0, 2), (0, 3), (1, 2), (1, 3)}
    (finding,) = judge_links("links", network(between), HOSTS)
    assert finding.ok


def test_two_ranks_with_a_hopeless_link_are_told_so():
    (finding,) = judge_links("links", [Link(0, 1, 1e-4, 1e6)], ["n1", "n2"])
    assert not finding.ok


def test_a_node_whose_clock_is_off_is_one_finding():
    (finding,) = judge_clocks({1: 0.001, 2: -1000.0, 3: -1000.0}, HOSTS)
    assert not finding.ok
    assert finding.ranks == (2, 3)
    assert "1,000.0 s behind rank 0 on n1, and S3 refuses what it signs" in finding.text


def test_gpus_in_use_and_gpus_with_errors_are_named():
    text = (
        "0, NVIDIA H100 80GB HBM3, 4, 81559, 0\n1, NVIDIA H100 80GB HBM3, 40000, 81559, 0\n"
        "2, NVIDIA H100 80GB HBM3, 4, 81559, 3\n3, NVIDIA GeForce, 4, 81559, [N/A]\n"
    )
    found = [f for f in judge_gpus(parse_gpus(text), num_visible=4, num_ranks=4) if not f.ok]
    assert [f.text.split(" of ")[0] for f in found] == [
        "GPU 1 has 40,000", "GPU 2 had 3 memory errors that ECC cannot correct",
    ]  # fmt: skip
    (hidden, *_) = judge_gpus(parse_gpus(text), num_visible=1, num_ranks=4)
    assert not hidden.ok
    assert "PyTorch sees 1" in hidden.text


def test_the_same_finding_of_many_ranks_is_told_once():
    fine, slow = well("disk", "free"), trouble("disk", "full", "make room")
    found = summed([[well("names", "n1"), fine], [well("names", "n2"), slow], [fine], [slow]])
    assert [(f.name, f.ok, f.ranks) for f in found] == [
        ("names", True, (0, 1)), ("disk", False, (1, 3)), ("disk", True, (0, 2)),
    ]  # fmt: skip
    assert ranks_in_words([3, 0, 1], HOSTS) == "ranks 0-1, 3 on n1, n2"
    assert asdict(found[0])["text"] == "n1"
