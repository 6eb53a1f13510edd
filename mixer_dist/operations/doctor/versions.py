"""Packages: old enough to fail, or not the same on all ranks."""

import hashlib
import platform
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path

import torch
from packaging.requirements import Requirement

import mixer_dist
from mixer_dist import distributed
from mixer_dist.config import RunConfig
from mixer_dist.operations.doctor.finding import Finding, ranks_in_words, trouble, well

ABSENT = "not installed"


def least_versions(_: RunConfig | None) -> Iterator[Finding]:
    """What the package asks for, as it was installed."""
    wanted = _requirements()
    if not wanted:
        mend = "pip install -e . in its checkout"
        yield trouble("packages", "mixer_dist is not installed: nobody knows what it needs", mend)
        return
    misfits = [each for each in wanted if not _fits(each)]
    for each in misfits:
        yield trouble(
            "packages",
            f"{each.name} is {_version(each.name)}, expected {each.specifier}",
            f"pip install '{each.name}{each.specifier}'",
        )
    if not misfits:
        yield well("packages", f"torch {torch.__version__}, python {platform.python_version()}")


def _fits(requirement: Requirement) -> bool:
    version = _version(requirement.name)
    return version != ABSENT and requirement.specifier.contains(version, prereleases=True)


def same_versions(hosts: Sequence[str]) -> Iterator[Finding]:
    """The same on every rank? All ranks must call this."""
    of_ranks = distributed.gather(installed())
    differences = list(_differences(of_ranks, hosts))
    yield from differences
    if not differences:
        yield well("same packages", f"{len(of_ranks[0])} versions are the same on all ranks")


def installed() -> dict[str, str]:
    """Versions that decide what a rank computes, mixer_dist by its source."""
    versions = {requirement.name: _version(requirement.name) for requirement in _requirements()}
    return versions | {
        "python": platform.python_version(),
        "CUDA": torch.version.cuda or ABSENT,
        "NCCL": _nccl_version(),
        "source of mixer_dist": _source_hash(),
    }


def _differences(of_ranks: Sequence[Mapping[str, str]], hosts: Sequence[str]) -> Iterator[Finding]:
    for name in dict.fromkeys(name for versions in of_ranks for name in versions):
        ranks_of: dict[str, list[int]] = defaultdict(list)
        for rank, versions in enumerate(of_ranks):
            ranks_of[versions.get(name, ABSENT)].append(rank)
        if len(ranks_of) > 1:
            told = (f"{version} on {ranks_in_words(r, hosts)}" for version, r in ranks_of.items())
            mend = "install the same everywhere, or share one virtualenv or container"
            most = max(ranks_of.values(), key=len)
            odd = [rank for rank in range(len(of_ranks)) if rank not in most]
            yield trouble("same packages", f"{name} is {'; '.join(told)}", mend, odd)


def _requirements() -> list[Requirement]:
    """What every run needs, without the extras, on this platform."""
    try:
        lines = metadata.requires("mixer_dist") or []
    except metadata.PackageNotFoundError:
        return []
    parsed = map(Requirement, lines)
    return [each for each in parsed if each.marker is None or each.marker.evaluate({"extra": ""})]


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ABSENT


def _nccl_version() -> str:
    if not torch.cuda.is_available():
        return ABSENT
    return ".".join(map(str, torch.cuda.nccl.version()))  # type: ignore[no-untyped-call]


def _source_hash() -> str:
    root = Path(mixer_dist.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:12]
