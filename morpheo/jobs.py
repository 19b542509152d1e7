"""
Jobs as their owners see them: accepted, shown, cancelled. What a worker does with them is in `morpheo.runner`.

The row in the database is the truth. A message of the broker only says "look at this job"; it may be lost, doubled
or late.
"""

from __future__ import annotations

import base64
import binascii
import logging
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from typing import Protocol
from uuid import UUID

from morpheo.access import SYSTEM, Principal
from morpheo.artifacts import check_usable
from morpheo.audit import Action
from morpheo.challenges import is_insider
from morpheo.errors import Conflict, InvalidInput, Unavailable
from morpheo.failpoints import failpoint
from morpheo.models import ArtifactKind, Job, JobKind, JobSpec, JobState, LearnSpec, StepName
from morpheo.specs import spec_digest
from morpheo.storage.blobs import BlobStore
from morpheo.storage.database import Database, UnitOfWork
from morpheo.storage.job_filter import JobFilter
from morpheo.transcripts import ALL_STEPS, LogText, Position, Transcripts

logger = logging.getLogger(__name__)


class Publisher(Protocol):
    """Gives messages to the broker."""

    def publish(self, spec: JobSpec) -> None:
        """
        Tell the workers of a job's queue that it is there.

        Raises:
            BrokerUnavailable: the broker does not answer.
        """
        ...

    def backlog(self, queue: str) -> int:
        """
        Return how many messages wait in a queue.

        Raises:
            BrokerUnavailable: the broker does not answer.
        """
        ...


def publish(database: Database, publisher: Publisher, specs: Iterable[JobSpec]) -> None:
    """Tell the workers of jobs whose rows are committed; what cannot be told now, the sweeper tells later."""
    failpoint("before_publish")
    told = []
    try:
        for spec in specs:
            publisher.publish(spec)
            told.append(spec.id)
    except Unavailable:
        logger.warning("jobs not published yet", exc_info=True)
    if told:
        with suppress(Unavailable), database.begin() as work:
            work.messages.mark_published(told)


class JobService:
    """
    Accepts, shows and cancels jobs.

    Args:
        database: Keeps the rows.
        blobs: Keeps the logs.
    """

    def __init__(self, database: Database, blobs: BlobStore) -> None:
        self._database = database
        self._transcripts = Transcripts(database, blobs)

    def submit(self, spec: JobSpec, *, by: Principal = SYSTEM) -> Job:
        """
        Accept an order, and tell the workers. The same order given twice is one job.

        Args:
            spec: What to do.
            by: Whose the job is.

        Raises:
            InvalidInput: it names an artifact that does not exist or that they do not see, or a model that does exist.
            Quarantined: it names an artifact whose blob is lost or damaged.
            Conflict: another order has that id.
            DatabaseUnavailable: nothing was accepted.
        """
        try:
            known = self._insert(spec, by)
        except Conflict:  # the same order, or another with its id, came at the same time: now its row is there
            known = self._insert(spec, by)
        if known not in (None, spec_digest(spec)):
            raise Conflict(f"another job has the id {spec.id}")
        return self.get(spec.id)

    def _insert(self, spec: JobSpec, by: Principal) -> str | None:
        """Insert a job, or return the digest of the one that has its id."""
        with self._database.begin() as work:
            known = work.jobs.digest(spec.id)
            if known is None:
                work.jobs.add(spec, algo=_check_needs(work, spec, by), owner=by.name)
        return known

    def get(self, job_id: UUID) -> Job:
        """
        Return a job with its attempts.

        Raises:
            NotFound: there is none.
        """
        with self._database.read() as work:
            return work.jobs.get(job_id)

    def page(
        self, where: JobFilter, *, limit: int, after: str | None = None, by: Principal = SYSTEM
    ) -> tuple[list[Job], str | None]:
        """
        Return some jobs that somebody sees, without attempts, newest first, and the mark that gives the next ones.

        Raises:
            InvalidInput: the mark is not one that this method gave.
        """
        with self._database.read() as work:
            jobs = work.jobs.page(where, limit=limit + 1, after=_decode_mark(after) if after else None, by=by)
        more = len(jobs) > limit
        return jobs[:limit], _encode_mark(jobs[limit - 1]) if more else None

    def cancel(self, job_id: UUID) -> Job:
        """
        End a job, or ask its worker to; harmless if it has ended.

        Raises:
            NotFound: there is no such job.
        """
        with self._database.begin() as work:
            work.jobs.request_cancel(job_id)
            return work.jobs.get(job_id)

    def logs(
        self, job_id: UUID, *, attempt: int | None = None, steps: Collection[StepName] = ALL_STEPS
    ) -> Iterator[tuple[StepName, bytes]]:
        """
        Return what some steps of one attempt, the latest by default, have written until now.

        Raises:
            NotFound: there is no such job or attempt.
            DatabaseUnavailable: that they are read could not be recorded.
        """
        latest = self.get(job_id).attempt
        self._record_reading(job_id, latest if attempt is None else attempt)
        return self._transcripts.read(job_id, attempt=attempt, steps=steps)

    def follow_logs(
        self,
        job_id: UUID,
        *,
        after: Position | None = None,
        steps: Collection[StepName] = ALL_STEPS,
        stopping: Callable[[], bool] = lambda: False,
    ) -> Iterator[LogText | JobState | None]:
        """
        Return what the steps of a job write, as they write it; see `Transcripts.follow`.

        Args:
            job_id: Which job.
            after: Where to begin; the beginning of the latest attempt by default.
            steps: Which of them.
            stopping: Whether to stop before the end.

        Raises:
            NotFound: there is no such job.
        """
        job = self.get(job_id)
        self._record_reading(job_id, job.attempt)
        after = after or Position(max(job.attempt, 1))
        return self._transcripts.follow(job_id, after, steps=steps, stopping=stopping)

    def _record_reading(self, job_id: UUID, attempt: int) -> None:
        with self._database.begin() as work:
            work.events.record(Action.JOB_LOGS_READ, "job", job_id, attempt=attempt)


def _check_needs(work: UnitOfWork, spec: JobSpec, by: Principal) -> UUID | None:
    for field, (kind, ids) in spec.needs().items():
        if missing := work.artifacts.missing(kind, ids, by=by):
            raise InvalidInput(f"{field}: {kind} {missing[0]} not found in storage", field=field)
        for artifact in work.artifacts.quarantined(kind, ids):
            check_usable(artifact)
        for model in ids if kind is ArtifactKind.MODEL else ():
            if not _lets_out(work, model, by):
                raise InvalidInput(f"{field}: model {model} is for the custodian of its problem", field=field)
    if isinstance(spec, LearnSpec):
        if work.artifacts.exists(ArtifactKind.MODEL, spec.model_end):
            raise InvalidInput(f"model_end: model {spec.model_end} exists already; give a new id", field="model_end")
        return spec.algo
    return work.artifacts.get(ArtifactKind.MODEL, spec.model).algo


def _lets_out(work: UnitOfWork, model: UUID, by: Principal) -> bool:
    """Return whether somebody may order with a model that they see: their own programs could copy out what is in it."""
    job = None if by.is_admin or by.orders_anything else work.chains.of_result(JobKind.LEARN, model)
    if job is None:
        return True
    if not job.planned:
        return work.jobs.owner(job.id) == by.name
    problem = work.challenges.problem(job.spec.problem)
    return problem.disclosure.model_download or is_insider(by, problem)


def _encode_mark(job: Job) -> str:
    return base64.urlsafe_b64encode(f"{job.created_at.timestamp()!r} {job.id}".encode()).decode()


def _decode_mark(mark: str) -> tuple[float, UUID]:
    try:
        seconds, _, job_id = base64.urlsafe_b64decode(mark.encode()).decode().partition(" ")
        return float(seconds), UUID(job_id)
    except (ValueError, binascii.Error) as exc:
        raise InvalidInput("after must be the `next` of an earlier answer", field="after") from exc
