"""
Reads and writes ``.tar.gz`` archives that nobody has to trust.

Only headers are parsed with the standard library (`tarfile.TarInfo.frombuf`); its extract functions, which have let
archives write outside of their folder more than once, are never called. Regular files and folders are accepted, and in
a build context also symbolic links that stay inside. Everything else is refused with a sentence that names the entry.
"""

from __future__ import annotations

import dataclasses
import gzip
import io
import os
import posixpath
import re
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from morpheo.errors import BadArchive

_BLOCK = tarfile.BLOCKSIZE
_READ_SIZE = 1 << 18
#: Extended headers (long names) larger than this are an attack.
_MAX_EXTENDED_HEADER = 64 << 10
#: What a gzip stream may grow by before it counts as a bomb, once it is larger than `_RATIO_FROM`.
_MAX_RATIO = 200
_RATIO_FROM = 16 << 20
_MAX_NAME = 255
#: With the folder that it is unpacked into before it, a name must stay below PATH_MAX.
_MAX_PATH = 2048
#: No control characters, and no surrogates: those stand for bytes that are not UTF-8.
_PART = re.compile(r"[^\x00-\x1f\x7f/\\\ud800-\udfff]{1,255}")
_REGULAR = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)


@dataclass(frozen=True, kw_only=True)
class ArchiveLimits:
    """What an archive may hold."""

    #: Sum of all headers and files, unpacked.
    max_bytes: int
    max_entries: int
    max_depth: int = 16
    links: bool = False


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One file, folder or link of an archive."""

    #: Relative path with ``/``, normalised.
    name: str
    size_bytes: int = 0
    is_folder: bool = False
    executable: bool = False
    #: Target of a symbolic link.
    link: str | None = None


class ArchiveReader:
    """
    Reads one gzipped tar archive, once, from front to back.

    Iterating gives the entries; `read` gives the content of the entry last given. All limits are checked as the
    bytes come, so a bomb costs no more than its limit.

    Args:
        source: An open binary file.
        limits: What the archive may hold.

    Raises:
        BadArchive: while iterating or reading, with a sentence that says what is wrong.
    """

    def __init__(self, source: BinaryIO, limits: ArchiveLimits) -> None:
        self._source = source
        self._gzip = gzip.GzipFile(fileobj=source, mode="rb")
        self._limits = limits
        self._unpacked = 0
        self._left_in_entry = 0
        self._padding = 0

    def __iter__(self) -> Iterator[Entry]:
        seen: dict[str, bool] = {}
        extended: dict[str, str] = {}
        too_many = f"more than {self._limits.max_entries} files and folders"
        for headers, info in enumerate(iter(self._next_header, None), 1):
            if headers > 3 * (self._limits.max_entries + 1):  # no entry needs more than two extended headers
                raise BadArchive(too_many)
            if info.type in (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK):
                extended |= self._extended_header(info)
                continue
            entry = self._entry(info, extended)
            extended = {}
            if entry.name != ".":
                _check_place(entry, seen)
                if len(seen) > self._limits.max_entries:
                    raise BadArchive(too_many)
                yield entry
            self._skip(self._left_in_entry + self._padding)

    def read(self, size: int = -1, /) -> bytes:
        """Return at most `size` bytes of the present entry; none at its end."""
        wanted = self._left_in_entry if size < 0 else min(size, self._left_in_entry)
        piece = self._inflate_exactly(min(wanted, _READ_SIZE))
        self._left_in_entry -= len(piece)
        return piece

    def _entry(self, info: tarfile.TarInfo, extended: dict[str, str]) -> Entry:
        raw_name = extended.get("path", info.name)
        name = _checked_name(raw_name, self._limits.max_depth)
        size = _checked_size(extended.get("size"), info.size)
        if name == "." and info.type != tarfile.DIRTYPE:
            raise BadArchive("a file without a name")
        if info.type in _REGULAR and not raw_name.endswith("/"):
            self._left_in_entry, self._padding = size, -size % _BLOCK
            return Entry(name=name, size_bytes=size, executable=bool(info.mode & 0o100))
        if info.type == tarfile.DIRTYPE or (info.type in _REGULAR and not size):
            self._left_in_entry = self._padding = 0
            return Entry(name=name, is_folder=True)
        if info.type == tarfile.SYMTYPE and self._limits.links:
            return Entry(name=name, link=_checked_link(name, extended.get("linkpath", info.linkname)))
        raise BadArchive(f"{name!r} is {_TYPES.get(info.type, 'of an unknown type')}; pack files and folders only")

    def _next_header(self) -> tarfile.TarInfo | None:
        block = self._inflate_exactly(_BLOCK, may_end=self._unpacked > 0)
        if not block.strip(b"\0"):
            self._drain()
            return None
        try:
            return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except (tarfile.HeaderError, ValueError, OverflowError) as exc:
            raise BadArchive("not a tar archive, or a damaged one") from exc

    def _extended_header(self, info: tarfile.TarInfo) -> dict[str, str]:
        if not 0 <= info.size <= _MAX_EXTENDED_HEADER:
            raise BadArchive("an extended header is too long")
        content = self._inflate_exactly(info.size)
        self._skip(-info.size % _BLOCK)
        if info.type == tarfile.XGLTYPE:
            return {}
        if info.type == tarfile.XHDTYPE:
            return _pax_records(content)
        key = "path" if info.type == tarfile.GNUTYPE_LONGNAME else "linkpath"
        return {key: content.rstrip(b"\0").decode("utf-8", "surrogateescape")}

    def _inflate(self, size: int) -> bytes:
        try:
            piece = self._gzip.read(size)
        except (OSError, EOFError, zlib.error) as exc:
            raise BadArchive("not a gzip file, or a damaged one; pack with `tar czf`") from exc
        self._unpacked += len(piece)
        if self._unpacked > self._limits.max_bytes:
            raise BadArchive(f"more than {self._limits.max_bytes} bytes when unpacked")
        if self._unpacked > _RATIO_FROM and self._unpacked > _MAX_RATIO * max(1, self._source.tell()):
            raise BadArchive(f"unpacks to more than {_MAX_RATIO} times its size")
        return piece

    def _inflate_exactly(self, size: int, *, may_end: bool = False) -> bytes:
        content = bytearray()
        while len(content) < size and (piece := self._inflate(min(size - len(content), _READ_SIZE))):
            content += piece
        if len(content) < size and (content or not may_end):
            raise BadArchive("the archive is cut short")
        return bytes(content)

    def _skip(self, size: int) -> None:
        self._left_in_entry = self._padding = 0
        while size > 0:
            size -= len(self._inflate_exactly(min(size, _READ_SIZE)))

    def _drain(self) -> None:
        # The rest must be padding: whatever else follows the end mark would be seen by some readers and not by others.
        while piece := self._inflate(_READ_SIZE):
            if piece.strip(b"\0"):
                raise BadArchive("something follows the end of the archive")


_TYPES = {
    tarfile.LNKTYPE: "a hard link",
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a named pipe",
    tarfile.GNUTYPE_SPARSE: "a sparse file",
}


def _pax_records(content: bytes) -> dict[str, str]:
    records: dict[str, str] = {}
    while content:
        digits, space, _ = content.partition(b" ")
        if not space or not re.fullmatch(rb"[0-9]{1,6}", digits) or not len(digits) < int(digits) <= len(content):
            raise BadArchive("a damaged extended header")
        record, content = content[len(digits) + 1 : int(digits)], content[int(digits) :]
        key, equals, value = record.removesuffix(b"\n").partition(b"=")
        if not equals or not record.endswith(b"\n"):
            raise BadArchive("a damaged extended header")
        if key.startswith(b"GNU.sparse"):
            raise BadArchive("sparse files are not accepted; pack without --sparse")
        if key in (b"path", b"linkpath", b"size"):
            records[key.decode()] = value.decode("utf-8", "surrogateescape")
    return records


def _checked_name(name: str, max_depth: int) -> str:
    parts = [part for part in name.split("/") if part not in ("", ".")]
    shown = name.encode("utf-8", "backslashreplace").decode()[:100]
    if name.startswith("/") or ".." in parts:
        raise BadArchive(f"{shown!r} leads out of the archive; pack with relative names")
    if len(parts) > max_depth:
        raise BadArchive(f"{shown!r} lies more than {max_depth} folders deep")
    if len(name.encode("utf-8", "surrogateescape")) > _MAX_PATH:
        raise BadArchive(f"{shown!r} is longer than {_MAX_PATH} bytes")
    for part in parts:
        if not _PART.fullmatch(part) or len(part.encode()) > _MAX_NAME:
            raise BadArchive(f"{shown!r} is not a usable file name")
    return "/".join(parts) or "."


def _checked_size(extended: str | None, size: int) -> int:
    if extended is not None:
        if not re.fullmatch(r"[0-9]{1,18}", extended):
            raise BadArchive("a damaged extended header")
        size = int(extended)
    if size < 0:
        raise BadArchive("a file of negative size")
    return size


def _checked_link(name: str, target: str) -> str:
    parts = [part for part in target.split("/") if part not in ("", ".")]
    up = next((place for place, part in enumerate(parts) if part != ".."), len(parts))
    # Only up and then down: after the name of another link, ".." would lead up from wherever that one leads.
    if target.startswith("/") or up > name.count("/") or ".." in parts[up:]:
        raise BadArchive(f"the link {name!r} leads out of the archive, or goes down and up again")
    if not target or len(target.encode("utf-8", "surrogateescape")) > _MAX_PATH or not target.isprintable():
        raise BadArchive(f"the link {name!r} has no usable target")
    return target


def _check_place(entry: Entry, seen: dict[str, bool]) -> None:
    if entry.name in seen and not (entry.is_folder and seen[entry.name]):
        raise BadArchive(f"{entry.name!r} is in the archive twice")
    for parent in _parents(entry.name):
        if not seen.setdefault(parent, True):
            raise BadArchive(f"{parent!r} is a file and a folder at once")
    seen[entry.name] = entry.is_folder


def _parents(name: str) -> Iterator[str]:
    while name := posixpath.dirname(name):
        yield name


def unpack(source: BinaryIO, folder: Path, limits: ArchiveLimits) -> list[str]:
    """
    Unpack an archive into an empty folder, and return the names of its files.

    Raises:
        BadArchive: it breaks a limit or a rule; the folder then holds what came before.
    """
    reader = ArchiveReader(source, dataclasses.replace(limits, links=False))
    names = []
    for entry in reader:
        target = folder / entry.name
        if entry.is_folder:
            target.mkdir(parents=True, exist_ok=True, mode=0o755)
            continue
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
        with open(descriptor, "wb") as file:
            while piece := reader.read():
                file.write(piece)
        names.append(entry.name)
    return names


def pack(folder: Path, names: list[str], target: BinaryIO) -> None:
    """
    Pack files of a folder: the same files always give the same bytes.

    Regular files only, sorted, with no times, owners or folder entries, as ``wire-spec`` 4.6 has it.
    """
    with (
        gzip.GzipFile(fileobj=target, mode="wb", mtime=0, filename="", compresslevel=6) as zipped,
        tarfile.open(fileobj=zipped, mode="w|", format=tarfile.PAX_FORMAT) as tar,
    ):
        for name in sorted(names):
            with (folder / name).open("rb") as file:
                info = tarfile.TarInfo(name)
                info.size = os.fstat(file.fileno()).st_size
                info.mode = 0o664
                tar.addfile(info, file)


def repack_context(source: BinaryIO, target: BinaryIO, limits: ArchiveLimits) -> str:
    """
    Copy a build context, checked, into a plain tar; return the text of its Dockerfile.

    Raises:
        BadArchive: the archive breaks a limit or a rule, or has no usable Dockerfile at its root.
    """
    reader = ArchiveReader(source, limits)
    dockerfile: str | None = None
    with tarfile.open(fileobj=target, mode="w|", format=tarfile.PAX_FORMAT) as tar:
        for entry in reader:
            info = tarfile.TarInfo(entry.name)
            info.mode = 0o755 if entry.is_folder or entry.executable else 0o644
            if entry.is_folder:
                info.type = tarfile.DIRTYPE
            elif entry.link is not None:
                info.type, info.linkname = tarfile.SYMTYPE, entry.link
            info.size = entry.size_bytes
            if entry.name == ".dockerignore":
                _check_read_whole(entry, "use fewer patterns")
            if entry.name == "Dockerfile":
                dockerfile = _read_dockerfile(reader, entry)
                tar.addfile(info, io.BytesIO(dockerfile.encode()))
            else:
                tar.addfile(info, reader)
    if dockerfile is None:
        raise BadArchive("no Dockerfile at the root of the archive; pack the files, not their folder")
    return dockerfile


def _check_read_whole(entry: Entry, advice: str) -> None:
    # The engine reads it too, all of it at once, and wherever a link leads.
    if entry.is_folder or entry.link is not None:
        raise BadArchive(f"{entry.name} must be a file, not a folder or a link")
    if entry.size_bytes > _MAX_EXTENDED_HEADER:
        raise BadArchive(f"{entry.name} is longer than {_MAX_EXTENDED_HEADER} bytes; {advice}")


def _read_dockerfile(reader: ArchiveReader, entry: Entry) -> str:
    _check_read_whole(entry, "COPY a script and run that")
    try:
        text = b"".join(iter(reader.read, b"")).decode("utf-8")
    except UnicodeDecodeError as exc:
        raise BadArchive("Dockerfile is not UTF-8 text; save it as such") from exc
    if text.startswith("\ufeff") or "\0" in text:
        raise BadArchive("Dockerfile is not plain UTF-8 text (with a byte order mark or zero byte); save it without")
    return text
