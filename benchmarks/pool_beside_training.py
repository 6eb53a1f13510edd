"""python benchmarks/pool_beside_training.py: an evaluation pool beside a training run, under Slurm.

On a development cluster, data and run_dir in a bucket: launchers/pretrain.sh trains a small Mixer
on two nodes and saves every few steps; launchers/eval_pool.sh watches it meanwhile and submits a
job for each checkpoint and task. Every result is looked at again and again: one that is written
twice is a duplicate. Prints Markdown: how many results were expected, found, duplicated and
missing, and the seconds from a checkpoint's commit to a result; then writes the run's report.

--images FOLDER holds train/CLASS/*.jpg and test/CLASS/*.jpg, such as CIFAR-10; by default it is
scikit-learn's digits. Needs root on Debian, and a quarter of an hour on 2 cores. Ends with 1 where
a result is missing or duplicated.
"""

import argparse
import os
import secrets
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a bare checkout

from benchmarks.image_lists import class_names, write_list
from benchmarks.result_watch import ResultWatch
from benchmarks.soak_site import ROOT, call
from data_tools import sample_data, shard
from launchers import local_s3
from mixer_dist.config import load_config
from mixer_dist.errors import MixerError, RefusedError
from mixer_dist.progress import Progress
from mixer_dist.run_dir import RunDir
from mixer_dist.storage import Storage

BUCKET = "s3://beside"
SIZE_PX = 32
NUM_NODES = 3  # two for training; the third has the pool and its workers
NUM_TRAIN, NUM_TEST = 100, 50  # images a class
STEPS, EVERY = 200, 50
TICK_S = 1.0
PATIENCE_S = 3600.0
KINDS: dict[str, dict[str, Any]] = {
    "fewshot": {}, "knn": {}, "linear": {}, "upstream": {},
    "finetune": {"learning_rates": [0.03], "seeds": [0], "total_steps": 10,
                 "global_batch_size": 32, "micro_batch_size": 32},
}  # fmt: skip


def main() -> int:
    """Train, judge and count; the exit code."""
    arguments = parse_arguments()
    folder = arguments.folder.resolve()
    try:
        if folder.exists():
            raise RefusedError(f"{folder} exists: remove it, or choose another --folder")
        with slurm(folder, arguments.port), bucket(folder) as endpoint_url:
            config = prepared(folder, arguments.images, endpoint_url)
            is_wrong = watched(config, folder)
            report = "-m", "mixer_dist", "report", f"{BUCKET}/run", f"--config={config}"
            print("\n" + call(sys.executable, *report))
    except MixerError as error:
        print(f"pool_beside_training.py: {error}", file=sys.stderr)
        return error.exit_code
    return int(is_wrong)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--images", type=Path)
    parser.add_argument("--folder", type=Path, default=Path("build/pool_beside_training"))
    parser.add_argument("--port", type=int, default=18200, help="of Slurm, and some above it")
    return parser.parse_args()


@contextmanager
def slurm(folder: Path, port: int) -> Iterator[None]:
    """A cluster that this process and its children find."""
    place = f"--dir={folder / 'cluster'}"
    with ExitStack() as stack:
        stack.callback(call, "launchers/dev_cluster.sh", "down", place)
        call("launchers/dev_cluster.sh", "up", place, f"--nodes={NUM_NODES}", f"--port={port}")
        os.environ |= {
            "SLURM_CONF": str(folder / "cluster" / "etc" / "slurm.conf"),
            "PYTHON": sys.executable, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        yield


@contextmanager
def bucket(folder: Path) -> Iterator[str]:
    """An empty bucket, served; its endpoint."""
    directory = folder / "s3" / BUCKET.removeprefix("s3://")
    directory.mkdir(parents=True)
    key, secret = "beside", secrets.token_hex(16)
    os.environ |= {"AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": secret}
    with local_s3.serve(directory.parent, key=key, secret=secret) as endpoint_url:
        yield endpoint_url


def prepared(folder: Path, images: Path | None, endpoint_url: str) -> Path:
    """Shards in the bucket, and the configuration of a run on them."""
    if images is None:
        images = folder / "digits"
        sample_data.write_digits(images, SIZE_PX)
    classes = class_names(images)
    for split, per_class in (("train", NUM_TRAIN), ("test", NUM_TEST)):
        source = write_list(folder / f"{split}.csv", images / split, classes, per_class)
        options = ["--endpoint-url", endpoint_url, "--checksum", "when_required"]
        if code := shard.main([str(source), f"{BUCKET}/{split}", *options]):
            raise MixerError(f"data_tools/shard.py ended with {code}")
    config = folder / "beside.yaml"
    tree = run_tree(len(classes), endpoint_url) | {"pool": pool_tree(folder)}
    config.write_text(yaml.safe_dump(tree, sort_keys=False))
    return config


def run_tree(num_classes: int, endpoint_url: str) -> dict[str, Any]:
    """A small Mixer, and a task of each kind."""
    train, test = (f"{BUCKET}/{split}/manifest.json" for split in ("train", "test"))
    tasks = [
        {"name": kind, "kind": kind, "test": test, "resize": SIZE_PX, **options}
        | ({} if kind == "upstream" else {"train": train})
        for kind, options in KINDS.items()
    ]
    return {
        "run_dir": f"{BUCKET}/run", "total_steps": STEPS, "global_batch_size": 64,
        "micro_batch_size": 32,
        "model": {"patch_size": 4, "hidden_dim": 96, "num_blocks": 4, "tokens_mlp_dim": 48,
                  "channels_mlp_dim": 384, "image_size": SIZE_PX, "num_classes": num_classes,
                  "head_bias": -2.3},
        "data": {"train": [{"manifest": train}]},
        "augment": {"min_crop_area": 0.3},
        "optimizer": {"learning_rate": 2e-3, "warmup_steps": 20, "decay": "cosine",
                      "weight_decay": 0.1},
        "engine": {"name": "fsdp", "precision": "fp32"},
        "checkpoint": {"every_steps": EVERY},
        "storage": {BUCKET: {"endpoint_url": endpoint_url, "checksum": "when_required"}},
        "evals": tasks,
    }  # fmt: skip


def pool_tree(folder: Path) -> dict[str, Any]:
    """Two workers at once, each a job."""
    return {"executor": "slurm", "max_workers": 2, "poll_s": 5, "log_dir": str(folder / "workers"),
            "slurm": {"parameters": {"mem": "1G"}}}  # fmt: skip


def watched(config: Path, folder: Path) -> bool:
    """Train and judge at once, and print what came of it; whether anything is wrong."""
    ranks = "--ntasks-per-node=1", "--cpus-per-task=1", "--gpus-per-node=1"
    training = submit(folder, "pretrain", config, f"--nodes={NUM_NODES - 1}", *ranks)
    pool = submit(folder, "eval_pool", config)
    storage, steps = Storage(load_config(config).storage), range(EVERY, STEPS + 1, EVERY)
    results = ResultWatch(storage, RunDir(f"{BUCKET}/run"), KINDS, steps)
    num_found = 0
    with closing(Progress(len(results.expected), "results")) as progress:
        for _ in until_over([training, pool], folder):
            num_before, num_found = num_found, results.look()
            progress.add(num_found - num_before)
            progress.show_line()
    results.print_tables()
    return results.is_wrong


def until_over(jobs: Sequence[str], folder: Path) -> Iterator[None]:
    """A look every second, and one when all jobs have ended; MixerError where they do not."""
    give_up = time.monotonic() + PATIENCE_S
    while any(map(is_queued, jobs)):
        if time.monotonic() > give_up:
            raise MixerError(f"jobs {' and '.join(jobs)} do not end: see {folder}")
        yield
        time.sleep(TICK_S)
    yield


def submit(folder: Path, script: str, config: Path, *options: str) -> str:
    """As a user does; the job."""
    output = f"--output={folder}/{script}.out"
    return call(f"launchers/{script}.sh", str(config), *options, output).split()[-1]


def is_queued(job: str) -> bool:
    """Whether a job waits or runs."""
    return bool(call("squeue", "--noheader", "--format=%T", f"--jobs={job}").strip())


if __name__ == "__main__":
    sys.exit(main())
