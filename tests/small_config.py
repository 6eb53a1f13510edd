"""The shortest configuration there is, and what is said of a wrong one."""

from pathlib import Path

import pytest

from mixer_dist.config import load_config
from mixer_dist.errors import ConfigError

SMALL = """\
run_dir: runs/small
total_steps: 100
global_batch_size: 32
micro_batch_size: 8
model:
  variant: S/16
  num_classes: 10
data:
  train:
    - manifest: data/manifest.json
optimizer:
  learning_rate: 1e-3
"""


def refused(path: Path, *overrides: str) -> list[str]:
    """What the refusal says: one line after the file's name, or a line a problem after a count."""
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    lines = str(caught.value).splitlines()
    if len(lines) > 1:
        assert lines[0].startswith(f"{path}: {len(lines) - 1} problem")
    return [line.strip() for line in lines[1:]] or [lines[0].removeprefix(f"{path}: ")]
