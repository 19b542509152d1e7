"""Rows of jobs turned into values of the domain."""

from __future__ import annotations

from morpheo.models import (
    Attempt,
    AttemptOutcome,
    Blame,
    Cause,
    Failure,
    Job,
    JobKind,
    JobState,
    Scores,
    StepName,
    StepRecord,
)
from morpheo.specs import spec_from_dict
from morpheo.storage.clock import to_datetime
from morpheo.storage.tables import AttemptRow, JobRow, StepRow


def to_job(row: JobRow, *, attempts: bool) -> Job:
    """Return a job; its attempts only if they were loaded."""
    kind = JobKind(row.kind)
    return Job(
        id=row.id,
        kind=kind,
        state=JobState(row.state),
        spec=spec_from_dict(kind, row.spec),
        algo=row.algo_id,
        attempt=row.attempt,
        strikes=row.strikes,
        cancel_requested=row.cancel_requested,
        worker=row.worker,
        created_at=to_datetime(row.created_at),
        started_at=None if row.started_at is None else to_datetime(row.started_at),
        ended_at=None if row.ended_at is None else to_datetime(row.ended_at),
        failure=_to_failure(row),
        scores=Scores(**row.scores) if row.scores else None,
        result=row.result_id,
        planned=row.planned,
        attempts=tuple(_to_attempt(attempt) for attempt in row.attempts) if attempts else (),
    )


def _to_failure(row: JobRow) -> Failure | None:
    if row.failure_cause is None:
        return None
    return Failure(
        cause=Cause(row.failure_cause),
        blame=Blame(row.failure_blame or Blame.INFRASTRUCTURE),
        step=StepName(row.failure_step) if row.failure_step else None,
        message=row.failure_message or "",
    )


def _to_attempt(row: AttemptRow) -> Attempt:
    return Attempt(
        number=row.number,
        worker=row.worker,
        outcome=AttemptOutcome(row.outcome),
        started_at=to_datetime(row.started_at),
        ended_at=None if row.ended_at is None else to_datetime(row.ended_at),
        message=row.message,
        steps=tuple(_to_step(step) for step in row.steps),
    )


def _to_step(row: StepRow) -> StepRecord:
    return StepRecord(
        name=StepName(row.name),
        started_at=to_datetime(row.started_at),
        seconds=row.seconds,
        exit_code=row.exit_code,
        oom_killed=row.oom_killed,
        peak_memory_bytes=row.peak_memory_bytes,
        log_key=row.log_key,
    )
