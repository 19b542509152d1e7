"""Renews the lease of a running job, and learns that it was cancelled or lost."""

from __future__ import annotations

import logging
import threading
from types import TracebackType
from typing import Self

from morpheo.errors import MorpheoError
from morpheo.models import Job
from morpheo.runtime.contract import Interrupt
from morpheo.storage.database import Database

logger = logging.getLogger(__name__)

#: Why an attempt is interrupted.
CANCELLED = "cancelled"
LOST = "lease lost"


class Heartbeat:
    """
    Renews a lease from a thread of its own, as long as the ``with`` block lasts.

    A database that does not answer is no reason to stop: the attempt number protects what is written, and an expired
    lease that nobody took can be renewed.

    Args:
        database: Where the lease is.
        job: The job, with the number of the attempt.
        interrupt: Set when the job was cancelled or the lease is lost.
        every_s: How often.
        lease_s: For how long.
    """

    def __init__(self, database: Database, job: Job, interrupt: Interrupt, *, every_s: float, lease_s: float) -> None:
        self._database = database
        self._job = job
        self._interrupt = interrupt
        self._every_s = every_s
        self._lease_s = lease_s
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name=f"heartbeat-{job.id}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _beat(self) -> None:
        while not self._ended.wait(self._every_s):
            try:
                with self._database.begin() as work:
                    cancel = work.jobs.renew(self._job.id, self._job.attempt, lease_s=self._lease_s)
            except MorpheoError:
                logger.warning("lease not renewed", exc_info=True)
                continue
            if cancel is None:
                self._interrupt.set(LOST)
                return
            if cancel:
                self._interrupt.set(CANCELLED)
