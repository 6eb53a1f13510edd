"""What an evaluation task is carried out on."""

from dataclasses import dataclass

from mixer_dist.config import RunConfig, Task
from mixer_dist.data.manifest import Dataset
from mixer_dist.eval.feature_set import FeatureSet
from mixer_dist.eval.features import dataset_features
from mixer_dist.eval.subject import Subject
from mixer_dist.liveness import Peers
from mixer_dist.storage import Storage


@dataclass(frozen=True)
class Setting:
    """A model and datasets, among ranks that are connected."""

    config: RunConfig
    storage: Storage
    subject: Subject
    datasets: dict[str, Dataset]
    """By split."""
    peers: Peers

    def features(self, task: Task, split: str) -> FeatureSet:
        """Of the split's images. All ranks must call this."""
        dataset = self.datasets[split]
        return dataset_features(self.subject, self.config, task, dataset, self.storage)
