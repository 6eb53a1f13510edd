"""The typed configuration of a run: YAML file < `key.path=value` overrides, checked once, frozen.

Nothing else in the package reads YAML. Importing this package does not import torch, so that a
wrong configuration is answered at once.
"""

from mixer_dist.config.data import (
    AugmentConfig,
    DataConfig,
    DatasetConfig,
    OrderConfig,
    RandAugmentConfig,
)
from mixer_dist.config.evaluation import (
    EvaluationConfig,
    FewshotConfig,
    FinetuneConfig,
    KnnConfig,
    LinearConfig,
    Task,
    TrainedTask,
    UpstreamConfig,
)
from mixer_dist.config.model import ModelConfig
from mixer_dist.config.pool import PoolConfig, SlurmConfig
from mixer_dist.config.run import RunConfig, load_config
from mixer_dist.config.storage import StorageConfig
from mixer_dist.config.suite import Suite, load_suite, with_suite
from mixer_dist.config.training import (
    CheckpointConfig,
    EngineConfig,
    KeepBestConfig,
    LoggingConfig,
    NumericsConfig,
    OptimizerConfig,
)

__all__ = [
    "AugmentConfig",
    "CheckpointConfig",
    "DataConfig",
    "DatasetConfig",
    "EngineConfig",
    "EvaluationConfig",
    "FewshotConfig",
    "FinetuneConfig",
    "KeepBestConfig",
    "KnnConfig",
    "LinearConfig",
    "LoggingConfig",
    "ModelConfig",
    "NumericsConfig",
    "OptimizerConfig",
    "OrderConfig",
    "PoolConfig",
    "RandAugmentConfig",
    "RunConfig",
    "SlurmConfig",
    "StorageConfig",
    "Suite",
    "Task",
    "TrainedTask",
    "UpstreamConfig",
    "load_config",
    "load_suite",
    "with_suite",
]
