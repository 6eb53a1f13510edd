"""python data_tools/shard.py SOURCE DESTINATION: images become shards for training.

SOURCE is a folder with a sub-folder for each class, or a list: .csv with the columns path, label
(or labels: several, with spaces or ; between) and, where wanted, key; or .jsonl with these names.
A list's paths are relative to it, or URLs; its labels are class names or numbers.

DESTINATION is a folder or s3://bucket/prefix. It receives tars that any webdataset reader takes, an
index for each, quarantine.jsonl with every image that was left out and why (empty where none was),
and manifest.json, whose appearance says that all is there. The same images give the same bytes,
whatever the number of workers. A run that was stopped goes on when it is started again.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a bare checkout

from data_tools.shard_options import check, parse
from data_tools.sharding import Sharding
from mixer_dist.errors import MixerError

INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Shard as the arguments say; the exit code."""
    arguments = parse(__doc__, argv)
    try:
        check(arguments)
        return Sharding(arguments).run()
    except MixerError as error:
        print(f"shard.py: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("shard.py: interrupted; the same command goes on from here", file=sys.stderr)
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
