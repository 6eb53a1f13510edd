"""Evaluation tasks on raw pixels: the same classifiers, with no network before them."""

import hashlib
from collections.abc import Iterable

import torch

from mixer_dist import distributed
from mixer_dist.config import RunConfig, TrainedTask
from mixer_dist.data.manifest import load_dataset
from mixer_dist.eval.score import Score
from mixer_dist.eval.setting import Setting
from mixer_dist.eval.subject import Subject
from mixer_dist.eval.tasks import score
from mixer_dist.liveness import peers_watched
from mixer_dist.storage import Storage

NAME = "raw pixels"


class Pixels(torch.nn.Module):
    """A network whose features are the pixels."""

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """(n, 3, H, W) to (n, 3HW)."""
        return images.flatten(1)


def score_pixels(config: RunConfig, tasks: Iterable[TrainedTask]) -> dict[str, Score]:
    """By task; the images are those that a network of this configuration would see."""
    sha256 = hashlib.sha256(NAME.encode()).hexdigest()
    subject, storage = Subject(NAME, sha256, 0, False, Pixels), Storage(config.storage)
    found = {}
    with distributed.connected(config.collective_timeout_s), peers_watched() as peers:
        for task in tasks:
            datasets = {
                split: load_dataset(storage, [(url, 1)]) for split, url in task.datasets.items()
            }
            found[task.name] = score(task, Setting(config, storage, subject, datasets, peers))
    return found
