"""Two parties who must not see each other: each a custodian, a submitter and a worker, with all that can be theirs."""

from __future__ import annotations

import io
import uuid
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from uuid import UUID

from morpheo.access import Principal, Role
from morpheo.artifacts import Upload
from morpheo.challenges import Problem
from morpheo.models import ArtifactKind, Blame, Cause, Failure, Job, JobKind, LearnSpec, PredictSpec, Scores
from morpheo.resources import Resources

FAILURE = Failure(cause=Cause.EXIT_CODE, blame=Blame.SUBMITTER, message="it failed")


@dataclass(frozen=True, kw_only=True)
class Party:
    """Ids of what is theirs."""

    #: Of its users: custodian, submitter, worker.
    names: dict[Role, str]
    #: One of each kind that a custodian or submitter of the party sees; the worker has a job that needs the first four.
    artifacts: dict[ArtifactKind, UUID]
    #: Data that is registered nowhere.
    spare: UUID
    #: A problem, as the orchestrator knows it.
    problem: UUID
    #: An algo that was never registered.
    fresh_algo: UUID
    #: Jobs of the chains of the submitter's algos.
    done: Job
    failed: Job
    queued: Job
    held: Job
    #: Jobs that the custodian ordered.
    failed_prediction: Job
    queued_prediction: Job
    held_prediction: Job

    def principal(self, role: Role) -> Principal:
        """Return one of its users."""
        return Principal(name=self.names[role], roles=frozenset({role}))


def make_party(resources: Resources, number: int) -> Party:
    """Make the things of a party; its users are not needed for that."""
    return _Maker(resources, number).party()


class _Maker:
    def __init__(self, resources: Resources, number: int) -> None:
        self._resources = resources
        self._names = {role: f"{role}{number}" for role in (Role.CUSTODIAN, Role.SUBMITTER, Role.WORKER)}
        self._who = {role: Principal(name=name, roles=frozenset({role})) for role, name in self._names.items()}
        self._custodian, self._submitter = self._who[Role.CUSTODIAN], self._who[Role.SUBMITTER]

    def party(self) -> Party:
        kinds, orchestrator = ArtifactKind, self._resources.orchestrator
        workflow = self._store(kinds.PROBLEM, name="n", description="d")
        train, later, test, spare = (self._store(kinds.DATA) for _ in range(4))
        problem = self._register_problem(workflow, test)
        orchestrator.register_data([train, later], problem_ids=[problem], by=self._custodian)
        algo, broken, new, fresh = (self._store(kinds.ALGO, name="n") for _ in range(4))
        for item in (algo, broken, new):
            orchestrator.register_algo(item, name="n", problem_id=problem, by=self._submitter)
        done = self._end_with_model(self._rank(algo, 0))
        failed = self._fail(self._rank(broken, 0))
        held = self._hold(self._rank(algo, 1))
        asked = [orchestrator.order_prediction(data=spare, problem_id=problem, by=self._custodian) for _ in range(4)]
        prediction = self._end_with_prediction(asked[0])
        assert isinstance(held.spec, LearnSpec)
        assert held.spec.model_start is not None
        return Party(
            names=self._names,
            artifacts={
                kinds.PROBLEM: workflow,
                kinds.ALGO: algo,
                kinds.DATA: later,
                kinds.MODEL: held.spec.model_start,
                kinds.PREDICTION: prediction,
            },
            spare=spare,
            problem=problem,
            fresh_algo=fresh,
            done=done,
            failed=failed,
            queued=self._rank(new, 0),
            held=held,
            failed_prediction=self._fail(asked[1]),
            queued_prediction=asked[2],
            held_prediction=self._hold(asked[3]),
        )

    def _store(self, kind: ArtifactKind, *, by: Principal | None = None, **words: str) -> UUID:
        owner = by or (self._submitter if kind is ArtifactKind.ALGO else self._custodian)
        upload = Upload(
            kind=kind, id=uuid.uuid4(), by=owner, name=words.get("name", ""), description=words.get("description", "")
        )
        return self._resources.artifacts.upload(upload, io.BytesIO(upload.id.bytes)).id

    def _register_problem(self, workflow: UUID, test: UUID) -> UUID:
        problem = Problem(
            id=uuid.uuid4(), workflow=workflow, test_data=(test,), batch_size=1, created_at=datetime.now(UTC)
        )
        return self._resources.orchestrator.register_problem(problem, by=self._custodian).id

    def _rank(self, algo: UUID, rank: int) -> Job:
        jobs = self._resources.orchestrator.jobs(JobKind.LEARN, algo=algo)
        return next(job for job in jobs if isinstance(job.spec, LearnSpec) and job.spec.rank == rank)

    def _claim(self, job: Job, *, worker: str, held_by: str | None = None) -> Job:
        with self._resources.database.begin() as work:
            claimed = work.jobs.claim(job.id, worker=worker, lease_s=3600, max_attempts=3, held_by=held_by)
        assert claimed is not None
        return claimed

    def _hold(self, job: Job) -> Job:
        self._claim(job, worker="outside:w", held_by=self._names[Role.WORKER])
        return replace(job, attempt=1)

    def _fail(self, job: Job) -> Job:
        self._claim(job, worker="w")
        with self._resources.database.begin() as work:
            assert work.jobs.fail(job.id, 1, FAILURE)
        return job

    def _end_with_model(self, job: Job) -> Job:
        assert isinstance(job.spec, LearnSpec)
        self._claim(job, worker="w")
        stored = self._result(ArtifactKind.MODEL, job.spec.model_end, algo=job.spec.algo, owner=job.owner)
        with self._resources.database.begin() as work:
            assert work.jobs.succeed(job.id, 1, Scores(perf=0.5), result=stored)
        return job

    def _end_with_prediction(self, job: Job) -> UUID:
        assert isinstance(job.spec, PredictSpec)
        self._claim(job, worker="w")
        stored = self._result(ArtifactKind.PREDICTION, job.spec.prediction, owner=job.owner)
        with self._resources.database.begin() as work:
            assert work.jobs.succeed(job.id, 1, None, result=stored)
        return stored

    def _result(self, kind: ArtifactKind, artifact_id: UUID, *, owner: str, algo: UUID | None = None) -> UUID:
        by = Principal(name=owner, roles=frozenset())
        upload = Upload(kind=kind, id=artifact_id, algo=algo, by=by)
        return self._resources.artifacts.upload(upload, io.BytesIO(artifact_id.bytes)).id
