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

from data_tools.command import exit_code_of
from data_tools.shard_options import check, parse
from data_tools.sharding import Sharding


def main(argv: Sequence[str] | None = None) -> int:
    """Shard as the arguments say; the exit code."""
    arguments = parse(__doc__, argv)

    def work() -> int:
        check(arguments)
        return Sharding(arguments).run()

    return exit_code_of("shard.py", work, if_interrupted="the same command goes on from here")


if __name__ == "__main__":
    sys.exit(main())
