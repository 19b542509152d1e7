"""What is fed to the parsers of hostile bytes, and what must hold whatever they are."""

from __future__ import annotations

import gzip
import io
import tarfile
import tracemalloc
from collections.abc import Callable

from morpheo.api.multipart import MultipartReader
from morpheo.errors import BadArchive, InvalidInput
from morpheo.runtime.archive import ArchiveLimits, ArchiveReader
from morpheo.testing import make_archive
from tests.support.api import BOUNDARY, form

LIMITS = ArchiveLimits(max_bytes=1 << 20, max_entries=50, max_depth=8)
#: More than either parser may hold at once, in bytes: both read in pieces of 256 KiB and less.
MEMORY = 2 << 20
CONTENT_TYPE = f'multipart/form-data; boundary="{BOUNDARY}"'


class Trickle(io.BytesIO):
    """Gives bytes in pieces of a length that the first byte chooses, as a network does."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self._most = 1
        self._most += (ord(self.read() or "?") % 64) ** 3

    def read(self, size: int | None = -1, /) -> bytes:
        """Return some bytes."""
        return super().read(self._most if size is None or size < 0 else min(size, self._most))


def read_form(content: bytes) -> None:
    """Read a form to its end, or be told what is wrong with it."""
    try:
        reader = MultipartReader(Trickle(content), CONTENT_TYPE)
        for _, text in reader.fields({"uuid": 36, "name": 255, "size": 20}):
            assert len(text) <= 255
        blob = 0
        while reader.has_blob and (piece := reader.read(1 << 16)):
            blob += len(piece)
        assert blob < len(content)
    except InvalidInput:
        pass


def read_archive(content: bytes) -> None:
    """Read an archive to its end, or be told what is wrong with it; what is given out keeps to the limits."""
    reader = ArchiveReader(io.BytesIO(content), LIMITS)
    unpacked, names = 0, set[str]()
    try:
        for entry in reader:
            names.add(entry.name)
            assert not entry.name.startswith("/")
            assert ".." not in entry.name.split("/")
            while piece := reader.read(1 << 16):
                unpacked += len(piece)
    except BadArchive:
        pass
    assert unpacked <= LIMITS.max_bytes
    assert len(names) <= LIMITS.max_entries


def read_tar(content: bytes) -> None:
    """Read what is packed here, so that what is changed is the tar and not the checksum of gzip."""
    read_archive(gzip.compress(content, compresslevel=1, mtime=0))


def forms() -> list[bytes]:
    """Return forms to begin with."""
    fields: list[dict[str, object]] = [
        {"uuid": "6f1e8a7c-3d52-4f0b-9c61-7a2f5e0d9b03", "name": "n", "size": 3, "blob": b"abc"},
        {"blob": b"\r\n--" + BOUNDARY.encode() + b"-" * 9},
        {"name": "n" * 300},
    ]
    return [bytes([1 + number]) + form(each)["data"] for number, each in enumerate(fields)]


def archives() -> list[bytes]:
    """Return archives to begin with."""
    return [make_archive({"Dockerfile": "FROM x\n", "a/b.py": "1"}), make_archive({"long" * 40: "x"})]


def tars() -> list[bytes]:
    """Return tars to begin with: of each format, with links, folders and long names."""
    found = []
    for layout in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        target = io.BytesIO()
        with tarfile.open(fileobj=target, mode="w", format=layout) as tar:
            for name, kind in (("d", tarfile.DIRTYPE), ("d/" + "n" * 90, tarfile.REGTYPE), ("l", tarfile.SYMTYPE)):
                info = tarfile.TarInfo(name)
                info.type, info.linkname = kind, "d" if kind == tarfile.SYMTYPE else ""
                tar.addfile(info)
        found.append(target.getvalue()[:4096])
    return found


#: Name, parser and what to begin with.
TARGETS: dict[str, tuple[Callable[[bytes], None], Callable[[], list[bytes]]]] = {
    "form": (read_form, forms),
    "archive": (read_archive, archives),
    "tar": (read_tar, tars),
}


def peak_bytes(parse: Callable[[bytes], None], content: bytes) -> int:
    """Return how much memory Python held at most while it parsed, in bytes."""
    tracemalloc.start()
    try:
        parse(content)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
