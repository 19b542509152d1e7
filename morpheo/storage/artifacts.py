"""Artifacts in the database."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from uuid import UUID

from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.orm import Session

from morpheo.errors import NotFound
from morpheo.models import Artifact, ArtifactKind
from morpheo.storage.clock import database_now, to_datetime
from morpheo.storage.tables import ArtifactRow

#: How many ids one query asks for; databases limit the parameters of a statement.
IDS_PER_QUERY = 500


class ArtifactRepository:
    """Reads and writes artifacts in one transaction."""

    def __init__(self, session: Session) -> None:
        self._session = session

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
            )
            .returning(ArtifactRow.created_at)
        ).scalar_one()
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

    def exists(self, kind: ArtifactKind, artifact_id: UUID) -> bool:
        """Whether there is such an artifact."""
        return not self.missing(kind, [artifact_id])

    def names_blob(self, key: str) -> bool:
        """Whether an artifact's blob has that key."""
        return self._session.scalar(select(ArtifactRow.id).where(ArtifactRow.blob_key == key)) is not None

    def missing(self, kind: ArtifactKind, ids: Iterable[UUID]) -> list[UUID]:
        """Return those ids that no artifact of that kind has, in the order given."""
        wanted = list(ids)
        found: set[UUID] = set()
        for start in range(0, len(wanted), IDS_PER_QUERY):
            some = wanted[start : start + IDS_PER_QUERY]
            found |= set(
                self._session.scalars(
                    select(ArtifactRow.id).where(ArtifactRow.kind == kind.value, ArtifactRow.id.in_(some))
                )
            )
        return [artifact_id for artifact_id in wanted if artifact_id not in found]

    def page(self, kind: ArtifactKind, *, page: int, page_size: int, name: str | None) -> tuple[list[Artifact], int]:
        """
        Return one page of artifacts, newest first, and how many there are on all pages.

        Args:
            kind: Of what kind.
            page: From 0.
            page_size: Length of a page.
            name: Only artifacts whose name holds this text, in any case.
        """
        query = select(ArtifactRow).where(ArtifactRow.kind == kind.value)
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
            )
            .returning(ArtifactRow.created_at)
        ).scalar_one_or_none()
        if created_at is None:
            raise NotFound(f"{old.kind} {old.id} not found, or changed by somebody else; try again")
        return _with_time(new, created_at)

    def remove(self, kind: ArtifactKind, artifact_id: UUID) -> None:
        """Delete the row, if there is one."""
        self._session.execute(delete(ArtifactRow).where(ArtifactRow.kind == kind.value, ArtifactRow.id == artifact_id))


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
    )
