"""Which files a tar holds: those that tarfile finds, and a refusal where one is unsafe."""

import io
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixer_dist.data.tar_headers import BLOCK, TarError, read_headers

LONG = "long" * 40


def tar_of(*members: tuple[tarfile.TarInfo, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for info, content in members:
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def info(name: str, **fields: object) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    for field, value in fields.items():
        setattr(member, field, value)
    return member


def files_of(tar: bytes) -> dict[str, bytes]:
    """Name and content of each file, as our headers say."""
    members = read_headers(lambda start, stop: tar[start:stop], 0, len(tar), has_end_mark=True)
    return {member.name: tar[member.start : member.stop] for member in members}


def sealed(header: bytes) -> bytes:
    """A header whose checksum is made right."""
    header = header[:148] + b" " * 8 + header[156:BLOCK]
    return header[:148] + b"%06o\0 " % sum(header) + header[156:]


NAMES = st.lists(
    st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1),
    min_size=1,
    max_size=4,
).map("/".join)


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_files_are_those_that_tarfile_finds(form, data):
    names = NAMES
    if form == tarfile.USTAR_FORMAT:  # which holds at most 100 bytes of the last part
        names = NAMES.filter(lambda name: len(name.encode()) < 90)
    names = names.filter(lambda name: ".." not in name.split("/"))
    wanted = data.draw(st.dictionaries(names, st.binary(max_size=1500), max_size=6))
    mtime = data.draw(st.sampled_from([0, 1.5]))
    tar = tar_of(*((info(n, mtime=mtime), c) for n, c in wanted.items()), form=form)
    with tarfile.open(fileobj=io.BytesIO(tar)) as reader:
        expected = {m.name: reader.extractfile(m).read() for m in reader}
    assert files_of(tar) == expected == wanted


def test_a_members_place_holds_all_of_its_headers():
    tar = tar_of((info("a.txt"), b"1"), (info(LONG + ".txt"), b"2"), (info("b.txt"), b"3"))
    members = list(read_headers(lambda a, b: tar[a:b], 0, len(tar), has_end_mark=True))
    assert [member.begin for member in members] == [0, members[0].end, members[1].end]
    assert members[1].start - members[1].begin == 3 * BLOCK
    for member in members:  # each is a whole tar by itself
        part = tar[member.begin : member.end] + bytes(2 * BLOCK)
        with tarfile.open(fileobj=io.BytesIO(part)) as reader:
            assert reader.getnames() == [member.name]


def test_folders_global_headers_and_labels_are_passed_over():
    volume = info("backup", type=b"V")
    folder = info("folder", type=tarfile.DIRTYPE)
    folder.size = 5000  # of no meaning for a folder
    glob = sealed(info("pax_global_header", type=b"g", size=16).tobuf(tarfile.USTAR_FORMAT))
    glob += b"16 comment=hello".ljust(BLOCK, b"\0")
    files = tar_of((info("a/b.txt"), b"1"))
    plain = volume.tobuf(tarfile.GNU_FORMAT) + glob + folder.tobuf(tarfile.GNU_FORMAT) + files
    assert files_of(plain) == {"a/b.txt": b"1"}


def test_old_tars_mark_folders_by_a_slash_and_files_by_a_zero():
    folder = sealed(b"d/".ljust(156, b"\0") + b"0" + bytes(355))
    file = sealed(b"d/f.txt".ljust(124, b"\0") + b"3".ljust(32, b"\0") + b"\0" + bytes(355))
    assert files_of(folder + file + b"abc".ljust(BLOCK, b"\0") + bytes(1024)) == {"d/f.txt": b"abc"}


def test_times_in_a_header_of_gnu_are_no_part_of_the_name():
    """Where ustar has a prefix of the name, `tar --format=gnu --listed-incremental` has them."""
    plain = info("f.txt", size=0).tobuf(tarfile.GNU_FORMAT)
    with_times = sealed(plain[:345] + b"14700000000 14700000000 " + plain[369:])
    assert files_of(with_times + bytes(1024)) == {"f.txt": b""}


def test_sizes_may_be_binary_or_in_a_pax_record():
    number = (3).to_bytes(12, "big")
    binary = bytes([number[0] | 0x80]) + number[1:]
    plain = info("f.txt", size=0).tobuf(tarfile.GNU_FORMAT)
    end = b"abc".ljust(BLOCK, b"\0") + bytes(1024)
    assert files_of(sealed(plain[:124] + binary + plain[136:]) + end) == {"f.txt": b"abc"}
    pax = info("x", type=b"x", size=9).tobuf(tarfile.USTAR_FORMAT) + b"9 size=3\n".ljust(
        BLOCK, b"\0"
    )
    assert files_of(pax + plain + end) == {"f.txt": b"abc"}


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}, "a symbolic link"),
        ({"type": tarfile.SYMTYPE, "linkname": LONG}, "a symbolic link"),
        ({"type": tarfile.LNKTYPE, "linkname": "b"}, "a hard link"),
        ({"type": tarfile.CHRTYPE}, "a device"),
        ({"type": tarfile.BLKTYPE}, "a device"),
        ({"type": tarfile.FIFOTYPE}, "a named pipe"),
        ({"type": tarfile.GNUTYPE_SPARSE}, "a sparse file"),
        ({"type": b"M"}, "a part of a file"),
        ({"type": b"Q"}, "of the unknown type b'Q'"),
        ({"pax_headers": {"GNU.sparse.major": "1"}}, "sparse"),
    ],
)
def test_what_is_no_plain_file_is_refused(fields, what):
    form = tarfile.GNU_FORMAT if fields.get("linkname") == LONG else tarfile.PAX_FORMAT
    tar = tar_of((info("good.txt"), b"1"), (info("bad.txt", **fields), b""), form=form)
    with pytest.raises(TarError, match=what):
        files_of(tar)


@pytest.mark.parametrize("name", ["/etc/a.txt", "../a.txt", "a/../../b.txt", f"{LONG}/../a.txt"])
@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_names_that_leave_the_folder_are_refused(name, form):
    with pytest.raises(TarError, match="an absolute name, or one that leaves the folder"):
        files_of(tar_of((info(name), b"1"), form=form))


def test_a_cut_is_seen_wherever_it_is():
    """Also at a member's border, where tarfile and webdataset end without a word."""
    tar = tar_of((info("a.txt"), b"1" * 700), (info(LONG + ".txt"), b"2"))
    with_mark = len(tar.rstrip(b"\0"))
    for size in range(0, with_mark, 64):
        with pytest.raises(TarError, match=r"cut off|damaged tar header"):
            files_of(tar[:size])
    assert len(files_of(tar)) == 2


def test_data_behind_the_end_mark_are_refused():
    tar = tar_of((info("a.txt"), b"1"))
    with pytest.raises(TarError, match=f"data after its end mark, from byte {2 * BLOCK}"):
        files_of(tar + tar)


def test_a_size_below_zero_is_damage():
    plain = info("f.txt").tobuf(tarfile.GNU_FORMAT)
    with pytest.raises(TarError, match="damaged tar header at byte 0"):
        files_of(sealed(plain[:124] + b"-1000".ljust(12, b"\0") + plain[136:]) + bytes(1024))
    pax = info("x", type=b"x", size=12).tobuf(tarfile.USTAR_FORMAT)
    with pytest.raises(TarError, match="damaged PAX header"):
        files_of(pax + b"12 size=-10\n".ljust(BLOCK, b"\0") + plain + bytes(1024))


def test_a_long_name_of_gigabytes_is_not_read():
    header = info("x", type=b"L", size=2**31).tobuf(tarfile.GNU_FORMAT)
    with pytest.raises(TarError, match="damaged PAX header: 2147483648 bytes"):
        list(read_headers(lambda start, stop: header[start:stop], 0, 2**32))
