"""
Artifacts: streams from outside become blobs with a row, both or neither.

The blob is written first, under a key that no other write has; the row makes it visible. If the row cannot be
written the blob is removed; what a dying process leaves behind, `ArtifactService.sweep` removes a day later.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from uuid import UUID

from morpheo.errors import Conflict, InvalidInput, MorpheoError, TooLarge, Unavailable
from morpheo.models import NIL_UUID, Artifact, ArtifactKind
from morpheo.storage.blobs import BlobStore, Source
from morpheo.storage.database import Database

logger = logging.getLogger(__name__)

#: Blobs that no row names are removed when they are older: nothing takes so long to be written.
ORPHAN_AGE = timedelta(days=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Upload:
    """What is known of an artifact before its bytes are."""

    kind: ArtifactKind
    id: UUID
    name: str = ""
    description: str = ""
    algo: UUID | None = None


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


class ArtifactService:
    """
    Stores, lists and opens artifacts.

    Args:
        database: Keeps the rows.
        blobs: Keeps the bytes.
        max_blob_bytes: Largest blob.
    """

    def __init__(self, database: Database, blobs: BlobStore, *, max_blob_bytes: int) -> None:
        self._database = database
        self._blobs = blobs
        self._max_blob_bytes = max_blob_bytes

    def check_free(self, kind: ArtifactKind, artifact_id: UUID) -> None:
        """
        Find out early whether an id can be used, before any byte is read. The row decides in the end.

        Raises:
            Conflict: an artifact of that kind has it.
        """
        with self._database.read() as work:
            if work.artifacts.exists(kind, artifact_id):
                raise Conflict(f"[model] UUID {artifact_id} already exist in table '{kind}'")

    def upload(self, upload: Upload, source: Source, *, length: int | None = None) -> Artifact:
        """
        Store an artifact.

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
        with self.discarded_on_error(artifact):
            try:
                with self._database.begin() as work:
                    return work.artifacts.add(artifact)
            except Conflict:
                raise Conflict(f"[model] UUID {upload.id} already exist in table '{upload.kind}'") from None

    def put_blob(self, upload: Upload, source: Source, *, length: int | None = None, token: str = "") -> Artifact:
        """
        Store the bytes of an artifact whose row is written later, by the caller.

        Args:
            upload: What it is.
            source: Its bytes.
            length: Number of bytes, if known.
            token: Last part of the blob's key; must be unique to this write.
        """
        if length is not None and length > self._max_blob_bytes:
            raise TooLarge(f"the blob is larger than {self._max_blob_bytes} bytes", field="blob")
        hashing = HashingSource(source, max_bytes=self._max_blob_bytes)
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
            for artifact in artifacts:
                with suppress(Unavailable):
                    if not self._is_named(artifact.blob_key):
                        self.discard(artifact.blob_key)
            raise

    def discard(self, key: str) -> None:
        """Remove a blob that no row names; a failure is only logged, because the sweep finds it later."""
        try:
            self._blobs.delete(key)
        except MorpheoError:
            logger.warning("blob left behind", extra={"key": key}, exc_info=True)

    def get(self, kind: ArtifactKind, artifact_id: UUID) -> Artifact:
        """
        Return one artifact.

        Raises:
            NotFound: there is none.
        """
        with self._database.read() as work:
            return work.artifacts.get(kind, artifact_id)

    def page(
        self, kind: ArtifactKind, *, page: int = 0, page_size: int = 30, name: str | None = None
    ) -> tuple[list[Artifact], int]:
        """Return one page of artifacts, newest first, and how many there are on all pages."""
        with self._database.read() as work:
            return work.artifacts.page(kind, page=page, page_size=page_size, name=name)

    def open(
        self, artifact: Artifact, *, offset: int = 0, length: int | None = None
    ) -> AbstractContextManager[Iterator[bytes]]:
        """
        Open the blob of an artifact, or a range of it.

        Raises:
            NotFound: the blob store has lost it.
        """
        return self._blobs.get(artifact.blob_key, offset=offset, length=length)

    def change(self, old: Artifact, new: Artifact) -> Artifact:
        """
        Change an artifact's id, words or blob. The old blob is removed when the new row is there.

        Raises:
            Conflict: the new id is taken.
            InvalidInput: the new id is nil.
        """
        if new.id == NIL_UUID:
            raise InvalidInput("'UUID' unset", field="uuid")
        try:
            with self._database.begin() as work:
                changed = work.artifacts.replace(old, new)
        except Conflict:
            raise Conflict(f"[model] UUID {new.id} already exist in table '{new.kind}'") from None
        if changed.blob_key != old.blob_key:
            self.discard(old.blob_key)  # row first: the old blob is served until the new one is
        return changed

    def sweep(self) -> int:
        """Remove blobs that no row names and that are older than `ORPHAN_AGE`; return how many."""
        horizon = datetime.now(UTC) - ORPHAN_AGE
        removed = 0
        for kind in ArtifactKind:
            for blob in self._blobs.list(f"{kind}/"):
                if blob.modified_at < horizon and not self._is_named(blob.key):
                    self.discard(blob.key)
                    removed += 1
        return removed

    def _is_named(self, key: str) -> bool:
        with self._database.read() as work:
            return work.artifacts.names_blob(key)
