"""
Backups: a folder with the rows of some moments, and every blob that they name.

::

    FOLDER/
        rows-20260102T030405Z.jsonl.gz    all rows of one moment
        blobs/                            what any of these rows name, once

The rows are read first and the blobs after them. Blobs are never overwritten, and one that is not named yet is no loss;
the other way round, rows would name blobs that came too late to be copied. A blob that was replaced in between has gone
with its row: the rows are then read again. The file of rows gets its name when all blobs are there.
"""

from __future__ import annotations

import gzip
import hashlib
import os
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock

from morpheo.audit import Action
from morpheo.errors import CorruptBlob, InvalidInput, NotFound
from morpheo.storage import migrate
from morpheo.storage.blobs import BlobStore
from morpheo.storage.database import Database
from morpheo.storage.dump import BlobRef, blob_refs, check_empty, dump_rows, load_rows
from morpheo.storage.local import LocalBlobStore

#: How often the rows are read again because blobs have gone meanwhile.
TRIES = 5

_ROWS = "rows-*.jsonl.gz"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a backup or a restore did."""

    #: The file with the rows.
    rows: Path
    #: How many blobs were copied; the others were there.
    copied: int
    #: Keys of blobs that rows name, and that are not there or are damaged.
    lost: tuple[str, ...]


def back_up(
    folder: Path, database: Database, blobs: BlobStore, *, keep: int, progress: Callable[[int], None]
) -> Outcome:
    """
    Add the present moment to a backup, while the services run.

    Args:
        folder: Made if it does not exist; only its owner can enter it.
        database: Of the rows.
        blobs: Of the blobs; only those that the folder does not have are read.
        keep: Of how many moments the rows stay; older ones go, and the blobs that only they name.
        progress: Told of each piece that is copied, in bytes.

    Raises:
        Unavailable: the database, the blob store or the folder cannot be used; what was there before is intact.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with FileLock(folder / ".lock"):
        with database.begin() as work:  # before the rows are read: nothing leaves unrecorded, and the copy says so too
            work.events.record(Action.BACKUP_STARTED, "backup", folder)
        copies = LocalBlobStore(folder)
        rows = folder / ".rows"
        copied, lost = 0, None
        for _ in range(TRIES):
            _write_rows(database, rows)
            before, (now, lost) = lost, _copy_all(rows, blobs, copies, progress)
            copied += now
            if not lost or lost == before:  # what is missing twice has not been replaced
                break
        name = folder / datetime.now(UTC).strftime("rows-%Y%m%dT%H%M%S.%fZ.jsonl.gz")
        rows.rename(name)
        _prune(folder, copies, keep)
        return Outcome(rows=name, copied=copied, lost=lost or ())


def restore(folder: Path, database: Database, blobs: BlobStore, *, progress: Callable[[int], None]) -> Outcome:
    """
    Bring the newest moment of a backup into an empty database and a blob store; no service may run meanwhile.

    Blobs go first, rows after them in one transaction: a restore that was interrupted has left no row, and can be
    repeated. Tables are made if there are none.

    Raises:
        NotFound: the folder is no backup.
        InvalidInput: its rows are damaged, or of another version.
        Conflict: the database has rows.
        Unavailable: the database, the blob store or the folder cannot be used.
    """
    files = sorted(folder.glob(_ROWS))
    if not files:
        raise NotFound(f"{folder} is no backup: there is no {_ROWS} in it")
    migrate.upgrade(database)
    check_empty(database)
    copied, lost = _copy_all(files[-1], LocalBlobStore(folder), blobs, progress)
    with closing(_lines(files[-1])) as lines:
        load_rows(database, lines, source=files[-1].name)
    return Outcome(rows=files[-1], copied=copied, lost=lost)


def _write_rows(database: Database, path: Path) -> None:
    with path.open("wb") as file:
        os.fchmod(file.fileno(), 0o600)
        with gzip.open(file, "wt") as target:
            dump_rows(database, target)
        file.flush()
        os.fsync(file.fileno())


def _lines(path: Path) -> Generator[str]:
    try:
        with gzip.open(path, "rt") as file:
            yield from file
    except (OSError, EOFError) as exc:
        raise InvalidInput(f"{path} cannot be read") from exc


def _copy_all(
    rows: Path, source: BlobStore, target: BlobStore, progress: Callable[[int], None]
) -> tuple[int, tuple[str, ...]]:
    copied, lost = 0, []
    for ref in blob_refs(_lines(rows)):
        try:
            copied += _copy(ref, source, target, progress)
        except (NotFound, CorruptBlob):
            lost.append(ref.key)
    return copied, tuple(sorted(lost))


def _copy(ref: BlobRef, source: BlobStore, target: BlobStore, progress: Callable[[int], None]) -> bool:
    """Copy a blob that is not there yet: blobs appear whole or not at all, and never change."""
    try:
        target.stat(ref.key)
    except NotFound:
        length = source.stat(ref.key).size_bytes
        with source.get(ref.key) as pieces:
            target.put(ref.key, _Checked(pieces, ref, progress), length=length)
        return True
    return False


class _Checked:
    """The pieces of a blob as a source that raises at its end if they are not what the row says."""

    def __init__(self, pieces: Iterator[bytes], ref: BlobRef, progress: Callable[[int], None]) -> None:
        self._pieces = pieces
        self._ref = ref
        self._progress = progress
        self._digest = hashlib.sha256()
        self._rest = b""

    def read(self, size: int = -1, /) -> bytes:
        """Return at most `size` bytes; none at the end."""
        if not self._rest:
            self._rest = next(self._pieces, b"")
            self._digest.update(self._rest)
            self._progress(len(self._rest))
            if not self._rest and self._ref.sha256 not in (None, self._digest.hexdigest()):
                raise CorruptBlob(f"blob {self._ref.key} is not what its row says")
        end = len(self._rest) if size < 0 else size
        piece, self._rest = self._rest[:end], self._rest[end:]
        return piece


def _prune(folder: Path, copies: LocalBlobStore, keep: int) -> None:
    files = sorted(folder.glob(_ROWS))
    for old in files[:-keep]:
        old.unlink()
    named = {ref.key for file in files[-keep:] for ref in blob_refs(_lines(file))}
    for blob in copies.list():
        if blob.key not in named:
            copies.delete(blob.key)
