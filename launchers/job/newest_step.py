"""python newest_step.py CONFIG: the step that a run has committed last; 0 before the first."""

import json
import sys

from mixer_dist.config import RunConfig, load_config
from mixer_dist.errors import MissingError, MixerError
from mixer_dist.run_dir import RunDir
from mixer_dist.storage import Storage


def newest_step(config: RunConfig) -> int:
    """What the trainer's own hint says, without a look at any checkpoint."""
    try:
        hint = Storage(config.storage).read(RunDir(config.run_dir).commit_hint)
    except MissingError:
        return 0
    return int(json.loads(hint)["steps"][-1])


def main(config_path: str) -> int:
    """Print the step; the exit code."""
    try:
        print(newest_step(load_config(config_path)))
    except MixerError as error:
        print(f"newest_step.py: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
