"""The documents of the orchestrator API: problems, algos, data and jobs in the shapes of 2017 (``wire-spec`` 3.1)."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Sequence
from typing import Any
from uuid import UUID

from morpheo.access import SYSTEM, Principal
from morpheo.api.schemas import FailureSchema
from morpheo.api.viewing import shown_job
from morpheo.api.wire import parse_uuid
from morpheo.challenges import OUTSIDE, AddedData, Dataset, Problem, Submission
from morpheo.errors import NotFound
from morpheo.models import Job, JobKind, JobState, LearnSpec
from morpheo.orchestrator import Orchestrator

Document = dict[str, Any]
#: Field and value; a document must match all.
Filters = Sequence[tuple[str, str]]

_FAILURE = FailureSchema()


class Collection(enum.StrEnum):
    """What can be listed; the key of a list is the name with an s, also where that is no English."""

    PROBLEM = "problem"
    ALGO = "algo"
    DATA = "data"
    LEARNUPLET = "learnuplet"
    PREDUPLET = "preduplet"


#: The collections of jobs.
KINDS = {Collection.LEARNUPLET: JobKind.LEARN, Collection.PREDUPLET: JobKind.PREDICT}


def list_documents(
    orchestrator: Orchestrator, collection: Collection, filters: Filters, *, by: Principal = SYSTEM
) -> list[Document]:
    """
    Return the documents of a collection that somebody sees and that match all filters, oldest first.

    A filter compares with a text of the document, or asks whether a list holds the value. No document matches a filter
    on anything else, such as a field that there is not.
    """
    exact = [(name, _exact(value)) for name, value in filters]
    return [
        document
        for document in _candidates(orchestrator, collection, dict(exact), by)
        if all(_matches(document.get(name), value) for name, value in exact)
    ]


def find_document(orchestrator: Orchestrator, collection: Collection, name: str, *, by: Principal = SYSTEM) -> Document:
    """
    Return one document.

    Raises:
        NotFound: there is none of that id that they see.
    """
    found = list_documents(orchestrator, collection, [("uuid", name)], by=by)
    if not found:
        raise NotFound(f"{collection} {name[:50]} not found")
    return found[0]


def _candidates(
    orchestrator: Orchestrator, collection: Collection, filters: dict[str, str], by: Principal
) -> list[Document]:
    """Return at least the documents that match, and not many more if the database can tell which these are."""
    try:
        ids = {name: UUID(filters[name]) for name in ("uuid", "problem", "algo") if name in filters}
    except ValueError:
        return []  # these fields are UUIDs
    if collection is Collection.PROBLEM:
        return [problem_document(item) for item in orchestrator.problems()]
    if collection is Collection.ALGO:
        return [algo_document(item) for item in orchestrator.submissions(ids.get("problem"), by=by)]
    if collection is Collection.DATA:
        wanted = [ids["uuid"]] if "uuid" in ids else None
        return [data_document(item) for item in orchestrator.datasets(wanted, by=by)]
    status = filters.get("status")
    jobs = orchestrator.jobs(
        KINDS[collection],
        job=ids.get("uuid"),
        problem=ids.get("problem"),
        algo=ids.get("algo"),
        states=None if status is None else tuple(state for state in JobState if state.wire == status),
        by=by,
    )
    return [job_document(job) for job in jobs]


def _exact(value: str) -> str:
    try:
        return str(parse_uuid(value))
    except ValueError:
        return value


def _matches(found: object, value: str) -> bool:
    return value in found if isinstance(found, list) else isinstance(found, str) and found == value


def problem_document(problem: Problem) -> Document:
    """Return the document of a problem."""
    return {
        "uuid": str(problem.id),
        "name": problem.name,
        "workflow": str(problem.workflow),
        "test_dataset": _texts(problem.test_data),
        "size_train_dataset": problem.batch_size,
        "timestamp_upload": int(problem.created_at.timestamp()),
        "higher_is_better": problem.higher_is_better,
        "parallel_ranks": problem.parallel_ranks,
        **dataclasses.asdict(problem.disclosure),
    }


def algo_document(submission: Submission) -> Document:
    """Return the document of an algo."""
    return {
        "uuid": str(submission.algo),
        "name": submission.name,
        "problem": str(submission.problem),
        "timestamp_upload": int(submission.created_at.timestamp()),
        "stalled": submission.stalled,
        "stalled_by": None if submission.stalled_by is None else str(submission.stalled_by),
    }


def data_document(dataset: Dataset) -> Document:
    """Return the document of a data file."""
    return {
        "uuid": str(dataset.id),
        "problems": _texts(dataset.problems),
        "timestamp_upload": int(dataset.created_at.timestamp()),
    }


def added_document(added: AddedData) -> Document:
    """Return the answer to data that was added; `held_out` has the test data of each problem among it."""
    return {
        "new_datas": [data_document(item) for item in added.datasets],
        "new_learnuplets": added.trainings,
        "held_out": {str(problem): _texts(data) for problem, data in added.held_out.items()},
    }


def job_document(job: Job) -> Document:
    """Return the document of a job, a learnuplet or a preduplet, as the caller of this request sees it."""
    job = shown_job(job)
    spec = job.spec
    common = {
        "uuid": str(job.id),
        "problem": str(spec.problem),
        "workflow": str(spec.workflow),
        "worker": job.worker and job.worker.removeprefix(OUTSIDE),
        "status": job.state.wire,
        "state": job.state.value,
        "timestamp_done": None if job.ended_at is None else int(job.ended_at.timestamp()),
        "failure": None if job.failure is None else _FAILURE.dump(job.failure),
    }
    created = int(job.created_at.timestamp())
    if not isinstance(spec, LearnSpec):
        return {
            **common,
            "data": str(spec.data),
            "model": str(spec.model),
            "prediction_storage_uuid": None if job.result is None else str(job.result),
            "timestamp_request": created,
        }
    return {
        **common,
        "algo": str(spec.algo),
        "model_start": None if spec.model_start is None else str(spec.model_start),
        "model_end": str(spec.model_end),
        "train_data": _texts(spec.train_data),
        "test_data": _texts(spec.test_data),
        "rank": spec.rank,
        "perf": job.scores and job.scores.perf,
        "train_perf": job.scores and job.scores.train_perf,
        "test_perf": job.scores and job.scores.test_perf,
        "timestamp_creation": created,
    }


def _texts(ids: Sequence[UUID]) -> list[str]:
    return [str(item) for item in ids]
