"""Records the steps of one attempt as they happen: a row for each, and its log in the blob store."""

from __future__ import annotations

import contextlib
import io
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from morpheo.errors import Unavailable
from morpheo.logs import adding
from morpheo.models import Job, StepName, StepRecord
from morpheo.runtime.contract import StepResult
from morpheo.storage.blobs import BlobStore
from morpheo.storage.database import Database

logger = logging.getLogger(__name__)


@dataclass
class OpenStep:
    """A step that is under way; what is known of it so far."""

    log: bytes = b""
    result: StepResult | None = None


class StepLog:
    """
    Writes the steps of one attempt.

    Args:
        database: Keeps the rows.
        blobs: Keeps the logs, under ``logs/<job>/<attempt>/<step>``.
        job: The job, with the number of the attempt.
    """

    def __init__(self, database: Database, blobs: BlobStore, job: Job) -> None:
        self._database = database
        self._blobs = blobs
        self._job = job
        self._count = 0

    @contextlib.contextmanager
    def recording(self, name: StepName) -> Iterator[OpenStep]:
        """Record a step that lasts as long as the block, however that ends."""
        with adding(step=name), self._recorded(name) as step:
            yield step

    @contextlib.contextmanager
    def _recorded(self, name: StepName) -> Iterator[OpenStep]:
        with self._database.begin() as work:
            work.steps.begin(self._job.id, self._job.attempt, name, position=self._count)
        self._count += 1
        began = time.monotonic()
        step = OpenStep()
        try:
            yield step
        finally:
            self._end(name, step, time.monotonic() - began)

    def _end(self, name: StepName, step: OpenStep, seconds: float) -> None:
        result = step.result
        record = StepRecord(
            name=name,
            started_at=datetime.now(UTC),  # the row has the database's time
            seconds=seconds,
            exit_code=result.exit_code if result else None,
            oom_killed=bool(result and result.oom_killed),
            peak_memory_bytes=result.peak_memory_bytes if result else None,
            log_key=self._keep_log(name, step.log or (result.log if result else b"")),
        )
        try:
            with self._database.begin() as work:
                work.steps.end(self._job.id, self._job.attempt, record)
        except Unavailable:
            # A step's row is for people to read; the job's own end must not depend on it.
            logger.warning("step not recorded", exc_info=True)

    def _keep_log(self, name: StepName, log: bytes) -> str | None:
        if not log:
            return None
        key = f"logs/{self._job.id}/{self._job.attempt}/{name}"
        try:
            self._blobs.put(key, io.BytesIO(log), length=len(log))
        except Unavailable:
            logger.warning("log not kept", exc_info=True)
            return None
        return key
