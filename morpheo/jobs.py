"""
Jobs as their owners see them: accepted, shown, cancelled. What a worker does with them is in `morpheo.runner`.

The row in the database is the truth. A message of the broker only says "look at this job"; it may be lost, doubled
or late.
"""

from __future__ import annotations

import base64
import binascii
import logging
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Protocol
from uuid import UUID

from morpheo.errors import Conflict, InvalidInput, NotFound, Unavailable
from morpheo.models import ArtifactKind, Job, JobSpec, LearnSpec, StepName
from morpheo.specs import spec_digest
from morpheo.storage.blobs import BlobStore
from morpheo.storage.database import Database, UnitOfWork
from morpheo.storage.jobs import JobFilter

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
        self._blobs = blobs

    def submit(self, spec: JobSpec) -> Job:
        """
        Accept an order, and tell the workers. The same order given twice is one job.

        Raises:
            InvalidInput: it names an artifact that does not exist, or a model that does already.
            Conflict: another order has that id.
            DatabaseUnavailable: nothing was accepted.
        """
        try:
            known = self._insert(spec)
        except Conflict:  # the same order, or another with its id, came at the same time: now its row is there
            known = self._insert(spec)
        if known not in (None, spec_digest(spec)):
            raise Conflict(f"another job has the id {spec.id}")
        return self.get(spec.id)

    def _insert(self, spec: JobSpec) -> str | None:
        """Insert a job, or return the digest of the one that has its id."""
        with self._database.begin() as work:
            known = work.jobs.digest(spec.id)
            if known is None:
                work.jobs.add(spec, algo=_check_needs(work, spec))
        return known

    def get(self, job_id: UUID) -> Job:
        """
        Return a job with its attempts.

        Raises:
            NotFound: there is none.
        """
        with self._database.read() as work:
            return work.jobs.get(job_id)

    def page(self, where: JobFilter, *, limit: int, after: str | None = None) -> tuple[list[Job], str | None]:
        """
        Return some jobs without their attempts, newest first, and the mark that gives the next ones.

        Raises:
            InvalidInput: the mark is not one that this method gave.
        """
        with self._database.read() as work:
            jobs = work.jobs.page(where, limit=limit + 1, after=_decode_mark(after) if after else None)
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

    def logs(self, job_id: UUID, *, attempt: int | None = None) -> Iterator[tuple[StepName, bytes]]:
        """
        Return the logs of the steps of one attempt, the latest by default.

        Raises:
            NotFound: there is no such job or attempt.
        """
        job = self.get(job_id)
        wanted = job.attempt if attempt is None else attempt
        found = next((item for item in job.attempts if item.number == wanted), None)
        if found is None and attempt is not None:
            raise NotFound(f"job {job_id} has no attempt {attempt}")
        for step in found.steps if found else ():
            if step.log_key is not None:
                with self._blobs.get(step.log_key) as pieces:
                    yield step.name, b"".join(pieces)


def _check_needs(work: UnitOfWork, spec: JobSpec) -> UUID | None:
    for field, (kind, ids) in spec.needs().items():
        if missing := work.artifacts.missing(kind, ids):
            raise InvalidInput(f"{field}: {kind} {missing[0]} not found in storage", field=field)
    if isinstance(spec, LearnSpec):
        if work.artifacts.exists(ArtifactKind.MODEL, spec.model_end):
            raise InvalidInput(f"model_end: model {spec.model_end} exists already; give a new id", field="model_end")
        return spec.algo
    return work.artifacts.get(ArtifactKind.MODEL, spec.model).algo


def _encode_mark(job: Job) -> str:
    return base64.urlsafe_b64encode(f"{job.created_at.timestamp()!r} {job.id}".encode()).decode()


def _decode_mark(mark: str) -> tuple[float, UUID]:
    try:
        seconds, _, job_id = base64.urlsafe_b64decode(mark.encode()).decode().partition(" ")
        return float(seconds), UUID(job_id)
    except (ValueError, binascii.Error) as exc:
        raise InvalidInput("after must be the `next` of an earlier answer", field="after") from exc
