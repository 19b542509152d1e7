"""Harvesting outputs: whatever a program left in its folder, only regular files come out, and none of ours go in."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from morpheo.errors import BadOutput
from morpheo.runtime import outputs
from morpheo.runtime.outputs import OutputLimits, TooMuchOutput, harvest_files, harvest_tree, read_file

Make = Callable[[Path, Path], None]
LIMITS = OutputLimits(max_bytes=1000, max_files=10, max_depth=4)
SECRET = b"the answers"

# A named pipe that is opened the wrong way would wait for ever.
pytestmark = pytest.mark.timeout(20)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """The folder that a program wrote to."""
    (tmp_path / "source").mkdir()
    return tmp_path / "source"


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """The folder for the copies."""
    (tmp_path / "target").mkdir()
    return tmp_path / "target"


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A file of ours that a program would like to have as its output."""
    (tmp_path / "secrets").mkdir()
    path = tmp_path / "secrets" / "answers"
    path.write_bytes(SECRET)
    return path


def make_link(path: Path, secret: Path) -> None:
    path.symlink_to(secret)


def make_relative_link(path: Path, secret: Path) -> None:
    path.symlink_to("../secrets/answers")


def make_link_to_folder(path: Path, secret: Path) -> None:
    path.symlink_to(secret.parent)


def make_dangling_link(path: Path, secret: Path) -> None:
    path.symlink_to("nowhere")


def make_link_to_itself(path: Path, secret: Path) -> None:
    path.symlink_to(path.name)


def make_link_to_descriptor(path: Path, secret: Path) -> None:
    path.symlink_to("/proc/self/fd/0")


def make_pipe(path: Path, secret: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path, secret: Path) -> None:
    os.mknod(path, stat.S_IFSOCK | 0o600)


def make_hard_link(path: Path, secret: Path) -> None:
    path.hardlink_to(secret)


SPECIAL: list[Make] = [
    make_link,
    make_relative_link,
    make_link_to_folder,
    make_dangling_link,
    make_link_to_itself,
    make_link_to_descriptor,
    make_pipe,
    make_socket,
    make_hard_link,
]
special = pytest.mark.parametrize("make", SPECIAL, ids=lambda make: make.__name__.removeprefix("make_"))


def descriptors(source: Path) -> list[str]:
    """Return what of a test's own folders is open in this process, where other tests may have left threads."""
    found = []
    for path in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.append(str(path.readlink()))
    return sorted(name for name in found if name.startswith(f"{source.parent}/"))


@special
def test_a_prediction_that_is_no_regular_file_is_refused(make: Make, source: Path, target: Path, secret: Path) -> None:
    make(source / "a", secret)
    before = descriptors(source)
    with pytest.raises(BadOutput, match="'a' is"):
        harvest_files(source, target, names={"a"}, max_bytes=1000)
    assert not list(target.iterdir())
    assert descriptors(source) == before


@special
def test_a_model_file_that_is_no_regular_file_is_refused(make: Make, source: Path, target: Path, secret: Path) -> None:
    (source / "sub").mkdir()
    make(source / "sub" / "a", secret)
    before = descriptors(source)
    with pytest.raises(BadOutput, match="'sub/a' is"):
        harvest_tree(source, target, LIMITS)
    assert not [path for path in target.rglob("*") if path.is_file()]
    assert descriptors(source) == before


@special
def test_a_performance_file_that_is_no_regular_file_is_refused(make: Make, source: Path, secret: Path) -> None:
    make(source / "performance.json", secret)
    before = descriptors(source)
    with pytest.raises(BadOutput, match=r"'performance.json' is"):
        read_file(source, "performance.json", max_bytes=1000)
    assert descriptors(source) == before


def test_a_folder_where_a_file_is_expected_is_the_programs_fault(source: Path, target: Path) -> None:
    (source / "a").mkdir()
    before = descriptors(source)
    with pytest.raises(BadOutput, match="'a' is not a regular file"):
        harvest_files(source, target, names={"a"}, max_bytes=1000)
    with pytest.raises(BadOutput, match="'a' is not a regular file"):
        read_file(source, "a", max_bytes=1000)
    assert descriptors(source) == before


def test_a_program_that_links_its_own_files_to_each_other_is_refused(source: Path, target: Path) -> None:
    (source / "a").write_bytes(b"1")
    (source / "b").hardlink_to(source / "a")
    with pytest.raises(BadOutput, match="second hard link"):
        harvest_tree(source, target, LIMITS)


# Flat folders


def test_expected_files_are_copied_and_named(source: Path, target: Path) -> None:
    (source / "a").write_bytes(b"1")
    (source / "b").write_bytes(b"")
    assert harvest_files(source, target, names={"a", "b", "c"}, max_bytes=1) == {"a", "b"}
    assert {path.name: path.read_bytes() for path in target.iterdir()} == {"a": b"1", "b": b""}


def test_a_copy_is_another_file_with_a_plain_mode(source: Path, target: Path) -> None:
    (source / "a").write_bytes(b"1")
    (source / "a").chmod(0o6777)
    harvest_files(source, target, names={"a"}, max_bytes=1)
    (source / "a").write_bytes(b"2")
    assert (target / "a").read_bytes() == b"1"
    assert (target / "a").stat().st_mode & 0o7133 == 0


@pytest.mark.parametrize("name", ["performance.json", ".hidden", "a ", "A", "a\n", "\x1b[2J", "-rf", b"\xff\xfe"])
def test_an_unexpected_name_is_refused_and_shown_without_control_characters(
    source: Path, target: Path, name: str | bytes
) -> None:
    (source / "a").write_bytes(b"1")
    Path(os.fsdecode(os.fsencode(source) + b"/" + os.fsencode(name))).write_bytes(b"2")
    with pytest.raises(BadOutput, match="unexpected file") as caught:
        harvest_files(source, target, names={"a"}, max_bytes=10)
    assert str(caught.value).isprintable()
    assert str(caught.value).encode()


def test_an_unexpected_folder_is_refused(source: Path, target: Path) -> None:
    (source / "pred").mkdir()
    with pytest.raises(BadOutput, match="unexpected file 'pred'"):
        harvest_files(source, target, names={"a"}, max_bytes=10)


def test_many_unexpected_names_are_not_all_read(source: Path, target: Path) -> None:
    for number in range(50):
        (source / str(number)).touch()
    with pytest.raises(TooMuchOutput, match="at most 1 are kept"):
        harvest_files(source, target, names={"a"}, max_bytes=10)


def test_a_file_may_be_as_large_as_the_limit_and_no_larger(source: Path, target: Path) -> None:
    (source / "a").write_bytes(b"x" * 10)
    assert harvest_files(source, target, names={"a"}, max_bytes=10) == {"a"}
    (source / "b").write_bytes(b"x" * 11)
    with pytest.raises(TooMuchOutput, match="'b' makes the output larger"):
        harvest_files(source, target / "..", names={"a", "b"}, max_bytes=10)


def test_a_sparse_file_of_a_terabyte_is_refused_before_a_byte_is_read(source: Path, target: Path) -> None:
    with (source / "a").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(TooMuchOutput):
        harvest_files(source, target, names={"a"}, max_bytes=1 << 30)
    with pytest.raises(TooMuchOutput):
        harvest_tree(source, target, LIMITS)
    with pytest.raises(TooMuchOutput, match="larger than 1000 bytes"):
        read_file(source, "a", max_bytes=1000)
    assert not list(target.iterdir())


def test_a_file_that_grows_while_it_is_read_is_refused(
    source: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (source / "a").write_bytes(b"x" * 100)
    monkeypatch.setattr(outputs, "_COPY_SIZE", 10)
    fstat = os.fstat

    def growing_fstat(descriptor: int) -> os.stat_result:
        result = fstat(descriptor)
        with (source / "a").open("ab") as file:
            file.write(b"y" * 100)
        return result

    monkeypatch.setattr(os, "fstat", growing_fstat)
    with pytest.raises(BadOutput, match="grew while it was read"):
        harvest_files(source, target, names={"a"}, max_bytes=1000)


# Trees


def test_a_tree_is_copied_with_its_folders(source: Path, target: Path) -> None:
    (source / "a" / "b").mkdir(parents=True)
    (source / "empty").mkdir()
    (source / "a" / "b" / "c.json").write_bytes(b"1")
    (source / "model 1_x-y").write_bytes(b"2")
    assert sorted(harvest_tree(source, target, LIMITS)) == ["a/b/c.json", "model 1_x-y"]
    assert (target / "a" / "b" / "c.json").read_bytes() == b"1"
    assert (target / "empty").is_dir()


def test_an_empty_tree_gives_no_names(source: Path, target: Path) -> None:
    assert harvest_tree(source, target, LIMITS) == []


@pytest.mark.parametrize("name", ["é", "a\nb", "a\\b", "*", "a:b", "\x07", "a\n", b"\xff", "~", "$HOME"])
def test_a_name_that_other_systems_cannot_keep_is_refused(source: Path, target: Path, name: str | bytes) -> None:
    Path(os.fsdecode(os.fsencode(source) + b"/" + os.fsencode(name))).write_bytes(b"1")
    with pytest.raises(BadOutput, match="cannot be kept; use letters") as caught:
        harvest_tree(source, target, LIMITS)
    assert str(caught.value).isprintable()


def test_files_and_folders_count_over_the_whole_tree(source: Path, target: Path) -> None:
    for folder in ("a", "b"):
        (source / folder).mkdir()
        for number in range(4):
            (source / folder / str(number)).touch()
    assert len(harvest_tree(source, target, LIMITS)) == 8
    (source / "c").touch()
    with pytest.raises(TooMuchOutput, match="at most 10 are kept"):
        harvest_tree(source, target / "..", LIMITS)


def test_bytes_count_over_the_whole_tree(source: Path, target: Path) -> None:
    (source / "sub").mkdir()
    (source / "a").write_bytes(b"x" * 600)
    (source / "sub" / "b").write_bytes(b"x" * 400)
    assert len(harvest_tree(source, target, LIMITS)) == 2
    (source / "sub" / "c").write_bytes(b"x")
    with pytest.raises(TooMuchOutput, match="'sub/c' makes the output larger"):
        harvest_tree(source, target / "..", LIMITS)


def test_folders_are_nested_less_deep_than_the_limit(source: Path, target: Path) -> None:
    (source / "1/2/3").mkdir(parents=True)
    (source / "1/2/3/file").touch()
    assert harvest_tree(source, target, LIMITS) == ["1/2/3/file"]
    (source / "1/2/3/4").mkdir()
    with pytest.raises(TooMuchOutput, match="nested 4 deep or more"):
        harvest_tree(source, target / "..", LIMITS)


def test_a_tree_of_3000_folders_in_each_other_is_refused(source: Path, target: Path) -> None:
    descriptor = os.open(source, os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("d", dir_fd=descriptor)
        inner = os.open("d", os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = inner
    os.close(descriptor)
    with pytest.raises(TooMuchOutput, match="nested"):
        harvest_tree(source, target, LIMITS)
    outputs_left = [path.name for path in target.rglob("*")]
    assert outputs_left == ["d"] * 3
    # pytest's own cleaning cannot remove a tree of that depth
    subprocess.run(["rm", "-rf", str(source)], check=True)


def test_a_folder_swapped_for_a_link_after_it_was_listed_is_not_followed(
    source: Path, target: Path, secret: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (source / "outer" / "inner").mkdir(parents=True)
    open_folder = outputs._open_folder

    def swap_and_open(root: Path, relative: str) -> int:
        if relative == "outer/inner":
            (source / "outer" / "inner").rmdir()
            (source / "outer").rmdir()
            (source / "outer").symlink_to(secret.parent.parent / "elsewhere")
            (secret.parent.parent / "elsewhere").mkdir()
            secret.parent.rename(secret.parent.parent / "elsewhere" / "inner")
        return open_folder(root, relative)

    monkeypatch.setattr(outputs, "_open_folder", swap_and_open)
    before = descriptors(source)
    with pytest.raises(BadOutput, match="outer/inner"):
        harvest_tree(source, target, LIMITS)
    assert not [path for path in target.rglob("*") if path.is_file()]
    assert descriptors(source) == before


def test_an_output_folder_that_is_itself_a_link_is_not_followed(tmp_path: Path, target: Path, secret: Path) -> None:
    (tmp_path / "swapped").symlink_to(secret.parent)
    with pytest.raises(BadOutput):
        harvest_files(tmp_path / "swapped", target, names={"answers"}, max_bytes=1000)
    with pytest.raises(BadOutput):
        harvest_tree(tmp_path / "swapped", target, LIMITS)
    with pytest.raises(BadOutput):
        read_file(tmp_path / "swapped", "answers", max_bytes=1000)


@pytest.mark.parametrize("mode", [0o000, 0o444, 0o111])
def test_a_folder_that_its_owner_may_not_read_is_harvested_or_the_programs_fault(
    source: Path, target: Path, mode: int
) -> None:
    (source / "sub").mkdir()
    (source / "sub" / "a").write_bytes(b"1")
    (source / "sub").chmod(mode)
    try:
        if os.getuid() == 0:
            assert harvest_tree(source, target, LIMITS) == ["sub/a"]
        else:
            with pytest.raises(BadOutput, match="unreadable"):
                harvest_tree(source, target, LIMITS)
    finally:
        (source / "sub").chmod(0o755)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (errno.EACCES, BadOutput),
        (errno.EPERM, BadOutput),
        (errno.ENXIO, BadOutput),
        (errno.EMFILE, OSError),
        (errno.EIO, OSError),
        (errno.ENOENT, OSError),
    ],
    ids=errno.errorcode.get,
)
@pytest.mark.parametrize("call", ["open", "stat"])
def test_what_cannot_be_opened_is_blamed_on_the_program_unless_the_machine_is_at_fault(
    source: Path, target: Path, monkeypatch: pytest.MonkeyPatch, call: str, error: int, kind: type[Exception]
) -> None:
    (source / "a").touch()

    def fail(*_args: object, **_kwargs: object) -> int:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(kind):
        harvest_tree(source, target, LIMITS)


# The performance file


def test_a_file_that_is_not_there_is_none(source: Path) -> None:
    assert read_file(source, "performance.json", max_bytes=10) is None


def test_a_file_is_read_up_to_its_limit(source: Path) -> None:
    (source / "performance.json").write_bytes(b"x" * 10)
    assert read_file(source, "performance.json", max_bytes=10) == b"x" * 10
    with pytest.raises(TooMuchOutput, match="larger than 9 bytes"):
        read_file(source, "performance.json", max_bytes=9)


def test_too_much_output_is_bad_output() -> None:
    assert issubclass(TooMuchOutput, BadOutput)
