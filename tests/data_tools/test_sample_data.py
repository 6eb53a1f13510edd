"""data_tools/sample_data.py: real images, the same every time, whole or not at all."""

import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_tools import sample_data


def test_every_image_is_there_split_by_class(digit_images):
    train = list(digit_images.glob("train/*/*.png"))
    test = list(digit_images.glob("test/*/*.png"))
    assert (len(train), len(test)) == (1501, 296)
    assert len({path.name for path in (*train, *test)}) == 1797
    per_class = Counter(path.parent.name for path in train)
    held_out = Counter(path.parent.name for path in test)
    assert set(per_class) == set(held_out) == set("0123456789")
    assert all(held_out[name] == (per_class[name] + held_out[name]) // 6 for name in per_class)


def test_images_are_the_digits_upscaled(digit_images):
    from sklearn.datasets import load_digits

    data = load_digits()
    for number in (0, 1, 1796):
        (path,) = digit_images.glob(f"*/{data.target[number]}/{number:04d}.png")
        with Image.open(path) as image:
            assert image.size == (32, 32)
            small = np.asarray(image.convert("RGB").resize((8, 8), Image.Resampling.BOX))[:, :, 1]
        assert np.corrcoef(small.ravel(), data.images[number].ravel())[0, 1] > 0.9


def test_two_runs_write_the_same(digit_images, tmp_path, capsys):
    assert sample_data.main([str(tmp_path / "again"), "--size", "32"]) == 0
    assert "1,797 images" in capsys.readouterr().out
    for path in digit_images.glob("*/*/*.png"):
        again = tmp_path / "again" / path.relative_to(digit_images)
        assert again.read_bytes() == path.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["again"]


def refuse(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert sample_data.main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1
    return printed.err


def test_what_cannot_work_is_refused(tmp_path: Path, capsys):
    (tmp_path / "mine").write_text("mine")
    assert "not an empty folder" in refuse(capsys, str(tmp_path))
    assert "not an empty folder" in refuse(capsys, str(tmp_path / "mine"))
    assert "--size must be" in refuse(capsys, str(tmp_path / "new"), "--size", "0")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_missing_scikit_learn_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    assert "pip install scikit-learn" in refuse(capsys, str(tmp_path / "new"))
    assert not list(tmp_path.iterdir())
