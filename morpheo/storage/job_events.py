"""What the audit trail is told of jobs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any
from uuid import UUID

from morpheo.audit import Action, canonical, list_digest
from morpheo.models import AttemptOutcome, JobState
from morpheo.storage.events import EventRepository

_ACTIONS = {
    JobState.QUEUED: Action.JOB_REQUEUED,
    JobState.SUCCEEDED: Action.JOB_SUCCEEDED,
    JobState.FAILED: Action.JOB_FAILED,
    JobState.CANCELLED: Action.JOB_CANCELLED,
}
#: Columns that are told as they are. Not the failure's message, which may quote a container.
_TOLD = ("spec_sha256", "failure_cause", "failure_blame", "failure_step", "result_id", "perf")


def record_ordered(events: EventRepository, row: Mapping[str, Any]) -> None:
    """Record that a job was inserted."""
    told = {name: row[name] for name in ("kind", "state", "spec_sha256")}
    events.record(Action.JOB_ORDERED, "job", row["id"], **told)


def record_ranks(events: EventRepository, rows: Iterable[Mapping[str, Any]]) -> None:
    """Record that ranks were inserted: one event for each chain, since there may be thousands of ranks."""
    chains: dict[UUID, list[Mapping[str, Any]]] = {}
    for row in rows:
        chains.setdefault(row["algo_id"], []).append(row)
    for algo, ranks in chains.items():
        specs = list_digest(row["spec_sha256"] for row in ranks)
        events.record(
            Action.CHAIN_EXTENDED, "algo", algo, first_rank=ranks[0]["rank"], jobs=len(ranks), spec_sha256s=specs
        )


def record_move(
    events: EventRepository,
    job_id: UUID,
    to: JobState,
    *,
    attempt: int,
    outcome: AttemptOutcome | None,
    values: Mapping[str, Any],
) -> None:
    """
    Record that a job came to another state.

    Args:
        events: The trail.
        job_id: The job.
        to: The state.
        attempt: Its latest attempt.
        outcome: How that ended, if the job went back to the queue.
        values: The columns that changed with the state.
    """
    told = {name: values[name] for name in _TOLD if name in values}
    if values.get("scores"):
        told["scores_sha256"] = hashlib.sha256(canonical(values["scores"]).encode()).hexdigest()
    action = Action.JOB_RELEASED if to is JobState.QUEUED and outcome is None else _ACTIONS[to]
    events.record(action, "job", job_id, attempt=attempt, outcome=outcome, **told)
