"""data_tools/shard.py: which images go in, where, and how large."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mixer_dist.data.decode import decode_image
from mixer_dist.data.image_shards import Treatment
from mixer_dist.data.perceptual_hash import perceptual_hash
from tests.data_tools.sources import (
    contents,
    encode,
    image_bytes,
    labels,
    manifest_of,
    photo_pixels,
    quarantine,
    run,
    samples,
    scene_pixels,
    small_source,
    write_files,
)


def scenes(folder: Path, num_images: int = 6) -> Path:
    """Images of 120 x 160 pixels in two classes."""
    files = {f"{'ab'[i % 2]}/{i}.jpg": encode(scene_pixels(i)) for i in range(num_images)}
    return write_files(folder, files)


def test_larger_images_become_smaller_and_others_stay_as_they_are(tmp_path, capfd):
    files = {
        "a/landscape.jpg": encode(scene_pixels(0, 120, 160)),
        "a/portrait.png": encode(scene_pixels(1, 201, 100), "PNG"),
        "a/same.jpg": encode(scene_pixels(2, 64, 90)),
        "a/small.png": encode(scene_pixels(3, 40, 200), "PNG"),
    }
    source = write_files(tmp_path / "source", files)
    assert run(source, tmp_path / "out", "--resize-short-side", "64") == 0
    read = {each["__key__"]: each for each in samples(tmp_path / "out")}
    assert read["a/same"]["jpg"] == files["a/same.jpg"]
    assert read["a/small"]["png"] == files["a/small.png"]
    assert decode_image(read["a/landscape"]["jpg"]).shape == (64, 85, 3)
    assert decode_image(read["a/portrait"]["jpg"]).shape == (129, 64, 3)
    before = len(files["a/landscape.jpg"]) + len(files["a/portrait.png"])
    after = len(read["a/landscape"]["jpg"]) + len(read["a/portrait"]["jpg"])
    printed = capfd.readouterr().out
    assert f"resized: 2 images, from {before / 1e6:,.1f} to {after / 1e6:,.1f} MB" in printed


@pytest.mark.parametrize(("quality", "decibels"), [("50", 23), ("90", 31), ("100", 32)])
def test_a_smaller_image_is_what_an_antialiased_resize_gives(tmp_path, quality, decibels):
    pixels = photo_pixels(0)
    source = write_files(tmp_path / "source", {"a/1.png": encode(pixels, "PNG")})
    options = ["--resize-short-side", "60", "--quality", quality]
    assert run(source, tmp_path / "out", *options) == 0
    expected = Image.fromarray(pixels).resize((80, 60), Image.Resampling.BICUBIC)
    difference = decode_image(samples(tmp_path / "out")[0]["jpg"]) - np.asarray(expected, float)
    assert 10 * np.log10(255**2 / np.mean(difference**2)) > decibels


def test_a_smaller_image_is_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    source = write_files(tmp_path / "source", {"a/1.jpg": encode(scene_pixels(0), exif=exif)})
    assert run(source, tmp_path / "out", "--resize-short-side", "60") == 0
    (sample,) = samples(tmp_path / "out")
    turned = Image.fromarray(np.rot90(scene_pixels(0), -1)).resize((60, 80))
    assert np.abs(decode_image(sample["jpg"]) - np.asarray(turned, float)).mean() < 4


def test_shards_of_smaller_images_are_near_the_target_too(tmp_path):
    files = {f"a/{i}.jpg": encode(photo_pixels(i)) for i in range(40)}
    source = write_files(tmp_path / "source", files)
    options = ["--resize-short-side", "100", "--shard-mb", "0.12"]
    assert run(source, tmp_path / "out", *options) == 0
    sizes = [each.num_bytes for each in manifest_of(tmp_path / "out").shards]
    assert len(sizes) > 2 and all(80_000 < size < 140_000 for size in sizes), sizes


def test_resized_bytes_do_not_depend_on_workers(tmp_path):
    source = scenes(tmp_path / "source")
    for workers in ("1", "2"):
        options = ["--resize-short-side", "50", "--shard-mb", "0.01", "--workers", workers]
        assert run(source, tmp_path / workers, *options) == 0
    assert contents(tmp_path / "1") == contents(tmp_path / "2")


def test_of_equal_files_the_first_stays(tmp_path, capfd):
    source = scenes(tmp_path / "source")
    for copy in ("a/00.jpg", "b/0.png", "b/z.jpg"):
        shutil.copy(source / "a/0.jpg", source / copy)
    same_size = bytearray((source / "a/0.jpg").read_bytes())
    same_size[-3] ^= 1
    write_files(source, {"a/other.jpg": bytes(same_size)})
    assert run(source, tmp_path / "out", "--deduplicate") == 0
    assert quarantine(tmp_path / "out") == [
        (path, "duplicate", "of a/0.jpg") for path in ("a/00.jpg", "b/0.png", "b/z.jpg")
    ]
    assert len(labels(tmp_path / "out")) == 7
    assert "3 duplicate" in capfd.readouterr().out


def copies(pixels: np.ndarray) -> dict[str, bytes]:
    """What other people may have made of an image."""
    image = Image.fromarray(pixels)
    return {
        "lower.jpg": encode(pixels, quality=50),
        "png.png": encode(pixels, "PNG"),
        "half.jpg": encode(np.asarray(image.resize((80, 60))), quality=75),
        "double.webp": encode(np.asarray(image.resize((320, 240))), "WEBP"),
        "square.jpg": encode(np.asarray(image.resize((100, 100)))),
        "grey.jpg": encode(np.asarray(image.convert("L"))),
    }


def test_copies_of_excluded_images_are_left_out_and_both_sides_named(tmp_path):
    test_set = scenes(tmp_path / "test", 4)
    assert run(test_set, tmp_path / "test-shards", "--shard-mb", "0.01") == 0
    source = write_files(
        tmp_path / "source", {f"c/{i}.jpg": encode(scene_pixels(i)) for i in (3, 9)}
    )
    write_files(source / "d", copies(scene_pixels(0)))
    manifest = str(tmp_path / "test-shards/manifest.json")
    assert run(source, tmp_path / "out", "--exclude", manifest) == 0
    assert set(labels(tmp_path / "out")) == {"c/9"}
    left_out = {path: (reason, detail) for path, reason, detail in quarantine(tmp_path / "out")}
    assert len(left_out) == 7 and {reason for reason, _ in left_out.values()} == {"excluded"}
    assert left_out["c/3.jpg"][1].startswith(f"same bytes as b/3 in {tmp_path}/test-shards/shard-")
    assert " of 64 bits from a/0 in " in left_out["d/half.jpg"][1]


def test_copies_may_differ_by_as_many_bits_as_allowed(tmp_path):
    pixels = scene_pixels(0)
    cropped = pixels[6:, 8:].copy()
    distance = (perceptual_hash(pixels) ^ perceptual_hash(cropped)).bit_count()
    assert distance > 0
    assert run(scenes(tmp_path / "test", 4), tmp_path / "test-shards") == 0
    files = {"c/0.png": encode(cropped, "PNG"), "c/9.png": encode(scene_pixels(9), "PNG")}
    source = write_files(tmp_path / "source", files)
    for allowed, kept in ((distance, {"c/9"}), (distance - 1, {"c/0", "c/9"})):
        options = ["--exclude", str(tmp_path / "test-shards/manifest.json")]
        folder = tmp_path / f"within {allowed}"
        assert run(source, folder, *options, "--exclude-distance", str(allowed)) == 0
        assert set(labels(folder)) == kept


def test_excluded_datasets_may_lie_in_a_bucket(s3, tmp_path):
    bucket = s3.new_bucket()
    options = s3.shard_options()
    assert run(scenes(tmp_path / "test", 4), f"{bucket}/a", *options) == 0
    assert run(scenes(tmp_path / "more", 6), f"{bucket}/b", *options) == 0
    manifests = [f"{bucket}/{name}/manifest.json" for name in "ab"]
    source = scenes(tmp_path / "source", 8)
    assert run(source, tmp_path / "out", "--exclude", *manifests, *options) == 0
    assert set(labels(tmp_path / "out")) == {"a/6", "b/7"}
    details = [detail for _, _, detail in quarantine(tmp_path / "out")]
    assert sum(f"{bucket}/a/shard" in detail for detail in details) == 4  # the first that fits


def test_train_and_val_share_classes_and_no_image(tmp_path):
    source = scenes(tmp_path / "source", 40)
    write_files(source, {"rare/1.jpg": image_bytes(), "a/bad.jpg": b"no image"})
    assert run(source, tmp_path / "out", "--val-fraction", "0.25") == 0
    train, val = labels(tmp_path / "out/train"), labels(tmp_path / "out/val")
    assert not train.keys() & val.keys() and len(train) + len(val) == 41
    assert 4 <= len(val) <= 16
    for side in ("train", "val"):
        assert manifest_of(tmp_path / "out" / side).classes == ("a", "b", "rare")
    assert [path for path, _, _ in quarantine(tmp_path / "out")] == ["a/bad.jpg"]
    assert {name for name in contents(tmp_path / "out") if "/" not in name} == {"quarantine.jsonl"}


def test_a_dry_run_says_the_same_and_writes_nothing(tmp_path, capfd):
    source = scenes(tmp_path / "source")
    write_files(source, {"a/copy.jpg": (source / "a/0.jpg").read_bytes(), "b/bad.jpg": b"no image"})
    options = ["--deduplicate", "--resize-short-side", "50", "--shard-mb", "0.01"]
    before = contents(tmp_path)
    assert run(source, tmp_path / "out", *options, "--dry-run") == 0
    dry = capfd.readouterr()
    assert contents(tmp_path) == before and not (tmp_path / "out").exists()
    assert run(source, tmp_path / "out", *options) == 0
    wet = capfd.readouterr()
    assert dry.err == wet.err
    assert "duplicate: a/copy.jpg: of a/0.jpg" in dry.err and "unreadable: b/bad.jpg" in dry.err
    assert dry.out.splitlines()[:3] == wet.out.splitlines()[:3]
    assert "6 images of 2 classes in" in dry.out and "manifest:" not in dry.out


def test_the_default_quality_is_one(tmp_path):
    source = scenes(tmp_path / "source")
    assert run(source, tmp_path / "a", "--resize-short-side", "50") == 0
    options = ["--resize-short-side", "50", "--quality", str(Treatment().quality)]
    assert run(source, tmp_path / "b", *options) == 0
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_quarantine_lines_are_json_with_three_names(tmp_path):
    source = small_source(tmp_path / "source")
    write_files(source, {"a/bad.jpg": b"no image"})
    assert run(source, tmp_path / "out") == 0
    (line,) = (tmp_path / "out/quarantine.jsonl").read_text().splitlines()
    assert list(json.loads(line)) == ["path", "reason", "detail"]
