"""
Repairs what messages, workers and machines lose. Every worker sweeps; sweeping twice, or at once, changes nothing.

In the database: jobs whose message was lost are published again; jobs whose worker went silent go back to the queue,
or end. On this node: containers and workspaces that belong to no running attempt are removed. In the blob store:
blobs that no row names.
"""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path

from morpheo.artifacts import ArtifactService
from morpheo.errors import NotFound, RuntimeUnavailable, Unavailable
from morpheo.failures import worker_lost
from morpheo.jobs import Publisher
from morpheo.models import AttemptOutcome, Job, JobKind, JobState
from morpheo.queues import queue_name
from morpheo.runtime.contract import ContainerRuntime, Engines, Owner
from morpheo.runtime.workspace import owner_of, remove_tree
from morpheo.storage.database import Database, UnitOfWork

logger = logging.getLogger(__name__)

#: How many rows one sweep handles.
BATCH = 100
#: A queued job whose message was given to the broker so long ago is published again, in seconds.
REPUBLISH_S = 60
#: The same while other messages wait in its queue, in seconds.
REPUBLISH_BUSY_S = 600
#: How often the blob store is searched for blobs without a row, in seconds.
BLOBS_EVERY_S = 3600


class Sweeper:
    """
    Sweeps, once or again and again.

    Args:
        database: Keeps the jobs.
        publisher: Gives messages to the broker.
        artifacts: Finds blobs without a row.
        engines: Where this node's containers are.
        work_dir: This node's workspaces.
        max_attempts: Attempts that lost workers may cost a job.
    """

    def __init__(
        self,
        database: Database,
        publisher: Publisher,
        artifacts: ArtifactService,
        engines: Engines,
        *,
        work_dir: Path,
        max_attempts: int,
    ) -> None:
        self._database = database
        self._publisher = publisher
        self._artifacts = artifacts
        self._engines = engines
        self._work_dir = work_dir
        self._max_attempts = max_attempts
        self._blobs_swept_at = time.monotonic()

    def run(self, stop: threading.Event, *, every_s: float) -> None:
        """Sweep now and then every `every_s` seconds, until told to stop; an error only costs one turn."""
        while True:
            self.sweep()
            if stop.wait(every_s):
                return

    def sweep(self) -> None:
        """Do all of it once; a part that fails is logged and leaves the others to run."""
        for part in (self.recover_lost, self.publish_waiting, self.clean_node, self._sweep_blobs):
            try:
                part()
            except Unavailable as exc:
                logger.warning("%s put off: %s", part.__name__, exc)
            except Exception:
                logger.exception("%s failed", part.__name__)

    def recover_lost(self) -> int:
        """Give jobs whose lease has run out back to the queue, or end them; return how many there were."""
        count = 0
        while count < BATCH and self._recover_one():
            count += 1
        return count

    def _recover_one(self) -> bool:
        # One in a transaction: its end may plan, and who plans for two problems in any order waits for himself.
        with self._database.begin() as work:
            job = work.jobs.expired()
            if job is not None:
                self._recover(work, job)
        return job is not None

    def _recover(self, work: UnitOfWork, job: Job) -> None:
        strikes = job.strikes + 1
        if job.cancel_requested:
            work.jobs.cancelled(job.id, job.attempt)
        elif strikes >= self._max_attempts:
            work.jobs.fail(job.id, job.attempt, worker_lost(strikes))
        else:
            message = f"worker {job.worker} stopped renewing the lease"
            work.jobs.requeue(job.id, job.attempt, outcome=AttemptOutcome.LOST, message=message, delay_s=0, strikes=1)
        logger.warning("lease ran out", extra={"job": str(job.id), "attempt": job.attempt, "strikes": strikes})

    def publish_waiting(self) -> int:
        """Publish queued jobs that are due and that no message tells of; return how many."""
        with self._database.read() as work:
            queues = work.messages.queues_with_unpublished(older_than_s=REPUBLISH_S)
        return sum(self._publish_queue(kind, tags, queued) for (kind, tags), queued in queues.items())

    def _publish_queue(self, kind: JobKind, tags: tuple[str, ...], queued: int) -> int:
        # While messages wait in the queue, an old one is most likely not lost but has not had its turn; none is if
        # as many wait as jobs, which is how it stays while no worker takes from that queue.
        waiting = self._publisher.backlog(queue_name(kind, tags))
        older_than_s = None if waiting >= queued else REPUBLISH_BUSY_S if waiting else REPUBLISH_S
        with self._database.read() as work:
            specs = work.messages.unpublished(kind, tags, older_than_s=older_than_s, limit=BATCH)
        for spec in specs:  # in no transaction: a broker that hangs must not hold a lock
            self._publisher.publish(spec)
            with self._database.begin() as work:
                work.messages.mark_published([spec.id])
        return len(specs)

    def clean_node(self) -> int:
        """Remove containers and workspaces of attempts that are over; return how many attempts there were."""
        folders = {path: owner for path in _children(self._work_dir) if (owner := owner_of(path)) is not None}
        over = {owner for owner in folders.values() if not self._is_live(owner)}
        failure: RuntimeUnavailable | None = None
        for engine in self._engines:
            try:
                over |= self._clean_engine(engine, over)
            except RuntimeUnavailable as exc:
                failure = exc  # the other engine is cleaned all the same
        if failure is not None:
            raise failure
        for path, owner in folders.items():
            if owner in over:
                remove_tree(path)
        return len(over)

    def _clean_engine(self, engine: ContainerRuntime, over: set[Owner]) -> set[Owner]:
        found = {owner for owner in engine.owners() if not self._is_live(owner)}
        for owner in over | found:
            engine.remove(owner)
        return found

    def _is_live(self, owner: Owner) -> bool:
        try:
            with self._database.read() as work:
                job = work.jobs.get(owner.job_id)
        except NotFound:
            return False
        return job.state is JobState.RUNNING and job.attempt == owner.attempt

    def _sweep_blobs(self) -> None:
        if time.monotonic() - self._blobs_swept_at >= BLOBS_EVERY_S:
            self._blobs_swept_at = time.monotonic()
            self._artifacts.sweep()


def _children(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []
