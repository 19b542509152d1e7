"""Jobs and steps as numbers: read from indexes alone, so that it is cheap however many there are."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import case, func, select
from sqlalchemy.orm import Session

from morpheo.models import Cause, JobKind, JobState, StepName
from morpheo.storage.clock import database_now
from morpheo.storage.reports import ReportRepository
from morpheo.storage.tables import JobRow, StepRow


@dataclass(frozen=True, kw_only=True)
class JobCount:
    """How many jobs of a kind are in a state, and why they failed and in which step, if they did."""

    kind: JobKind
    state: JobState
    cause: Cause | None
    step: StepName | None
    count: int


@dataclass(frozen=True, kw_only=True)
class QueueCount:
    """The jobs of a kind that could be run at once; `oldest_s` is for how long the first has been one of them."""

    kind: JobKind
    depth: int
    oldest_s: float


@dataclass(frozen=True, kw_only=True)
class StepTotal:
    """How many steps of a name have ended, and how long they took together."""

    name: StepName
    count: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """All of it, at one moment. What there is none of is left out."""

    jobs: tuple[JobCount, ...] = ()
    queues: tuple[QueueCount, ...] = ()
    steps: tuple[StepTotal, ...] = ()
    #: Reports that an outside orchestrator has not answered, and the age of the oldest in seconds.
    reports: int = 0
    oldest_report_s: float = 0.0


class StatisticsRepository:
    """Counts what is in the tables, in one transaction."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def read(self) -> Statistics:
        """Return the numbers of now."""
        reports, oldest_report_s = ReportRepository(self._session).backlog()
        return Statistics(
            jobs=self._jobs(),
            queues=self._queues(),
            steps=self._steps(),
            reports=reports,
            oldest_report_s=oldest_report_s,
        )

    def _jobs(self) -> tuple[JobCount, ...]:
        columns = (JobRow.state, JobRow.kind, JobRow.failure_cause, JobRow.failure_step)
        rows = self._session.execute(select(*columns, func.count()).group_by(*columns))
        return tuple(
            JobCount(
                kind=JobKind(kind),
                state=JobState(state),
                cause=None if cause is None else Cause(cause),
                step=None if step is None else StepName(step),
                count=count,
            )
            for state, kind, cause, step, count in rows
        )

    def _queues(self) -> tuple[QueueCount, ...]:
        # A job that waits for its next attempt is in the queue from then on.
        since = case((JobRow.not_before > JobRow.created_at, JobRow.not_before), else_=JobRow.created_at)
        now = database_now()
        rows = self._session.execute(
            select(JobRow.kind, func.count(), now - func.min(since))
            .where(JobRow.state == JobState.QUEUED.value, JobRow.not_before <= now)
            .group_by(JobRow.kind)
        )
        return tuple(QueueCount(kind=JobKind(kind), depth=depth, oldest_s=max(0.0, age)) for kind, depth, age in rows)

    def _steps(self) -> tuple[StepTotal, ...]:
        rows = self._session.execute(
            select(StepRow.name, func.count(), func.sum(StepRow.seconds))
            .where(StepRow.seconds.is_not(None))
            .group_by(StepRow.name)
        )
        return tuple(StepTotal(name=StepName(name), count=count, seconds=seconds or 0) for name, count, seconds in rows)
