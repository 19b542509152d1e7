"""Packing a folder: what a build needs and nothing else, the same bytes each time, and clear words otherwise."""

from __future__ import annotations

import errno
import io
import os
import socket
import tarfile
from pathlib import Path
from typing import Any

import pytest

from morpheo.errors import BadArchive, InvalidInput, TooLarge
from morpheo.packing import pack_folder
from morpheo.runtime.archive import ArchiveLimits, ArchiveReader

DOCKERFILE = "FROM morpheo/base:1\nCOPY . /\n"
LIMITS = ArchiveLimits(max_bytes=1 << 20, max_entries=50, links=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder as a data scientist has it."""
    root = tmp_path / "algo"
    for name, text in {
        "Dockerfile": DOCKERFILE,
        "algo.py": "print()",
        "src/model.py": "x",
        "src/deep/helper.py": "y",
        "src/deep/notes.md": "n",
        "README.md": "r",
        "data/big.csv": "1,2",
        "data/keep.csv": "3",
        "src/__pycache__/model.pyc": "p",
    }.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def pack(folder: Path) -> bytes:
    target = io.BytesIO()
    pack_folder(folder, target, limits=LIMITS)
    return target.getvalue()


def packed_files(folder: Path) -> set[str]:
    return {entry.name for entry in ArchiveReader(io.BytesIO(pack(folder)), LIMITS) if not entry.is_folder}


def ignore(folder: Path, *lines: str) -> None:
    (folder / ".dockerignore").write_text("\n".join(lines) + "\n")


def test_without_ignore_file_everything_is_packed(folder: Path) -> None:
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert packed_files(folder) == files


@pytest.mark.parametrize(
    ("lines", "gone"),
    [
        (["data"], {"data/big.csv", "data/keep.csv"}),
        (["/data/"], {"data/big.csv", "data/keep.csv"}),
        (["*.md"], {"README.md"}),
        (["**/*.md"], {"README.md", "src/deep/notes.md"}),
        (["**/__pycache__"], {"src/__pycache__/model.pyc"}),
        (["src/**/*.py"], {"src/model.py", "src/deep/helper.py"}),
        (["data", "!data/keep.csv"], {"data/big.csv"}),
        (["!data/keep.csv", "data"], {"data/big.csv", "data/keep.csv"}),
        (["**/*.md", "!README.md"], {"src/deep/notes.md"}),
        (["# data", "", "  README.md  "], {"README.md"}),
        (["\ufeffREADME.md"], {"README.md"}),
        (["README.m?", "algo.p[xy]"], {"README.md", "algo.py"}),
    ],
)
def test_ignored_files_are_left_out(folder: Path, lines: list[str], gone: set[str]) -> None:
    before = packed_files(folder)
    ignore(folder, *lines)
    assert packed_files(folder) == before - gone | {".dockerignore"}


def test_everything_can_be_ignored_but_what_is_listed(folder: Path) -> None:
    ignore(folder, "*", "!algo.py", "!src/**", "src/deep")
    assert packed_files(folder) == {
        "Dockerfile", ".dockerignore", "algo.py", "src/model.py", "src/__pycache__/model.pyc",
    }  # fmt: skip


def test_dockerfile_and_ignore_file_are_packed_even_if_ignored(folder: Path) -> None:
    ignore(folder, "Dockerfile", ".dockerignore", "data", "src", "*.md")
    assert packed_files(folder) == {"Dockerfile", ".dockerignore", "algo.py"}


def test_the_same_files_give_the_same_bytes(folder: Path) -> None:
    first = pack(folder)
    os.utime(folder / "algo.py", (1, 1))
    (folder / "algo.py").chmod(0o600)
    assert pack(folder) == first
    (folder / "algo.py").chmod(0o700)
    assert pack(folder) != first


def test_no_names_times_or_owners_are_told(folder: Path) -> None:
    (folder / "run.sh").write_text("#!/bin/sh\n")
    (folder / "run.sh").chmod(0o775)
    content = pack(folder)
    assert content[4:8] == b"\0\0\0\0"  # the time of a gzip header
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        members = tar.getmembers()
    assert [member.name for member in members] == sorted(member.name for member in members)
    assert {(member.mtime, member.uid, member.gid, member.uname, member.gname) for member in members} == {
        (0, 0, 0, "", "")
    }
    assert {member.name: oct(member.mode) for member in members if member.name in ("run.sh", "algo.py", "src")} == {
        "run.sh": "0o755",
        "algo.py": "0o644",
        "src": "0o755",
    }


def test_empty_folders_and_links_that_stay_inside_are_kept(folder: Path) -> None:
    (folder / "empty").mkdir()
    (folder / "src" / "again.py").symlink_to("../algo.py")
    entries = {entry.name: entry for entry in ArchiveReader(io.BytesIO(pack(folder)), LIMITS)}
    assert entries["empty"].is_folder
    assert entries["src/again.py"].link == "../algo.py"


def test_a_link_that_leads_out_is_named(folder: Path) -> None:
    (folder / "weights").symlink_to("/home/me/weights")
    with pytest.raises(BadArchive, match=r"the link 'weights' leads out .*\.dockerignore"):
        pack(folder)
    ignore(folder, "weights")
    assert "weights" not in packed_files(folder)


def test_a_pipe_and_a_socket_are_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(folder / "pipe")
    with pytest.raises(InvalidInput, match=r"pipe is a pipe, a socket or a device; .*remove it"):
        pack(folder)
    (folder / "pipe").unlink()
    monkeypatch.chdir(folder)  # the path of a socket must be short
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("ctl")
        with pytest.raises(InvalidInput, match="ctl is a pipe, a socket or a device"):
            pack(folder)


def test_a_file_that_a_worker_would_refuse_is_named(folder: Path) -> None:
    (folder / "back\\slash").touch()
    with pytest.raises(BadArchive, match=r"'back\\\\slash' is not a usable file name"):
        pack(folder)


def test_a_folder_without_dockerfile_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="there is no Dockerfile at its root; add one"):
        pack(tmp_path)
    with pytest.raises(InvalidInput, match="is not a folder"):
        pack(tmp_path / "absent")
    (tmp_path / "Dockerfile").mkdir()
    with pytest.raises(InvalidInput, match="its Dockerfile is a folder or a link"):
        pack(tmp_path)


def test_a_dockerfile_that_is_no_text_is_refused(folder: Path) -> None:
    (folder / "Dockerfile").write_bytes(b"FROM \xff")
    with pytest.raises(BadArchive, match="Dockerfile is not UTF-8 text"):
        pack(folder)


def test_an_ignore_file_that_is_no_text_is_refused(folder: Path) -> None:
    (folder / ".dockerignore").write_bytes(b"\xff")
    with pytest.raises(InvalidInput, match=r"\.dockerignore is not UTF-8 text"):
        pack(folder)


def test_an_unreadable_file_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    really_open = os.open

    def refuse(path: Path | str, *args: Any, **kwargs: Any) -> int:  # root, as tests run, may read everything
        if str(path).endswith("algo.py"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return really_open(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(InvalidInput, match=r"algo\.py: Permission denied; make it readable"):
        pack(folder)


def test_too_much_is_refused_with_the_largest_files(folder: Path) -> None:
    (folder / "weights.bin").write_bytes(bytes(2 << 20))
    target = io.BytesIO()
    with pytest.raises(TooLarge, match=r"more than 1\.0 MiB; .*The largest files: weights\.bin \(2\.0 MiB\), "):
        pack_folder(folder, target, limits=LIMITS)
    assert target.getvalue() == b""
    ignore(folder, "*.bin")
    assert "weights.bin" not in packed_files(folder)


def test_too_many_files_are_refused(folder: Path) -> None:
    for number in range(51):
        (folder / f"{number}.txt").touch()
    with pytest.raises(TooLarge, match="files and folders, more than 50"):
        pack(folder)


def test_by_default_a_worker_with_default_settings_takes_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MORPHEO_CONTEXT_ENTRIES", "1")  # a setting of this machine, not of the one that will build
    target = io.BytesIO()
    pack_folder(folder, target)
    assert target.getvalue() == pack(folder)
