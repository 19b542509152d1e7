"""
The orchestrator: what is registered becomes orders.

Whoever plans for a problem holds its row locked, so that chains are planned one after the other. A chain goes on in
the transaction in which a rank of it ends (`advance_chain`, a rule of the database): the next rank is released with
the best model that the chain then has. A rank that ends without a model stalls its chain until somebody retries it or
new data comes; the chain then goes on from its best model.

Locks are taken in one order, or two transactions could wait for each other: the row of a job that ends, then that of
its problem, then those of ranks that wait. So a transaction ends jobs of one problem only, who plans for several
problems locks them in the order of their ids, and who cancels a job does not lock its problem before.

The words of 2017 are "learnuplet" for a training job and "preduplet" for a prediction job.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from dataclasses import replace
from uuid import UUID

from morpheo.challenges import Dataset, Problem, Submission, batches
from morpheo.errors import Conflict, InvalidInput, NotFound
from morpheo.models import (
    ArtifactKind,
    Job,
    JobKind,
    JobState,
    LearnSpec,
    PredictSpec,
)
from morpheo.standings import Leaderboard
from morpheo.storage.database import Database, UnitOfWork


def advance_chain(work: UnitOfWork, job_id: UUID, state: JobState) -> None:
    """Let a chain go on, or stall it, in the transaction that ended one of its ranks."""
    if not state.is_final:
        return
    member = work.chains.member(job_id)
    if member is None:
        return
    problem_id, algo = member
    work.challenges.lock(problem_id)
    if state is not JobState.SUCCEEDED:
        work.challenges.set_stalled(algo, True)
    _release(work, work.challenges.problem(problem_id), [work.challenges.submission(algo)])


def _release(work: UnitOfWork, problem: Problem, submissions: Iterable[Submission]) -> None:
    """Queue as many waiting ranks of each chain as may run at once; the problem is locked."""
    active = work.chains.active(problem.id)
    for submission in submissions:
        free = 0 if submission.stalled else problem.parallel_ranks - active.get(submission.algo, 0)
        while free > 0 and (specs := work.chains.next_waiting(submission.algo, limit=free)):
            best = work.chains.best_model(problem, algo=submission.algo)
            for spec in specs:
                # Rank 0 starts from nothing; clients of 2017 expect the algo's id there.
                start = spec.algo if spec.rank == 0 else best
                free -= work.jobs.release(replace(spec, model_start=start))  # not if it was cancelled just now


def _extend(work: UnitOfWork, problem: Problem, submissions: Sequence[Submission], data: Sequence[UUID]) -> int:
    """Add the ranks that train on some data to chains, and let these go on; the problem is locked."""
    cut = batches(data, held_out=problem.test_data, size=problem.batch_size)
    last = work.chains.last_ranks(problem.id) if cut else {}
    work.jobs.add_ranks(
        LearnSpec(
            id=uuid.uuid4(),
            problem=problem.id,
            workflow=problem.workflow,
            algo=algo,
            train_data=batch,
            test_data=problem.test_data,
            model_start=algo if rank == 0 else None,
            model_end=uuid.uuid4(),
            rank=rank,
        )
        for algo in (submission.algo for submission in submissions)
        for rank, batch in enumerate(cut, start=last.get(algo, -1) + 1)
    )
    if cut:
        _release(work, problem, submissions)
    return len(cut) * len(submissions)


class Orchestrator:
    """
    Registers problems, algos and data, and orders what follows from them.

    Args:
        database: Keeps the rows; `advance_chain` must be among its rules.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        #: By problem, the last leaderboard and the state that it is of.
        self._leaderboards: dict[UUID, tuple[tuple[int, int], Leaderboard]] = {}
        #: By problem and job, the scores of test files that it was made from; they never change.
        self._test_perf: dict[UUID, dict[UUID, dict[str, float]]] = {}

    def register_problem(self, problem: Problem) -> Problem:
        """
        Register a challenge; the same one twice is one.

        Raises:
            InvalidInput: storage does not have its archive or its test data, or it has none.
            Conflict: another problem has that id.
        """
        if not problem.test_data:
            raise InvalidInput("test_dataset: at least one file is needed to compute scores on", field="test_dataset")
        try:
            known = self._insert_problem(problem)
        except Conflict:  # the same problem, or another with its id, came at the same time: now its row is there
            known = self._insert_problem(problem)
        if replace(known, created_at=problem.created_at) != problem:
            raise Conflict(f"another problem has the id {problem.id}")
        return known

    def _insert_problem(self, problem: Problem) -> Problem:
        """Insert a problem and return it, or the one that has its id."""
        with self._database.begin() as work:
            if _known_problem(work, problem.id) is None:
                check_stored(work, "workflow", ArtifactKind.PROBLEM, [problem.workflow])
                check_stored(work, "test_dataset", ArtifactKind.DATA, problem.test_data)
                work.challenges.add_problem(problem)
            return work.challenges.problem(problem.id)

    def register_algo(self, algo: UUID, *, name: str, problem_id: UUID) -> tuple[Submission, int]:
        """
        Let an algo take part in a challenge; the same one twice is one.

        Returns:
            The submission, and how many training jobs follow from it.

        Raises:
            NotFound: there is no such problem.
            InvalidInput: storage does not have the algo.
            Conflict: the algo takes part in another challenge.
        """
        with self._database.begin() as work:
            if not work.challenges.lock(problem_id):
                raise NotFound(f"problem {problem_id} not found")
            check_stored(work, "uuid", ArtifactKind.ALGO, [algo])
            known = _known_submission(work, algo)
            if known is None:
                work.challenges.add_submission(algo, problem_id, name)
                new = work.challenges.submission(algo)
                data = work.challenges.data_of(problem_id)
                return new, _extend(work, work.challenges.problem(problem_id), [new], data)
        if known.problem != problem_id:
            raise Conflict(f"algo {algo} takes part in problem {known.problem}; upload it again under another id")
        return known, 0

    def register_data(self, data: Sequence[UUID], *, problem_ids: Sequence[UUID]) -> tuple[list[Dataset], int]:
        """
        Add data to challenges, and the batches of what is new to the chain of every algo in them.

        Args:
            data: Files, in the order in which batches are cut from them.
            problem_ids: Challenges that they are for.

        Returns:
            The data, and how many training jobs follow from it.

        Raises:
            NotFound: one of the problems does not exist; nothing is registered.
            InvalidInput: storage does not have one of the files; nothing is registered.
        """
        added = 0
        unique = list(dict.fromkeys(data))
        with self._database.begin() as work:
            for problem_id in sorted(set(problem_ids)):  # in one order, so that two of these never wait for each other
                if not work.challenges.lock(problem_id):
                    raise NotFound(f"problem {problem_id} not found")
            check_stored(work, "uuid", ArtifactKind.DATA, unique)
            for problem_id in dict.fromkeys(problem_ids):
                fresh = work.challenges.add_data(problem_id, unique)
                problem = work.challenges.problem(problem_id)
                if set(fresh) - set(problem.test_data):
                    work.challenges.end_stalls(problem_id)
                added += _extend(work, problem, work.challenges.submissions(problem_id), fresh)
            found = {item.id: item for item in work.challenges.datasets(unique)}
        return [found[item] for item in unique], added

    def order_prediction(self, *, data: UUID, problem_id: UUID, model: UUID | None = None) -> Job:
        """
        Order the prediction of one data file, with the best model of a problem or with another one.

        Raises:
            NotFound: there is no such problem, or it has no model yet.
            InvalidInput: storage does not have the data, or the model; or the data is test data of a problem.
        """
        with self._database.begin() as work:
            problem = work.challenges.problem(problem_id)
            check_stored(work, "data", ArtifactKind.DATA, [data])
            if any(data in other.test_data for other in work.challenges.problems()):
                # A predict job gets the file as it was uploaded, and what it writes is published.
                raise InvalidInput(f"data: {data} is test data, whose targets are hidden", field="data")
            chosen = model or work.chains.best_model(problem)
            if chosen is None:
                raise NotFound(f"problem {problem_id} has no trained model yet")
            check_stored(work, "model", ArtifactKind.MODEL, [chosen])
            spec = PredictSpec(id=uuid.uuid4(), problem=problem.id, workflow=problem.workflow, model=chosen, data=data)
            work.jobs.add(spec, algo=work.artifacts.get(ArtifactKind.MODEL, chosen).algo, planned=True)
            return work.jobs.get(spec.id)

    def retry(self, job_id: UUID) -> Job:
        """
        Order again what failed or was cancelled, as a new job; a chain goes on from there.

        Raises:
            NotFound: there is no such job.
            Conflict: the job has not failed, or its rank or its model exists already, from another job.
        """
        with self._database.begin() as work:
            member = work.chains.member(job_id)
            if member:
                work.challenges.lock(member[0])
            job = work.jobs.get(job_id)
            if job.state not in (JobState.FAILED, JobState.CANCELLED):
                raise Conflict(f"job {job_id} is {job.state}; only one that failed or was cancelled can be retried")
            spec = replace(job.spec, id=uuid.uuid4())
            if member and isinstance(spec, LearnSpec):
                _retry_rank(work, spec)
            elif isinstance(spec, LearnSpec) and work.artifacts.exists(ArtifactKind.MODEL, spec.model_end):
                raise Conflict(f"model {spec.model_end} exists already; order the job with another model_end")
            else:
                work.jobs.add(spec, algo=job.algo, planned=job.planned)
            return work.jobs.get(spec.id)

    def problem(self, problem_id: UUID) -> Problem:
        """
        Return a problem.

        Raises:
            NotFound: there is none.
        """
        with self._database.read() as work:
            return work.challenges.problem(problem_id)

    def problems(self) -> list[Problem]:
        """Return all problems, oldest first."""
        with self._database.read() as work:
            return work.challenges.problems()

    def leaderboard(self, problem_id: UUID) -> Leaderboard:
        """
        Return who is how good in a challenge, and how sure that is.

        Raises:
            NotFound: there is no such problem.
        """
        from morpheo.leaderboard import make_leaderboard  # noqa: PLC0415 - numpy: 25 MB that no worker needs

        with self._database.read() as work:
            problem = work.challenges.problem(problem_id)
            state = work.leaderboard.state(problem_id)
            known = self._leaderboards.get(problem_id)
            if known is not None and known[0] == state:
                return known[1]
            chains = work.leaderboard.chains(problem_id)
            best = [(chain, chain.best(higher_is_better=problem.higher_is_better)) for chain in chains]
            jobs = [UUID(chain.jobs[position]) for chain, position in best if position is not None]
            read = self._test_perf.get(problem_id, {})
            read = {**read, **work.leaderboard.test_perf([job for job in jobs if job not in read])}
            test_perf = {job: read[job] for job in jobs}
        board = make_leaderboard(problem, chains, test_perf)
        self._leaderboards[problem_id], self._test_perf[problem_id] = (state, board), test_perf
        return board

    def submission(self, algo: UUID) -> Submission:
        """
        Return the submission of an algo.

        Raises:
            NotFound: there is none.
        """
        with self._database.read() as work:
            return work.challenges.submission(algo)

    def submissions(self, problem_id: UUID | None = None) -> list[Submission]:
        """Return the submissions of a problem, or all, oldest first."""
        with self._database.read() as work:
            return work.challenges.submissions(problem_id)

    def datasets(self, ids: Sequence[UUID] | None = None) -> list[Dataset]:
        """Return some data, or all, oldest first."""
        with self._database.read() as work:
            return work.challenges.datasets(ids)

    def jobs(
        self,
        kind: JobKind,
        *,
        job: UUID | None = None,
        problem: UUID | None = None,
        algo: UUID | None = None,
        states: tuple[JobState, ...] | None = None,
    ) -> list[Job]:
        """Return jobs that were planned here, without their attempts, oldest first."""
        with self._database.read() as work:
            return work.chains.jobs(kind, job=job, problem=problem, algo=algo, states=states)


def _retry_rank(work: UnitOfWork, spec: LearnSpec) -> None:
    if other := work.chains.live(spec.algo, spec.rank):
        raise Conflict(f"rank {spec.rank} of algo {spec.algo} has job {other} already")
    waiting = replace(spec, model_start=None, model_end=uuid.uuid4())
    work.jobs.add(waiting, algo=spec.algo, state=JobState.WAITING, planned=True)
    work.challenges.set_stalled(spec.algo, False)
    _release(work, work.challenges.problem(spec.problem), [work.challenges.submission(spec.algo)])


def _known_problem(work: UnitOfWork, problem_id: UUID) -> Problem | None:
    try:
        return work.challenges.problem(problem_id)
    except NotFound:
        return None


def _known_submission(work: UnitOfWork, algo: UUID) -> Submission | None:
    try:
        return work.challenges.submission(algo)
    except NotFound:
        return None


def check_stored(work: UnitOfWork, field: str, kind: ArtifactKind, ids: Sequence[UUID]) -> None:
    """
    Do nothing if storage has these artifacts.

    Raises:
        InvalidInput: it lacks one; the error is about this field.
    """
    if missing := work.artifacts.missing(kind, ids):
        raise InvalidInput(f"{field}: {kind} {missing[0]} not found in storage", field=field)
