"""
How an attempt ends: a value, and the one place that writes it.

An end can be kept and written later (`morpheo.spool`), so all that it needs is in it. The number of the attempt guards
it: an attempt that holds its job no longer changes nothing, and the blobs that it stored are removed.
"""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass
from uuid import UUID

from morpheo.artifacts import ArtifactService
from morpheo.errors import Conflict, DatabaseUnavailable, NotFound
from morpheo.failpoints import failpoint
from morpheo.models import Artifact, AttemptOutcome, Blame, Cause, Failure, Scores
from morpheo.storage.database import Database, UnitOfWork

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class End:
    """How one attempt ended."""

    job: UUID
    attempt: int
    #: SUCCEEDED, FAILED and CANCELLED end the job; RETRIED and RELEASED give it back to the queue.
    outcome: AttemptOutcome
    #: Of one that succeeded: blobs that are stored and whose rows are yet to be written, the job's result first.
    artifacts: tuple[Artifact, ...] = ()
    scores: Scores | None = None
    #: Of one that failed.
    failure: Failure | None = None
    #: Of one that goes back to the queue: why, when it is due again (seconds from the commit), and what it costs.
    message: str = ""
    delay_s: float = 0.0
    strikes: int = 0


class EndWriter:
    """
    Writes ends.

    Args:
        database: Keeps the rows.
        artifacts: Removes blobs that no row will name.
    """

    def __init__(self, database: Database, artifacts: ArtifactService) -> None:
        self._database = database
        self._artifacts = artifacts

    def write(self, end: End) -> bool:
        """
        Write an end in one transaction, if its attempt still holds the job.

        Returns:
            Whether the job's rows say so now. If not, nothing was written, and blobs of the attempt are removed.

        Raises:
            DatabaseUnavailable: it is not known whether it was written; it can be written again.
        """
        try:
            with self._database.begin() as work:
                written = _apply(work, end)
        except Conflict:
            self.discard(end)
            return self.write(_without_room(end))
        except DatabaseUnavailable:
            written = self._is_written(end)
            if not written:
                raise
            # Only the answer of the commit was lost.
        if not written and not self._is_written(end):
            logger.warning("attempt fenced: it holds the job no longer")
            self.discard(end)
            return False
        about = end.failure
        extra = {} if about is None else {"cause": about.cause, "blame": about.blame, "step": about.step}
        logger.info("job %s", end.outcome, extra=extra)
        return True

    def discard(self, end: End) -> None:
        """Remove the blobs of an end that no row names."""
        self._artifacts.discard_unnamed(end.artifacts)

    def _is_written(self, end: End) -> bool:
        try:
            with self._database.read() as work:
                attempts = work.jobs.get(end.job).attempts
        except (DatabaseUnavailable, NotFound):
            return False
        return any((attempt.number, attempt.outcome) == (end.attempt, end.outcome) for attempt in attempts)


def _apply(work: UnitOfWork, end: End) -> bool:
    if end.outcome is AttemptOutcome.SUCCEEDED:
        artifacts = work.chains.with_free_id(end.job, end.attempt, end.artifacts)
        if not work.jobs.succeed(end.job, end.attempt, end.scores, result=artifacts[0].id):
            return False  # nothing of the result may become visible
        owner = work.jobs.owner(end.job)
        for artifact in artifacts:
            work.artifacts.add(dataclasses.replace(artifact, owner=owner))
        failpoint("in_commit")
        return True
    if end.failure is not None:
        return work.jobs.fail(end.job, end.attempt, end.failure)
    if end.outcome is AttemptOutcome.CANCELLED:
        return work.jobs.cancelled(end.job, end.attempt)
    return work.jobs.requeue(
        end.job,
        end.attempt,
        outcome=end.outcome,
        message=end.message,
        delay_s=end.delay_s,
        strikes=end.strikes,
    )


def _without_room(end: End) -> End:
    """Return how a job ends whose result has an id that is taken."""
    failure = Failure(
        cause=Cause.ARTIFACT_EXISTS,
        blame=Blame.CUSTODIAN,
        message=f"model or prediction {end.artifacts[0].id} exists already; order the job with a new id",
    )
    return dataclasses.replace(end, outcome=AttemptOutcome.FAILED, artifacts=(), scores=None, failure=failure)
