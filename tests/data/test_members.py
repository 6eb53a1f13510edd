"""What a sample's span of a tar gives: its key, its image and its labels, and nothing unsafe."""

import io
import tarfile

import numpy as np
import pytest

from mixer_dist.data.manifest import load_dataset, load_index
from mixer_dist.data.members import BadSampleError, image_of, labels_of, read_members
from mixer_dist.storage import Storage
from tests.data.handmade import png, write_dataset

IMAGE = png(7)


def spans_of(folder, samples):
    """The bytes of each sample, as webdataset's writer and our index delimit them."""
    dataset = load_dataset(Storage(), [(write_dataset(folder, [samples]), 1)])
    tar = (folder / "shard-000000.tar").read_bytes()
    return [
        tar[int(row["offset"]) : int(row["offset"]) + int(row["num_bytes"])]
        for row in load_index(Storage(), dataset.parts[0])
    ]


def tar_member(name: bytes, content: bytes, kind: bytes = tarfile.REGTYPE) -> bytes:
    """One header and its content, in whole blocks."""
    info = tarfile.TarInfo(name.decode())
    info.size, info.type = len(content), kind
    return info.tobuf(tarfile.USTAR_FORMAT) + content + b"\0" * (-len(content) % 512)


@pytest.mark.parametrize(
    "key",
    [
        "0001",
        "train/n01440764/0001",
        "folder.with.dots/0001",
        "a/" + "long" * 60,
        "Straße/東京",
        "Straße/" + "東京" * 40,
    ],
)
def test_keys_come_back_as_they_were_written(tmp_path, key):
    [span, other] = spans_of(
        tmp_path, [(key, {"jpg": b"pixels", "cls": b"3"}), ("other", {"cls": b"4", "png": b"P"})]
    )
    assert read_members(span) == {"__key__": key, "jpg": b"pixels", "cls": b"3"}
    assert read_members(other) == {"__key__": "other", "png": b"P", "cls": b"4"}


@pytest.mark.parametrize("kind", ["jpg", "jpeg", "png", "webp", "JPG", "Png"])
def test_images_of_each_type_are_found(tmp_path, kind):
    [span] = spans_of(tmp_path, [("s", {kind: IMAGE, "txt": b"a caption", "cls": b"0"})])
    assert image_of(read_members(span)) == IMAGE


def test_a_sample_without_an_image_is_bad(tmp_path):
    [span] = spans_of(tmp_path, [("s", {"cls": b"0"})])
    with pytest.raises(BadSampleError, match="expected one of jpg"):
        image_of(read_members(span))


@pytest.mark.parametrize(
    "kind", ["pyd", "pickle", "pkl", "pth", "pt", "PKL", "meta.pyd", "pkl.gz", "pt.seg"]
)
def test_members_that_could_run_code_are_refused_by_name(tmp_path, kind):
    [span] = spans_of(tmp_path, [("train/s", {"png": IMAGE, "cls": b"0", kind: b"\x80\x04N."})])
    with pytest.raises(BadSampleError, match=rf"(?i)train/s\.{kind}: a member of type \.{kind} is"):
        read_members(span)


@pytest.mark.parametrize("kind", ["npy", "npz", "ten", "seg.png", "exe", "wav", "jpg.txt"])
def test_other_members_are_passed_over(tmp_path, kind):
    [span] = spans_of(tmp_path, [("train/s", {"png": IMAGE, kind: b"\x80\x04N.", "cls": b"0"})])
    assert read_members(span) == {"__key__": "train/s", "png": IMAGE, "cls": b"0"}


@pytest.mark.parametrize("name", [b"README", b"a/.DS_Store", b"a/._s.jpg", b"a.b/c", b"s."])
def test_a_file_without_a_key_or_a_type_belongs_to_no_sample(name):
    """As for webdataset; macOS puts such files beside every other."""
    others = tar_member(name, b"x" * 700)
    with pytest.raises(BadSampleError, match="holds no file of a sample"):
        read_members(others)
    assert read_members(others + tar_member(b"s.cls", b"1")) == {"__key__": "s", "cls": b"1"}


def test_members_of_two_samples_are_bad():
    """Which a wrong index would mix: the image of one, the label of the other."""
    with pytest.raises(BadSampleError, match=r"holds b\.cls of another sample"):
        read_members(tar_member(b"a.png", IMAGE) + tar_member(b"b.cls", b"1"))


@pytest.mark.parametrize("other", [b"a.png", b"a.PNG"])
def test_two_members_of_one_type_are_bad(other):
    with pytest.raises(BadSampleError, match=r"a: two members of type \.png"):
        read_members(tar_member(b"a.png", IMAGE) + tar_member(other, png(8)))


@pytest.mark.parametrize(
    ("members", "labels"),
    [
        ({"cls": b"3"}, [3]),
        ({"cls": b" 21842\n"}, [21842]),
        ({"json": b'{"labels": [3, 1, 7]}'}, [3, 1, 7]),
        ({"json": b'{"labels": [], "caption": "nothing"}'}, []),
        ({"cls": b"5", "json": b'{"width": 3}'}, [5]),
    ],
)
def test_labels_are_read(members, labels):
    assert labels_of({"__key__": "s", **members}) == labels


@pytest.mark.parametrize(
    "members",
    [
        {},
        {"txt": b"3"},
        {"cls": b""},
        {"cls": b"cat"},
        {"cls": b"1.5"},
        {"cls": b"\xff"},
        {"json": b"{}"},
        {"json": b"[3]"},
        {"json": b'{"labels": 3}'},
        {"json": b'{"labels": [null]}'},
        {"json": b'{"labels": '},
        {"json": b"\xff"},
    ],
)
def test_a_sample_without_a_readable_label_is_bad(members):
    with pytest.raises(BadSampleError, match="no label"):
        labels_of({"__key__": "s", **members})


def test_a_damaged_header_is_bad(tmp_path):
    [span] = spans_of(tmp_path, [("s", {"png": IMAGE, "cls": b"0"})])
    headers = [0, span.index(b"s.png")]
    for header in headers:
        for offset in (header, header + 124, header + 148, header + 156):
            damaged = bytearray(span)
            damaged[offset] ^= 0x01
            with pytest.raises(BadSampleError, match="header"):
                read_members(bytes(damaged))


def test_a_span_that_ends_early_is_bad(tmp_path):
    """A wrong index must not turn class 12 into class 1."""
    [span] = spans_of(tmp_path, [("s", {"cls": b"12", "png": IMAGE})])
    for length in [0, 1, 511, 512, 513, 1024 + 512 + 30]:
        with pytest.raises(BadSampleError):
            read_members(span[:length])
    with pytest.raises(BadSampleError, match="holds no file"):
        read_members(b"")


@pytest.mark.parametrize(
    "record",
    [b"0 path=a\n", b"-9 path=a\n", b"x path=a\n", b"path=a\n", b" ", b"1 ", b"11 path=\xff\xfe\n"],
)
def test_a_damaged_pax_header_is_bad(record):
    span = tar_member(b"PaxHeader", record, tarfile.XHDTYPE) + tar_member(b"s.cls", b"1")
    with pytest.raises(BadSampleError, match="PAX"):
        read_members(span)


def test_other_pax_records_and_folders_are_passed_over():
    span = (
        tar_member(b"folder", b"", tarfile.DIRTYPE)
        + tar_member(b"PaxHeader", b"20 mtime=1234567890\n14 path=t.cls\n", tarfile.XHDTYPE)
        + tar_member(b"short.cls", b"1")
        + tar_member(b"t.png", IMAGE)
    )
    assert read_members(span) == {"__key__": "t", "cls": b"1", "png": IMAGE}


def test_python_reads_the_same_members(tmp_path):
    """Against the standard library's reader, on a tar of many keys."""
    rng = np.random.default_rng(0)
    samples = [
        (f"{'d' * int(rng.integers(1, 120))}/{n}", {"cls": b"%d" % n, "jpg": rng.bytes(n * 37)})
        for n in range(40)
    ]
    spans = spans_of(tmp_path, samples)
    with tarfile.open(fileobj=io.BytesIO((tmp_path / "shard-000000.tar").read_bytes())) as tar:
        expected = {member.name: tar.extractfile(member).read() for member in tar}
    found = {
        f"{members['__key__']}.{kind}": content
        for members in map(read_members, spans)
        for kind, content in members.items()
        if kind != "__key__"
    }
    assert found == expected
