"""The archive reader: a hostile archive is refused with a sentence, and nothing is written outside its folder."""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import stat
import tarfile
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from morpheo.errors import BadArchive
from morpheo.runtime import archive
from morpheo.runtime.archive import ArchiveLimits, ArchiveReader, pack, repack_context, unpack
from morpheo.testing import make_archive
from tests.support.tars import BLOCK, END, header, link, longname, member, padded, pax, raw_pax, tar_gz, with_checksum

LIMITS = ArchiveLimits(max_bytes=1 << 20, max_entries=100)
LINKS = ArchiveLimits(max_bytes=1 << 20, max_entries=100, links=True)
DOCKERFILE = b"FROM morpheo/base:1\n"


def names(content: bytes, limits: ArchiveLimits = LIMITS) -> list[str]:
    return [entry.name for entry in ArchiveReader(io.BytesIO(content), limits)]


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


DEEP = "/".join("d" * 20)
BAD_NAMES = {
    "parent": "../x",
    "parent-inside": "a/../../x",
    "parent-at-end": "a/..",
    "absolute": "/etc/passwd",
    "two-slashes": "//etc/passwd",
    "backslash": "C:\\x",
    "backslash-parent": "..\\x",
    "newline": "a\nb",
    "return": "a\rb",
    "escape": "a\x1b[2Jb",
    "delete": "a\x7f",
    "not-utf8": b"\xff\xfe",
    "half-a-character": b"caf\xc3",
    "utf8-surrogate": b"\xed\xa0\x80",
    "file-without-name": "",
    "file-called-dot": ".",
    "too-deep": DEEP,
}


@pytest.mark.parametrize("name", BAD_NAMES.values(), ids=BAD_NAMES)
def test_a_name_that_leads_out_or_cannot_be_kept_is_refused_and_nothing_is_written(
    tmp_path: Path, name: str | bytes
) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    with pytest.raises(BadArchive):
        unpack(io.BytesIO(tar_gz(member(name))), inside, LIMITS)
    assert list(tmp_path.rglob("*")) == [inside]


@pytest.mark.parametrize("name", BAD_NAMES.values(), ids=BAD_NAMES)
@pytest.mark.parametrize("long", ["pax", "gnu"])
def test_a_long_name_is_checked_as_a_short_one(long: str, name: str | bytes) -> None:
    raw = name.encode() if isinstance(name, str) else name
    extended = pax(path=raw) if long == "pax" else longname(raw)
    with pytest.raises(BadArchive):
        names(tar_gz(extended, member("innocent")))


@pytest.mark.parametrize("extended", [pax(path=b"a\0b"), longname(b"a\0b")], ids=["pax", "gnu"])
def test_a_long_name_with_a_zero_byte_is_refused(extended: bytes) -> None:
    with pytest.raises(BadArchive, match="not a usable file name"):
        names(tar_gz(extended, member("a")))


@pytest.mark.parametrize(
    ("name", "accepted"),
    [(b"n" * 255, True), (b"n" * 256, False), ("é".encode() * 127, True), ("é".encode() * 128, False)],
    ids=["255-bytes", "256-bytes", "254-bytes-in-two-byte-characters", "256-bytes-in-two-byte-characters"],
)
def test_a_part_of_a_name_has_at_most_255_bytes(name: bytes, *, accepted: bool) -> None:
    content = tar_gz(pax(path=name), member("x"))
    if accepted:
        assert names(content) == [name.decode()]
    else:
        with pytest.raises(BadArchive, match="not a usable file name"):
            names(content)


def test_a_name_of_long_parts_that_no_file_system_takes_is_refused(tmp_path: Path) -> None:
    name = b"/".join([b"d" * 250] * 16)
    with pytest.raises(BadArchive, match="longer than 2048 bytes"):
        unpack(io.BytesIO(tar_gz(pax(path=name), member("x"))), tmp_path, LIMITS)


@pytest.mark.parametrize(
    "name", ["-rf", "a b", " ", "...", "..a", "a..", "naïve", "日本", "\u202etxt.exe", "a:b", "*", "$(id)"]
)
def test_an_odd_but_harmless_name_is_kept(tmp_path: Path, name: str) -> None:
    assert unpack(io.BytesIO(tar_gz(member(name, b"content"))), tmp_path, LIMITS) == [name]
    assert (tmp_path / name).read_bytes() == b"content"


def test_names_are_normalised_and_the_folder_itself_is_no_entry(tmp_path: Path) -> None:
    content = tar_gz(header("./", kind=tarfile.DIRTYPE), member("./a//b/./c", b"1"))
    assert unpack(io.BytesIO(content), tmp_path, LIMITS) == ["a/b/c"]
    assert tree(tmp_path) == {"a/b/c": b"1"}


@pytest.mark.parametrize(
    "parts",
    [
        [member("a"), member("a")],
        [member("a"), member("./a")],
        [member("a"), header("a", kind=tarfile.DIRTYPE)],
        [header("a", kind=tarfile.DIRTYPE), member("a")],
        [member("a"), member("a/b")],
        [member("a/b"), member("a")],
        [link("a", "b"), member("a")],
        [member("a"), link("a", "b")],
    ],
    ids=[
        "same-name",
        "same-name-in-other-words",
        "file-then-folder",
        "folder-then-file",
        "file-then-file-in-it",
        "file-in-folder-then-folder-as-file",
        "link-then-file",
        "file-then-link",
    ],
)
def test_a_name_may_stand_for_one_thing_only(parts: list[bytes]) -> None:
    with pytest.raises(BadArchive, match=r"twice|at once"):
        names(tar_gz(*parts), LINKS)


def test_a_folder_may_be_listed_twice_and_names_differ_by_case() -> None:
    folder = header("a/", kind=tarfile.DIRTYPE)
    assert names(tar_gz(folder, folder, member("a/x"), member("a/X"))) == ["a", "a", "a/x", "a/X"]


@pytest.mark.parametrize(
    ("kind", "word"),
    [
        (tarfile.LNKTYPE, "hard link"),
        (tarfile.SYMTYPE, "symbolic link"),
        (tarfile.CHRTYPE, "device"),
        (tarfile.BLKTYPE, "device"),
        (tarfile.FIFOTYPE, "named pipe"),
        (tarfile.GNUTYPE_SPARSE, "sparse"),
        (tarfile.SOLARIS_XHDTYPE, "unknown type"),
        (b"V", "unknown type"),
        (b"M", "unknown type"),
        (b"\xff", "unknown type"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_anything_but_files_and_folders_is_refused(tmp_path: Path, kind: bytes, word: str) -> None:
    with pytest.raises(BadArchive, match=word):
        unpack(io.BytesIO(tar_gz(header("thing", kind=kind, link="/etc/shadow"))), tmp_path, LIMITS)
    assert not list(tmp_path.iterdir())


def test_a_hard_link_is_refused_where_symbolic_ones_are_not() -> None:
    with pytest.raises(BadArchive, match="hard link"):
        names(tar_gz(member("a"), header("b", kind=tarfile.LNKTYPE, link="a")), LINKS)


@pytest.mark.parametrize("key", ["GNU__sparse__major", "GNU__sparse__map", "GNU__sparse__realsize"])
def test_a_sparse_file_of_the_pax_kind_is_refused(key: str) -> None:
    with pytest.raises(BadArchive, match="sparse"):
        names(tar_gz(pax(**{key: b"1"}), member("a")))


@pytest.mark.parametrize("target", ["a", "./a", "sub/deep", ".", "a b", "naïve"])
def test_a_link_that_stays_inside_is_accepted_where_links_are(target: str) -> None:
    entries = list(ArchiveReader(io.BytesIO(tar_gz(link("l", target))), LINKS))
    assert [(entry.name, entry.link, entry.is_folder) for entry in entries] == [("l", target, False)]


def test_a_link_may_go_up_as_far_as_it_lies_deep() -> None:
    assert names(tar_gz(link("a/b/l", "../../c")), LINKS) == ["a/b/l"]
    with pytest.raises(BadArchive, match="leads out"):
        names(tar_gz(link("a/b/l", "../../../c")), LINKS)


@pytest.mark.parametrize(
    "target",
    ["/etc/shadow", "/", "..", "../x", "a/../../x", "./../x", "a/..", ""],
    ids=["absolute", "root", "parent", "beside", "down-and-out", "dot-and-out", "down-and-up", "empty"],
)
def test_a_link_that_could_lead_out_is_refused(target: str) -> None:
    with pytest.raises(BadArchive, match="link"):
        names(tar_gz(link("l", target)), LINKS)


@pytest.mark.parametrize(
    "target", [b"a\nb", b"a\0b", b"\xff", b"n" * 5000], ids=["newline", "zero", "not-utf8", "5000-bytes"]
)
def test_a_link_whose_target_is_no_text_is_refused(target: bytes) -> None:
    with pytest.raises(BadArchive, match="link"):
        names(tar_gz(pax(linkpath=target), link("l", "x")), LINKS)


def test_a_long_target_is_checked_as_a_short_one() -> None:
    for extended in (pax(linkpath=b"../x"), longname(b"../x", tarfile.GNUTYPE_LONGLINK)):
        with pytest.raises(BadArchive, match="leads out"):
            names(tar_gz(extended, link("l", "innocent")), LINKS)


def test_a_link_cannot_climb_out_through_another_link() -> None:
    # s is the archive's root, so that s/../x lies beside it, although a/b/s/../x reads as a/b/x.
    with pytest.raises(BadArchive, match="leads out"):
        names(tar_gz(link("a/b/s", "../.."), link("t", "a/b/s/../x")), LINKS)


@pytest.mark.parametrize("content", [member("l/x"), header("l/x", kind=tarfile.DIRTYPE), link("l/x", "y")])
def test_nothing_is_written_through_a_link(content: bytes) -> None:
    with pytest.raises(BadArchive, match="file and a folder at once"):
        names(tar_gz(link("l", "a"), content), LINKS)


def test_links_are_never_unpacked_even_where_the_limits_allow_them(tmp_path: Path) -> None:
    with pytest.raises(BadArchive, match="symbolic link"):
        unpack(io.BytesIO(tar_gz(link("l", "a"))), tmp_path, LINKS)
    assert not list(tmp_path.iterdir())


def test_owner_and_special_modes_of_an_archive_are_ignored(tmp_path: Path) -> None:
    folder = header("d/", kind=tarfile.DIRTYPE, mode=0o7777)
    unpack(io.BytesIO(tar_gz(folder, header("d/f", mode=0o6777))), tmp_path, LIMITS)
    assert stat.S_IMODE((tmp_path / "d/f").stat().st_mode) & ~0o644 == 0
    assert stat.S_IMODE((tmp_path / "d").stat().st_mode) & ~0o755 == 0
    assert (tmp_path / "d/f").stat().st_uid == os.getuid()


def test_a_repacked_context_keeps_of_a_mode_only_whether_it_can_be_run() -> None:
    target = io.BytesIO()
    scripts = header("run.sh", mode=0o6755) + header("data", mode=0o7666)
    repack_context(io.BytesIO(tar_gz(member("Dockerfile", DOCKERFILE), scripts)), target, LINKS)
    with tarfile.open(fileobj=io.BytesIO(target.getvalue())) as tar:
        assert {info.name: info.mode for info in tar} == {"Dockerfile": 0o644, "run.sh": 0o755, "data": 0o644}
        assert {(info.uid, info.gid, info.uname) for info in tar.getmembers()} == {(0, 0, "")}


def test_a_gzip_bomb_costs_no_more_than_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "_RATIO_FROM", 1 << 30)
    with pytest.raises(BadArchive, match="more than 1048576 bytes when unpacked"):
        names(tar_gz(member("zeros", bytes(4 << 20))))


def test_what_unpacks_to_far_more_than_its_size_is_refused() -> None:
    with pytest.raises(BadArchive, match="more than 200 times its size"):
        names(tar_gz(member("zeros", bytes(20 << 20))), ArchiveLimits(max_bytes=1 << 40, max_entries=10))


def test_the_padding_after_the_end_mark_counts_against_the_limit() -> None:
    with pytest.raises(BadArchive, match="when unpacked"):
        names(tar_gz(member("a"), end=bytes(2 << 20)))


def test_as_many_entries_as_allowed_are_read_and_not_one_more() -> None:
    limits = ArchiveLimits(max_bytes=1 << 20, max_entries=5)
    members = [member(f"f{number}") for number in range(6)]
    assert len(names(tar_gz(*members[:5]), limits)) == 5
    with pytest.raises(BadArchive, match="more than 5 files and folders"):
        names(tar_gz(*members), limits)


def test_folders_that_names_imply_count_as_entries() -> None:
    with pytest.raises(BadArchive, match="more than 5 files and folders"):
        names(tar_gz(member("a/b/c/d/e/f")), ArchiveLimits(max_bytes=1 << 20, max_entries=5))


@pytest.mark.parametrize(
    "block",
    [header("./", kind=tarfile.DIRTYPE), pax(path=b"x"), raw_pax(b"", tarfile.XGLTYPE), longname(b"x")],
    ids=["dot-folder", "pax", "global-pax", "long-name"],
)
def test_headers_that_make_no_entry_are_bounded_as_well(block: bytes) -> None:
    with pytest.raises(BadArchive, match="files and folders"):
        names(tar_gz(*[block] * 20), ArchiveLimits(max_bytes=1 << 20, max_entries=5))


def test_two_extended_headers_for_each_entry_are_no_bomb() -> None:
    members = [raw_pax(b"", tarfile.XGLTYPE), header("./", kind=tarfile.DIRTYPE)]
    for number in range(5):
        members += [longname(b"y"), pax(path=b"f%d" % number), member("x")]
    assert len(names(tar_gz(*members), ArchiveLimits(max_bytes=1 << 20, max_entries=5))) == 5


@pytest.mark.parametrize(
    "size", [b"1152921504606846976", b"-1", b"1e3", b"", b" 5", b"0x10", "٣".encode(), b"9" * 5000]
)
def test_a_size_in_an_extended_header_that_is_no_sensible_number_is_refused(size: bytes) -> None:
    with pytest.raises(BadArchive, match="damaged extended header"):
        names(tar_gz(pax(size=size), member("a")))


def test_a_size_in_an_extended_header_counts(tmp_path: Path) -> None:
    assert unpack(io.BytesIO(tar_gz(pax(size=b"3"), header("a"), padded(b"abc"))), tmp_path, LIMITS) == ["a"]
    assert (tmp_path / "a").read_bytes() == b"abc"


@pytest.mark.parametrize("size", [1 << 33, 1 << 60, 1 << 80], ids=["8GiB", "2^60", "2^80"])
def test_a_file_that_is_longer_than_its_archive_is_refused(tmp_path: Path, size: int) -> None:
    content = tar_gz(header("a", size=size), padded(b"short"))
    with pytest.raises(BadArchive, match="cut short"):
        unpack(io.BytesIO(content), tmp_path, LIMITS)
    with pytest.raises(BadArchive, match="cut short"):
        names(content)


@pytest.mark.parametrize(
    "kind", [tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XGLTYPE]
)
def test_a_negative_size_is_refused(kind: bytes) -> None:
    with pytest.raises(BadArchive, match=r"negative size|too long"):
        names(tar_gz(header("a", size=-512, kind=kind), member("b")))


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK])
def test_an_extended_header_is_short(kind: bytes) -> None:
    with pytest.raises(BadArchive, match="too long"):
        names(tar_gz(header("x", size=(64 << 10) + 1, kind=kind), bytes(65 << 10), member("b")))


@pytest.mark.parametrize(
    "records",
    [
        b"x",
        b"5",
        b"99 path=a\n",
        b"0 path=a\n",
        b"2 path=a\n",
        b"-9 path=a\n",
        b"9999999 path=a\n",
        b"9 path=ab",
        b"8 path\n\n ",
        b"7 path\n",
        b"\xb2 path=a\n",
    ],
)
def test_a_damaged_extended_header_is_refused(records: bytes) -> None:
    with pytest.raises(BadArchive, match="damaged extended header"):
        names(tar_gz(raw_pax(records), member("b")))


def test_a_line_end_in_a_long_name_is_part_of_the_name() -> None:
    with pytest.raises(BadArchive, match="not a usable file name"):
        names(tar_gz(pax(path=b"a\n"), member("b")))


def test_a_global_extended_header_renames_nothing() -> None:
    header_for_all = raw_pax(b"13 path=evil\n", tarfile.XGLTYPE)
    assert names(tar_gz(header_for_all, member("a"), member("b"))) == ["a", "b"]


def test_an_extended_header_holds_for_one_entry_only() -> None:
    assert names(tar_gz(pax(path=b"long"), member("a"), member("b"))) == ["long", "b"]


def test_a_folder_in_the_words_of_an_old_tar_is_a_folder() -> None:
    entries = ArchiveReader(io.BytesIO(tar_gz(header("d/", kind=tarfile.AREGTYPE))), LIMITS)
    assert [(entry.name, entry.is_folder) for entry in entries] == [("d", True)]


def test_a_file_whose_name_ends_in_a_slash_is_refused() -> None:
    with pytest.raises(BadArchive):
        names(tar_gz(pax(path=b"d/"), member("x", b"content")))


def test_an_archive_cut_short_anywhere_is_refused(tmp_path: Path) -> None:
    content = make_archive({"a": os.urandom(700), "folder/b": b"b", "Dockerfile": DOCKERFILE})
    for length in range(len(content)):
        with pytest.raises(BadArchive):
            names(content[:length])
    assert unpack(io.BytesIO(content), tmp_path, LIMITS) == ["a", "folder/b", "Dockerfile"]


@pytest.mark.parametrize("length", [1, 100, 511, 513, 600, 1023, 1100])
def test_a_tar_cut_short_inside_an_intact_gzip_is_refused(length: int) -> None:
    content = member("a", os.urandom(512)) + member("b", b"b")
    with pytest.raises(BadArchive, match=r"cut short|damaged"):
        names(gzip.compress(content[:length]))


@pytest.mark.parametrize(
    "content",
    [b"", b"PK\x03\x04", b"\x1f\x8b", b"BZh9", b"x" * 5000, member("a") + END],
    ids=["nothing", "zip", "half-a-magic-number", "bzip2", "text", "tar-without-gzip"],
)
def test_what_is_no_gzip_file_is_refused(content: bytes) -> None:
    with pytest.raises(BadArchive, match=r"not a gzip file|cut short"):
        names(content)


@pytest.mark.parametrize(
    "content", [b"", b"x", b"x" * BLOCK, b"<html>" * 1000, gzip.compress(member("a") + END, mtime=0)]
)
def test_a_gzip_file_of_something_else_is_refused(content: bytes) -> None:
    with pytest.raises(BadArchive, match=r"not a tar archive|cut short"):
        names(gzip.compress(content))


def test_a_damaged_header_is_refused() -> None:
    block = bytearray(member("a"))
    block[5] ^= 1
    with pytest.raises(BadArchive, match="damaged"):
        names(tar_gz(bytes(block)))


def test_a_damaged_gzip_file_is_refused() -> None:
    content = bytearray(tar_gz(member("a", os.urandom(2000))))
    content[-6] ^= 1  # in the checksum
    with pytest.raises(BadArchive, match="not a gzip file, or a damaged one"):
        names(bytes(content))


def test_what_follows_the_gzip_stream_is_refused_unless_it_is_padding() -> None:
    content = tar_gz(member("a"))
    assert names(content + bytes(1000)) == ["a"]
    with pytest.raises(BadArchive, match="damaged"):
        names(content + b"garbage")


def test_a_gzip_file_of_several_members_is_one_archive() -> None:
    whole = member("a", b"1" * 600) + member("b") + END
    assert names(gzip.compress(whole[:700]) + gzip.compress(whole[700:])) == ["a", "b"]


def test_what_follows_the_end_mark_is_refused_in_whatever_member_it_stands() -> None:
    for content in (tar_gz(member("a"), END, member("b")), tar_gz(member("a")) + tar_gz(member("b"))):
        with pytest.raises(BadArchive, match="something follows the end"):
            names(content)


@pytest.mark.parametrize("size", [101, 4096, 1 << 60])
def test_a_context_whose_last_file_is_cut_short_is_refused(size: int) -> None:
    content = gzip.compress(member("Dockerfile", DOCKERFILE) + header("a", size=size) + b"x" * 100)
    with pytest.raises(BadArchive, match="cut short"):
        repack_context(io.BytesIO(content), io.BytesIO(), LINKS)


def test_an_archive_without_an_end_mark_is_read() -> None:
    assert names(tar_gz(member("a"), end=b"")) == ["a"]


def test_the_content_of_an_entry_can_be_read_in_part_or_not_at_all() -> None:
    reader = ArchiveReader(
        io.BytesIO(tar_gz(member("a", b"abcdef"), member("b", b"x" * 600), member("c", b"c"))), LIMITS
    )
    seen = [(entry.name, reader.read(3)) for entry in reader if entry.name != "b"]
    assert seen == [("a", b"abc"), ("c", b"c")]
    assert reader.read() == b""


# Build contexts


def test_a_context_is_repacked_with_its_text_folders_and_links() -> None:
    folder = header("src/", kind=tarfile.DIRTYPE)
    content = tar_gz(member("./Dockerfile", DOCKERFILE), folder, member("src/a", b"a" * 600), link("src/l", "a"))
    target = io.BytesIO()
    assert repack_context(io.BytesIO(content), target, LINKS) == DOCKERFILE.decode()
    with tarfile.open(fileobj=io.BytesIO(target.getvalue())) as tar:
        assert tar.getnames() == ["Dockerfile", "src", "src/a", "src/l"]
        assert [file.read() for name in ("Dockerfile", "src/a") if (file := tar.extractfile(name))] == [
            DOCKERFILE,
            b"a" * 600,
        ]
        assert (tar.getmember("src/l").issym(), tar.getmember("src/l").linkname) == (True, "a")


def test_a_dockerfile_with_line_ends_of_windows_is_kept_as_it_is() -> None:
    content = make_archive({"Dockerfile": "FROM a\r\nRUN b\r\n"})
    assert repack_context(io.BytesIO(content), io.BytesIO(), LINKS) == "FROM a\r\nRUN b\r\n"


@pytest.mark.parametrize(
    ("parts", "sentence"),
    [
        ([member("README")], "no Dockerfile at the root"),
        ([member("algo/Dockerfile", DOCKERFILE)], "no Dockerfile at the root"),
        ([member("dockerfile", DOCKERFILE)], "no Dockerfile at the root"),
        ([header("Dockerfile/", kind=tarfile.DIRTYPE)], "must be a file"),
        ([link("Dockerfile", "README"), member("README", DOCKERFILE)], "must be a file"),
        ([link("Dockerfile", "/etc/shadow")], "leads out"),
        ([header("Dockerfile", kind=tarfile.LNKTYPE, link="a")], "hard link"),
        ([member("Dockerfile", b"\xef\xbb\xbf" + DOCKERFILE)], "byte order mark"),
        ([member("Dockerfile", DOCKERFILE + b"\0")], "zero byte"),
        ([member("Dockerfile", DOCKERFILE.decode().encode("utf-16"))], "not UTF-8"),
        ([member("Dockerfile", b"# caf\xe9")], "not UTF-8"),
        ([member("Dockerfile", b"#" * ((64 << 10) + 1))], "longer than"),
        ([member("Dockerfile", DOCKERFILE), member("./Dockerfile", b"FROM evil")], "twice"),
        ([member("Dockerfile", DOCKERFILE), member(".dockerignore", b"**/a\n" * 20_000)], "dockerignore is longer"),
        ([member("Dockerfile", DOCKERFILE), link(".dockerignore", "big")], "dockerignore must be a file"),
        ([member("Dockerfile", DOCKERFILE), header(".dockerignore/", kind=tarfile.DIRTYPE)], "dockerignore must be"),
    ],
    ids=[
        "missing",
        "in-a-sub-folder",
        "lower-case",
        "folder",
        "link",
        "link-leading-out",
        "hard-link",
        "byte-order-mark",
        "zero-byte",
        "utf16",
        "latin1",
        "too-long",
        "twice",
        "too-many-ignore-patterns",
        "ignore-file-as-link",
        "ignore-file-as-folder",
    ],
)
def test_a_context_without_a_usable_dockerfile_is_refused(parts: list[bytes], sentence: str) -> None:
    with pytest.raises(BadArchive, match=sentence):
        repack_context(io.BytesIO(tar_gz(*parts)), io.BytesIO(), LINKS)


def test_a_context_is_checked_to_its_end_after_its_dockerfile() -> None:
    with pytest.raises(BadArchive, match="leads out"):
        repack_context(io.BytesIO(tar_gz(member("Dockerfile", DOCKERFILE), member("../x"))), io.BytesIO(), LINKS)


# Packing

PART = st.text(
    st.characters(exclude_categories=("Cc", "Cs"), exclude_characters="/\\"), min_size=1, max_size=60
).filter(lambda text: text not in (".", "..") and len(text.encode()) <= 255)
NAME = st.lists(PART, min_size=1, max_size=4).map("/".join)
FILES = st.dictionaries(NAME, st.binary(max_size=2000), max_size=6).filter(
    lambda files: not any(name.startswith(f"{other}/") for name in files for other in files)
)


def packed(folder: Path, files: dict[str, bytes]) -> bytes:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    target = io.BytesIO()
    pack(folder, list(files), target)
    return target.getvalue()


@settings(max_examples=25)
@given(files=FILES)
def test_what_was_packed_unpacks_to_the_same_files(files: dict[str, bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "source"), Path(folder, "target")
        source.mkdir()
        target.mkdir()
        content = packed(source, files)
        assert unpack(io.BytesIO(content), target, LIMITS) == sorted(files)
        assert tree(target) == files


def test_packing_is_deterministic_and_lists_files_only(tmp_path: Path) -> None:
    files = {"b": b"2", "a/c/d": b"3", "a/b": b"1"}
    first, second = tmp_path / "first", tmp_path / "second"
    content = packed(first, files)
    os.utime(first / "b", (1, 1))
    (first / "b").chmod(0o600)
    again = io.BytesIO()
    pack(first, ["a/c/d", "b", "a/b"], again)
    assert content == again.getvalue() == packed(second, dict(reversed(files.items())))
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        assert [(info.name, info.isreg(), info.mode, info.mtime, info.uid) for info in tar] == [
            (name, True, 0o664, 0, 0) for name in sorted(files)
        ]


# Damage

VALID = make_archive({"Dockerfile": DOCKERFILE, "src/data": os.urandom(300), "n" * 150: b"long name"})
VALID_TAR = gzip.decompress(VALID)


def read_all(content: bytes) -> None:
    """Read it in every way; only `BadArchive` may come out, and nothing may be left outside the folder."""
    with tempfile.TemporaryDirectory() as outer:
        inner = Path(outer, "inner")
        inner.mkdir()
        for read in (
            lambda: unpack(io.BytesIO(content), inner, LIMITS),
            lambda: repack_context(io.BytesIO(content), io.BytesIO(), LINKS),
        ):
            with contextlib.suppress(BadArchive):
                read()
        assert list(Path(outer).iterdir()) == [inner]


EDITS = st.lists(st.tuples(st.integers(0, 1 << 20), st.binary(min_size=1, max_size=20)), min_size=1, max_size=8)


def edited(content: bytes, edits: list[tuple[int, bytes]]) -> bytes:
    changed = bytearray(content)
    for place, new in edits:
        start = place % len(changed)
        changed[start : start + len(new)] = new
    return bytes(changed)


@settings(max_examples=100)
@given(edits=EDITS)
def test_a_damaged_archive_is_read_or_refused_but_never_breaks_the_reader(edits: list[tuple[int, bytes]]) -> None:
    read_all(edited(VALID, edits))


@settings(max_examples=100)
@given(edits=EDITS)
def test_headers_of_any_content_are_read_or_refused(edits: list[tuple[int, bytes]]) -> None:
    changed = bytearray(edited(VALID_TAR, [(place % 3000, new) for place, new in edits]))
    for start in range(0, len(changed) - BLOCK, BLOCK):  # right checksums let the damage through to the parser
        if changed[start + 257 : start + 262] == b"ustar":
            changed[start : start + BLOCK] = with_checksum(changed[start : start + BLOCK])
    read_all(gzip.compress(bytes(changed), 1))
