"""Blobs as files in a folder."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from morpheo.errors import NotFound, StorageUnavailable
from morpheo.storage.blobs import CHUNK_SIZE, BlobStat, ExactSource, Source, checked_key, pieces


class LocalBlobStore:
    """
    A `morpheo.storage.blobs.BlobStore` in a folder.

    A blob is written to a temporary file, flushed to the disk and then renamed, and the folder is flushed too:
    after a power cut it is there whole or not at all.
    """

    def __init__(self, folder: Path) -> None:
        self._blobs = folder / "blobs"
        self._incoming = folder / "incoming"

    def put(self, key: str, source: Source, *, length: int | None = None) -> int:
        """Store what the source gives."""
        target = self._blobs / checked_key(key)
        exact = ExactSource(source, length)
        with _mapped_errors(), self._temporary() as (descriptor, temporary):
            for piece in pieces(exact):
                _write_all(descriptor, piece)
            os.fchmod(descriptor, 0o444)
            os.fsync(descriptor)
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary.rename(target)
            _sync_folder(target.parent)
        return exact.count

    @contextlib.contextmanager
    def get(self, key: str, *, offset: int = 0, length: int | None = None) -> Iterator[Iterator[bytes]]:
        """Open a blob or a range of it."""
        with _mapped_errors():
            try:
                file = (self._blobs / checked_key(key)).open("rb")
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                raise NotFound(f"blob {key} not found") from None
        with file:
            file.seek(offset)
            yield _limited(file, length)

    def stat(self, key: str) -> BlobStat:
        """Return what is known of a blob."""
        with _mapped_errors():
            try:
                return _to_stat(key, (self._blobs / checked_key(key)).stat())
            except (FileNotFoundError, NotADirectoryError):
                raise NotFound(f"blob {key} not found") from None

    def delete(self, key: str) -> None:
        """Remove a blob, and the folders that it leaves empty."""
        path = self._blobs / checked_key(key)
        with _mapped_errors():
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # a folder that is not empty stays
            for parent in path.parents:
                if parent == self._blobs:
                    break
                parent.rmdir()

    def list(self, prefix: str = "") -> Iterator[BlobStat]:
        """Return the blobs whose key begins with `prefix`; the names of one folder are in memory at once."""
        with _mapped_errors():
            for key in _keys(self._blobs, "", prefix):
                with contextlib.suppress(NotFound):  # removed meanwhile
                    yield self.stat(key)

    def sweep(self, before: datetime) -> int:
        """Remove the temporary files of processes that died while they wrote."""
        count = 0
        with _mapped_errors():
            for path in self._incoming.iterdir() if self._incoming.is_dir() else ():
                with contextlib.suppress(FileNotFoundError):
                    if path.stat().st_mtime < before.timestamp():
                        path.unlink()
                        count += 1
        return count

    def check(self) -> None:
        """Find out whether a file can be written."""
        with _mapped_errors(), self._temporary() as (descriptor, temporary):
            os.write(descriptor, b"ok")
            temporary.unlink()

    @contextlib.contextmanager
    def _temporary(self) -> Iterator[tuple[int, Path]]:
        self._incoming.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=self._incoming)
        try:
            yield descriptor, Path(name)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def _mapped_errors() -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        if exc.filename is None and exc.errno is None:
            raise  # not of the file system: the source's own
        raise StorageUnavailable(f"the blob folder cannot be used: {exc.strerror}") from exc


def _keys(folder: Path, above: str, prefix: str) -> Iterator[str]:
    """Return the keys below a folder in their order: a folder comes where its name with a slash belongs."""
    try:
        with os.scandir(folder) as entries:
            names = sorted(name for entry in entries if _may_have(name := above + _name(entry), prefix))
    except (FileNotFoundError, NotADirectoryError):  # removed meanwhile
        return
    for name in names:
        if name.endswith("/"):
            yield from _keys(folder / name[len(above) :], name, prefix)
        else:
            yield name


def _name(entry: os.DirEntry[str]) -> str:
    return entry.name + "/" if entry.is_dir(follow_symlinks=False) else entry.name


def _may_have(name: str, prefix: str) -> bool:
    return name.startswith(prefix) or (name.endswith("/") and prefix.startswith(name))


def _write_all(descriptor: int, piece: bytes) -> None:
    view = memoryview(piece)
    while view:
        view = view[os.write(descriptor, view) :]


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _limited(file: Source, length: int | None) -> Iterator[bytes]:
    left = length
    while left is None or left > 0:
        piece = file.read(CHUNK_SIZE if left is None else min(CHUNK_SIZE, left))
        if not piece:
            return
        if left is not None:
            left -= len(piece)
        yield piece


def _to_stat(key: str, stat: os.stat_result) -> BlobStat:
    return BlobStat(key=key, size_bytes=stat.st_size, modified_at=datetime.fromtimestamp(stat.st_mtime, UTC))
