"""What the span of one sample in a tar holds: its key, its image and its label."""

import json

from mixer_dist.data.tar_headers import TarError, read_headers
from mixer_dist.errors import MixerError

IMAGE_TYPES = ("jpg", "jpeg", "png", "webp")
LABEL_TYPES = ("cls", "json")
READ_TYPES = (*IMAGE_TYPES, *LABEL_TYPES, "txt")
PICKLE_TYPES = {"pyd", "pkl", "pickle", "pt", "pth"}  # a reader of these may run their code


class BadSampleError(MixerError):
    """A sample cannot be used; it is counted, named and replaced."""


def read_members(span: bytes) -> dict[str, bytes | str]:
    """A webdataset sample: `__key__` and the content of each member that is read, by its type.

    The tar's end-of-file marks play no part: the index says where a sample begins and ends.
    """
    sample: dict[str, bytes | str] = {}
    try:
        for member in read_headers(lambda start, stop: span[start:stop], 0, len(span)):
            key, kind = split_name(member.name)
            if key and sample.setdefault("__key__", key) != key:
                raise BadSampleError(f"its span of the tar holds {member.name} of another sample")
            if kind in sample:
                raise BadSampleError(f"{key}: two members of type .{kind}")
            if kind in READ_TYPES:
                sample[kind] = span[member.start : member.stop]
    except TarError as error:
        raise BadSampleError(str(error)) from error
    if not sample:
        raise BadSampleError("its span of the tar holds no file of a sample")
    return sample


def split_name(name: str) -> tuple[str, str]:
    """(key, type) as webdataset splits a member's name, at the first dot after its folder.

    Both are empty where a file belongs to no sample: it is hidden or has no type.
    """
    folder, slash, base = name.rpartition("/")
    stem, _, kind = base.partition(".")
    kind = kind.lower()
    if not stem or not kind:
        return "", ""
    if not PICKLE_TYPES.isdisjoint(kind.split(".")):
        raise TarError(f"{name}: a member of type .{kind} is never read")
    return folder + slash + stem, kind


def image_of(sample: dict[str, bytes | str]) -> bytes:
    """The sample's compressed image."""
    for kind in IMAGE_TYPES:
        if kind in sample:
            content = sample[kind]
            assert isinstance(content, bytes)
            return content
    raise BadSampleError(f"no image among its members; expected one of {', '.join(IMAGE_TYPES)}")


def labels_of(sample: dict[str, bytes | str]) -> list[int]:
    """The sample's classes: the number in `cls`, or the list `labels` in `json`."""
    try:
        if "cls" in sample:
            return [int(sample["cls"])]
        return [int(label) for label in json.loads(sample["json"])["labels"]]
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise BadSampleError("no label: expected a number in .cls or labels in .json") from error
