"""Artifacts in the database."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.orm import Session
from sqlalchemy.sql.elements import ColumnElement

from morpheo.access import SYSTEM, Principal
from morpheo.audit import Action
from morpheo.errors import NotFound
from morpheo.models import Artifact, ArtifactKind
from morpheo.storage.clock import database_now, to_datetime
from morpheo.storage.events import EventRepository
from morpheo.storage.tables import ArtifactRow
from morpheo.storage.visibility import seen_artifacts

#: How many ids one query asks for; databases limit the parameters of a statement.
IDS_PER_QUERY = 500

_NOT_QUARANTINED: dict[str, Any] = {"quarantined_at": None, "quarantine_reason": None}


class ArtifactRepository:
    """Reads and writes artifacts in one transaction."""

    def __init__(self, session: Session, events: EventRepository) -> None:
        self._session = session
        self._events = events

    def add(self, artifact: Artifact) -> Artifact:
        """
        Insert an artifact and return it with the database's time of creation.

        Raises:
            Conflict: an artifact of that kind with that id exists.
        """
        created_at = self._session.execute(
            insert(ArtifactRow)
            .values(
                kind=artifact.kind.value,
                id=artifact.id,
                name=artifact.name,
                description=artifact.description,
                algo_id=artifact.algo,
                size_bytes=artifact.size_bytes,
                sha256=artifact.sha256,
                blob_key=artifact.blob_key,
                created_at=database_now(),
                owner=artifact.owner,
            )
            .returning(ArtifactRow.created_at)
        ).scalar_one()
        size, sha256 = artifact.size_bytes, artifact.sha256
        self._events.record(Action.ARTIFACT_UPLOADED, artifact.kind, artifact.id, size_bytes=size, sha256=sha256)
        return _with_time(artifact, created_at)

    def get(self, kind: ArtifactKind, artifact_id: UUID) -> Artifact:
        """
        Return one artifact.

        Raises:
            NotFound: there is none.
        """
        row = self._session.get(ArtifactRow, (kind.value, artifact_id))
        if row is None:
            raise NotFound(f"{kind} {artifact_id} not found")
        return _to_artifact(row)

    def after(self, kind: ArtifactKind, last: UUID | None, *, limit: int) -> list[Artifact]:
        """Return artifacts of a kind in the order of their ids, those after an id; the first ones if it is None."""
        query = select(ArtifactRow).where(ArtifactRow.kind == kind.value).order_by(ArtifactRow.id).limit(limit)
        rows = self._session.scalars(query if last is None else query.where(ArtifactRow.id > last))
        return [_to_artifact(row) for row in rows]

    def exists(self, kind: ArtifactKind, artifact_id: UUID) -> bool:
        """Whether there is such an artifact."""
        return not self.missing(kind, [artifact_id])

    def names_blob(self, key: str) -> bool:
        """Whether an artifact's blob has that key."""
        return self._session.scalar(select(ArtifactRow.id).where(ArtifactRow.blob_key == key)) is not None

    def not_named(self, keys: Sequence[str]) -> list[str]:
        """Return those keys that no artifact's blob has, in the order given."""
        named = set(self._session.scalars(select(ArtifactRow.blob_key).where(ArtifactRow.blob_key.in_(keys))))
        return [key for key in keys if key not in named]

    def missing(self, kind: ArtifactKind, ids: Iterable[UUID], *, by: Principal = SYSTEM) -> list[UUID]:
        """Return those ids that no artifact of that kind has that somebody sees, in the order given."""
        wanted = list(ids)
        found = self.digests(kind, wanted, by=by)
        return [artifact_id for artifact_id in wanted if artifact_id not in found]

    def same_content(self, kind: ArtifactKind, ids: Iterable[UUID], *, as_: Iterable[UUID]) -> set[UUID]:
        """Return those ids whose artifact has the content of one of some others, or is one of them."""
        others = set(self.digests(kind, as_).values())
        return {artifact_id for artifact_id, sha256 in self.digests(kind, ids).items() if sha256 in others}

    def digests(self, kind: ArtifactKind, ids: Iterable[UUID], *, by: Principal = SYSTEM) -> dict[UUID, str]:
        """Return the SHA-256, lower-case hexadecimal, of each artifact of that kind that somebody sees, by its id."""
        wanted, found = list(ids), dict[UUID, str]()
        for start in range(0, len(wanted), IDS_PER_QUERY):
            some = ArtifactRow.id.in_(wanted[start : start + IDS_PER_QUERY])
            query = select(ArtifactRow.id, ArtifactRow.sha256).where(ArtifactRow.kind == kind.value, some)
            query = query.where(seen_artifacts(by))
            found.update((row.id, row.sha256) for row in self._session.execute(query))
        return found

    def page(
        self, kind: ArtifactKind, *, page: int, page_size: int, name: str | None, by: Principal = SYSTEM
    ) -> tuple[list[Artifact], int]:
        """
        Return one page of artifacts, newest first, and how many there are on all pages.

        Args:
            kind: Of what kind.
            page: From 0.
            page_size: Length of a page.
            name: Only artifacts whose name holds this text, in any case.
            by: Only artifacts that they see.
        """
        query = select(ArtifactRow).where(ArtifactRow.kind == kind.value, seen_artifacts(by))
        if name:
            query = query.where(ArtifactRow.name.icontains(name, autoescape=True))
        total = self._session.scalar(select(func.count()).select_from(query.subquery())) or 0
        rows = self._session.scalars(
            query.order_by(ArtifactRow.created_at.desc(), ArtifactRow.id).offset(page * page_size).limit(page_size)
        )
        return [_to_artifact(row) for row in rows], total

    def replace(self, old: Artifact, new: Artifact) -> Artifact:
        """
        Change an artifact's id, words or blob, and its time of creation to now.

        Raises:
            Conflict: the new id is another artifact's.
            NotFound: the old one has gone or has changed since it was read.
        """
        created_at = self._session.execute(
            update(ArtifactRow)
            .where(ArtifactRow.kind == old.kind.value, ArtifactRow.id == old.id, ArtifactRow.blob_key == old.blob_key)
            .values(
                id=new.id,
                name=new.name,
                description=new.description,
                size_bytes=new.size_bytes,
                sha256=new.sha256,
                blob_key=new.blob_key,
                created_at=database_now(),
                **({} if new.blob_key == old.blob_key else _NOT_QUARANTINED),
            )
            .returning(ArtifactRow.created_at)
        ).scalar_one_or_none()
        if created_at is None:
            raise NotFound(f"{old.kind} {old.id} not found, or changed by somebody else; try again")
        self._events.record(
            Action.ARTIFACT_CHANGED,
            new.kind,
            new.id,
            size_bytes=new.size_bytes,
            sha256=new.sha256,
            old_id=old.id,
            old_sha256=old.sha256,
        )
        return _with_time(new, created_at)

    def quarantine(self, artifact: Artifact, reason: str) -> bool:
        """Mark an artifact, unless it is marked already or has another blob by now; return whether it was done."""
        marked = self._set(
            artifact,
            ArtifactRow.quarantined_at.is_(None),
            quarantined_at=database_now(),
            quarantine_reason=reason,
        )
        if marked:
            self._events.record(Action.ARTIFACT_QUARANTINED, artifact.kind, artifact.id, reason=reason)
        return marked

    def release(self, artifact: Artifact) -> bool:
        """Take the mark from an artifact whose blob is whole; return whether there was one."""
        return self._unmark(artifact)

    def repair(self, artifact: Artifact, blob_key: str) -> bool:
        """Give an artifact that is marked a new blob with the same bytes; return whether it still was as given."""
        return self._unmark(artifact, blob_key=blob_key)

    def _unmark(self, artifact: Artifact, **values: Any) -> bool:
        unmarked = self._set(artifact, ArtifactRow.quarantined_at.is_not(None), **values, **_NOT_QUARANTINED)
        if unmarked:
            self._events.record(Action.ARTIFACT_RELEASED, artifact.kind, artifact.id, sha256=artifact.sha256)
        return unmarked

    def _set(self, artifact: Artifact, *where: ColumnElement[bool], **values: Any) -> bool:
        changed = self._session.execute(
            update(ArtifactRow)
            .where(
                ArtifactRow.kind == artifact.kind.value,
                ArtifactRow.id == artifact.id,
                ArtifactRow.blob_key == artifact.blob_key,
                *where,
            )
            .values(**values)
            .returning(ArtifactRow.id)
        )
        return changed.scalar_one_or_none() is not None

    def quarantined(self, kind: ArtifactKind | None = None, ids: Iterable[UUID] = ()) -> list[Artifact]:
        """Return the artifacts that are marked, the latest last: all, or those of a kind that have these ids."""
        marked = select(ArtifactRow).where(ArtifactRow.quarantined_at.is_not(None))
        if kind is None:
            rows = self._session.scalars(marked.order_by(ArtifactRow.quarantined_at, ArtifactRow.id))
            return [_to_artifact(row) for row in rows]
        wanted, found = list(ids), []
        for start in range(0, len(wanted), IDS_PER_QUERY):
            some = ArtifactRow.id.in_(wanted[start : start + IDS_PER_QUERY])
            found += [_to_artifact(row) for row in self._session.scalars(marked.where(some, ArtifactRow.kind == kind))]
        return found

    def give(self, kind: ArtifactKind, artifact_id: UUID, owner: str) -> None:
        """Make an artifact, if there is one of that id, somebody's."""
        given = update(ArtifactRow).where(ArtifactRow.kind == kind.value, ArtifactRow.id == artifact_id)
        self._session.execute(given.values(owner=owner))

    def remove(self, kind: ArtifactKind, artifact_id: UUID) -> None:
        """Delete the row, if there is one."""
        gone = delete(ArtifactRow).where(ArtifactRow.kind == kind.value, ArtifactRow.id == artifact_id)
        sha256 = self._session.scalar(gone.returning(ArtifactRow.sha256))
        if sha256 is not None:
            self._events.record(Action.ARTIFACT_DELETED, kind, artifact_id, sha256=sha256)


def _with_time(artifact: Artifact, created_at: float) -> Artifact:
    return dataclasses.replace(artifact, created_at=to_datetime(created_at))


def _to_artifact(row: ArtifactRow) -> Artifact:
    return Artifact(
        id=row.id,
        kind=ArtifactKind(row.kind),
        name=row.name,
        description=row.description,
        algo=row.algo_id,
        size_bytes=row.size_bytes,
        sha256=row.sha256,
        blob_key=row.blob_key,
        created_at=to_datetime(row.created_at),
        quarantine=row.quarantine_reason or "" if row.quarantined_at is not None else "",
        owner=row.owner,
    )
