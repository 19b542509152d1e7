"""
Packs the folder of a problem or an algo into the archive that Morpheo takes.

What a worker would refuse is refused here, by the same reader, while the person who can change it looks on.
"""

from __future__ import annotations

import gzip
import os
import shutil
import stat
import tarfile
import tempfile
from pathlib import Path
from typing import BinaryIO

from morpheo.config import Settings
from morpheo.errors import BadArchive, InvalidInput, TooLarge
from morpheo.runtime.archive import ArchiveLimits, repack_context
from morpheo.runtime.context import IGNORE_FILE, context_names

_LARGEST_SHOWN = 5
_MIB = 1 << 20
_NO_DOCKERFILE = "there is no Dockerfile at its root; add one, or name the folder that has it"


def context_limits(settings: Settings) -> ArchiveLimits:
    """Return what a build context may hold under these settings."""
    return ArchiveLimits(max_bytes=settings.context_bytes, max_entries=settings.context_entries, links=True)


def pack_folder(folder: Path, target: BinaryIO, *, limits: ArchiveLimits | None = None) -> None:
    """
    Pack a folder with a Dockerfile at its root as a ``.tar.gz``; the same files always give the same bytes.

    What ``.dockerignore`` names is left out. Entries are sorted, without times and owners; of the modes only whether
    the owner may execute a file is kept.

    Args:
        folder: What to pack; files, folders, and links that stay inside.
        target: Is written to; nothing is, if something is wrong.
        limits: What an archive may hold; by default what a worker accepts with its default settings.

    Raises:
        InvalidInput: the folder cannot be packed as it is; the sentence says what to change.
        BadArchive: a worker would not accept the archive; the sentence names the file.
        TooLarge: there is too much of it; the sentence names the largest files.
    """
    limits = limits or context_limits(Settings.model_construct())
    names = _names(folder)
    sizes = {name: _size(folder, name) for name in names}
    _check_limits(folder, sizes, limits)
    with tempfile.TemporaryFile() as packed, open(os.devnull, "wb") as nowhere:
        _pack(folder, names, packed)
        packed.seek(0)
        try:
            repack_context(packed, nowhere, limits)
        except BadArchive as exc:
            raise BadArchive(f"{folder}: {exc}. What a build does not need can be named in {IGNORE_FILE}") from exc
        packed.seek(0)
        shutil.copyfileobj(packed, target)


def _names(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise InvalidInput(f"{folder} is not a folder; name the folder that has the Dockerfile")
    dockerfile = folder / "Dockerfile"
    if not dockerfile.is_file() or dockerfile.is_symlink():
        found = "its Dockerfile is a folder or a link; make it a file" if dockerfile.exists() else _NO_DOCKERFILE
        raise InvalidInput(f"{folder}: {found}")
    try:
        return context_names(folder)
    except UnicodeDecodeError as exc:
        raise InvalidInput(f"{folder / IGNORE_FILE} is not UTF-8 text; save it as such") from exc
    except OSError as exc:
        raise _unreadable(exc) from exc


def _size(folder: Path, name: str) -> int:
    """Return the size of a file, 0 for what has no content of its own."""
    try:
        status = (folder / name).lstat()
    except OSError as exc:
        raise _unreadable(exc) from exc
    if stat.S_ISREG(status.st_mode):
        return status.st_size
    if stat.S_ISDIR(status.st_mode) or stat.S_ISLNK(status.st_mode):
        return 0
    raise InvalidInput(
        f"{folder / name} is a pipe, a socket or a device; only files, folders and links can be packed: "
        f"remove it, or name it in {IGNORE_FILE}"
    )


def _check_limits(folder: Path, sizes: dict[str, int], limits: ArchiveLimits) -> None:
    if len(sizes) > limits.max_entries:
        raise TooLarge(
            f"{folder} has {len(sizes)} files and folders, more than {limits.max_entries}; name those that the build "
            f"does not need in {IGNORE_FILE}"
        )
    total = sum(tarfile.BLOCKSIZE + size + -size % tarfile.BLOCKSIZE for size in sizes.values())
    if total > limits.max_bytes:
        largest = sorted(sizes, key=lambda name: (-sizes[name], name))[:_LARGEST_SHOWN]
        shown = ", ".join(f"{name} ({sizes[name] / _MIB:.1f} MiB)" for name in largest)
        raise TooLarge(
            f"{folder} has {total / _MIB:.1f} MiB, more than {limits.max_bytes / _MIB:.1f} MiB; name what the build "
            f"does not need in {IGNORE_FILE}. The largest files: {shown}"
        )


def _pack(folder: Path, names: list[str], target: BinaryIO) -> None:
    with (
        gzip.GzipFile(fileobj=target, mode="wb", mtime=0, filename="", compresslevel=6) as zipped,
        tarfile.open(fileobj=zipped, mode="w|", format=tarfile.PAX_FORMAT) as tar,
    ):
        for name in names:
            _add(tar, folder / name, tarfile.TarInfo(name))


def _add(tar: tarfile.TarFile, path: Path, info: tarfile.TarInfo) -> None:
    try:
        status = path.lstat()
        if stat.S_ISLNK(status.st_mode):
            info.type, info.mode, info.linkname = tarfile.SYMTYPE, 0o777, str(path.readlink())
        elif stat.S_ISDIR(status.st_mode):
            info.type, info.mode = tarfile.DIRTYPE, 0o755
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW) if stat.S_ISREG(status.st_mode) else None
    except OSError as exc:
        raise _unreadable(exc) from exc
    if file is None:
        tar.addfile(info)
        return
    with open(file, "rb") as content:
        info.size = os.fstat(file).st_size
        info.mode = 0o755 if status.st_mode & stat.S_IXUSR else 0o644
        tar.addfile(info, content)


def _unreadable(error: OSError) -> InvalidInput:
    return InvalidInput(f"{error.filename}: {error.strerror or error}; make it readable, or name it in {IGNORE_FILE}")
