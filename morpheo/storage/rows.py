"""Rows of jobs turned into values of the domain, and orders into columns."""

from __future__ import annotations

from typing import Any

from morpheo.errors import CorruptRow
from morpheo.models import (
    NIL_UUID,
    Attempt,
    AttemptOutcome,
    Blame,
    Cause,
    Failure,
    Job,
    JobKind,
    JobSpec,
    JobState,
    LearnSpec,
    PredictSpec,
    Scores,
    StepName,
    StepRecord,
)
from morpheo.specs import spec_digest, spec_from_dict, spec_to_dict
from morpheo.storage.clock import database_now, to_datetime
from morpheo.storage.tables import AttemptRow, JobRow, StepRow


def to_job(row: JobRow, *, attempts: bool, whole: bool = True) -> Job:
    """
    Return a job.

    Args:
        row: Of the job.
        attempts: Whether they were loaded.
        whole: Whether an order that cannot be read is an error; those who only look are shown what is left of it.

    Raises:
        CorruptRow: its order cannot be read.
    """
    try:
        spec = spec_from_dict(JobKind(row.kind), row.spec)
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        if whole:
            raise CorruptRow(f"the order of job {row.id} cannot be read") from exc
        spec = remains(row)
    return Job(
        id=row.id,
        kind=spec.kind,
        state=JobState(row.state),
        spec=spec,
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
        owner=row.owner,
        held_by=row.held_by,
    )


def remains(row: JobRow) -> JobSpec:
    """Return what the columns beside an order still tell of it, if it cannot be read; its workflow is `NIL_UUID`."""
    tags = tuple(row.tags.split("+")) if row.tags else ()
    if row.kind != JobKind.LEARN:
        return PredictSpec(
            id=row.id, problem=row.problem_id, workflow=NIL_UUID, model=NIL_UUID, data=NIL_UUID, tags=tags
        )
    return LearnSpec(
        id=row.id,
        problem=row.problem_id,
        workflow=NIL_UUID,
        algo=row.algo_id or NIL_UUID,
        train_data=(),
        test_data=(),
        model_start=None,
        model_end=NIL_UUID,
        rank=row.rank or 0,
        tags=tags,
    )


def to_row(spec: JobSpec) -> dict[str, Any]:
    """Return the columns that an order fills."""
    learn = spec if isinstance(spec, LearnSpec) else None
    return {
        "id": spec.id,
        "kind": spec.kind.value,
        "problem_id": spec.problem,
        "algo_id": learn and learn.algo,
        "tags": "+".join(spec.tags),
        "spec": spec_to_dict(spec),
        "spec_sha256": spec_digest(spec),
        "rank": learn and learn.rank,
        "train_files": learn and len(learn.train_data),
    }


def failure_columns(failure: Failure) -> dict[str, Any]:
    """Return the columns of a job that ends with a failure now."""
    return {
        "failure_cause": failure.cause.value,
        "failure_blame": failure.blame.value,
        "failure_step": failure.step and failure.step.value,
        "failure_message": failure.message,
        "ended_at": database_now(),
    }


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
        log_bytes=row.log_bytes,
        log_gap_at=row.log_gap_at,
        log_gap_bytes=row.log_gap_bytes,
    )
