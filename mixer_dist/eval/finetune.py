"""Fine-tuning on a downstream dataset: a learning rate chosen on dev, then a run for each seed.

Each is a pretraining run like any other, under evals/<task>/runs/: it goes on after an
interruption, and leaves its metrics. Its weights are removed once they are judged.
"""

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from mixer_dist import distributed
from mixer_dist.checkpoint.catalog import known_steps
from mixer_dist.checkpoint.layout import MANIFEST_NAME
from mixer_dist.checkpoint.load import full_tensors
from mixer_dist.checkpoint.restore import newest_verified
from mixer_dist.config import FinetuneConfig, RunConfig
from mixer_dist.data.evaluation_stream import EvaluationShare, evaluation_stream
from mixer_dist.data.manifest import Dataset
from mixer_dist.errors import CheckpointError, ConfigError, MissingError
from mixer_dist.eval.features import BATCH_IMAGES, RESIZE_RATIO
from mixer_dist.eval.finetune_config import finetune_config
from mixer_dist.eval.score import Score, mean_over_ranks
from mixer_dist.eval.setting import Setting
from mixer_dist.eval.subject import UNTRAINED
from mixer_dist.run_dir import RunDir
from mixer_dist.stop_requests import StopRequests
from mixer_dist.storage import Storage, join
from mixer_dist.train.build import empty_model
from mixer_dist.train.objective import normalized
from mixer_dist.train.pretrain import train_run

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Finetuning:
    """All runs of a task on one subject."""

    task: FinetuneConfig
    setting: Setting
    stop_requests: StopRequests = field(default_factory=StopRequests)

    def score(self) -> Score:
        """Accuracy on test after runs with the best learning rate. All ranks must call this.

        PreemptedError once a rank was asked to stop; the same call goes on.
        """
        with self.stop_requests:
            on_dev = self._on_dev()
            rate = max(self.task.learning_rates, key=lambda rate: on_dev.get(rate, 0.0))
            found = [self._on_test(rate, seed) for seed in self.task.seeds]
        details = {
            "learning_rate": rate,
            "dev_accuracies": {f"{rate:g}": accuracy for rate, accuracy in on_dev.items()},
            "total_steps": self.task.total_steps,
        }
        num_judged, num_classes = self.setting.datasets["test"].num_samples, len(self._classes())
        return Score(tuple(found), num_judged, num_classes, self.task.seeds, details)

    def _on_dev(self) -> dict[float, float]:
        """Accuracy by learning rate, trained on train alone; nothing where there is no choice."""
        rates, seed = self.task.learning_rates, self.task.seeds[0]
        return {rate: self._accuracy(f"dev-{rate:g}", ["train"], "dev", rate, seed)
                for rate in rates if len(rates) > 1}  # fmt: skip

    def _on_test(self, rate: float, seed: int) -> float:
        splits = [split for split in ("train", "dev") if split in self.setting.datasets]
        return self._accuracy(f"test-seed-{seed}", splits, "test", rate, seed)

    def _accuracy(
        self, name: str, trained_on: Sequence[str], judged_on: str, rate: float, seed: int
    ) -> float:
        """Of one run, which is trained unless its outcome is there. All ranks must call this."""
        run_dir = RunDir(join(self._folder, name))
        outcome = distributed.on_main(lambda: self._outcome(run_dir))
        if outcome is None:
            logger.info("%s: %s, learning rate %g, seed %d", self.task.name, name, rate, seed)
            config = self._run_config(run_dir, trained_on, rate, seed)
            train_run(config, self.setting.peers, (), self.stop_requests)
            accuracy = self._judge(config, run_dir, self.setting.datasets[judged_on])
            outcome = {"learning_rate": rate, "seed": seed, "accuracy": accuracy}
            distributed.on_main(partial(self._conclude, run_dir, outcome))
        return float(outcome["accuracy"])

    def _run_config(
        self, run_dir: RunDir, splits: Sequence[str], rate: float, seed: int
    ) -> RunConfig:
        is_untrained = self.setting.subject.checkpoint == UNTRAINED
        init_from = (
            self.setting.config.init_from if is_untrained else self.setting.subject.checkpoint
        )
        urls = [self.task.datasets[split] for split in splits]
        num_classes = len(self._classes())
        return finetune_config(
            self.setting.config, self.task, run_dir.url, init_from, urls, num_classes, rate, seed
        )

    def _judge(self, config: RunConfig, run_dir: RunDir, dataset: Dataset) -> float:
        """Accuracy of a run's last checkpoint. All ranks must call this."""
        checkpoint = newest_verified(self.setting.storage, run_dir)
        if checkpoint is None or checkpoint.manifest.step != config.total_steps:
            raise CheckpointError(f"{run_dir.url} has ended without its last checkpoint")
        model = empty_model(config.model)
        model.load_state_dict(full_tensors(self.setting.storage, checkpoint), assign=True)
        logits = model.to(distributed.device(), torch.float32).eval()
        return accuracy(logits, config, dataset, self.setting.storage, self.task.resize)

    @property
    def _folder(self) -> str:
        """Of the runs that begin with this subject."""
        evaluations = RunDir(self.setting.config.run_dir).evaluations(self.task.name)
        return join(evaluations, "runs", self.setting.subject.sha256[:16])

    def _classes(self) -> tuple[str, ...]:
        classes = self.setting.datasets["train"].classes
        if not classes:
            raise ConfigError(f"{self.task.name}: {self.task.train} names no classes: relabel it")
        return tuple(classes)

    def _outcome(self, run_dir: RunDir) -> dict[str, Any] | None:
        try:
            return dict(json.loads(self.setting.storage.read(_outcome_file(run_dir))))
        except MissingError:
            return None

    def _conclude(self, run_dir: RunDir, outcome: dict[str, Any]) -> None:
        """Write down what a run came to, then drop its checkpoints."""
        self.setting.storage.write(_outcome_file(run_dir), (json.dumps(outcome) + "\n").encode())
        for step in known_steps(self.setting.storage, run_dir):
            url = run_dir.checkpoint(step)
            for name in sorted(
                self.setting.storage.names(url), key=lambda name: name != MANIFEST_NAME
            ):
                self.setting.storage.delete(join(url, name))
            self.setting.storage.delete_folder(url)


def accuracy(
    logits: Callable[[torch.Tensor], torch.Tensor],
    config: RunConfig,
    dataset: Dataset,
    storage: Storage,
    resize_px: int | None = None,
) -> float:
    """Share of a dataset's images whose largest logit is their label's. All ranks must call this.

    `logits` maps images (m, 3, H, W) to (m, K). The same on any number of ranks.
    """
    size_px, right = config.model.image_size, []
    batches = evaluation_stream(
        config,
        dataset,
        storage,
        resize_px=resize_px or round(size_px * RESIZE_RATIO),
        share=EvaluationShare(distributed.rank(), distributed.world_size(), BATCH_IMAGES),
    )
    with torch.inference_mode():
        for batch in batches:
            pixels = normalized(batch.images.to(distributed.device()), torch.float32)
            predicted = logits(pixels).argmax(1).cpu()
            right.append((predicted == batch.labels)[batch.weights > 0])
    return mean_over_ranks(right)


def _outcome_file(run_dir: RunDir) -> str:
    return join(run_dir.url, "outcome.json")
