"""
Whose turn it is: the users who wait in one queue take turns, however many jobs each has ordered.

A broker gives messages in the order in which jobs were ordered, so that one user with a thousand of them would keep all
others waiting. A message tells of one job, but is taken as room for one: for a job of the user who has fewest of that
queue running, or else had none begun for the longest time. A worker that is told of a job which it leaves to others
takes another one for it, too: two workers that are each told of what the other one should do would go on like that.
"""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import and_, func, not_, select
from sqlalchemy.orm import Session
from sqlalchemy.sql.elements import ColumnElement

from morpheo.models import JobState
from morpheo.storage.clock import database_now
from morpheo.storage.nodes import left_to_others
from morpheo.storage.tables import JobRow


class TurnRepository:
    """Finds in one transaction which job should be taken next."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def before(self, job_id: UUID, *, node: str) -> UUID | None:
        """
        Return the job that should be taken before another one of its queue: the oldest of the user whose turn it is.

        Args:
            job_id: The job that a worker was told of.
            node: The worker's machine, which leaves some jobs to others.

        Returns:
            None if it is that job's turn, if it does not wait, or if nothing else waits.
        """
        told = self._session.execute(
            select(JobRow.owner, JobRow.kind, JobRow.tags, left_to_others(node).label("is_left")).where(
                JobRow.id == job_id, *_waits()
            )
        ).one_or_none()
        if told is None:
            return None
        same_queue = and_(JobRow.kind == told.kind, JobRow.tags == told.tags, not_(left_to_others(node)), *_waits())
        users = select(JobRow.owner, func.min(JobRow.created_at).label("oldest")).where(same_queue)
        waiting = users.group_by(JobRow.owner).subquery()
        # What somebody runs elsewhere, on other machines, is no reason to wait here.
        of_user = and_(JobRow.owner == waiting.c.owner, JobRow.kind == told.kind, JobRow.tags == told.tags)
        running = select(func.count()).where(of_user, JobRow.state == JobState.RUNNING.value).scalar_subquery()
        latest = select(func.max(JobRow.started_at)).where(of_user).scalar_subquery()
        turns = running, func.coalesce(latest, 0.0), waiting.c.oldest, waiting.c.owner
        first = self._session.scalar(select(waiting.c.owner).order_by(*turns).limit(1))
        if first is None or (first == told.owner and not told.is_left):
            return None
        oldest = select(JobRow.id).where(JobRow.owner == first, same_queue).order_by(JobRow.created_at, JobRow.id)
        return self._session.scalar(oldest.limit(1))


def _waits() -> tuple[ColumnElement[bool], ...]:
    return (
        JobRow.state == JobState.QUEUED.value,
        JobRow.not_before <= database_now(),
        JobRow.cancel_requested.is_(False),
    )
