"""python benchmarks/transfer.py --images FOLDER: what pretraining is worth on other images.

FOLDER holds CIFAR-10 as train/CLASS/*.jpg and test/CLASS/*.jpg. A small Mixer is pretrained on all
but two of its classes, by the recipe of configs/cifar10.yaml with larger patches and fewer steps.
Then 5-shot, knn, linear and fine-tuning, on 1,000 images of the two classes and on scikit-learn's
digits: of the pretrained network, of the same network untrained, and, where nothing is trained but
the classifier, of raw pixels.

Prints a Markdown table. Takes a quarter to half an hour on 2 CPU cores. What was done stays in
--folder: the same command goes on from there.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a bare checkout

from benchmarks.image_lists import class_names
from benchmarks.raw_pixels import score_pixels
from benchmarks.transfer_data import TARGETS, make_shards, tasks_on
from mixer_dist.config import FinetuneConfig, load_config, load_suite
from mixer_dist.errors import ConfigError, MixerError
from mixer_dist.eval.subject import UNTRAINED

ROOT = Path(__file__).resolve().parents[1]
RECIPE = "configs/cifar10.yaml"
NUM_STEPS = 400
PATCH_PX = 8
COLUMNS = ("raw pixels", "untrained", "pretrained")

Outcome = tuple[float, float]  # accuracy and its standard error


def main() -> int:
    """Pretrain and compare; the exit code."""
    arguments = parse_arguments()
    began = time.monotonic()
    try:
        held_out = chosen_classes(arguments.images, arguments.held_out)
        print(f"held out: {', '.join(held_out)}; {arguments.steps} steps", file=sys.stderr)
        table = Transfer(arguments.folder.resolve(), arguments.steps).measure(
            arguments.images, held_out
        )
    except MixerError as error:
        print(f"transfer.py: {error}", file=sys.stderr)
        return error.exit_code
    print_table(table)
    print(f"\n{time.monotonic() - began:.0f} s", file=sys.stderr)
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--folder", type=Path, default=Path("build/transfer"))
    parser.add_argument("--steps", type=int, default=NUM_STEPS, help="of pretraining")
    parser.add_argument(
        "--held-out", nargs="+", metavar="CLASS", help="by default the last two by name"
    )
    return parser.parse_args()


def chosen_classes(images: Path, given: Sequence[str] | None) -> list[str]:
    """The classes that are not pretrained on; ConfigError."""
    known = class_names(images)
    if unknown := [name for name in given or () if name not in known]:
        raise ConfigError(f"--held-out {unknown[0]}: expected some of {', '.join(known)}")
    return sorted(given or known[-2:])


class Transfer:
    """One pretrained network, and what it is compared with."""

    def __init__(self, folder: Path, num_steps: int) -> None:
        self._folder = folder
        self._num_steps = num_steps
        self._suite = folder / "tasks.yaml"

    def measure(self, images: Path, held_out: list[str]) -> dict[str, list[Outcome | None]]:
        """The outcome in each column, by task."""
        make_shards(images, held_out, self._folder)
        tasks = [task for name in TARGETS for task in tasks_on(name)]
        self._suite.write_text(yaml.safe_dump({"evals": tasks}, sort_keys=False))
        words = self._config_words(len(class_names(images)) - len(held_out))
        mixer_dist("pretrain", *words, output=sys.stderr)
        pixels = self._of_pixels(words)
        untrained, pretrained = self._of_network(words, UNTRAINED), self._of_network(words)
        return {name: [pixels.get(name), untrained[name], pretrained[name]] for name in pretrained}

    @property
    def _shards(self) -> Path:
        return self._folder / "shards"

    def _config_words(self, num_classes: int) -> list[str]:
        """The recipe, and what is different here."""
        manifest = self._shards / "pretrain" / "manifest.json"
        return [
            RECIPE, f"run_dir={json.dumps(str(self._folder / 'run'))}", "engine.name=single",
            f"total_steps={self._num_steps}", "checkpoint.every_steps=100",
            f"model.num_classes={num_classes}", f"model.patch_size={PATCH_PX}",
            f"data.train.0.manifest={json.dumps(str(manifest))}", "evals=[]",
        ]  # fmt: skip

    def _of_network(self, words: Sequence[str], *checkpoint: str) -> dict[str, Outcome]:
        """By task: the newest checkpoint, or the one that is named."""
        given = [f"--checkpoint={name}" for name in checkpoint]
        where = [f"--suite={self._suite}", f"--datasets={self._shards}"]
        lines = mixer_dist("evaluate", *words, *where, *given, "--json").splitlines()
        results: list[dict[str, Any]] = [json.loads(line) for line in lines]
        return {r["task"]: (r["accuracy"], r["standard_error"]) for r in results}

    def _of_pixels(self, words: Sequence[str]) -> dict[str, Outcome]:
        """By task, fine-tuning apart: there is nothing to train on."""
        tasks = load_suite(self._suite, str(self._shards)).evals
        closed = [task for task in tasks if not isinstance(task, FinetuneConfig)]
        found = score_pixels(load_config(words[0], words[1:]), closed)
        return {name: (each.accuracy, each.standard_error) for name, each in found.items()}


def mixer_dist(verb: str, *words: str, output: TextIO | int = subprocess.PIPE) -> str:
    """What a verb prints, unless it goes elsewhere; MixerError where it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "mixer_dist", verb, *words], cwd=ROOT, check=False, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=output,
    )  # fmt: skip
    if done.returncode:
        raise MixerError(f"mixer-dist {verb} ended with {done.returncode}: see above")
    return done.stdout


def print_table(table: dict[str, list[Outcome | None]]) -> None:
    """A row a task."""
    print(f"| on | task | {' | '.join(COLUMNS)} |\n|---|---|{'---|' * len(COLUMNS)}")
    for task, outcomes in table.items():
        target, kind = task.split("-")
        cells = [f"{o[0]:.1%} ± {100 * o[1]:.1f}" if o else "" for o in outcomes]
        print(f"| {TARGETS[target]} | {kind} | {' | '.join(cells)} |")


if __name__ == "__main__":
    sys.exit(main())
