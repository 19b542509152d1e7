"""
Repairs what messages, workers and machines lose. Every worker sweeps; sweeping twice, or at once, changes nothing.

In the database: jobs whose message was lost are published again; jobs whose worker went silent go back to the queue,
or end. On this node: containers and workspaces that belong to no running attempt are removed, and containers that have
outlived their deadline are killed. In the blob store: blobs that no row names.
"""

from __future__ import annotations

import logging
import random
import socket
import threading
from collections.abc import Callable
from pathlib import Path

from morpheo.actors import acting_as
from morpheo.artifacts import ArtifactService
from morpheo.errors import CorruptRow, NotFound, RuntimeUnavailable, Unavailable
from morpheo.failpoints import failpoint
from morpheo.failures import LEASE_LOST, worker_lost
from morpheo.jobs import Publisher
from morpheo.models import AttemptOutcome, Job, JobKind, JobState
from morpheo.queues import queue_name
from morpheo.runtime.cache import NodeCache
from morpheo.runtime.contract import ContainerRuntime, Engines, Owner
from morpheo.runtime.workspace import owner_of, remove_tree
from morpheo.storage.database import Database, UnitOfWork
from morpheo.transcripts import Transcripts

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
        transcripts: Finds logs without a row.
        engines: Where this node's containers are.
        cache: What this node keeps.
        work_dir: This node's workspaces.
        max_attempts: Attempts that lost workers may cost a job.
        lease_s: How long a worker holds a job without renewing its lease, in seconds.
    """

    def __init__(
        self,
        database: Database,
        publisher: Publisher,
        artifacts: ArtifactService,
        transcripts: Transcripts,
        engines: Engines,
        cache: NodeCache,
        *,
        work_dir: Path,
        max_attempts: int,
        lease_s: float,
    ) -> None:
        self._database = database
        self._publisher = publisher
        self._artifacts = artifacts
        self._transcripts = transcripts
        self._engines = engines
        self._cache = cache
        self._work_dir = work_dir
        self._max_attempts = max_attempts
        self._lease_s = lease_s

    def start(self, stop: threading.Event, *, every_s: float) -> list[threading.Thread]:
        """
        Sweep again and again until told to stop; an error only costs one turn.

        In threads of their own, which are returned: lost jobs wait neither for an engine that hangs nor until all blobs
        were looked at.
        """
        # Processes that were started together shall not list all blobs at the same moment.
        later_s = random.uniform(BLOBS_EVERY_S / 2, BLOBS_EVERY_S)  # noqa: S311 - no secret
        parts = (
            (self.sweep_jobs, 0.0, every_s),
            (self.sweep_node, 0.0, every_s),
            (self.sweep_blobs, later_s, BLOBS_EVERY_S),
        )
        threads = [
            threading.Thread(target=_repeat, args=(stop, *part), name=part[0].__name__, daemon=True) for part in parts
        ]
        for thread in threads:
            thread.start()
        return threads

    def reconcile(self) -> None:
        """Put this node in order, before it takes work: what a worker left that was killed goes."""
        self._do(self.clean_node)

    def sweep_jobs(self) -> None:
        """Recover and publish jobs once; a part that fails is logged and leaves the other to run."""
        self._do(self.recover_lost, self.publish_waiting)

    def sweep_node(self) -> None:
        """Clean this machine once."""
        self._do(self.clean_node, self._kill_overdue)

    def sweep_blobs(self) -> None:
        """Remove blobs that no row names, of artifacts and of logs."""
        self._do(self._artifacts.sweep, self._transcripts.sweep)

    def _do(self, *parts: Callable[[], object]) -> None:
        for part in parts:
            try:
                with acting_as(f"sweeper:{socket.gethostname()}"):
                    part()
            except Unavailable as exc:
                logger.warning("%s put off: %s", part.__qualname__, exc)
            except Exception:
                logger.exception("%s failed", part.__qualname__)

    def recover_lost(self) -> int:
        """Give jobs whose lease has run out back to the queue, or end them; return how many there were."""
        count = 0
        while count < BATCH and self._recover_one():
            count += 1
        return count

    def _recover_one(self) -> bool:
        # One in a transaction: its end may plan, and who plans for two problems in any order waits for himself.
        with self._database.begin() as work:
            job_id = work.recovery.expired(lease_s=self._lease_s)
            if job_id is not None:
                try:
                    self._recover(work, work.jobs.get(job_id, whole=True))
                except CorruptRow as exc:
                    logger.error("%s; it is ended", exc)  # noqa: TRY400 - where it was found says nothing
                    work.recovery.bury(job_id)
                failpoint("in_recovery")
        return job_id is not None

    def _recover(self, work: UnitOfWork, job: Job) -> None:
        strikes = job.strikes + 1
        if job.cancel_requested:
            work.jobs.cancelled(job.id, job.attempt)
        elif strikes >= self._max_attempts:
            work.jobs.fail(job.id, job.attempt, worker_lost(job.attempts))
        else:
            lost = AttemptOutcome.LOST
            work.jobs.requeue(job.id, job.attempt, outcome=lost, message=LEASE_LOST, delay_s=0, strikes=1)
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
        for job_id in work.messages.damaged:
            logger.error("the order of job %s cannot be read; it is ended", job_id)
            with self._database.begin() as work:
                work.recovery.bury(job_id)
        for spec in specs:  # in no transaction: a broker that hangs must not hold a lock
            self._publisher.publish(spec)
            with self._database.begin() as work:
                work.messages.mark_published([spec.id])
        return len(specs)

    def clean_node(self) -> int:
        """Remove what attempts that are over left on this node; return how many attempts with containers or folders."""
        self._cache.drop_abandoned()
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

    def _kill_overdue(self) -> None:
        for engine in self._engines:
            engine.kill_overdue()


def _repeat(stop: threading.Event, part: Callable[[], None], first_s: float, every_s: float) -> None:
    pause_s = first_s
    while not stop.wait(pause_s):
        part()
        pause_s = every_s


def _children(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []
