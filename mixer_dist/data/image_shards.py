"""Images become a data shard: read, checked, made smaller where wanted, and written."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from mixer_dist.data.decode import decode_image, image_type
from mixer_dist.data.exclusion import ExcludedImages
from mixer_dist.data.image_files import ImageFile, LeftOut, Reason, read_file
from mixer_dist.data.manifest import Shard
from mixer_dist.data.resizing import shrink
from mixer_dist.data.shards import ShardBuilder
from mixer_dist.errors import MissingError
from mixer_dist.storage import Storage


@dataclass(frozen=True)
class Treatment:
    """What is done with each image on its way."""

    decodes: bool = True
    """Whether an image is decoded, to see that it can be."""
    short_side_px: int | None = None
    """Larger images are made as small as this."""
    quality: int = 90
    """Of the JPEGs that this gives."""
    excluded: ExcludedImages | None = None


@dataclass(frozen=True)
class WrittenShard:
    """A shard that is on storage, and what became of the images."""

    shard: Shard
    left_out: tuple[LeftOut, ...]
    num_resized: int
    resized_from_bytes: int
    resized_to_bytes: int

    def to_json(self) -> str:
        """All of it as text."""
        return json.dumps(vars(self) | {"shard": self.shard.model_dump(mode="json")})

    @staticmethod
    def from_json(text: str) -> "WrittenShard":
        """What `to_json` gave."""
        tree = json.loads(text)
        tree["left_out"] = tuple(LeftOut(*each) for each in tree["left_out"])
        return WrittenShard(**tree | {"shard": Shard(**tree["shard"])})


class LeftOutError(Exception):
    """An image does not go into the shard."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def write_image_shard(
    storage: Storage,
    root: str,
    images: Sequence[ImageFile],
    treatment: Treatment,
    folder: str | None,
    name: str,
) -> WrittenShard:
    """Build a shard and write it into a folder, or nowhere without one; in any process."""
    builder = ShardBuilder()
    left_out: list[LeftOut] = []
    resized: list[tuple[int, int]] = []
    for image in images:
        try:
            source = _read(storage, root, image)
            kind, data = _treat(source, treatment)
        except LeftOutError as error:
            left_out.append(LeftOut(image.path, error.reason, str(error)))
            continue
        builder.add(image.key, {kind: data, **_label_member(image.labels)})
        if data is not source:
            resized.append((len(source), len(data)))
    shard = builder.finish(name) if folder is None else builder.save(storage, folder, name)
    before, after = sum(size for size, _ in resized), sum(size for _, size in resized)
    return WrittenShard(shard, tuple(left_out), len(resized), before, after)


def mean_shrinkage(
    storage: Storage, root: str, images: Sequence[ImageFile], treatment: Treatment
) -> float:
    """The treated images' bytes as a share of what they were: how far a shard's size will drop."""
    before = after = 0
    for image in images:
        try:
            source = _read(storage, root, image)
            after += len(_treat(source, treatment)[1])
        except LeftOutError:
            continue
        before += len(source)
    return after / before if before else 1.0


def _read(storage: Storage, root: str, image: ImageFile) -> bytes:
    try:
        return read_file(storage, root, image.path)
    except MissingError as error:
        raise LeftOutError("missing", str(error)) from error
    except OSError as error:
        raise LeftOutError("unreadable", error.strerror or str(error)) from error


def _treat(data: bytes, treatment: Treatment) -> tuple[str, bytes]:
    """The member's type and content: the file's own bytes, or smaller ones."""
    try:
        kind = image_type(data)
        if not treatment.decodes:
            return kind, data
        pixels = decode_image(data)
    except ValueError as error:
        raise LeftOutError("unreadable", str(error)) from error
    if treatment.excluded and (copy := treatment.excluded.find(data, pixels)):
        raise LeftOutError("excluded", copy)
    if treatment.short_side_px and min(pixels.shape[:2]) > treatment.short_side_px:
        return "jpg", shrink(pixels, treatment.short_side_px, treatment.quality)
    return kind, data


def _label_member(labels: Sequence[int]) -> dict[str, bytes]:
    if len(labels) == 1:
        return {"cls": b"%d" % labels[0]}
    return {"json": json.dumps({"labels": list(labels)}).encode()}
