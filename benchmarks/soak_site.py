"""What a soak runs on: a Slurm whose nodes have addresses of their own, a bucket, a run in it."""

import os
import re
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import yaml

from data_tools import sample_data, shard
from launchers import local_s3
from mixer_dist.config import load_config
from mixer_dist.errors import MixerError
from mixer_dist.run_dir import RunDir, attempt_numbers
from mixer_dist.storage import Storage

ROOT = Path(__file__).resolve().parents[1]
NODES = ("n1", "n2", "n3", "n4")
RANK_NODES = 3  # one is left for when another fails
BUCKET_MB = 1024
PORT = 17200
PATIENCE_S = 900.0  # for a run that goes on by itself
TRAINS = ["-m", "mixer_dist", "pretrain"]  # after the interpreter
STEP_LINE = re.compile(r"^\S+ step (\d+)/", re.MULTILINE)


class Site:
    """Cluster, store and job; `run_dir` and what lies beside it outlive it."""

    def __init__(self, folder: Path, total_steps: int) -> None:
        self.folder = folder
        self.disk = folder / "disk"
        self.slow = folder / "slow"
        """While it exists, every sample takes a while: steps take as long as in a real run."""
        self.run_dir = RunDir("s3://soak/run")
        self.job = ""
        self._total_steps = total_steps
        self._stack = ExitStack()

    def __enter__(self) -> "Site":
        self.logs.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            stack.callback(self.cluster, "down")
            self.cluster("up", "--namespaces", f"--nodes={len(NODES)}", f"--port={PORT}")
            os.environ["SLURM_CONF"] = str(self.folder / "cluster" / "etc" / "slurm.conf")
            self._mount()
            stack.enter_context(self._store())
            self._write_config()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def discard(self) -> None:
        """Leave nothing of it."""
        call("umount", str(self.disk))
        shutil.rmtree(self.folder)

    @property
    def storage(self) -> Storage:
        """Of the run."""
        return Storage(load_config(self.config).storage)

    @property
    def config(self) -> Path:
        return self.folder / "soak.yaml"

    @property
    def logs(self) -> Path:
        return self.folder / "logs"

    @property
    def store(self) -> psutil.Process:
        """The process that serves the bucket."""
        [found] = [p for p in psutil.Process().children() if p.name() == "rclone"]
        return found

    def cluster(self, *words: str) -> None:
        """Run dev_cluster.sh."""
        call("launchers/dev_cluster.sh", *words, f"--dir={self.folder / 'cluster'}")

    def submit(self, num_nodes: int, *options: str) -> None:
        """As a user does."""
        said = call(
            "launchers/pretrain.sh", str(self.config), f"--nodes={num_nodes}",
            "--ntasks-per-node=1", "--cpus-per-task=1", "--gpus-per-node=1", "--partition=low",
            f"--output={self.logs}/%j.out", *options,
        )  # fmt: skip
        self.job = said.split()[-1]

    @property
    def is_over(self) -> bool:
        """Whether the job waits for nothing and runs no more."""
        states = "--states=PENDING,RUNNING,COMPLETING,CONFIGURING,REQUEUED,REQUEUE_HOLD,SUSPENDED"
        return not call("squeue", "--noheader", "--format=%T", f"--jobs={self.job}", states).strip()

    @property
    def nodes(self) -> list[str]:
        """Those that the job has now."""
        names = call("squeue", "--noheader", f"--jobs={self.job}", "--format=%N").strip()
        return call("scontrol", "show", "hostnames", names).split() if names else []

    def ranks(self) -> list[psutil.Process]:
        """Processes of the job that train."""
        found = []
        for process in psutil.process_iter():
            try:
                words, environment = process.cmdline(), process.environ()
            except psutil.Error:
                continue
            is_ours = environment.get("SLURM_CONF") == os.environ["SLURM_CONF"]
            if is_ours and "SLURM_PROCID" in environment and words[1:4] == TRAINS:
                found.append(process)
        return found

    def steps(self) -> list[int]:
        """The steps that rank 0 has told, in the order of their lines, over all jobs."""
        logs = sorted(self.logs.glob("*.out"), key=lambda path: path.stat().st_mtime)
        return [int(step) for log in logs for step in STEP_LINE.findall(log.read_text())]

    def wait_for_step(self, after: int) -> int:
        """The first step beyond one, waited for; MixerError where the run does not come to it."""
        give_up = time.monotonic() + PATIENCE_S
        while (step := max(self.steps(), default=0)) <= after:
            if time.monotonic() > give_up or self.is_over:
                raise MixerError(
                    f"job {self.job} does not go on from step {after}: see {self.logs}"
                )
            time.sleep(0.2)
        return step

    @property
    def newest_attempt(self) -> int:
        return attempt_numbers(self.storage, self.run_dir)[-1]

    def wait_for_attempt(self, after: int) -> None:
        """Until the run has been started anew; MixerError where that does not happen."""
        give_up = time.monotonic() + PATIENCE_S
        while self.newest_attempt <= after:
            if time.monotonic() > give_up or self.is_over:
                raise MixerError(f"job {self.job} does not start again: see {self.logs}")
            time.sleep(0.2)

    def _mount(self) -> None:
        """A disk for the bucket that can be full."""
        self.disk.mkdir(exist_ok=True)
        if not self.disk.is_mount():
            call("mount", "-t", "tmpfs", "-o", f"size={BUCKET_MB}m", "tmpfs", str(self.disk))
        (self.disk / "soak").mkdir(exist_ok=True)

    @contextmanager
    def _store(self) -> Iterator[None]:
        key, secret = "soak", secrets.token_hex(16)
        os.environ |= {"AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": secret}
        address = self._address()
        with local_s3.serve(self.disk, key=key, secret=secret, host=address) as self.endpoint_url:
            yield

    def _address(self) -> str:
        """This machine's, as the nodes see it."""
        text = Path(os.environ["SLURM_CONF"]).read_text()
        match = re.search(r"^SlurmctldHost=\S*\((\S+)\)", text, re.MULTILINE)
        assert match, text
        return match[1]

    def _write_config(self) -> None:
        manifest = self.disk / "soak" / "digits" / "manifest.json"
        if not manifest.exists():
            sample_data.write_digits(self.folder / "images", size_px=32)
            shard.main([str(self.folder / "images" / "train"), str(manifest.parent)])
        model = {
            "patch_size": 8, "hidden_dim": 32, "num_blocks": 2, "tokens_mlp_dim": 16,
            "channels_mlp_dim": 64, "image_size": 32, "num_classes": 10,
        }  # fmt: skip
        tree = {
            "run_dir": self.run_dir.url, "total_steps": self._total_steps,
            "global_batch_size": 24, "micro_batch_size": 8, "model": model,
            "data": {
                "train": [{"manifest": "s3://soak/digits/manifest.json"}],
                "stages": ["benchmarks.soak_stage.wait"],
            },
            "optimizer": {"learning_rate": 1e-3, "warmup_steps": 10},
            "engine": {"name": "ddp", "precision": "fp32", "start_timeout_s": 120.0,
                       "hang_timeout_s": 45.0},
            "checkpoint": {"every_steps": 10, "timeout_s": 60.0, "grace_s": 20.0},
            "logging": {"every_steps": 1},
            "storage": {"s3://soak": {
                "endpoint_url": self.endpoint_url, "checksum": "when_required", "deadline_s": 40.0,
            }},
        }  # fmt: skip
        self.config.write_text(yaml.safe_dump(tree, sort_keys=False))
        os.environ |= {
            "PYTHON": sys.executable, "PYTHONPATH": str(ROOT), "SOAK_SLOW": str(self.slow),
            "AWS_ENDPOINT_URL": self.endpoint_url,
            "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required", "MIN_NODES": "2",
            "RETRY_S": "5", "OMP_NUM_THREADS": "1",
        }  # fmt: skip


def call(*words: str) -> str:
    """What a command prints; MixerError where it fails."""
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise MixerError(f"{' '.join(words)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout
