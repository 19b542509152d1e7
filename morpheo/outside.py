"""
Workers that are not ours: they take planned jobs and report how these ended, as the workers of 2017 do over HTTP.

They renew no lease and know no attempts. So they hold a job for as long as the longest one may take, and a report
counts only while the job is theirs.
"""

from __future__ import annotations

from uuid import UUID

from morpheo.challenges import OUTSIDE
from morpheo.errors import InvalidInput
from morpheo.models import ArtifactKind, Blame, Cause, Failure, Job, JobKind, JobState, LearnSpec, Scores
from morpheo.orchestrator import check_stored
from morpheo.storage.database import Database, UnitOfWork

_FAILED_OUTSIDE = Failure(
    cause=Cause.INTERNAL_ERROR,
    blame=Blame.INFRASTRUCTURE,
    message="the worker that had it reported that it failed, without a cause; look at that worker's log",
)


class OutsideWorkers:
    """
    Gives planned jobs to workers that are not ours, and records what they report.

    Args:
        database: Keeps the rows.
        lease_s: How long one of them may hold a job, in seconds, before others may have it.
    """

    def __init__(self, database: Database, *, lease_s: float) -> None:
        self._database = database
        self._lease_s = lease_s

    def start(self, kind: JobKind, job_id: UUID, worker: str) -> bool:
        """Give a queued job to a worker that is not ours; return whether it has it now."""
        with self._database.begin() as work:
            if not work.chains.jobs(kind, job=job_id):
                return False
            # It takes over nobody's lease: what ran out goes back to the queue first.
            return self._claim(work, job_id, worker)

    def end_learn(self, job_id: UUID, scores: Scores | None) -> bool:
        """
        Record what a worker that is not ours reports of a training job; return whether that changed anything.

        Args:
            job_id: The job.
            scores: None if it failed.

        Raises:
            InvalidInput: the model is not in storage, or there is a score of data that is not in the job.
        """
        with self._database.begin() as work:
            job = self._held(work, JobKind.LEARN, job_id)
            if job is None or not isinstance(job.spec, LearnSpec):
                return False
            if scores is None:
                return work.jobs.fail(job.id, job.attempt, _FAILED_OUTSIDE)
            _check_scores(job.spec, scores)
            check_stored(work, "model_end", ArtifactKind.MODEL, [job.spec.model_end])
            return work.jobs.succeed(job.id, job.attempt, scores, result=job.spec.model_end)

    def end_predict(self, job_id: UUID, prediction: UUID | None) -> bool:
        """
        Record what a worker that is not ours reports of a prediction; return whether that changed anything.

        Args:
            job_id: The job.
            prediction: Storage id of the prediction; None if it failed.

        Raises:
            InvalidInput: the prediction is not in storage.
        """
        with self._database.begin() as work:
            job = self._held(work, JobKind.PREDICT, job_id)
            if job is None:
                return False
            if prediction is None:
                return work.jobs.fail(job.id, job.attempt, _FAILED_OUTSIDE)
            check_stored(work, "prediction_storage_uuid", ArtifactKind.PREDICTION, [prediction])
            return work.jobs.succeed(job.id, job.attempt, None, result=prediction)

    def _held(self, work: UnitOfWork, kind: JobKind, job_id: UUID) -> Job | None:
        """Return a job that a worker that is not ours holds, or that nobody holds yet and is given to one now."""
        found = work.chains.jobs(kind, job=job_id, states=(JobState.QUEUED, JobState.RUNNING))
        if not found:
            return None
        if found[0].state is JobState.QUEUED and not self._claim(work, job_id, "unnamed"):
            return None
        job = work.jobs.get(job_id)
        return job if (job.worker or "").startswith(OUTSIDE) else None

    def _claim(self, work: UnitOfWork, job_id: UUID, worker: str) -> bool:
        lease_s = self._lease_s
        return work.jobs.claim(job_id, worker=OUTSIDE + worker, lease_s=lease_s, max_attempts=0) is not None


def _check_scores(spec: LearnSpec, scores: Scores) -> None:
    for field, given, data in (
        ("train_perf", scores.train_perf, spec.train_data),
        ("test_perf", scores.test_perf, spec.test_data),
    ):
        if foreign := given.keys() - {str(item) for item in data}:
            raise InvalidInput(f"{field}: {min(foreign)} is not in the job's {field[:-5]}_data", field=field)
