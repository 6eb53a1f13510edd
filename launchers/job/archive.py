"""python archive.py JOB_FOLDER CONFIG: keeps a job's code and configuration in its run_dir.

They become run_dir/code/NAME_OF_FOLDER.tar, on a disk or in a bucket.
"""

import io
import sys
import tarfile
from pathlib import Path

from mixer_dist.config import load_config
from mixer_dist.errors import MixerError
from mixer_dist.run_dir import RunDir
from mixer_dist.storage import Storage


def main(folder: Path, config_path: str) -> int:
    """Write the tar; the exit code."""
    try:
        config = load_config(config_path)
        url = RunDir(config.run_dir).code_archive(folder.name)
        Storage(config.storage).write(url, tarred(folder))
    except MixerError as error:
        print(f"archive.py: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def tarred(folder: Path) -> bytes:
    """A folder as a tar, without what Python has compiled."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        tar.add(folder, folder.name, filter=lambda m: None if "__pycache__" in m.name else m)
    return stream.getvalue()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))
