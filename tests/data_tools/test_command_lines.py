"""The tools as commands: each runs from any folder, and --help waits for no heavy package."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("tool", ["index", "verify", "relabel"])
@pytest.mark.parametrize("directory", ["/", str(ROOT)])
def test_help_works_from_any_directory(tool, directory):
    done = subprocess.run(
        [sys.executable, "-X", "importtime", f"{ROOT}/data_tools/{tool}.py", "--help"],
        cwd=directory,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0
    assert f"example: python data_tools/{tool}.py" in " ".join(done.stdout.split())
    modules = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "mixer_dist.storage" in modules and "torch" not in modules


@pytest.mark.parametrize("tool", ["index", "verify", "relabel"])
def test_workers_must_be_at_least_one(tool):
    arguments = {"relabel": ["m", "l", "--output", "o"], "verify": ["m"], "index": ["t", "d"]}[tool]
    done = subprocess.run(
        [sys.executable, f"{ROOT}/data_tools/{tool}.py", *arguments, "--workers", "0"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and "argument --workers: must be at least 1" in done.stderr
