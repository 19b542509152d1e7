"""
Renews the lease of a running job, learns that it was cancelled or lost, and gives up when nothing is heard for long.

One thread speaks with the database, over a connection that nothing else uses. Another one only looks at the clock: the
first may hang with the server.
"""

from __future__ import annotations

import logging
import threading
import time
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
FENCED = "no contact with the database"

#: How often a heartbeat looks for a cancel between two renewals, in seconds: such a look writes nothing.
LOOK_S = 2.0
#: How long the end of a job waits for a heartbeat that is under way, in seconds. It may hang; late, it changes nothing.
JOIN_S = 2.0


class Heartbeat:
    """
    Renews a lease from a thread of its own, as long as the ``with`` block lasts.

    A database that does not answer for a while is no reason to stop: the attempt number protects what is written, and
    an expired lease that nobody took can be renewed. One that does not answer for `self_fence_s` is: whoever took the
    job over has long begun.

    Args:
        database: Where the lease is.
        job: The job, with the number of the attempt.
        interrupt: Set when the job was cancelled, the lease is lost, or there was no contact for too long.
        every_s: How often the lease is renewed.
        lease_s: For how long.
        self_fence_s: How long the attempt goes on without any contact, by the monotonic clock.
    """

    def __init__(
        self,
        database: Database,
        job: Job,
        interrupt: Interrupt,
        *,
        every_s: float,
        lease_s: float,
        self_fence_s: float,
    ) -> None:
        self._database = database.reserved
        self._job = job
        self._interrupt = interrupt
        self._every_s = every_s
        self._lease_s = lease_s
        self._self_fence_s = self_fence_s
        self._contact = time.monotonic()
        self._ended = threading.Event()
        self._threads = [
            threading.Thread(target=target, name=f"{name}-{job.id}", daemon=True)
            for name, target in (("heartbeat", self._beat), ("fence", self._watch))
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(JOIN_S)

    def _beat(self) -> None:
        renewed, wait_s = self._contact, 0.0  # at once: later, the database may have no connection left to open
        while not self._ended.wait(wait_s):
            wait_s = min(self._every_s, LOOK_S)
            now = time.monotonic()
            is_due = now - renewed >= self._every_s
            try:
                cancel = self._renew() if is_due else self._look()
            except MorpheoError:
                logger.warning("lease not renewed", exc_info=True)
                continue
            self._contact = now  # as of before the call: what it did may be as old
            renewed = now if is_due else renewed
            if cancel is None:
                self._interrupt.set(LOST)
                return
            if cancel:
                self._interrupt.set(CANCELLED)

    def _renew(self) -> bool | None:
        with self._database.begin() as work:
            return work.jobs.renew(self._job.id, self._job.attempt, lease_s=self._lease_s)

    def _look(self) -> bool | None:
        with self._database.read() as work:
            return work.jobs.cancel_requested(self._job.id, self._job.attempt)

    def _watch(self) -> None:
        left_s = self._self_fence_s
        while not self._ended.wait(left_s):
            left_s = self._contact + self._self_fence_s - time.monotonic()
            if left_s <= 0:
                logger.warning("attempt given up: no contact with the database for %g s", self._self_fence_s)
                self._interrupt.set(FENCED)
                return
