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
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

from morpheo.errors import (
    Conflict,
    DatabaseUnavailable,
    DiskFull,
    Interrupted,
    RuntimeUnavailable,
    StorageUnavailable,
    Unavailable,
)
from morpheo.execution import Execution, Result, Tools
from morpheo.failures import failed, infrastructure_failure
from morpheo.heartbeat import CANCELLED, Heartbeat
from morpheo.logs import about_job, adding
from morpheo.models import AttemptOutcome, Blame, Cause, Failure, Job, JobFailed, JobState
from morpheo.runtime.contract import Interrupt
from morpheo.runtime.workspace import Workspace
from morpheo.steps import StepLog
from morpheo.storage.blobs import BlobStore
from morpheo.storage.database import Database, UnitOfWork

logger = logging.getLogger(__name__)

#: Pause before the end of a job is written again, in seconds.
WRITE_AGAIN_S = 0.5
#: Longest wait before a job is tried again that a service was out for, in seconds: soon after its return, all go on.
LONGEST_DELAY_S = 60.0
#: Services whose absence says nothing about the job that met it.
_SERVICES = (DatabaseUnavailable, RuntimeUnavailable, StorageUnavailable)


@dataclass(frozen=True, kw_only=True)
class RunnerSettings:
    """How a worker holds jobs; times in seconds."""

    work_dir: Path
    container_user: int
    lease_s: float
    heartbeat_s: float
    max_attempts: int
    retry_delay_s: float
    outage_s: float


class JobRunner:
    """
    Runs jobs, one at a time.

    Args:
        database: Keeps the rows.
        blobs: Keeps the logs.
        tools: What executions use.
        settings: How jobs are held.
    """

    def __init__(self, database: Database, blobs: BlobStore, tools: Tools, settings: RunnerSettings) -> None:
        self._database = database
        self._blobs = blobs
        self._tools = tools
        self._settings = settings
        #: Name of this worker process in leases, unique in time and space.
        self.worker = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"

    def run(self, job_id: UUID) -> Job | None:
        """
        Make one attempt at a job.

        Returns:
            The job as it then is, or None if it was not this worker's to run.

        Raises:
            DatabaseUnavailable: the job could not be claimed, or its end could not be written; its lease will run out
                and another attempt will be made.
        """
        with about_job(job_id):
            return self._run(job_id)

    def _run(self, job_id: UUID) -> Job | None:
        settings = self._settings
        with self._database.begin() as work:
            job = work.jobs.claim(
                job_id, worker=self.worker, lease_s=settings.lease_s, max_attempts=settings.max_attempts
            )
        if job is None:
            logger.info("job not claimed: another worker has it, or it is over")
            return None
        with adding(attempt=job.attempt):
            logger.info("job claimed")
            interrupt = Interrupt()
            with Heartbeat(self._database, job, interrupt, every_s=settings.heartbeat_s, lease_s=settings.lease_s):
                self._attempt(job, interrupt)
            with self._database.read() as work:
                return work.jobs.get(job.id)

    def _attempt(self, job: Job, interrupt: Interrupt) -> None:
        try:
            self._succeed(job, self._execute(job, interrupt))
        except JobFailed as exc:
            self._fail(job, exc.failure)
        except Interrupted:
            if interrupt.reason == CANCELLED:
                self._write(job, lambda work: work.jobs.cancelled(job.id, job.attempt))
        except Exception as exc:
            logger.warning("attempt failed", exc_info=True)
            self._retry(job, DiskFull() if _is_disk_full(exc) else exc)
        except BaseException:  # the worker was told to stop
            self._release(job)
            raise

    def _execute(self, job: Job, interrupt: Interrupt) -> Result:
        settings = self._settings
        with Workspace(
            settings.work_dir, job_id=job.id, attempt=job.attempt, owner=settings.container_user
        ) as workspace:
            steps = StepLog(self._database, self._blobs, job)
            return Execution(job, self._tools, workspace=workspace, steps=steps, interrupt=interrupt).run()

    def _succeed(self, job: Job, result: Result) -> None:
        def write(work: UnitOfWork) -> bool:
            if not work.jobs.succeed(job.id, job.attempt, result.scores, result=result.artifacts[0].id):
                raise Interrupted  # fenced: nothing of the result may become visible
            for artifact in result.artifacts:
                work.artifacts.add(artifact)
            return True

        with self._tools.artifacts.discarded_on_error(*result.artifacts):
            try:
                self._write(job, write)
            except Conflict:
                message = f"model or prediction {result.artifacts[0].id} exists already; order the job with a new id"
                raise failed(Cause.ARTIFACT_EXISTS, Blame.CUSTODIAN, message) from None
        logger.info("job succeeded")

    def _fail(self, job: Job, failure: Failure) -> None:
        self._write(job, lambda work: work.jobs.fail(job.id, job.attempt, failure))
        logger.info("job failed", extra={"cause": failure.cause, "blame": failure.blame, "step": failure.step})

    def _retry(self, job: Job, error: Exception) -> None:
        strikes = 0 if self._is_outage(job, error) else 1
        if strikes and job.strikes + 1 >= self._settings.max_attempts:
            self._fail(job, infrastructure_failure(error, job.attempt))
            return
        delay_s = min(self._settings.retry_delay_s * 2.0 ** min(job.attempt - 1, 16), LONGEST_DELAY_S)
        message = str(error) if isinstance(error, Unavailable) else "an unexpected error; see the worker's log"
        self._requeue(job, AttemptOutcome.RETRIED, message, delay_s=delay_s, strikes=strikes)

    def _is_outage(self, job: Job, error: Exception) -> bool:
        # Jobs wait for a service to return; only one that has waited for long is struck, so that all end some time.
        patience = timedelta(seconds=self._settings.outage_s)
        return isinstance(error, _SERVICES) and datetime.now(UTC) - (job.started_at or job.created_at) < patience

    def _release(self, job: Job) -> None:
        self._requeue(job, AttemptOutcome.RELEASED, "the worker was told to stop", delay_s=0, strikes=0)

    def _requeue(self, job: Job, outcome: AttemptOutcome, message: str, *, delay_s: float, strikes: int) -> None:
        self._write(
            job,
            lambda work: work.jobs.requeue(
                job.id, job.attempt, outcome=outcome, message=message, delay_s=delay_s, strikes=strikes
            ),
        )

    def _write(self, job: Job, write: Callable[[UnitOfWork], bool]) -> None:
        # Tried again as long as a lease lasts, rather than to throw a result away. A commit whose answer was lost is
        # not repeated but read back.
        give_up = time.monotonic() + self._settings.lease_s
        while True:
            try:
                with self._database.begin() as work:
                    done = write(work)
                break
            except DatabaseUnavailable:
                if self._has_ended(job):
                    return
                if time.monotonic() > give_up:
                    raise
                time.sleep(WRITE_AGAIN_S)
        if not done:
            logger.warning("attempt fenced: another one has the job")

    def _has_ended(self, job: Job) -> bool:
        try:
            with self._database.read() as work:
                now = work.jobs.get(job.id)
        except DatabaseUnavailable:
            return False
        return now.attempt == job.attempt and now.state is not JobState.RUNNING


def _is_disk_full(error: BaseException) -> bool:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        cause = cause.__cause__ or cause.__context__
    return False
