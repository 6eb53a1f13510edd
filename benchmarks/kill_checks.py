"""What lies in a run directory after a kill, judged without the code that wrote or chooses it."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import safetensors.numpy
import yaml

KINDS = ("param", "exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Found:
    """The checkpoints of a run."""

    whole: dict[int, int]
    """Attempt by step, of those whose every byte is right."""
    torn: set[int]
    """Steps whose folder holds anything else."""

    @property
    def newest(self) -> int:
        """The step of the newest whole one, 0 for none."""
        return max(self.whole, key=lambda step: (self.whole[step], step), default=0)


def find_checkpoints(fs: Any, run_dir: str) -> Found:
    """All of a run, by an fsspec file system and the run's path in it."""
    found = Found({}, set())
    folders = (name for name in names(fs, f"{run_dir}/checkpoints") if name.startswith("step-"))
    for folder in folders:
        step = int(folder.removeprefix("step-"))
        manifest = whole_manifest(fs, f"{run_dir}/checkpoints/{folder}")
        if manifest is None:
            found.torn.add(step)
        else:
            assert manifest["step"] == step, folder
            found.whole[step] = manifest["attempt"]
    return found


def whole_manifest(fs: Any, folder: str) -> dict[str, Any] | None:
    """A checkpoint's manifest if it and all that it names are there, to the byte."""
    try:
        data = fs.cat_file(f"{folder}/manifest.json")
        manifest: dict[str, Any] = json.loads(data)
        body = data[: data.rindex(b',"sha256":"')]
        files = [fs.cat_file(f"{folder}/{entry['name']}") for entry in manifest["files"]]
    except (FileNotFoundError, ValueError):
        return None
    hashes = [(len(file), sha256(file)) for file in files]
    expected = [(entry["num_bytes"], entry["sha256"]) for entry in manifest["files"]]
    is_whole = hashes == expected and sha256(body) == manifest["sha256"]
    return manifest if is_whole and holds_all(manifest, files) else None


def holds_all(manifest: dict[str, Any], files: list[bytes]) -> bool:
    """Whether each range of each tensor is in the file that the manifest names."""
    sizes = [{k: v.size for k, v in safetensors.numpy.load(file).items()} for file in files]
    return all(
        sizes[number].get(f"{kind}.{fqn}@{start:012d}") == stop - start
        for fqn, entry in manifest["parameters"].items()
        for number, (start, stop) in zip(entry["files"], pairwise(entry["cuts"]), strict=True)
        for kind in KINDS
    )


def starts(fs: Any, run_dir: str) -> Iterator[tuple[int, int]]:
    """(attempt, the step that it resumed from) of each start that was recorded."""
    for name in names(fs, f"{run_dir}/attempts"):
        if name.endswith(".yaml"):
            tree = yaml.safe_load(fs.cat_file(f"{run_dir}/attempts/{name}"))
            yield tree["attempt"], tree["resumed_from"]


def names(fs: Any, folder: str) -> list[str]:
    """Names in a folder, sorted; none where it is not there."""
    try:
        paths = fs.ls(folder, detail=False, refresh=True)
    except FileNotFoundError:
        return []
    return sorted(path.rstrip("/").rpartition("/")[2] for path in paths)


def sha256(data: bytes) -> str:
    """In hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()
