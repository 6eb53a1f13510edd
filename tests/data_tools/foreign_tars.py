"""Tars as others write them, with webdataset's ShardWriter or GNU tar, and how they are indexed."""

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path

from webdataset import ShardWriter

from data_tools import index
from mixer_dist.data.manifest import DatasetManifest, load_dataset, load_index, load_manifest
from mixer_dist.data.members import read_members
from mixer_dist.storage import Storage
from tests.data.handmade import png

Members = dict[str, bytes | str]


def webdataset_tars(
    folder: Path, num_samples: int = 48, in_tar: int = 20, first_class: int = 0
) -> list[Members]:
    """train-0000.tar and so on, of png + cls + json, as webdataset writes them; its samples."""
    folder.mkdir(parents=True, exist_ok=True)
    samples = [
        {
            "__key__": f"train/{number:05d}",
            "png": png(number),
            "cls": b"%d" % (number % 10 + first_class),
            "json": json.dumps({"width": 8, "text": "x" * number}).encode(),
        }
        for number in range(num_samples)
    ]
    with ShardWriter(str(folder / "train-%04d.tar"), maxcount=in_tar, verbose=0) as writer:
        for sample in samples:
            writer.write(sample)
    return samples


def gnu_tar(path: Path, files: dict[str, bytes], *options: str, names: Sequence[str] = ()) -> None:
    """A tar of these files in their order, or of other names below them, by the tar command."""
    source = path.with_suffix(".files")
    for name, content in files.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(content)
    command = ["tar", *options, "-cf", str(path), "-C", str(source), *(names or files)]
    subprocess.run(command, check=True, capture_output=True)


def manifest_of(folder: Path) -> DatasetManifest:
    return load_manifest(Storage(), str(folder / "manifest.json"))


def samples_of(manifest: str, storage: Storage | None = None) -> list[Members]:
    """Every sample of a dataset as training reads it, in storage order."""
    storage = storage or Storage()
    samples = []
    for part in load_dataset(storage, [(manifest, 1)]).parts:
        for row in load_index(storage, part):
            begin, end = int(row["offset"]), int(row["offset"]) + int(row["num_bytes"])
            samples.append(read_members(storage.read_range(part.url, begin, end)))
    return samples


def run_index(*arguments: object) -> int:
    return index.main([str(argument) for argument in arguments])


def refused_line(capsys, *arguments: object) -> str:
    """The one line that a refused command prints."""
    assert run_index(*arguments) in (1, 2)
    [line] = capsys.readouterr().err.splitlines()
    return line
