"""Which parts of a job are done, kept in the job's own folder, so that a killed job goes on."""

from mixer_dist.storage import Storage, join

INCOMPLETE_NAME = "INCOMPLETE"


class Journal:
    """A file INCOMPLETE that says what the job is, and INCOMPLETE.part for each finished part."""

    def __init__(self, storage: Storage, folder: str) -> None:
        self._storage = storage
        self._folder = folder
        self._url = join(folder, INCOMPLETE_NAME)

    def is_open(self, job: str) -> bool:
        """Whether this very job has begun here and is not closed; `job` is its fingerprint."""
        is_begun = INCOMPLETE_NAME in self._storage.names(self._folder)
        return is_begun and self._storage.read(self._url) == _content(job)

    def open(self, job: str) -> None:
        """Begin, or go on; another job's records are void."""
        if not self.is_open(job):
            self._delete_records()
            self._storage.write(self._url, _content(job))

    def record(self, part: str, result: str) -> None:
        """Note that a part is done; it must be on storage already. In any process."""
        self._storage.write(f"{self._url}.{part}", result.encode())

    def results(self) -> list[str]:
        """The noted result of each part that is done."""
        urls = [join(self._folder, name) for name in self._record_names()]
        return [self._storage.read(url).decode() for url in urls]

    def close(self) -> None:
        """Forget all of it: the job is done."""
        self._delete_records()
        self._storage.delete(self._url)

    def _delete_records(self) -> None:
        for name in self._record_names():
            self._storage.delete(join(self._folder, name))

    def _record_names(self) -> list[str]:
        names = self._storage.names(self._folder)
        return [name for name in names if name.startswith(f"{INCOMPLETE_NAME}.")]


def _content(job: str) -> bytes:
    return f"not done here: job {job}\n".encode()
