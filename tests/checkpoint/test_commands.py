"""`mixer-dist checkpoint ls, verify, pin, unpin, gc` as a user meets them."""

import json
from pathlib import Path

import pytest

from mixer_dist import cli
from mixer_dist.checkpoint.leases import acquire
from mixer_dist.storage import join


@pytest.fixture
def command(run, s3, capsys):
    """Runs `checkpoint …` on the run; exit code, what is on stdout, the lines on stderr."""
    in_bucket = run.run_dir.url.startswith("s3://")
    options = s3.shard_options() if in_bucket else []

    def call(*arguments: str) -> tuple[int, str, list[str]]:
        code = cli.main(["checkpoint", *arguments, *options])
        shown = capsys.readouterr()
        assert "Traceback" not in shown.err
        return code, shown.out, shown.err.splitlines()

    return call


def content(run) -> dict[str, list[str]]:
    """The names in each checkpoint's folder."""
    folders = run.storage.names(run.run_dir.checkpoints)
    return {name: run.storage.names(join(run.run_dir.checkpoints, name)) for name in folders}


def test_ls_tells_what_there_is_of_each(run, command):
    run.commit_all(100, 200)
    acquire(run.storage, run.url(100), "eval-1")
    assert command("pin", run.url(200))[0] == 0
    run.write_pieces(300)
    code, out, _ = command("ls", run.run_dir.url)
    title, first, second, problem = out.splitlines()
    assert code == 0
    assert title.split() == [
        "step", "age", "size", "engine", "ranks", "attempt", "verified", "leases", "pinned",
        "checkpoint",
    ]  # fmt: skip
    assert first.split()[0] == "200" and first.split()[-4:] == ["-", "-", "yes", run.url(200)]
    assert second.split()[0] == "100" and second.split()[-3:] == ["eval-1", "-", run.url(100)]
    assert "step-00000300" in problem


def test_ls_verifies_when_asked(run, command):
    run.commit_all(100, 200)
    run.damage(100)
    code, out, _ = command("ls", run.run_dir.url, "--verify", "--json")
    rows = json.loads(out)
    assert code == 1
    assert [row.get("verified") for row in rows[:2]] == [True, False]
    assert rows[0]["num_bytes"] > 0 and rows[0]["age_s"] >= 0
    assert "pieces-0001-00001.safetensors" in rows[2]["problem"]


def test_verify_names_every_damaged_file(run, command):
    url = run.commit(100)
    assert command("verify", url)[0] == 0
    run.damage(100)
    run.storage.delete(join(url, "pieces-0001-00000.safetensors"))
    code, out, lines = command("verify", url, "--json")
    assert code == 1
    assert len(json.loads(out)["damages"]) == 2
    assert len(lines) == 1
    assert all(f"pieces-0001-0000{rank}" in lines[0] for rank in range(2))


def test_gc_follows_the_rules_of_the_last_start(run, command):
    run.start(1, keep_last=1)
    run.start(2, keep_last=2, lease_grace_s=0.01)
    run.commit_all(100, 200, 300)
    before = content(run)
    code, out, _ = command("gc", run.run_dir.url, "--dry-run")
    assert code == 0
    assert "would remove step 100\nkept step 200: last 2\n" in out
    assert content(run) == before
    code, out, lines = command("gc", run.run_dir.url, "--json")
    assert code == 0 and json.loads(out)["removed"] == [100]
    assert any("waiting" in line for line in lines)
    assert run.steps() == [200, 300]
    assert "nothing to remove" in command("gc", run.run_dir.url)[1]
    assert "removed step 200" in command("gc", run.run_dir.url, "--keep-last", "1")[1]


def test_gc_leaves_what_is_pinned_or_leased_and_says_so(run, command):
    run.start(1, keep_last=1, lease_grace_s=0.01)
    run.commit_all(100, 200, 300, 400)
    acquire(run.storage, run.url(200), "dead", seconds=600)
    command("pin", run.url(100))
    out = command("gc", run.run_dir.url)[1]
    assert "kept step 100: pinned" in out and "kept step 200: leased by dead" in out
    assert "removed step 300" in out
    command("unpin", run.url(100))
    acquire(run.storage, run.url(200), "dead", seconds=0.2)  # takes the place of the long one
    out = command("gc", run.run_dir.url, "--wait")[1]
    assert "removed step 100" in out and "removed step 200" in out
    assert run.steps() == [400]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["gc", "{run}", "--keep-every", "100"], "set keep_last too"),
        (["gc", "{run}", "--keep-last", "0"], "keep_last"),
        (["gc", "{run}/nowhere"], "no run at"),
        (["ls", "{run}/nowhere"], "no checkpoints in"),
        (["pin", "{run}"], "expected a checkpoint of a run"),
        (["pin", "{run}/checkpoints/step-00000007"], "no checkpoint at"),
        (["unpin", "{run}/checkpoints/step-00000100"], "is not pinned"),
        (["verify", "{run}/checkpoints/step-00000007"], "no checkpoint at"),
        (["ls", "{run}", "--config", "none.yaml", "--region", "x"], "leave out --region"),
        (["ls", "{run}", "--config", "none.yaml"], "none.yaml"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(disk_run, capsys, arguments, expected):
    disk_run.start(1)
    disk_run.commit(100)
    argv = [argument.format(run=disk_run.run_dir.url) for argument in arguments]
    assert cli.main(["checkpoint", *argv]) == 2
    error = capsys.readouterr().err
    assert expected in error and len(error.splitlines()) == 1
    assert disk_run.steps() == [100]


def test_a_config_says_how_to_reach_storage(s3_run, s3, tmp_path, capsys):
    s3_run.commit(100)
    quickstart = Path(__file__).resolve().parents[2] / "configs/quickstart.yaml"
    config = tmp_path / "run.yaml"
    storage = json.dumps({"s3://": s3.options().model_dump(exclude_none=True)})
    config.write_text(f"{quickstart.read_text()}\nstorage: {storage}\n")
    assert cli.main(["checkpoint", "ls", s3_run.run_dir.url, "--config", str(config)]) == 0
    assert s3_run.url(100) in capsys.readouterr().out
