"""data_tools/shard.py on lists: what they say is what the shards hold, what is missing is named."""

import json
from pathlib import Path

import pytest

from tests.data_tools.sources import (
    contents,
    image_bytes,
    labels,
    manifest_of,
    quarantine,
    run,
    samples,
    write_files,
)
from tests.http_ranges import serve_folder


def listed(folder: Path, name: str, text: str) -> Path:
    """A list beside three images."""
    write_files(folder, {f"x/{i}.jpg": image_bytes(shade=i) for i in range(3)})
    return write_files(folder, {name: text.encode()}) / name


def test_class_names_are_numbered_as_folders_are(tmp_path):
    source = listed(tmp_path, "l.csv", "path,label\nx/0.jpg,dog\nx/2.jpg,bird\nx/1.jpg,cat\n")
    assert run(source, tmp_path / "out") == 0
    assert manifest_of(tmp_path / "out").classes == ("bird", "cat", "dog")
    assert labels(tmp_path / "out") == {"x/0": [2], "x/1": [1], "x/2": [0]}
    images = {each["__key__"]: each["jpg"] for each in samples(tmp_path / "out")}
    assert images == {f"x/{i}": image_bytes(shade=i) for i in range(3)}


def test_numbers_have_no_names(tmp_path):
    source = listed(tmp_path, "l.csv", "label,path\r\n7,x/0.jpg\r\n21842,x/1.jpg\r\n")
    assert run(source, tmp_path / "out") == 0
    assert manifest_of(tmp_path / "out").classes is None
    assert labels(tmp_path / "out") == {"x/0": [7], "x/1": [21842]}


@pytest.mark.parametrize("label", ["dog", "1"])
def test_given_classes_fix_the_numbers(tmp_path, label):
    source = listed(tmp_path, "l.csv", f"path,label\nx/0.jpg,{label}\n")
    write_files(tmp_path, {"classes.txt": b"zebra\ndog\nbird\n"})
    assert run(source, tmp_path / "out", "--classes", str(tmp_path / "classes.txt")) == 0
    assert manifest_of(tmp_path / "out").classes == ("zebra", "dog", "bird")
    assert labels(tmp_path / "out") == {"x/0": [1]}


def test_given_classes_fix_the_numbers_of_folders(tmp_path):
    source = write_files(tmp_path / "in", {"b/1.jpg": image_bytes(), "a/1.jpg": image_bytes()})
    write_files(tmp_path, {"classes.txt": b"b\nnone of it\na\n"})
    assert run(source, tmp_path / "out", "--classes", str(tmp_path / "classes.txt")) == 0
    assert labels(tmp_path / "out") == {"b/1": [0], "a/1": [2]}


SEVERAL = """{"path": "x/0.jpg", "labels": [2, "0"]}
{"path": "x/1.jpg", "label": 1}

{"path": "x/2.jpg", "labels": []}
"""


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("l.csv", "path,labels\nx/0.jpg,2 0\nx/1.jpg,1\nx/2.jpg,\n"),
        ("l.csv", "path,labels\nx/0.jpg,2;0\nx/1.jpg,1\nx/2.jpg,\n"),
        ("l.jsonl", SEVERAL),
    ],
)
def test_an_image_with_several_labels_or_none_has_a_json_member(tmp_path, name, text):
    assert run(listed(tmp_path, name, text), tmp_path / "out") == 0
    kinds = {each["__key__"]: {"cls", "json"} & set(each) for each in samples(tmp_path / "out")}
    assert kinds == {"x/0": {"json"}, "x/1": {"cls"}, "x/2": {"json"}}
    assert labels(tmp_path / "out") == {"x/0": [2, 0], "x/1": [1], "x/2": []}


def test_names_with_spaces_stand_between_semicolons(tmp_path):
    text = 'path,labels\nx/0.jpg,"great auk; dodo"\nx/1.jpg,dodo\n'
    assert run(listed(tmp_path, "l.csv", text), tmp_path / "out") == 0
    assert manifest_of(tmp_path / "out").classes == ("dodo", "great auk")
    assert labels(tmp_path / "out") == {"x/0": [1, 0], "x/1": [0]}


def test_keys_are_taken_as_given_and_made_of_paths_otherwise(tmp_path):
    rows = "x/0.jpg,0,first\nx/../x/1.jpg,0,\n./x/2.jpg,0,x/1\n"
    assert run(listed(tmp_path, "l.csv", f"path,label,key\n{rows}"), tmp_path / "out") == 0
    assert set(labels(tmp_path / "out")) == {"first", "x/1", "x/x/1"}


def test_the_order_of_the_list_changes_nothing(tmp_path):
    rows = [*(f"x/{i}.jpg,{i}" for i in range(3)), "./x/0.jpg,4", "x//0.jpg,5"]  # equal keys
    for name, lines in (("one", rows), ("two", rows[::-1])):
        source = listed(tmp_path / name, "l.csv", "\n".join(["path,label", *lines]))
        assert run(source, tmp_path / name / "out") == 0
    assert contents(tmp_path / "one/out") == contents(tmp_path / "two/out")


def test_images_that_are_not_there_are_named(tmp_path, capfd):
    source = listed(tmp_path, "l.csv", "path,label\nx/0.jpg,0\nx/9.jpg,1\nx,1\n")
    assert run(source, tmp_path / "out") == 0
    assert quarantine(tmp_path / "out") == [
        ("x", "missing", "no plain file"),
        ("x/9.jpg", "missing", "No such file or directory"),
    ]
    printed = capfd.readouterr()
    assert "left out: 2 missing, 0 unreadable" in printed.out
    assert "missing: x/9.jpg: No such file or directory" in printed.err


def test_a_list_may_name_images_in_a_bucket_and_lie_there(s3, tmp_path):
    bucket, storage = s3.new_bucket(), s3.storage()
    for i in range(3):
        storage.write(f"{bucket}/images/{i}.jpg", image_bytes(shade=i))
    rows = [{"path": f"{bucket}/images/{i}.jpg", "label": i} for i in (0, 7)]
    rows.append({"path": "images/2.jpg", "label": 2})
    text = "\n".join(map(json.dumps, rows))
    storage.write(f"{bucket}/l.jsonl", text.encode())
    assert run(f"{bucket}/l.jsonl", tmp_path / "out", *s3.shard_options()) == 0
    name = bucket.removeprefix("s3://")
    assert labels(tmp_path / "out") == {f"{name}/images/0": [0], "images/2": [2]}
    ((path, reason, _),) = quarantine(tmp_path / "out")
    assert (path, reason) == (f"{bucket}/images/7.jpg", "missing")


def test_a_list_may_name_images_of_a_web_server(tmp_path):
    with serve_folder(listed(tmp_path / "served", "unused", "").parent) as url:
        rows = f"path,label\n{url}/x/1.jpg,1\n{url}/x/9.jpg,1\nx/0.jpg,0\n"
        assert run(listed(tmp_path / "local", "l.csv", rows), tmp_path / "out") == 0
    host = url.removeprefix("http://")
    assert labels(tmp_path / "out") == {f"{host}/x/1": [1], "x/0": [0]}
    ((path, reason, _),) = quarantine(tmp_path / "out")
    assert (path, reason) == (f"{url}/x/9.jpg", "missing")
