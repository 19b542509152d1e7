"""
Workers that are not ours: they take planned jobs and report how these ended, as the workers of 2017 do over HTTP.

They renew no lease and know no attempts. So they hold a job for as long as the longest one may take, and a report
counts only while the job is theirs.
"""

from __future__ import annotations

from uuid import UUID

from morpheo.access import SYSTEM, Principal
from morpheo.actors import act_as
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

    def start(self, kind: JobKind, job_id: UUID, worker: str, *, by: Principal = SYSTEM) -> bool:
        """Give a queued job to a worker that is not ours, as a user of its own; return whether it has it now."""
        with self._database.begin() as work:
            if not work.chains.jobs(kind, job=job_id):
                return False
            # It takes over nobody's lease: what ran out goes back to the queue first.
            return self._claim(work, job_id, worker, by)

    def end_learn(self, job_id: UUID, scores: Scores | None, *, by: Principal = SYSTEM) -> bool:
        """
        Record what a worker that is not ours reports of a training job; return whether that changed anything.

        Args:
            job_id: The job.
            scores: None if it failed.
            by: Who reports; only who holds the job, or an admin, changes anything.

        Raises:
            InvalidInput: the model is not in storage, or there is a score of data that is not in the job.
        """
        with self._database.begin() as work:
            job = self._held(work, JobKind.LEARN, job_id, by)
            if job is None or not isinstance(job.spec, LearnSpec):
                return False
            if scores is None:
                return work.jobs.fail(job.id, job.attempt, _FAILED_OUTSIDE)
            _check_scores(job.spec, scores)
            check_stored(work, "model_end", ArtifactKind.MODEL, [job.spec.model_end])
            _hand_over(work, ArtifactKind.MODEL, job.spec.model_end, job, field="model_end", by=by)
            return work.jobs.succeed(job.id, job.attempt, scores, result=job.spec.model_end)

    def end_predict(self, job_id: UUID, prediction: UUID | None, *, by: Principal = SYSTEM) -> bool:
        """
        Record what a worker that is not ours reports of a prediction; return whether that changed anything.

        Args:
            job_id: The job.
            prediction: Storage id of the prediction; None if it failed.
            by: Who reports; only who holds the job, or an admin, changes anything.

        Raises:
            InvalidInput: the prediction is not in storage, or is another job's.
        """
        with self._database.begin() as work:
            job = self._held(work, JobKind.PREDICT, job_id, by)
            if job is None:
                return False
            if prediction is None:
                return work.jobs.fail(job.id, job.attempt, _FAILED_OUTSIDE)
            check_stored(work, "prediction_storage_uuid", ArtifactKind.PREDICTION, [prediction])
            _hand_over(work, ArtifactKind.PREDICTION, prediction, job, field="prediction_storage_uuid", by=by)
            other = work.chains.of_result(JobKind.PREDICT, prediction)
            if other is not None:
                raise InvalidInput(
                    f"prediction_storage_uuid: {prediction} is the prediction of job {other.id}; store another one",
                    field="prediction_storage_uuid",
                )
            return work.jobs.succeed(job.id, job.attempt, None, result=prediction)

    def _held(self, work: UnitOfWork, kind: JobKind, job_id: UUID, by: Principal) -> Job | None:
        """Return a job that a worker that is not ours holds, or that nobody holds yet and is given to one now."""
        found = work.chains.jobs(kind, job=job_id, states=(JobState.QUEUED, JobState.RUNNING))
        if not found:
            return None
        if found[0].state is JobState.QUEUED and not self._claim(work, job_id, "unnamed", by):
            return None
        job = work.jobs.get(job_id)
        if not (job.worker or "").startswith(OUTSIDE) or not (by.is_admin or job.held_by == by.name):
            return None
        act_as(job.worker or OUTSIDE)
        return job

    def _claim(self, work: UnitOfWork, job_id: UUID, worker: str, by: Principal) -> bool:
        lease_s = self._lease_s
        act_as(OUTSIDE + worker)
        name, user = OUTSIDE + worker, by.name
        return work.jobs.claim(job_id, worker=name, lease_s=lease_s, max_attempts=0, held_by=user) is not None


def _hand_over(work: UnitOfWork, kind: ArtifactKind, artifact_id: UUID, job: Job, *, field: str, by: Principal) -> None:
    """Give what a worker uploaded to the owner of the job; what others uploaded, it cannot give away."""
    if not by.is_admin and work.artifacts.get(kind, artifact_id).owner not in (by.name, job.owner):
        raise InvalidInput(f"{field}: {kind} {artifact_id} not found in storage", field=field)
    work.artifacts.give(kind, artifact_id, job.owner)


def _check_scores(spec: LearnSpec, scores: Scores) -> None:
    for field, given, data in (
        ("train_perf", scores.train_perf, spec.train_data),
        ("test_perf", scores.test_perf, spec.test_data),
    ):
        if foreign := given.keys() - {str(item) for item in data}:
            raise InvalidInput(f"{field}: {min(foreign)} is not in the job's {field[:-5]}_data", field=field)
