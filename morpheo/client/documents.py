"""The documents of the orchestrator API, typed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Self
from uuid import UUID

from morpheo.challenges import AddedData, Dataset, Problem, Submission
from morpheo.disclosure import MAX_DIGITS, Disclosure, Logs
from morpheo.models import Blame, Cause, Failure, JobState, StepName


@dataclass(frozen=True, kw_only=True)
class Learnuplet:
    """A training job that the orchestrator planned."""

    uuid: UUID
    problem: UUID
    #: Storage id of the problem's archive.
    workflow: UUID
    algo: UUID
    #: The algo's id for rank 0, which starts from nothing; None until its turn comes, and if there was no model then.
    model_start: UUID | None
    model_end: UUID
    train_data: tuple[UUID, ...]
    test_data: tuple[UUID, ...]
    #: ``todo``, ``pending``, ``done`` or ``failed``.
    status: str
    #: More exactly; a guess if the service is one of 2017.
    state: JobState
    rank: int
    worker: str | None
    perf: float | None
    #: Score of each train file, by data id; None until it is done.
    train_perf: Mapping[str, float] | None
    #: Score of each test file, by data id; None until it is done.
    test_perf: Mapping[str, float] | None
    timestamp_creation: datetime
    timestamp_done: datetime | None
    failure: Failure | None

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Self:
        """Return what an answer of the service says."""
        return cls(
            uuid=UUID(document["uuid"]),
            problem=UUID(document["problem"]),
            workflow=UUID(document["workflow"]),
            algo=UUID(document["algo"]),
            model_start=_optional_uuid(document["model_start"]),
            model_end=UUID(document["model_end"]),
            train_data=tuple(map(UUID, document["train_data"])),
            test_data=tuple(map(UUID, document["test_data"])),
            status=document["status"],
            state=_state(document),
            rank=document["rank"],
            worker=document["worker"],
            perf=document["perf"],
            train_perf=document["train_perf"],
            test_perf=document["test_perf"],
            timestamp_creation=_time(document["timestamp_creation"]),
            timestamp_done=_optional_time(document["timestamp_done"]),
            failure=_failure(document.get("failure")),
        )


def _state(document: dict[str, Any]) -> JobState:
    if "state" in document:
        return JobState(document["state"])
    todo = JobState.QUEUED if document["model_start"] else JobState.WAITING
    states = {"todo": todo, "pending": JobState.RUNNING, "done": JobState.SUCCEEDED, "failed": JobState.FAILED}
    return states[document["status"]]


@dataclass(frozen=True, kw_only=True)
class Preduplet:
    """A prediction job that the orchestrator ordered."""

    uuid: UUID
    problem: UUID
    workflow: UUID
    model: UUID
    data: UUID
    #: ``todo``, ``pending``, ``done`` or ``failed``.
    status: str
    worker: str | None
    #: Storage id of the prediction; None until it is done.
    prediction_storage_uuid: UUID | None
    timestamp_request: datetime
    timestamp_done: datetime | None
    failure: Failure | None

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Self:
        """Return what an answer of the service says."""
        return cls(
            uuid=UUID(document["uuid"]),
            problem=UUID(document["problem"]),
            workflow=UUID(document["workflow"]),
            model=UUID(document["model"]),
            data=UUID(document["data"]),
            status=document["status"],
            worker=document["worker"],
            prediction_storage_uuid=_optional_uuid(document["prediction_storage_uuid"]),
            timestamp_request=_time(document["timestamp_request"]),
            timestamp_done=_optional_time(document["timestamp_done"]),
            failure=_failure(document.get("failure")),
        )


def to_problem(document: dict[str, Any]) -> Problem:
    """Return the problem that a document is."""
    return Problem(
        id=UUID(document["uuid"]),
        workflow=UUID(document["workflow"]),
        test_data=tuple(map(UUID, document["test_dataset"])),
        batch_size=document["size_train_dataset"],
        # An orchestrator of 2017 knows none of these.
        name=document.get("name", ""),
        higher_is_better=document.get("higher_is_better", True),
        parallel_ranks=document.get("parallel_ranks", 1),
        disclosure=_disclosure(document),
        created_at=_time(document["timestamp_upload"]),
    )


def _disclosure(document: dict[str, Any]) -> Disclosure:
    # One of 2017 lets out what it knows: scores as they are and times to the second, but no logs.
    if "logs" not in document:
        return Disclosure(
            logs=Logs.NONE, model_download=True, score_digits=MAX_DIGITS, submissions_per_day=None, time_step_s=1
        )
    given = {field.name: document[field.name] for field in dataclasses.fields(Disclosure)}
    return Disclosure(**{**given, "logs": Logs(document["logs"])})


def to_submission(document: dict[str, Any]) -> Submission:
    """Return the submission that a document is."""
    return Submission(
        algo=UUID(document["uuid"]),
        problem=UUID(document["problem"]),
        name=document["name"],
        stalled_by=_optional_uuid(document.get("stalled_by")),
        created_at=_time(document["timestamp_upload"]),
    )


def to_dataset(document: dict[str, Any]) -> Dataset:
    """Return the data that a document is."""
    return Dataset(
        id=UUID(document["uuid"]),
        problems=tuple(map(UUID, document["problems"])),
        created_at=_time(document["timestamp_upload"]),
    )


def to_added_data(answer: dict[str, Any]) -> AddedData:
    """Return what the answer to data that was added says."""
    return AddedData(
        datasets=tuple(map(to_dataset, answer["new_datas"])),
        trainings=answer["new_learnuplets"],
        held_out={UUID(problem): tuple(map(UUID, data)) for problem, data in answer["held_out"].items()},
    )


def _failure(document: dict[str, Any] | None) -> Failure | None:
    if document is None:
        return None
    return Failure(
        cause=Cause(document["cause"]),
        blame=Blame(document["blame"]),
        step=StepName(document["step"]) if document["step"] else None,
        message=document["message"],
    )


def _optional_uuid(text: str | None) -> UUID | None:
    return UUID(text) if text else None


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _optional_time(seconds: float | None) -> datetime | None:
    return None if seconds is None else _time(seconds)
