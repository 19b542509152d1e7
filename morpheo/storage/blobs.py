"""
What a blob store is.

A blob is bytes under a key such as ``model/<uuid>/<token>``. Keys are unique to one write and never overwritten, so
a store needs no locks and no versions. A blob appears whole or not at all.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from morpheo.errors import InvalidInput

#: Size of the pieces in which blobs are moved, in bytes.
CHUNK_SIZE = 1 << 20


class Source(Protocol):
    """Anything that bytes can be read from, such as an open file."""

    def read(self, size: int = -1, /) -> bytes:
        """Return at most `size` bytes; none at the end."""
        ...


@dataclass(frozen=True, kw_only=True)
class BlobStat:
    """What a store knows of a blob."""

    key: str
    size_bytes: int
    modified_at: datetime


class BlobStore(Protocol):
    """
    Keeps blobs; thread-safe, but not to be shared with a forked child.

    Every method raises `morpheo.errors.StorageUnavailable` if the store does not answer.
    """

    def put(self, key: str, source: Source, *, length: int | None = None) -> int:
        """
        Store all that the source gives, and return how many bytes that was.

        If the source raises, the exception passes through and nothing is left under the key.

        Args:
            key: Where to; must not exist.
            source: Read to its end.
            length: Number of bytes, if known; a source that gives another number is an error.

        Raises:
            InvalidInput: the source gave more or fewer bytes than `length`, or the key is malformed.
        """
        ...

    def get(self, key: str, *, offset: int = 0, length: int | None = None) -> AbstractContextManager[Iterator[bytes]]:
        """
        Open a blob, or a range of it, as an iterator of pieces.

        Args:
            key: Which blob.
            offset: First byte.
            length: Number of bytes; None is to the end.

        Raises:
            NotFound: there is no such blob.
        """
        ...

    def stat(self, key: str) -> BlobStat:
        """
        Return what is known of a blob.

        Raises:
            NotFound: there is no such blob.
        """
        ...

    def delete(self, key: str) -> None:
        """Remove a blob, if it is there."""
        ...

    def list(self, prefix: str = "") -> Iterator[BlobStat]:
        """Return the blobs whose key begins with `prefix`, in the order of their keys."""
        ...

    def sweep(self, before: datetime) -> int:
        """Remove what is left of writes that began before a time and never ended; return how many there were."""
        ...

    def check(self) -> None:
        """Find out whether the store can be used."""
        ...


def checked_key(key: str) -> str:
    """
    Return a key that no store takes for anything but a name.

    Raises:
        InvalidInput: it is empty, absolute, or has an empty, ``.`` or ``..`` part or a control character.
    """
    parts = key.split("/")
    if any(part in ("", ".", "..") for part in parts) or not key.isprintable() or "\\" in key:
        raise InvalidInput(f"malformed blob key {key!r}", field="key")
    return key


class ExactSource:
    """
    Passes a source through and checks its length.

    Raises `InvalidInput` on the read that shows that there are more or fewer bytes than `length`.
    """

    def __init__(self, source: Source, length: int | None) -> None:
        self._source = source
        self._length = length
        self.count = 0

    def read(self, size: int = -1, /) -> bytes:
        """Return at most `size` bytes; none at the end."""
        piece = self._source.read(size)
        self.count += len(piece)
        if self._length is not None:
            if self.count > self._length:
                raise InvalidInput(f"more than the {self._length} bytes announced", field="size")
            if not piece and size != 0 and self.count < self._length:
                raise InvalidInput(f"{self.count} bytes instead of the {self._length} announced", field="size")
        return piece


def pieces(source: Source) -> Iterator[bytes]:
    """Return what a source gives, in pieces of `CHUNK_SIZE`."""
    return iter(lambda: source.read(CHUNK_SIZE), b"")
