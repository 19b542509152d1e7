"""Which queued jobs the broker was told of."""

from __future__ import annotations

from collections.abc import Iterable
from uuid import UUID

from sqlalchemy import and_, case, func, or_, select, update
from sqlalchemy.orm import Session
from sqlalchemy.sql.elements import ColumnElement

from morpheo.errors import CorruptRow
from morpheo.models import JobKind, JobSpec, JobState
from morpheo.storage.clock import database_now
from morpheo.storage.rows import to_job
from morpheo.storage.tables import JobRow


class MessageRepository:
    """Reads and writes in one transaction when jobs were published."""

    def __init__(self, session: Session) -> None:
        self._session = session
        #: Jobs that were left out of an answer: their orders cannot be read.
        self.damaged: list[UUID] = []

    def mark_published(self, job_ids: Iterable[UUID]) -> None:
        """Record that messages for these jobs were given to the broker."""
        self._session.execute(update(JobRow).where(JobRow.id.in_(list(job_ids))).values(published_at=database_now()))

    def queues_with_unpublished(self, *, older_than_s: float) -> dict[tuple[JobKind, tuple[str, ...]], int]:
        """Return, by kind and tags, how many jobs are queued, where there are any that `unpublished` would return."""
        found = self._session.execute(
            select(JobRow.kind, JobRow.tags, func.count())
            .where(JobRow.state == JobState.QUEUED.value)
            .group_by(JobRow.kind, JobRow.tags)
            .having(func.count(case((and_(*_unpublished(older_than_s)), 1))) > 0)
        )
        return {(JobKind(kind), tuple(tags.split("+")) if tags else ()): count for kind, tags, count in found}

    def unpublished(
        self, kind: JobKind, tags: tuple[str, ...], *, older_than_s: float | None, limit: int
    ) -> list[JobSpec]:
        """
        Return queued jobs of one queue that are due and whose message was never given to the broker, or long ago.

        Args:
            kind: Of the jobs.
            tags: All of the jobs.
            older_than_s: How long ago; None is for jobs that were never published.
            limit: How many at most.
        """
        rows = self._session.scalars(
            select(JobRow)
            .where(JobRow.kind == kind.value, JobRow.tags == _joined(tags), *_unpublished(older_than_s))
            .order_by(JobRow.created_at)
            .limit(limit)
        )
        specs = []
        for row in rows:
            try:
                specs.append(to_job(row, attempts=False).spec)
            except CorruptRow:
                self.damaged.append(row.id)
        return specs


def _joined(tags: tuple[str, ...]) -> str:
    return "+".join(tags)


def _unpublished(older_than_s: float | None) -> tuple[ColumnElement[bool], ...]:
    never: ColumnElement[bool] = JobRow.published_at.is_(None)
    return (
        JobRow.state == JobState.QUEUED.value,
        JobRow.not_before <= database_now(),
        never if older_than_s is None else or_(never, JobRow.published_at < database_now() - older_than_s),
    )
