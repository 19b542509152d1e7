"""Parts of tar archives as they are given, hostile ones too: the standard library would refuse or repair them."""

from __future__ import annotations

import gzip
import tarfile

BLOCK = tarfile.BLOCKSIZE
END = b"\0" * (2 * BLOCK)


def header(
    name: str | bytes, *, size: int = 0, kind: bytes = tarfile.REGTYPE, link: str = "", mode: int = 0o644
) -> bytes:
    """Return a header."""
    info = tarfile.TarInfo("x")
    info.type, info.linkname, info.mode, info.size = kind, link, mode, size
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    raw = name.encode() if isinstance(name, str) else name
    block[0:100] = raw[:100].ljust(100, b"\0")
    return with_checksum(block)


def with_checksum(block: bytearray) -> bytes:
    """Return a header with the checksum of what is in it."""
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def padded(content: bytes) -> bytes:
    """Return content up to the end of its last block."""
    return content + b"\0" * (-len(content) % BLOCK)


def member(name: str | bytes, content: bytes = b"x") -> bytes:
    """Return a file."""
    return header(name, size=len(content)) + padded(content)


def pax(**records: bytes) -> bytes:
    """Return an extended header; ``__`` in a key is a dot."""
    content = b""
    for key, value in records.items():
        body = b" " + key.replace("__", ".").encode() + b"=" + value + b"\n"
        length = next(n for n in range(len(body), len(body) + 9) if n == len(body) + len(str(n)))
        content += str(length).encode() + body
    return raw_pax(content)


def raw_pax(content: bytes, kind: bytes = tarfile.XHDTYPE) -> bytes:
    """Return an extended header of any content."""
    return header("pax", size=len(content), kind=kind) + padded(content)


def longname(name: bytes, kind: bytes = tarfile.GNUTYPE_LONGNAME) -> bytes:
    """Return the header of a long name, as GNU tar writes it."""
    return header("././@LongLink", size=len(name) + 1, kind=kind) + padded(name + b"\0")


def tar_gz(*parts: bytes, end: bytes = END) -> bytes:
    """Return an archive of these parts."""
    return gzip.compress(b"".join(parts) + end, mtime=0)


def link(name: str, target: str) -> bytes:
    """Return a symbolic link."""
    return header(name, kind=tarfile.SYMTYPE, link=target)
