"""
What a worker does with a job: claim it, make one attempt, and write how it ended.

Whoever runs a job has claimed its row, renews its lease, and writes with the number of its attempt; a worker that has
lost its lease writes zero rows. Every way out of an attempt is in `JobRunner._attempt`.
"""

from __future__ import annotations

import errno
import logging
import os
import secrets
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

from morpheo.actors import acting_as
from morpheo.ends import End, EndWriter
from morpheo.errors import (
    CorruptRow,
    DatabaseUnavailable,
    DiskFull,
    EngineFull,
    Interrupted,
    NotFound,
    RowLocked,
    RuntimeUnavailable,
    StorageUnavailable,
    Unavailable,
)
from morpheo.execution import Execution, Tools
from morpheo.failpoints import failpoint
from morpheo.failures import infrastructure_failure
from morpheo.heartbeat import CANCELLED, FENCED, Heartbeat
from morpheo.logs import about_job, adding
from morpheo.models import AttemptOutcome, Job, JobFailed
from morpheo.runtime.contract import Interrupt
from morpheo.runtime.workspace import Workspace
from morpheo.spool import Spool
from morpheo.steps import StepLog
from morpheo.storage.blobs import BlobStore
from morpheo.storage.database import Database, UnitOfWork

logger = logging.getLogger(__name__)

#: For how long the end of a job is tried to be written before it is kept, in seconds, and the pause in between.
WRITE_FOR_S = 5.0
WRITE_AGAIN_S = 0.5
#: For how long a job is tried to be claimed, in seconds: then workers are told of it again, by another message.
CLAIM_FOR_S = 60.0
#: How long a process takes nothing else that has left a job to other machines, in seconds: time for them to take it.
LEAVE_S = 2.0
#: Longest wait before a job is tried again that a service was out for, in seconds: soon after its return, all go on.
LONGEST_DELAY_S = 60.0
#: Services whose absence says nothing about the job that met it.
_SERVICES = (DatabaseUnavailable, DiskFull, RuntimeUnavailable, StorageUnavailable)


@dataclass(frozen=True, kw_only=True)
class RunnerSettings:
    """How a worker holds jobs; times in seconds."""

    #: Id of this machine's data folder.
    node: str
    work_dir: Path
    container_user: int
    lease_s: float
    heartbeat_s: float
    self_fence_s: float
    max_attempts: int
    retry_delay_s: float
    outage_s: float
    #: Whose algos alone this machine runs; empty is those that are not kept apart.
    submitter: str = ""


class JobRunner:
    """
    Runs jobs, one at a time.

    Args:
        database: Keeps the rows.
        blobs: Keeps the logs.
        tools: What executions use.
        spool: Keeps ends that the database cannot take.
        settings: How jobs are held.
    """

    def __init__(
        self, database: Database, blobs: BlobStore, tools: Tools, spool: Spool, settings: RunnerSettings
    ) -> None:
        self._database = database
        self._blobs = blobs
        self._tools = tools
        self._spool = spool
        self._writer = EndWriter(database, tools.artifacts)
        self._settings = settings
        #: Name of this worker process in leases, unique in time and space.
        self.worker = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"

    def run(self, job_id: UUID) -> Job | None:
        """
        Make one attempt at a job, or at that of another user in its queue whose turn it is (`morpheo.storage.turns`).

        Returns:
            The job as it then is, or None: none was this worker's to run, or the database cannot say.

        Raises:
            DatabaseUnavailable: the job could not be claimed, or its end could neither be written nor kept; its lease
                will run out and another attempt will be made.
        """
        with acting_as(f"worker:{self.worker}"):
            return self._run(job_id)

    def _run(self, job_id: UUID) -> Job | None:
        settings = self._settings
        failpoint("before_claim")
        with about_job(job_id):
            job = self._claim(job_id)
        if job is None:
            return None
        with about_job(job.id), adding(attempt=job.attempt):
            logger.info("job claimed")
            failpoint("after_claim")
            interrupt = Interrupt()
            with Heartbeat(
                self._database,
                job,
                interrupt,
                every_s=settings.heartbeat_s,
                lease_s=settings.lease_s,
                self_fence_s=settings.self_fence_s,
            ):
                self._attempt(job, interrupt)
            with suppress(DatabaseUnavailable), self._database.read() as work:
                return work.jobs.get(job.id)
            return None

    def _claim(self, job_id: UUID) -> Job | None:
        # A worker that gave up at once would have used up the message, and could do nothing else without the database.
        give_up = time.monotonic() + CLAIM_FOR_S
        while True:
            try:
                return self._claim_once(job_id)
            except DatabaseUnavailable as exc:
                if isinstance(exc, RowLocked) and self._tell_again(job_id):
                    return None
                if time.monotonic() > give_up:
                    raise
                logger.warning("job not claimed yet: %s", exc)
                time.sleep(WRITE_AGAIN_S)

    def _tell_again(self, job_id: UUID) -> bool:
        # Whoever has the row may stand still, and there may be other jobs; a table that is locked is waited for.
        try:
            with self._database.begin() as work:
                work.jobs.queued.append(work.jobs.get(job_id).spec)
        except (DatabaseUnavailable, NotFound):
            return False
        logger.warning("job not claimed yet: another transaction has kept its row for too long; workers are told again")
        return True

    def _claim_once(self, job_id: UUID) -> Job | None:
        settings, wanted = self._settings, job_id
        try:
            with self._database.begin() as work:
                before = work.turns.before(job_id, node=settings.node)
                told = None if before is None else work.jobs.get(job_id).spec
                wanted = before or job_id
                job = self._take(work, wanted)
                if job is None and wanted != job_id:
                    wanted = job_id
                    job = self._take(work, wanted)
                elif job is not None and told is not None:
                    work.jobs.queued.append(told)  # its message is used for the other one
                is_left = job is None and work.jobs.leave(job_id, settings.node)
        except CorruptRow as exc:
            logger.error("%s; it is ended", exc)  # noqa: TRY400 - where it was found says nothing
            with self._database.begin() as work:
                work.recovery.bury(wanted)
            return None if wanted == job_id else self._claim_once(job_id)
        if is_left:
            logger.info("job left to another machine, since it was not to be done on this one")
            time.sleep(LEAVE_S)
        elif job is None:
            logger.info("job not claimed: another worker has it, or it is over")
        return job

    def _take(self, work: UnitOfWork, job_id: UUID) -> Job | None:
        settings = self._settings
        return work.jobs.claim(
            job_id,
            worker=self.worker,
            lease_s=settings.lease_s,
            max_attempts=settings.max_attempts,
            node=settings.node,
            submitter=settings.submitter,
        )

    def _attempt(self, job: Job, interrupt: Interrupt) -> None:
        try:
            end = self._execute(job, interrupt)
        except BaseException:  # the worker was told to stop
            self._finish(job, self._end(job, AttemptOutcome.RELEASED, message="the worker was told to stop"))
            raise
        if end is not None:
            self._finish(job, end)

    def _execute(self, job: Job, interrupt: Interrupt) -> End | None:
        """Return how an attempt ended; None if its worker has nothing to say about that any more."""
        try:
            with (
                self._workspace(job) as workspace,
                StepLog(self._database, self._blobs, job, log_bytes=self._tools.limits.profile.log_bytes) as steps,
            ):
                result = Execution(job, self._tools, workspace=workspace, steps=steps, interrupt=interrupt).run()
            return self._end(job, AttemptOutcome.SUCCEEDED, artifacts=result.artifacts, scores=result.scores)
        except JobFailed as exc:
            return self._end(job, AttemptOutcome.FAILED, failure=exc.failure)
        except Interrupted:
            logger.warning("attempt stopped: %s", interrupt.reason)
            if interrupt.reason == FENCED:  # it is nobody's fault; somebody else may have the job by then
                self._spool.keep(self._end(job, AttemptOutcome.RELEASED, message=FENCED))
            return self._end(job, AttemptOutcome.CANCELLED) if interrupt.reason == CANCELLED else None
        except Exception as exc:
            logger.warning("attempt failed", exc_info=True)
            return self._retry(job, DiskFull() if _is_disk_full(exc) and not isinstance(exc, DiskFull) else exc)

    def _workspace(self, job: Job) -> Workspace:
        # The ids of an engine with user namespaces begin elsewhere.
        engines, user = self._tools.engines, self._settings.container_user
        return Workspace(
            self._settings.work_dir,
            job_id=job.id,
            attempt=job.attempt,
            owner=user + engines.problem.facts().first_id,
            algo_owner=user + engines.algo.facts().first_id,
        )

    def _end(self, job: Job, outcome: AttemptOutcome, **values: Any) -> End:
        return End(job=job.id, attempt=job.attempt, outcome=outcome, **values)

    def _retry(self, job: Job, error: Exception) -> End:
        strikes = 0 if self._is_outage(job, error) else 1
        if strikes and job.strikes + 1 >= self._settings.max_attempts:
            return self._end(job, AttemptOutcome.FAILED, failure=infrastructure_failure(error, job.attempt))
        delay_s = min(self._settings.retry_delay_s * 2.0 ** min(job.attempt - 1, 16), LONGEST_DELAY_S)
        message = str(error) if isinstance(error, Unavailable) else "an unexpected error; see the worker's log"
        return self._end(job, AttemptOutcome.RETRIED, message=message, delay_s=delay_s, strikes=strikes)

    def _is_outage(self, job: Job, error: Exception) -> bool:
        # Jobs wait for a service to return; only one that has waited for long is struck, so that all end some time.
        if not isinstance(error, _SERVICES) or isinstance(error, EngineFull):  # which the build may have filled
            return False
        try:
            with self._database.read() as work:
                return work.recovery.waited_s(job.id) < self._settings.outage_s
        except DatabaseUnavailable:
            return True

    def _finish(self, job: Job, end: End) -> None:
        """Write an end; one that cannot be written now is kept, rather than to throw a result away."""
        try:
            self._write(end)
            failpoint("after_commit")
        except DatabaseUnavailable:
            if not self._spool.keep(end):
                raise
            logger.warning("the database does not answer: the end of the attempt is kept, and written when it does")
        except Exception as exc:
            if end.outcome is not AttemptOutcome.SUCCEEDED:
                raise
            logger.exception("result refused")
            self._writer.discard(end)
            self._finish(job, self._retry(job, exc))
        except BaseException:  # the worker was told to stop in this very moment
            self._spool.keep(end)
            raise

    def _write(self, end: End) -> None:
        give_up = time.monotonic() + WRITE_FOR_S
        while True:
            try:
                self._writer.write(end)
            except DatabaseUnavailable:
                if time.monotonic() > give_up:
                    raise
                time.sleep(WRITE_AGAIN_S)
            else:
                return


def _is_disk_full(error: BaseException) -> bool:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        cause = cause.__cause__ or cause.__context__
    return False
