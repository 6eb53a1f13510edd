"""A rank's features on their way to storage, in parts of bounded size.

n images of a batch, C channels.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from mixer_dist import distributed
from mixer_dist.eval.feature_cache import FeatureEntry, FeatureFolder, StoredFile, remove_old
from mixer_dist.eval.feature_set import Features, Labels
from mixer_dist.storage import join

PART_BYTES = 32 * 2**20


class PartWriter:
    """Writes a rank's features in parts of bounded size, while they are computed."""

    def __init__(self, folder: FeatureFolder, token: str) -> None:
        self._folder = folder
        self._prefix = f"{token}-{distributed.rank():05d}"
        self._rows: list[Features] = []
        self._values: list[Labels] = []
        self._counts: list[Labels] = []
        self._parts: list[StoredFile] = []

    def write(
        self, batches: Iterator[tuple[Features, Labels, Labels]]
    ) -> tuple[int, list[dict[str, Any]]]:
        """Write all; how many images have features that are not finite, and the parts."""
        num_bad = 0
        for features, values, counts in batches:
            num_bad += int((~np.isfinite(features).all(1)).sum())
            self._rows.append(features)
            self._values.append(values)
            self._counts.append(counts)
            if sum(rows.nbytes for rows in self._rows) >= PART_BYTES:
                self._flush()
        self._flush()
        return num_bad, [part.model_dump() for part in self._parts]

    def labels(self) -> dict[str, Labels]:
        """This rank's, as LabelLists has them."""
        none = [np.empty(0, np.int64)]
        return {
            "values": np.concatenate(none + self._values),
            "counts": np.concatenate(none + self._counts),
        }

    def commit(self, parts: list[StoredFile], labels: dict[str, Labels]) -> FeatureEntry:
        """Make all ranks' parts the features of the key; older models' go."""
        name = f"labels-{self._prefix}.safetensors"
        file = self._folder.write(name, len(labels["counts"]), labels)
        entry = self._folder.commit(parts, file)
        remove_old(self._folder.storage, self._folder.run_dir)
        return entry

    def discard(self) -> None:
        """Remove what was written."""
        for part in self._parts:
            self._folder.storage.delete(join(self._folder.url, part.name))

    def _flush(self) -> None:
        if not self._rows:
            return
        rows = np.concatenate(self._rows)
        name = f"part-{self._prefix}-{len(self._parts):05d}.safetensors"
        self._parts.append(self._folder.write(name, len(rows), {"features": rows}))
        self._rows.clear()
