"""What counts as a checkpoint, also where a store's listing lags behind."""

import pytest

from mixer_dist.checkpoint.catalog import (
    HINT_STEPS,
    known_steps,
    list_checkpoints,
    read_checkpoint,
    record_commit,
    run_and_step,
)
from mixer_dist.checkpoint.layout import MANIFEST_NAME, TOMBSTONE_NAME, Tombstone
from mixer_dist.errors import MissingError, RefusedError
from mixer_dist.storage import Storage, join


class LateListing(Storage):
    """A store that lists what was there before, and reads what is there now."""

    def __init__(self, storage: Storage, folder: str) -> None:
        super().__init__(storage._options)
        self._folder, self._listed = folder, storage.names(folder)

    def names(self, url: str) -> list[str]:
        return self._listed if url == self._folder else super().names(url)


def late(run) -> LateListing:
    return LateListing(run.storage, run.run_dir.checkpoints)


def steps_seen(storage, run) -> list[int]:
    return [found.manifest.step for found in list_checkpoints(storage, run.run_dir)[0]]


def test_the_newest_by_attempt_and_step_comes_first(run):
    run.commit(300, attempt=1)
    run.commit(100, attempt=2)
    run.commit(200, attempt=1)
    assert steps_seen(run.storage, run) == [100, 300, 200]


def test_a_commit_that_is_not_listed_yet_is_found(run):
    run.commit(100)
    storage = late(run)
    run.commit(200)
    record_commit(run.storage, run.run_dir, 200)
    assert steps_seen(storage, run) == [200, 100]


def test_a_removed_checkpoint_that_is_still_listed_or_hinted_at_is_none(run):
    run.commit_all(100, 200)
    record_commit(run.storage, run.run_dir, 200)
    storage = late(run)
    for name in run.files(200):
        run.storage.delete(join(run.url(200), name))
    run.storage.delete_folder(run.url(200))
    assert steps_seen(storage, run) == [100]
    assert list_checkpoints(storage, run.run_dir)[1] == []


def test_pieces_without_a_manifest_are_none_and_said(run):
    run.write_pieces(0)
    found, problems = list_checkpoints(run.storage, run.run_dir)
    assert not found
    assert len(problems) == 1 and run.url(0) in str(problems[0])


def test_a_tombstone_ends_a_checkpoint_but_not_a_later_attempts(run):
    url = run.commit(100, attempt=1)
    tombstone = Tombstone(attempt=1, token="t").model_dump_json().encode()
    run.storage.write(join(url, TOMBSTONE_NAME), tombstone)
    with pytest.raises(MissingError, match="being removed"):
        read_checkpoint(run.storage, url)
    assert run.steps() == []
    run.commit(100, attempt=2)
    assert read_checkpoint(run.storage, url).manifest.attempt == 2


def test_the_hint_holds_the_last_commits_and_may_be_damaged(disk_run):
    storage, run_dir = disk_run.storage, disk_run.run_dir
    for step in range(HINT_STEPS + 5):
        record_commit(storage, run_dir, step)
    record_commit(storage, run_dir, 7)  # committed anew after a walk back
    record_commit(storage, run_dir, 3)
    assert known_steps(storage, run_dir) == [3, *range(6, HINT_STEPS + 5)]
    storage.write(join(run_dir.checkpoints, "committed.json"), b"{torn")
    assert known_steps(storage, run_dir) == []
    record_commit(storage, run_dir, 9)
    assert known_steps(storage, run_dir) == [9]


def test_a_checkpoints_url_names_its_run(disk_run):
    url = disk_run.commit(100)
    assert run_and_step(f"{url}/") == (disk_run.run_dir, 100)
    assert run_and_step("checkpoints/step-00000007")[0].url == "."
    for other in ("runs/quickstart", "step-00000100", f"{url}/{MANIFEST_NAME}"):
        with pytest.raises(RefusedError, match="expected a checkpoint of a run"):
            run_and_step(other)
