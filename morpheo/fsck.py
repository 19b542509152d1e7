"""
Compares rows and blobs, and repairs what can be repaired without losing anything.

Rows and the listing of the blob store come in the order of ids and are read side by side, so that a million of each
take no more memory than a few thousand. Both change meanwhile: what does not fit is looked up again before it is said.
"""

from __future__ import annotations

import contextlib
import enum
import hashlib
import heapq
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TypeVar
from uuid import UUID

from morpheo.artifacts import CHANGED, LOST, ArtifactService
from morpheo.errors import Conflict, NotFound
from morpheo.models import Artifact, ArtifactKind
from morpheo.storage.blobs import BlobStat, BlobStore
from morpheo.storage.database import Database

#: Rows in memory at once.
BATCH = 1000
#: Rows that are looked at to find out whether the blob store is the one that they are of.
SAMPLE = 20

_HEX = "0123456789abcdef"
T = TypeVar("T")


class Damage(enum.StrEnum):
    """What can be wrong."""

    #: A row names a blob that is not there.
    LOST = "lost"
    #: A blob has not the size or the digest of its row.
    CHANGED = "changed"
    #: An artifact that is in quarantine, rightly.
    QUARANTINED = "quarantined"
    #: An artifact that is in quarantine although its blob is whole.
    WHOLE = "whole"
    #: A blob that no row names.
    ORPHAN = "orphan"
    #: A row names the log of a step that is not there.
    LOST_LOG = "lost-log"
    #: Uploads that never ended.
    UNFINISHED = "unfinished"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that is wrong."""

    damage: Damage
    #: Which blob; empty for uploads that never ended.
    key: str
    #: What is wrong, in words.
    said: str
    #: What was done about it; empty is nothing.
    done: str = ""
    #: Whether nothing more is to be done.
    right: bool = False


@dataclass
class Counts:
    """What was looked at so far."""

    artifacts: int = 0
    blobs: int = 0
    logs: int = 0
    bytes_read: int = 0


class Fsck:
    """
    Compares, once.

    Args:
        database: Keeps the rows.
        blobs: Keeps the blobs.
        artifacts: Removes blobs, and puts artifacts into quarantine.
        grace: A blob without a row that is younger is an upload under way.
        read: Whether to read every blob and compare its digest.
        repair: Whether to repair.
        force: Whether to do so even if the rows and the blobs have nothing in common.
        progress: Told of each piece that is read, in bytes.
    """

    def __init__(
        self,
        database: Database,
        blobs: BlobStore,
        artifacts: ArtifactService,
        *,
        grace: timedelta,
        read: bool = False,
        repair: bool = False,
        force: bool = False,
        progress: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._database = database
        self._blobs = blobs
        self._artifacts = artifacts
        self._before = datetime.now(UTC) - grace
        self._read = read
        self._repair = repair
        self._force = force
        self._progress = progress
        self.counts = Counts()

    def run(self) -> Iterator[Finding]:
        """
        Return what is wrong, as it is found.

        Raises:
            Conflict: to be repaired, but the database is of another blob store; nothing was changed.
            Unavailable: the database or the blob store does not answer.
        """
        if self._repair and not self._force:
            self._check_match()
        for kind in ArtifactKind:
            yield from self._kind(kind)
        yield from self._logs()
        yield from self._unfinished()

    def _check_match(self) -> None:
        # An empty database, or another one, would make an orphan of every blob.
        with self._database.read() as work:
            sample = [row for kind in ArtifactKind for row in work.artifacts.after(kind, None, limit=SAMPLE)]
        if any(self._stat(row.blob_key) for row in sample):
            return
        listed = itertools.chain.from_iterable(self._blobs.list(f"{kind}/") for kind in ArtifactKind)
        if sample or next(listed, None) is not None:
            raise Conflict(
                "nothing was repaired: none of the first artifacts has its blob in the store; see `morpheo config` "
                "whether this is the right store, and the right database (--force if it is)"
            )

    def _kind(self, kind: ArtifactKind) -> Iterator[Finding]:
        for _, rows, stats in _side_by_side(
            _paged(lambda last: self._rows(kind, last)), lambda row: str(row.id), self._listed(kind), _second
        ):
            for row in rows:
                self.counts.artifacts += 1
                stat = next((stat for stat in stats if stat.key == row.blob_key), None)
                yield from self._artifact(row, stat)
            for stat in stats:
                self.counts.blobs += 1
                if not any(row.blob_key == stat.key for row in rows) and not self._is_named(stat.key):
                    yield from self._orphan(stat)

    def _rows(self, kind: ArtifactKind, last: Artifact | None) -> list[Artifact]:
        with self._database.read() as work:
            return work.artifacts.after(kind, last.id if last else None, limit=BATCH)

    def _listed(self, folder: str) -> Iterator[BlobStat]:
        # In sixteen parts: a folder of files gives its names in no order, and they are sorted in memory.
        return itertools.chain.from_iterable(self._blobs.list(f"{folder}/{digit}") for digit in _HEX)

    def _artifact(self, row: Artifact, stat: BlobStat | None) -> Iterator[Finding]:
        stat = stat or self._stat(row.blob_key)
        reason = LOST if stat is None else CHANGED if stat.size_bytes != row.size_bytes else ""
        if not reason and (self._read or row.quarantine) and self._digest(row.blob_key) != row.sha256:
            reason = CHANGED
        if not reason and not row.quarantine:
            return
        if not self._is_as_read(row):  # changed or repaired meanwhile
            return
        name = f"{row.kind} {row.id}"
        if row.quarantine and reason:
            said = f"{name} is in quarantine: {row.quarantine}; upload it again (sha256 {row.sha256})"
            yield Finding(damage=Damage.QUARANTINED, key=row.blob_key, said=said)
        elif row.quarantine:
            said = f"{name} is in quarantine ({row.quarantine}), but its blob is whole"
            done = "released from quarantine" if self._repair and self._artifacts.release(row) else ""
            yield Finding(damage=Damage.WHOLE, key=row.blob_key, said=said, done=done, right=bool(done))
        else:
            done = ""
            if self._repair:
                self._artifacts.quarantine(row, reason)
                done = f"put into quarantine; upload it again (sha256 {row.sha256})"
            damage = Damage.LOST if reason == LOST else Damage.CHANGED
            yield Finding(damage=damage, key=row.blob_key, said=f"{name}: {reason}", done=done)

    def _orphan(self, stat: BlobStat) -> Iterator[Finding]:
        if stat.modified_at >= self._before:
            return
        done = "removed" if self._repair and self._artifacts.delete_orphan(stat.key) else ""
        said = f"no row names this blob of {stat.size_bytes} bytes, written {stat.modified_at:%Y-%m-%d %H:%M}"
        yield Finding(damage=Damage.ORPHAN, key=stat.key, said=said, done=done, right=bool(done))

    def _logs(self) -> Iterator[Finding]:
        for job, rows, stats in _side_by_side(
            _paged(self._log_rows), lambda row: str(row[0]), self._listed("logs"), _second
        ):
            self.counts.logs += len(rows)
            self.counts.blobs += len(stats)
            for _, _, _, log_key in rows:
                # A log may be in pieces below its key.
                there = any(stat.key == log_key or stat.key.startswith(f"{log_key}/") for stat in stats)
                if not there and self._stat(log_key) is None:
                    yield Finding(damage=Damage.LOST_LOG, key=log_key, said="the log of a step is not in the store")
            if not rows and not self._has_job(job):
                for stat in stats:
                    yield from self._orphan(stat)

    def _log_rows(self, last: tuple[UUID, int, str, str] | None) -> list[tuple[UUID, int, str, str]]:
        with self._database.read() as work:
            return work.steps.logs_after(last and last[:3], limit=BATCH)

    def _unfinished(self) -> Iterator[Finding]:
        if self._repair and (count := self._blobs.sweep(self._before)):
            said = f"{count} uploads that never ended"
            yield Finding(damage=Damage.UNFINISHED, key="", said=said, done="removed", right=True)

    def _digest(self, key: str) -> str:
        digest = hashlib.sha256()
        with contextlib.suppress(NotFound), self._blobs.get(key) as pieces:
            for piece in pieces:
                digest.update(piece)
                self.counts.bytes_read += len(piece)
                self._progress(len(piece))
        return digest.hexdigest()

    def _stat(self, key: str) -> BlobStat | None:
        try:
            return self._blobs.stat(key)
        except NotFound:
            return None

    def _is_as_read(self, row: Artifact) -> bool:
        try:
            return self._artifacts.get(row.kind, row.id) == row
        except NotFound:
            return False

    def _is_named(self, key: str) -> bool:
        with self._database.read() as work:
            return work.artifacts.names_blob(key)

    def _has_job(self, job: str) -> bool:
        try:
            with self._database.read() as work:
                return work.jobs.digest(UUID(job)) is not None
        except ValueError:
            return False


def _second(stat: BlobStat) -> str:
    """Return the id in a key such as ``data/<id>/<token>``."""
    return stat.key.split("/")[1]


def _paged(read: Callable[[T | None], list[T]]) -> Iterator[T]:
    page = read(None)
    while page:
        yield from page
        page = read(page[-1])


L = TypeVar("L")
R = TypeVar("R")


def _side_by_side(
    left: Iterable[L], left_key: Callable[[L], str], right: Iterable[R], right_key: Callable[[R], str]
) -> Iterator[tuple[str, list[L], list[R]]]:
    """Return the items of two streams, both in the order of their keys, by key."""
    lefts: Iterator[tuple[str, bool, L | R]] = ((left_key(item), False, item) for item in left)
    rights: Iterator[tuple[str, bool, L | R]] = ((right_key(item), True, item) for item in right)
    merged = heapq.merge(lefts, rights, key=lambda entry: entry[:2])
    for key, group in itertools.groupby(merged, key=lambda entry: entry[0]):
        both: tuple[list[L], list[R]] = ([], [])
        for _, is_right, item in group:
            both[is_right].append(item)  # type: ignore[arg-type]  # the flag says which it is
        yield key, *both
