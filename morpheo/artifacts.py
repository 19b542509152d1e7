"""
Artifacts: streams from outside become blobs with a row, both or neither.

The blob is written first, under a key that no other write has; the row makes it visible. If the row cannot be
written the blob is removed; what a dying process leaves behind, `ArtifactService.sweep` removes a day later.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import logging
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from uuid import UUID

from morpheo.access import SYSTEM, Principal
from morpheo.audit import Action
from morpheo.errors import Conflict, InvalidInput, MorpheoError, NotFound, Quarantined, TooLarge, Unavailable
from morpheo.failpoints import failpoint
from morpheo.models import NIL_UUID, Artifact, ArtifactKind
from morpheo.storage.blobs import BlobStore, Source
from morpheo.storage.database import Database

logger = logging.getLogger(__name__)

#: Blobs that no row names are removed when they are older: nothing takes so long to be written.
ORPHAN_AGE = timedelta(days=1)
#: Blobs that are looked up at once.
_BATCH = 500
#: Why an artifact is in quarantine.
LOST = "its blob is not in the store"
CHANGED = "its blob has changed since it was stored"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Upload:
    """What is known of an artifact before its bytes are."""

    kind: ArtifactKind
    id: UUID
    name: str = ""
    description: str = ""
    algo: UUID | None = None
    #: Who uploads it, and owns it then.
    by: Principal = SYSTEM


class HashingSource:
    """Passes a source through, counts and hashes it, and ends it at a limit."""

    def __init__(self, source: Source, *, max_bytes: int) -> None:
        self._source = source
        self._max_bytes = max_bytes
        self._digest = hashlib.sha256()
        self.count = 0

    def read(self, size: int = -1, /) -> bytes:
        """Return at most `size` bytes; raise `TooLarge` past the limit."""
        piece = self._source.read(size)
        self._digest.update(piece)
        self.count += len(piece)
        if self.count > self._max_bytes:
            raise TooLarge(f"the blob is larger than {self._max_bytes} bytes", field="blob")
        return piece

    @property
    def sha256(self) -> str:
        """Digest of what was read so far."""
        return self._digest.hexdigest()


class _Named(Conflict):
    """Something is registered under the old id of what is changed."""


class ArtifactService:
    """
    Stores, lists and opens artifacts.

    Args:
        database: Keeps the rows.
        blobs: Keeps the bytes.
        max_blob_bytes: Largest blob.
        limits: Largest blob of those kinds of which it is smaller.
    """

    def __init__(
        self,
        database: Database,
        blobs: BlobStore,
        *,
        max_blob_bytes: int,
        limits: Mapping[ArtifactKind, int] = MappingProxyType({}),
    ) -> None:
        self._database = database
        self._blobs = blobs
        self._limits = {kind: min(max_blob_bytes, limits.get(kind, max_blob_bytes)) for kind in ArtifactKind}

    def check_free(self, kind: ArtifactKind, artifact_id: UUID) -> None:
        """
        Find out early whether an id can be used, before any byte is read. The row decides in the end.

        Raises:
            Conflict: an artifact of that kind has it, and is not in quarantine.
        """
        with suppress(NotFound):
            if not self.get(kind, artifact_id).quarantine:
                raise _taken(kind, artifact_id)

    def upload(self, upload: Upload, source: Source, *, length: int | None = None) -> Artifact:
        """
        Store an artifact; or repair one that is in quarantine, with the bytes that it had.

        Args:
            upload: What it is.
            source: Its bytes, read once, in bounded memory.
            length: Number of bytes, if known.

        Raises:
            Conflict: the id is taken.
            InvalidInput: the source broke a rule; nothing is left of it.
            TooLarge: there are more bytes than accepted.
            Unavailable: the database or the blob store does not answer; nothing is visible.
        """
        if upload.id == NIL_UUID:
            raise InvalidInput("'UUID' unset", field="uuid")
        artifact = self.put_blob(upload, source, length=length)
        failpoint("before_row")
        with self.discarded_on_error(artifact):
            try:
                with self._database.begin() as work:
                    return work.artifacts.add(artifact)
            except Conflict:
                return self._repair(artifact, upload.by)

    def _repair(self, artifact: Artifact, by: Principal) -> Artifact:
        # The words of the row stay: only its bytes were lost. Other bytes would change what jobs have been done with.
        try:
            old = self.get(artifact.kind, artifact.id)
        except NotFound:  # it was given another id just now
            raise _taken(artifact.kind, artifact.id) from None
        if not old.quarantine or not (by.is_admin or by.name == old.owner):
            raise _taken(artifact.kind, artifact.id)
        if old.sha256 != artifact.sha256:
            raise Conflict(
                f"{old.kind} {old.id} is in quarantine ({old.quarantine}), and what was sent is not what it was: "
                f"send the bytes with sha256 {old.sha256}, or use a new id"
            )
        with self._database.begin() as work:
            if not work.artifacts.repair(old, artifact.blob_key):
                raise _taken(artifact.kind, artifact.id)
            work.events.record(Action.BLOB_DELETED, "blob", old.blob_key)
        logger.warning("%s %s is repaired by an upload", old.kind, old.id)
        self.discard(old.blob_key)
        return dataclasses.replace(old, blob_key=artifact.blob_key, quarantine="")

    def put_blob(self, upload: Upload, source: Source, *, length: int | None = None, token: str = "") -> Artifact:
        """
        Store the bytes of an artifact whose row is written later, by the caller.

        Args:
            upload: What it is.
            source: Its bytes.
            length: Number of bytes, if known.
            token: Last part of the blob's key; must be unique to this write.
        """
        max_bytes = self._limits[upload.kind]
        if length is not None and length > max_bytes:
            raise TooLarge(f"the blob is larger than {max_bytes} bytes", field="blob")
        hashing = HashingSource(source, max_bytes=max_bytes)
        key = f"{upload.kind}/{upload.id}/{token or uuid.uuid4().hex}"
        self._blobs.put(key, hashing, length=length)
        if not hashing.count:
            self.discard(key)
            raise InvalidInput("the blob is empty", field="blob")
        return Artifact(
            id=upload.id,
            kind=upload.kind,
            name=upload.name,
            description=upload.description,
            algo=upload.algo,
            size_bytes=hashing.count,
            sha256=hashing.sha256,
            blob_key=key,
            created_at=datetime.now(UTC),
            owner=upload.by.name,
        )

    @contextmanager
    def discarded_on_error(self, *artifacts: Artifact) -> Iterator[None]:
        """
        Remove the blobs of new artifacts if the block, which writes their rows, raises.

        A connection that broke during the commit does not tell whether the rows are there. They are looked up; if
        that fails too the blobs stay, because a row without a blob is worse than a blob that is swept later.
        """
        try:
            yield
        except BaseException:
            self.discard_unnamed(artifacts)
            raise

    def discard_unnamed(self, artifacts: Iterable[Artifact]) -> None:
        """Remove the blobs of new artifacts whose rows are not there; if nobody can tell, they stay for the sweep."""
        for artifact in artifacts:
            with suppress(Unavailable):
                if not self._is_named(artifact.blob_key):
                    self.discard(artifact.blob_key)

    def discard(self, key: str) -> bool:
        """
        Remove a blob that no row names, and return whether it could be; the sweep finds later what could not.

        The one place where blobs are removed.
        """
        try:
            self._blobs.delete(key)
        except MorpheoError:
            logger.warning("blob left behind", extra={"key": key}, exc_info=True)
            return False
        return True

    def get(self, kind: ArtifactKind, artifact_id: UUID) -> Artifact:
        """
        Return one artifact.

        Raises:
            NotFound: there is none.
        """
        with self._database.read() as work:
            return work.artifacts.get(kind, artifact_id)

    def quarantine(self, artifact: Artifact, reason: str) -> None:
        """
        Mark an artifact whose blob was found lost or damaged: it is not used again until its bytes are uploaded again.

        The blob stays, to be looked at. A database that does not answer is no error: whoever reads the blob next
        finds the same.
        """
        try:
            with self._database.begin() as work:
                marked = work.artifacts.quarantine(artifact, reason)
        except Unavailable:
            logger.warning("%s %s not put into quarantine", artifact.kind, artifact.id, exc_info=True)
        else:
            if marked:
                logger.error("%s %s is in quarantine: %s", artifact.kind, artifact.id, reason)

    def release(self, artifact: Artifact) -> bool:
        """Take an artifact out of quarantine whose blob was found whole; return whether it was still in it."""
        with self._database.begin() as work:
            released = work.artifacts.release(artifact)
        if released:
            logger.warning("%s %s is out of quarantine: its blob is whole", artifact.kind, artifact.id)
        return released

    def page(
        self,
        kind: ArtifactKind,
        *,
        page: int = 0,
        page_size: int = 30,
        name: str | None = None,
        by: Principal = SYSTEM,
    ) -> tuple[list[Artifact], int]:
        """Return one page of the artifacts that somebody sees, newest first, and how many there are on all pages."""
        with self._database.read() as work:
            return work.artifacts.page(kind, page=page, page_size=page_size, name=name, by=by)

    def open(
        self, artifact: Artifact, *, offset: int = 0, length: int | None = None
    ) -> AbstractContextManager[Iterator[bytes]]:
        """
        Open the blob of an artifact, or a range of it.

        Raises:
            NotFound: the blob store has lost it.
            Quarantined: that it is lost or damaged is known already.
        """
        check_usable(artifact)
        return self._blobs.get(artifact.blob_key, offset=offset, length=length)

    def change(self, old: Artifact, new: Artifact) -> Artifact:
        """
        Change an artifact's id, words or blob. The old blob is removed when the new row is there.

        Raises:
            Conflict: the new id is taken, or problems name the old one, which somebody else could then take.
            InvalidInput: the new id is nil.
        """
        if new.id == NIL_UUID:
            raise InvalidInput("'UUID' unset", field="uuid")
        try:
            with self._database.begin() as work:
                if new.id != old.id and any(problem.workflow == old.id for problem in work.challenges.problems()):
                    raise _Named(f"a problem is registered with archive {old.id}; upload a new archive instead")
                changed = work.artifacts.replace(old, new)
                if changed.blob_key != old.blob_key:
                    work.events.record(Action.BLOB_DELETED, "blob", old.blob_key)
        except _Named:
            raise
        except Conflict:
            raise Conflict(f"[model] UUID {new.id} already exist in table '{new.kind}'") from None
        if changed.blob_key != old.blob_key:
            self.discard(old.blob_key)  # row first: the old blob is served until the new one is
        return changed

    def sweep(self) -> int:
        """Remove what is older than `ORPHAN_AGE` of blobs that no row names and of broken uploads; return how many."""
        horizon = datetime.now(UTC) - ORPHAN_AGE
        removed = self._blobs.sweep(horizon)
        for kind in ArtifactKind:
            old = (blob.key for blob in self._blobs.list(f"{kind}/") if blob.modified_at < horizon)
            while keys := list(itertools.islice(old, _BATCH)):
                with self._database.read() as work:
                    orphans = work.artifacts.not_named(keys)
                for key in orphans:
                    self.delete_orphan(key)
                removed += len(orphans)
        return removed

    def delete_orphan(self, key: str) -> bool:
        """Remove a blob that no row names, and say so in the audit trail; return whether it could be removed."""
        # Recorded first: a deletion that then fails is tried again, but one that was not recorded would be forgotten.
        with self._database.begin() as work:
            work.events.record(Action.BLOB_DELETED, "blob", key)
        return self.discard(key)

    def _is_named(self, key: str) -> bool:
        with self._database.read() as work:
            return work.artifacts.names_blob(key)


def check_usable(artifact: Artifact) -> None:
    """
    Do nothing if an artifact is not in quarantine.

    Raises:
        Quarantined: it is; says why, and how it is repaired.
    """
    if artifact.quarantine:
        raise Quarantined(
            f"{artifact.kind} {artifact.id} is in quarantine: {artifact.quarantine}; "
            f"upload it again under its id (sha256 {artifact.sha256})"
        )


def _taken(kind: ArtifactKind, artifact_id: UUID) -> Conflict:
    return Conflict(f"[model] UUID {artifact_id} already exist in table '{kind}'")
