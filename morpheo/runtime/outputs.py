"""
Takes what a container left in its output folders, after it has ended.

The folders were writable by somebody else's program, so nothing in them is believed: folders are walked by open
descriptors, no link is followed, a pipe is not waited for, and what is accepted is copied to a fresh folder that no
container ever had. Paths are never built from names that were not checked.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from morpheo.errors import BadOutput

_NAME = re.compile(r"[A-Za-z0-9._ -]{1,255}")
_COPY_SIZE = 1 << 20
_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
#: Errors that no container can cause: they are the machine's.
_OURS = frozenset({errno.ENOENT, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.ESTALE})


class TooMuchOutput(BadOutput):
    """A container's output is over a limit."""


@dataclass(frozen=True, kw_only=True)
class OutputLimits:
    """What an output folder may hold."""

    max_bytes: int
    max_files: int
    max_depth: int = 8

    @property
    def packed_bytes(self) -> int:
        """How large the archive of such a folder is at most, if nothing in it can be compressed."""
        # Headers of tar with names of any length, and what deflate adds to a block that it stores (RFC 1951, 3.2.4).
        return self.max_bytes + self.max_bytes // 1000 + 4096 * (self.max_files + 1)


def harvest_files(source: Path, target: Path, *, names: set[str], max_bytes: int) -> set[str]:
    """
    Copy the files of a flat output folder, and return the names found.

    Args:
        source: Folder that a container wrote to.
        target: Empty folder.
        names: Names that are expected; any other is refused.
        max_bytes: Largest size of one file.

    Raises:
        BadOutput: the folder holds something else than regular files with expected names.
        TooMuchOutput: a file is too large.
    """
    found: set[str] = set()
    with _Folder(_open_folder(source, "")) as folder:
        for name in folder.names(left=len(names) + 1, limit=len(names)):
            if name not in names:
                raise BadOutput(f"unexpected file {_shown(name)}; write one file for each data id and nothing else")
            _copy_file(folder.descriptor, name, target / name, max_bytes=max_bytes, shown=name)
            found.add(name)
    return found


def harvest_tree(source: Path, target: Path, limits: OutputLimits) -> list[str]:
    """
    Copy the files of an output folder and its sub-folders, and return their relative names.

    Args:
        source: Folder that a container wrote to.
        target: Empty folder.
        limits: What may be there.

    Raises:
        BadOutput: something is neither a regular file nor a folder, or has a name that cannot be kept.
        TooMuchOutput: there are more bytes, files or folders than the limits allow.
    """
    names: list[str] = []
    left_bytes, left_entries = limits.max_bytes, limits.max_files
    pending = [""]
    while pending:
        prefix = pending.pop()
        with _Folder(_open_folder(source, prefix)) as folder:
            for name in folder.names(left=left_entries, limit=limits.max_files):
                left_entries -= 1
                relative = f"{prefix}/{name}".lstrip("/")
                if not _NAME.fullmatch(name):
                    raise BadOutput(
                        f"the file name {_shown(name)} cannot be kept; use letters, digits, . _ - and space"
                    )
                if stat.S_ISDIR(_mode(folder.descriptor, name, relative)):
                    if relative.count("/") + 1 >= limits.max_depth:
                        raise TooMuchOutput(f"folders are nested {limits.max_depth} deep or more; use fewer")
                    (target / relative).mkdir()
                    pending.append(relative)
                    continue
                left_bytes -= _copy_file(
                    folder.descriptor, name, target / relative, max_bytes=left_bytes, shown=relative
                )
                names.append(relative)
    return names


def read_file(folder: Path, name: str, *, max_bytes: int) -> bytes | None:
    """
    Return the content of one output file, None if it is not there.

    Raises:
        BadOutput: it is not a regular file.
        TooMuchOutput: it is too large.
    """
    with _Folder(_open_folder(folder, "")) as opened:
        try:
            _mode(opened.descriptor, name, name)
        except FileNotFoundError:
            return None
        descriptor = _open_file(opened.descriptor, name, name)
    with open(descriptor, "rb") as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise TooMuchOutput(f"{_shown(name)} is larger than {max_bytes} bytes")
    return content


class _Folder:
    """An open folder descriptor that is closed at the end."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        os.close(self.descriptor)

    def names(self, *, left: int, limit: int) -> Iterator[str]:
        """Return the names in the folder, but fail as soon as there are more than are left of the `limit`."""
        with os.scandir(self.descriptor) as entries:
            names: list[str] = []
            for entry in entries:
                if len(names) >= left:
                    raise TooMuchOutput(f"too many files; at most {limit} are kept here")
                names.append(entry.name)
        return iter(sorted(names))


@contextmanager
def _blaming(shown: str) -> Iterator[None]:
    """Turn an error that the container can have caused into `BadOutput`."""
    try:
        yield
    except OSError as exc:
        if exc.errno in _OURS:
            raise
        kind = "a link" if exc.errno == errno.ELOOP else f"unreadable ({exc.strerror})"
        raise BadOutput(f"{_shown(shown)} is {kind}; write regular files and folders") from exc


def _mode(folder: int, name: str, shown: str) -> int:
    with _blaming(shown):
        return os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode


def _open_folder(root: Path, relative: str) -> int:
    # One component at a time: O_NOFOLLOW protects only the last one.
    with _blaming(relative or root.name):
        descriptor = os.open(root, _FOLDER_FLAGS)
    for part in relative.split("/") if relative else ():
        try:
            with _blaming(relative):
                inner = os.open(part, _FOLDER_FLAGS, dir_fd=descriptor)
        finally:
            os.close(descriptor)
        descriptor = inner
    return descriptor


def _open_file(folder: int, name: str, shown: str) -> int:
    with _blaming(shown):
        descriptor = os.open(name, _FILE_FLAGS, dir_fd=folder)
    info = os.fstat(descriptor)
    if not stat.S_ISREG(info.st_mode) or info.st_nlink != 1:
        os.close(descriptor)  # before open(), which raises for a folder and leaves it open
        raise BadOutput(f"{_shown(shown)} is not a regular file, or has a second hard link")
    return descriptor


def _copy_file(folder: int, name: str, target: Path, *, max_bytes: int, shown: str) -> int:
    with open(_open_file(folder, name, shown), "rb", buffering=0) as source:
        size = os.fstat(source.fileno()).st_size
        if size > max_bytes:
            raise TooMuchOutput(f"{_shown(shown)} makes the output larger than the limit of bytes")
        copied = 0
        with open(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644), "wb") as file:
            while piece := source.read(_COPY_SIZE):
                copied += len(piece)
                if copied > size:
                    raise BadOutput(f"{_shown(shown)} grew while it was read")
                file.write(piece)
    return copied


def _shown(name: str) -> str:
    return repr(name.encode("utf-8", "backslashreplace").decode()[:100])
