"""data_tools/shard.py: what it writes is right and the same every time; nothing gets lost."""

import hashlib
import io
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_tools import shard
from mixer_dist.data import image_folder
from mixer_dist.data.image_files import sample_keys
from mixer_dist.data.image_folder import scan_images
from mixer_dist.data.manifest import load_dataset, load_index, load_manifest
from mixer_dist.data.members import image_of, labels_of, read_members
from mixer_dist.data.shard_plan import shuffle
from mixer_dist.storage import Storage
from tests.data_tools.sources import (
    ROOT,
    SCRIPT,
    contents,
    image_bytes,
    manifest_of,
    quarantine,
    run,
    samples,
    small_source,
    write_files,
)


def test_webdataset_reads_every_image_as_it_was(digit_images, digits):
    read = {each["__key__"]: each for each in samples(digits / "train")}
    files = {
        path.relative_to(digit_images / "train"): path for path in digit_images.glob("train/*/*")
    }
    assert len(read) == len(files) == 1501
    for path, file in files.items():
        sample = read[path.with_suffix("").as_posix()]
        assert sample["png"] == file.read_bytes()
        assert int(sample["cls"]) == int(path.parent.name)


def test_the_manifest_says_what_is_there(digits):
    manifest = manifest_of(digits / "train")
    assert manifest.classes == tuple("0123456789")
    assert manifest.num_samples == 1501
    assert manifest.num_bytes == sum(p.stat().st_size for p in digits.glob("train/*.tar"))
    names = {name for each in manifest.shards for name in (each.name, each.index)}
    assert names | {"manifest.json", "quarantine.jsonl"} == set(contents(digits / "train"))
    assert len(manifest.shards) == 8


def test_each_span_is_a_whole_sample_with_its_crc(digits):
    dataset = load_dataset(Storage(), [(str(digits / "train/manifest.json"), 1)])
    for part, each in zip(dataset.parts, manifest_of(digits / "train").shards, strict=True):
        tar = Path(part.url).read_bytes()
        rows = load_index(Storage(), part)
        end = 0
        for row in rows:
            assert row["offset"] == end  # gapless, so that neighbours are one range
            end += int(row["num_bytes"])
            span = tar[int(row["offset"]) : end]
            assert zlib.crc32(span) == row["crc32"] != 0
            with tarfile.open(fileobj=io.BytesIO(span)) as members:
                assert [name.partition(".")[2] for name in members.getnames()] == ["cls", "png"]
            sample = read_members(span)
            assert labels_of(sample) == [int(str(sample["__key__"])[0])]
        assert len(rows) == each.num_samples and not any(tar[end:])


def test_the_shuffle_mixes_classes_and_follows_the_seed(digit_images, digits):
    labels = [int(each["cls"]) for each in samples(digits / "train")]
    runs = 1 + np.count_nonzero(np.diff(labels))
    assert runs > 0.8 * len(labels)
    images = scan_images(digit_images / "train").images
    assert shuffle(images, 0) != shuffle(images, 1)
    assert sorted(shuffle(images, 1)) == sorted(images)


def test_the_bytes_do_not_depend_on_workers_or_listing_order(
    digit_images, digits, tmp_path, monkeypatch
):
    def reversed_files(source, files=image_folder._files):
        return reversed(list(files(source)))

    monkeypatch.setattr(image_folder, "_files", reversed_files)
    for workers in ("1", "3"):
        arguments = ["--shard-mb", "0.5", "--workers", workers]
        assert shard.main([str(digit_images / "train"), str(tmp_path / workers), *arguments]) == 0
        assert contents(tmp_path / workers) == contents(digits / "train")


def test_s3_receives_the_same_bytes(digits, digits_s3, s3):
    storage = s3.storage()
    assert storage.names(f"{digits_s3}/train") == sorted(contents(digits / "train"))
    for name, data in contents(digits / "train").items():
        assert storage.read(f"{digits_s3}/train/{name}") == data


AWKWARD = {
    "a/c.d.jpg": ("a/c_d", "jpg"),
    "a/c_d.jpg": ("a/c_d-2", "jpg"),
    "a/same.jpeg": ("a/same", "jpg"),
    "a/same.png": ("a/same-2", "png"),
    "a/same.webp": ("a/same-3", "webp"),
    "a/UPPER.JPG": ("a/UPPER", "jpg"),
    "a/really-a-png.jpg": ("a/really-a-png", "png"),
    "a/deep.er/er/x.jpg": ("a/deep.er/er/x", "jpg"),
    "a/new\nline.jpg": ("a/new\\nline", "jpg"),
    "a/sp ace & =.jpg": ("a/sp ace & =", "jpg"),
    "b.c/größe-猫.png": ("b.c/größe-猫", "png"),
    f"b.c/{'x' * 200}.jpg": (f"b.c/{'x' * 200}", "jpg"),
    f"b.c/{'é' * 100}/{'ü' * 100}.webp": (f"b.c/{'é' * 100}/{'ü' * 100}", "webp"),
    "__meta__/x.jpg": ("_meta__/x", "jpg"),
    os.fsdecode(b"b.c/latin-\xe9.jpg"): ("b.c/latin-\\udce9", "jpg"),
}


def test_awkward_names_are_read_back_right(tmp_path):
    kinds = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}
    files = {path: image_bytes(kinds[kind]) for path, (_, kind) in AWKWARD.items()}
    source = write_files(tmp_path / "source", files)
    assert run(source, tmp_path / "shards") == 0
    assert manifest_of(tmp_path / "shards").classes == ("__meta__", "a", "b.c")

    expected = {key: (kind, files[path]) for path, (key, kind) in AWKWARD.items()}
    read = {each["__key__"]: each for each in samples(tmp_path / "shards")}
    assert {key: (kind, read[key].get(kind)) for key, (kind, _) in expected.items()} == expected
    assert len(read) == len(AWKWARD)

    tar = (tmp_path / "shards/shard-000000.tar").read_bytes()
    dataset = load_dataset(Storage(), [(str(tmp_path / "shards/manifest.json"), 1)])
    for row in load_index(Storage(), dataset.parts[0]):
        sample = read_members(tar[int(row["offset"]) :][: int(row["num_bytes"])])
        assert image_of(sample) == expected[str(sample["__key__"])][1]


def test_keys_that_collide_get_numbers_until_none_does():
    paths = sorted(["a/b.c.jpg", "a/b_c.jpg", "a/b_c-2.jpg", "a/b_c.png", "b/b_c.jpg"])
    keys = sample_keys(paths)
    assert len(set(keys)) == 5 and set(keys) >= {"a/b_c", "a/b_c-2", "b/b_c"}
    assert not any("." in key for key in keys)


def test_unreadable_images_are_named_and_left_out(tmp_path, capfd):
    source = small_source(tmp_path / "source")
    whole = image_bytes("PNG")
    bad = {"a/text.jpg": b"no image", "b/cut.png": whole[:-35], "b/nothing.jpg": b""}
    write_files(source, bad)
    (source / "a/link.png").symlink_to("nowhere")
    assert run(source, tmp_path / "shards") == 0
    printed = capfd.readouterr()
    lines = printed.err.splitlines()
    assert len(lines) == 4
    for path in (*bad, "a/link.png"):
        assert any(line.startswith(f"unreadable: {path}: ") for line in lines), path
    assert ": 6 images of 2 classes in 1 shard," in printed.out
    assert "left out: 0 missing, 4 unreadable, 0 duplicate, 0 excluded;" in printed.out
    listed = quarantine(tmp_path / "shards")
    assert [path for path, _, _ in listed] == sorted([*bad, "a/link.png"])
    assert {reason for _, reason, _ in listed} == {"unreadable"}
    assert {each["__key__"] for each in samples(tmp_path / "shards")} == {
        f"{name}/{i}" for name in "ab" for i in range(3)
    }


def test_a_name_of_bytes_that_are_no_text_is_listed(tmp_path):
    source = small_source(tmp_path / "source")
    path = os.fsdecode(b"a/latin-\xe9.jpg")
    write_files(source, {path: b"no image"})
    assert run(source, tmp_path / "shards") == 0
    assert quarantine(tmp_path / "shards") == [(path, "unreadable", "neither JPEG, PNG nor WebP")]


def test_trusted_images_are_not_decoded(tmp_path):
    source = small_source(tmp_path / "source")
    write_files(source, {"a/cut.jpg": image_bytes()[:-100], "a/text.jpg": b"no image"})
    assert run(source, tmp_path / "checked") == 0
    assert run(source, tmp_path / "trusted", "--no-decode-check") == 0
    assert [path for path, _, _ in quarantine(tmp_path / "checked")] == ["a/cut.jpg", "a/text.jpg"]
    assert [path for path, _, _ in quarantine(tmp_path / "trusted")] == ["a/text.jpg"]


def test_nothing_left_out_is_an_empty_list(digits):
    assert quarantine(digits / "train") == []


def test_a_shard_without_a_readable_image_stays_in_the_row(tmp_path):
    source = small_source(tmp_path / "source")
    write_files(source, {"a/big.jpg": b"text" * 10_000})
    assert run(source, tmp_path / "shards", "--shard-mb", "0.006") == 0
    sizes = [each.num_samples for each in manifest_of(tmp_path / "shards").shards]
    assert 0 in sizes and sum(sizes) == 6 == len(samples(tmp_path / "shards"))


def test_only_unreadable_images_fail(tmp_path, capfd):
    source = write_files(tmp_path / "source", {"a/1.jpg": b"text", "a/2.png": b"text"})
    assert run(source, tmp_path / "shards") == 1
    assert "none of 2 images can be used" in capfd.readouterr().err
    assert not (tmp_path / "shards/manifest.json").exists()


def test_other_files_are_counted_but_not_taken(tmp_path, capfd):
    source = small_source(tmp_path / "source")
    others = ["README.md", "a/labels.csv", "a/._1.jpg", ".cache/x.jpg", "notes/x.txt"]
    write_files(source, {name: image_bytes() for name in others})
    os.mkfifo(source / "a/pipe.jpg")
    (source / "a/loop").symlink_to(source)
    assert run(source, tmp_path / "shards") == 0
    assert "ignored: 6 files" in capfd.readouterr().out
    assert manifest_of(tmp_path / "shards").classes == ("a", "b")
    assert manifest_of(tmp_path / "shards").num_samples == 6


@pytest.mark.parametrize("directory", ["/", str(ROOT)])
def test_help_works_from_any_directory(directory):
    command = [sys.executable, "-X", "importtime", str(SCRIPT), "--help"]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True)
    assert done.returncode == 0 and "example: python data_tools/" in done.stdout
    lines = done.stderr.splitlines()
    assert all(line.startswith("import time:") for line in lines)
    assert not any(line.endswith(" torch") for line in lines)  # it would take seconds


def test_it_runs_from_a_bare_checkout(tmp_path):
    """The copy's own package must be the one that is imported, not an installed one."""
    for name in ("data_tools", "mixer_dist"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "mixer_dist/errors.py").write_text("raise SystemExit('the copy')")
    done = subprocess.run(
        [sys.executable, str(tmp_path / "data_tools/shard.py"), "--help"],
        capture_output=True,
        text=True,
    )
    assert done.stderr == "the copy\n"


def test_no_tool_hides_a_module_of_the_standard_library():
    names = {path.stem for path in SCRIPT.parent.glob("*.py")}
    assert not names & sys.stdlib_module_names


def sent_parts(file_system: Any, bucket: str) -> dict[str, int]:
    """Key and number of parts of each upload that has begun and not ended."""
    try:
        begun = file_system.list_multipart_uploads(bucket)
    except FileNotFoundError:  # of a bucket that never saw one
        return {}
    found = {}
    for upload in begun:
        place = {"Bucket": bucket, "Key": upload["Key"], "UploadId": upload["UploadId"]}
        found[upload["Key"]] = len(file_system.call_s3("list_parts", **place).get("Parts", []))
    return found


def test_a_large_shard_goes_up_in_parts_and_a_stopped_one_leaves_none(s3, tmp_path):
    """Trusted images, so that noise of 90 MB passes for some."""
    noise = np.random.default_rng(0).bytes(10**7)
    files = {f"a/{i}.jpg": b"\xff\xd8\xff%d" % i + noise for i in range(9)}
    source = write_files(tmp_path / "source", files)
    bucket, options = s3.new_bucket(), ["--no-decode-check", *s3.shard_options()]
    file_system, _ = s3.storage().open(bucket)
    name = bucket.removeprefix("s3://")

    process = subprocess.Popen([sys.executable, str(SCRIPT), str(source), f"{bucket}/x", *options])
    while sent_parts(file_system, name) != {"x/shard-000000.tar": 1}:
        assert process.poll() is None, "it was not sent in parts"
    process.send_signal(signal.SIGINT)
    assert process.wait() == 130
    assert not sent_parts(file_system, name)

    assert run(source, f"{bucket}/x", *options) == 0
    (written,) = load_manifest(s3.storage(), f"{bucket}/x/manifest.json").shards
    tar = s3.storage().read(f"{bucket}/x/shard-000000.tar")
    assert hashlib.sha256(tar).hexdigest() == written.sha256
