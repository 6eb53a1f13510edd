"""Damage of every kind ends in what was written or in an error of ours: benchmarks/mutations.py."""

import pytest

from benchmarks import mutations
from mixer_dist.data import fetch


def test_300_mutations_are_read_right_or_refused(tmp_path, capsys):
    counts = mutations.damage_and_read(tmp_path, range(20_000, 20_300))
    assert sum(counts.values()) == 300
    assert sum(n for (_, outcome), n in counts.items() if outcome == "other") == 0, (
        capsys.readouterr()
    )
    kinds = {kind for kind, outcome in counts if outcome == "refused"}
    assert kinds == {"idx", "image", "json", "safetensors", "tar"}


def test_wrong_pixels_would_be_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(fetch.Span, "is_right", True)
    counts = mutations.damage_and_read(tmp_path, range(200))
    assert counts["tar", "other"] > 0


@pytest.mark.parametrize("error", [mutations.HangError, KeyError])
def test_any_other_error_would_be_seen(tmp_path, monkeypatch, error):
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(mutations, "load_dataset", fail)
    counts = mutations.damage_and_read(tmp_path, range(20))
    assert counts["tar", "other"] > 0
