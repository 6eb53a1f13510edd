"""The folder that receives a dataset: refused, taken up where a killed run left it, committed."""

import re
from collections.abc import Collection, Iterable

from data_tools.destination import check_is_folder, dataset_there
from data_tools.journal import INCOMPLETE_NAME, Journal
from mixer_dist.data.image_shards import WrittenShard
from mixer_dist.data.manifest import MANIFEST_NAME, DatasetManifest, Shard
from mixer_dist.errors import RefusedError
from mixer_dist.storage import Storage, join

QUARANTINE_NAME = "quarantine.jsonl"

_SHARD = re.compile(r"shard-\d{6,}\.(tar|idx)")
# What a killed run was writing, on a disk.
_TEMPORARY = re.compile(
    rf"\.({_SHARD.pattern}|{INCOMPLETE_NAME}.*|{MANIFEST_NAME}|{QUARANTINE_NAME})\.\d+-\d+\.tmp"
)


class DatasetFolder:
    """A dataset's place; its manifest, written last, says that all is there."""

    def __init__(self, storage: Storage, url: str) -> None:
        self.url = url
        self.journal = Journal(storage, url)
        self._storage = storage
        check_is_folder(url)
        names = storage.names(url)
        self.is_marked = INCOMPLETE_NAME in names
        """Whether a run, not necessarily with the same plan, was stopped here."""
        self.is_committed = MANIFEST_NAME in names
        shards = [name for name in names if _SHARD.fullmatch(name)]
        if shards and not self.is_marked and not self.is_committed:
            raise RefusedError(
                f"{url} holds {shards[0]}, which this tool did not leave there: "
                "choose another destination"
            )

    def refuse_dataset(self) -> None:
        """Let nobody overwrite what is complete; RefusedError."""
        if self.is_committed:
            raise dataset_there(self.url)

    def resume(self, job: str) -> dict[str, WrittenShard]:
        """What an earlier run finished, by the tar's name; what else it left is removed."""
        self.journal.open(job)
        names = set(self._storage.names(self.url))
        results = map(WrittenShard.from_json, self.journal.results())
        finished = {each.shard.name: each for each in results if self._is_whole(each.shard, names)}
        self._clean(names, [written.shard for written in finished.values()])
        return finished

    def _is_whole(self, shard: Shard, names: Collection[str]) -> bool:
        return (
            shard.name in names
            and shard.index in names
            and self._storage.size(join(self.url, shard.name)) == shard.num_bytes
        )

    def _clean(self, names: Iterable[str], finished: Iterable[Shard]) -> None:
        kept = {name for shard in finished for name in (shard.name, shard.index)}
        for name in names:
            if _SHARD.fullmatch(name) and name not in kept:
                self._storage.delete(join(self.url, name))
        remove_temporaries(self._storage, self.url)

    def commit(self, manifest: DatasetManifest) -> None:
        """Write the manifest, once all it names is there."""
        self._storage.write(self.manifest_url, manifest.to_json())

    def close(self) -> None:
        """Remove what only a run that goes on would need."""
        if INCOMPLETE_NAME in self._storage.names(self.url):  # else a run was killed just after
            self.journal.close()
        remove_temporaries(self._storage, self.url)

    @property
    def manifest_url(self) -> str:
        """Where the manifest is, or will be."""
        return join(self.url, MANIFEST_NAME)


def remove_temporaries(storage: Storage, url: str) -> None:
    """Files in a folder that a killed run had only begun to write."""
    for name in storage.names(url):
        if _TEMPORARY.fullmatch(name):
            storage.delete(join(url, name))
