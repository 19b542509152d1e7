"""
The orchestrator: what is registered becomes orders, by the rules of `morpheo.planning`.

The words of 2017 are "learnuplet" for a training job and "preduplet" for a prediction job.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import UUID

from morpheo.access import SYSTEM, Principal
from morpheo.artifacts import check_usable
from morpheo.audit import Action
from morpheo.boards import Boards
from morpheo.challenges import AddedData, Dataset, Problem, Submission, is_insider
from morpheo.errors import Conflict, InvalidInput, NotFound, TooMany
from morpheo.models import NIL_UUID, ArtifactKind, Job, JobKind, JobState, LearnSpec, PredictSpec
from morpheo.planning import extend, held_out, retry_rank
from morpheo.standings import Leaderboard
from morpheo.storage.database import Database, UnitOfWork

#: In which submissions are counted.
_A_DAY = timedelta(days=1)


class Orchestrator:
    """
    Registers problems, algos and data, and orders what follows from them.

    Args:
        database: Keeps the rows; `morpheo.planning.advance_chain` must be among its rules.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._boards = Boards(database)

    def register_problem(self, problem: Problem, *, by: Principal = SYSTEM) -> Problem:
        """
        Register a challenge; the same one twice is one.

        Args:
            problem: What it is; its owner is `by`.
            by: Who registers it.

        Raises:
            InvalidInput: storage does not have its archive or its test data for them, or it has none.
            Conflict: another problem has that id.
        """
        if not problem.test_data:
            raise InvalidInput("test_dataset: at least one file is needed to compute scores on", field="test_dataset")
        problem = replace(problem, owner=by.name)
        try:
            known = self._insert_problem(problem, by)
        except Conflict:  # the same problem, or another with its id, came at the same time: now its row is there
            known = self._insert_problem(problem, by)
        # What goes out of it may have been changed since.
        if replace(known, created_at=problem.created_at, owner=problem.owner, disclosure=problem.disclosure) != problem:
            raise Conflict(f"another problem has the id {problem.id}")
        return known

    def _insert_problem(self, problem: Problem, by: Principal) -> Problem:
        """Insert a problem and return it, or the one that has its id."""
        with self._database.begin() as work:
            if _known_problem(work, problem.id) is None:
                check_stored(work, "workflow", ArtifactKind.PROBLEM, [problem.workflow], by=by)
                check_stored(work, "test_dataset", ArtifactKind.DATA, problem.test_data, by=by)
                work.challenges.add_problem(problem)
            return work.challenges.problem(problem.id)

    def disclose(self, problem_id: UUID, **changes: Any) -> Problem:
        """
        Change what goes out of a problem, also of what became of it before.

        Args:
            problem_id: The problem.
            changes: Fields of its `Disclosure`; the others stay as they are.

        Raises:
            NotFound: there is no such problem.
        """
        with self._database.begin() as work:
            work.challenges.lock(problem_id)
            known = work.challenges.problem(problem_id)
            disclosure = replace(known.disclosure, **changes)
            if known.disclosure != disclosure:
                work.challenges.disclose(problem_id, disclosure)
            return replace(known, disclosure=disclosure)

    def register_algo(
        self, algo: UUID, *, name: str, problem_id: UUID, by: Principal = SYSTEM
    ) -> tuple[Submission, int]:
        """
        Let an algo take part in a challenge; the same one twice is one. Its jobs belong to the algo's owner.

        Args:
            algo: Storage id of the algo.
            name: What it is called on the leaderboard.
            problem_id: The challenge.
            by: Who adds it.

        Returns:
            The submission, and how many training jobs follow from it.

        Raises:
            NotFound: there is no such problem.
            InvalidInput: storage does not have the algo, or they do not see it.
            Conflict: the algo takes part in another challenge.
            TooMany: they have added as many algos to it in 24 hours as its custodian allows.
        """
        with self._database.begin() as work:
            if not work.challenges.lock(problem_id):
                raise NotFound(f"problem {problem_id} not found")
            check_stored(work, "uuid", ArtifactKind.ALGO, [algo], by=by)
            known = _known_submission(work, algo)
            if known is None:
                problem = work.challenges.problem(problem_id)
                _check_turn(work, problem, by)
                owner = work.artifacts.get(ArtifactKind.ALGO, algo).owner
                work.challenges.add_submission(algo, problem_id, name, owner=owner)
                new = work.challenges.submission(algo)
                return new, extend(work, problem, [new], work.challenges.data_of(problem_id))
        if known.problem != problem_id:
            raise Conflict(f"algo {algo} takes part in problem {known.problem}; upload it again under another id")
        return known, 0

    def register_data(self, data: Sequence[UUID], *, problem_ids: Sequence[UUID], by: Principal = SYSTEM) -> AddedData:
        """
        Add data to challenges, and the batches of what is new to the chain of every algo in them.

        Args:
            data: Files, in the order in which batches are cut from them.
            problem_ids: Challenges that they are for.
            by: Who registers them.

        Raises:
            NotFound: one of the problems does not exist or is not theirs; nothing is registered.
            InvalidInput: storage does not have one of the files for them; nothing is registered.
        """
        added, hidden = 0, dict[UUID, tuple[UUID, ...]]()
        unique = list(dict.fromkeys(data))
        with self._database.begin() as work:
            for problem_id in sorted(set(problem_ids)):  # in one order, so that two of these never wait for each other
                if not (work.visibility.owns_problem(by, problem_id) and work.challenges.lock(problem_id)):
                    raise NotFound(f"problem {problem_id} not found")
            check_stored(work, "uuid", ArtifactKind.DATA, unique, by=by)
            for problem_id in dict.fromkeys(problem_ids):
                fresh = work.challenges.add_data(problem_id, unique)
                problem = work.challenges.problem(problem_id)
                if left_out := held_out(work, problem, unique):
                    hidden[problem_id] = tuple(item for item in unique if item in left_out)
                if set(fresh) - left_out:
                    work.challenges.end_stalls(problem_id)
                added += extend(work, problem, work.challenges.submissions(problem_id), fresh)
            found = {item.id: item for item in work.challenges.datasets(unique)}
        return AddedData(datasets=tuple(found[item] for item in unique), trainings=added, held_out=hidden)

    def order_prediction(
        self, *, data: UUID, problem_id: UUID, model: UUID | None = None, by: Principal = SYSTEM
    ) -> Job:
        """
        Order the prediction of one data file, with the best model of a problem or with another one.

        Only the owner of a problem can: a model may have learned its data by heart, and writes what it likes.

        Raises:
            NotFound: there is no such problem, or it is not theirs, or it has no model yet.
            InvalidInput: storage does not have the data for them, or the model; the data is test data of a problem, or
                the model is not of an algo of this one.
        """
        with self._database.begin() as work:
            problem = work.challenges.problem(problem_id)
            if not work.visibility.owns_problem(by, problem_id):
                raise NotFound(f"problem {problem_id} not found")
            check_stored(work, "data", ArtifactKind.DATA, [data], by=by)
            problems = work.challenges.problems()
            # Of others only ids count: whether a guess at the content of their data is right, nobody else may know.
            own = {item for other in problems if is_insider(by, other) for item in other.test_data}
            is_known = any(data in other.test_data for other in problems)
            if is_known or work.artifacts.same_content(ArtifactKind.DATA, [data], as_=own):
                # A predict job gets the file as it was uploaded, and what it writes is published.
                raise InvalidInput(f"data: {data} is test data, whose targets are hidden", field="data")
            chosen = model or work.chains.best_model(problem)
            if chosen is None:
                raise NotFound(f"problem {problem_id} has no trained model yet")
            check_stored(work, "model", ArtifactKind.MODEL, [chosen], by=by if model else SYSTEM)
            algo = work.artifacts.get(ArtifactKind.MODEL, chosen).algo
            if model is not None:
                _check_takes_part(work, model, algo, problem_id)
            spec = PredictSpec(id=uuid.uuid4(), problem=problem.id, workflow=problem.workflow, model=chosen, data=data)
            work.jobs.add(spec, algo=algo, planned=True, owner=by.name)
            return work.jobs.get(spec.id)

    def retry(self, job_id: UUID) -> Job:
        """
        Order again what failed or was cancelled, as a new job.

        A chain goes on if that rank stalls it; any other rank waits until the chain goes on.

        Raises:
            NotFound: there is no such job.
            Conflict: the job has not failed, or its order was damaged, or another job has its rank or its model.
        """
        with self._database.begin() as work:
            member = work.chains.member(job_id)
            if member:
                work.challenges.lock(member[0])
            job = work.jobs.get(job_id)
            if job.state not in (JobState.FAILED, JobState.CANCELLED):
                raise Conflict(f"job {job_id} is {job.state}; only one that failed or was cancelled can be retried")
            if job.spec.workflow == NIL_UUID:  # `remains` of an order
                raise Conflict(f"the order of job {job_id} was damaged; order it anew, or add data to its chain")
            spec = replace(job.spec, id=uuid.uuid4())
            work.events.record(Action.JOB_RETRIED, "job", job_id, by_job=spec.id)
            if member and isinstance(spec, LearnSpec):
                retry_rank(work, spec)
            elif isinstance(spec, LearnSpec) and work.artifacts.exists(ArtifactKind.MODEL, spec.model_end):
                raise Conflict(f"model {spec.model_end} exists already; order the job with another model_end")
            else:
                work.jobs.add(spec, algo=job.algo, planned=job.planned, owner=job.owner)
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
        return self._boards.get(problem_id)

    def make_leaderboards(self) -> None:
        """Make those of all problems, so that the first who asks for one need not wait."""
        self._boards.make_all()

    def submission(self, algo: UUID) -> Submission:
        """
        Return the submission of an algo.

        Raises:
            NotFound: there is none.
        """
        with self._database.read() as work:
            return work.challenges.submission(algo)

    def submissions(self, problem_id: UUID | None = None, *, by: Principal = SYSTEM) -> list[Submission]:
        """Return the submissions of a problem, or all, that somebody sees, oldest first."""
        with self._database.read() as work:
            return work.challenges.submissions(problem_id, by=by)

    def datasets(self, ids: Sequence[UUID] | None = None, *, by: Principal = SYSTEM) -> list[Dataset]:
        """Return some data, or all, that somebody sees, oldest first."""
        with self._database.read() as work:
            return work.challenges.datasets(ids, by=by)

    def job_of_result(self, kind: ArtifactKind, result: UUID) -> Job | None:
        """Return the job that a model or prediction is the result of, without its attempts; None if there is none."""
        with self._database.read() as work:
            return work.chains.of_result(JobKind.LEARN if kind is ArtifactKind.MODEL else JobKind.PREDICT, result)

    def jobs(
        self,
        kind: JobKind,
        *,
        job: UUID | None = None,
        problem: UUID | None = None,
        algo: UUID | None = None,
        states: tuple[JobState, ...] | None = None,
        by: Principal = SYSTEM,
    ) -> list[Job]:
        """Return jobs that were planned here and that somebody sees, without their attempts, oldest first."""
        with self._database.read() as work:
            return work.chains.jobs(kind, job=job, problem=problem, algo=algo, states=states, by=by)


def _check_turn(work: UnitOfWork, problem: Problem, by: Principal) -> None:
    """
    Do nothing if somebody may add an algo to a problem that is locked, so that nobody adds another meanwhile.

    Raises:
        TooMany: not yet.
    """
    limit = problem.disclosure.submissions_per_day
    if limit is None or is_insider(by, problem):
        return
    wait_s = math.ceil(work.challenges.next_submission_s(problem.id, by.name, limit=limit, within=_A_DAY))
    if wait_s:
        raise TooMany(
            f"problem {problem.id} takes {limit} algos of a submitter in 24 hours; add the next one in "
            f"{timedelta(seconds=wait_s)} (hours:minutes:seconds)",
            retry_after_s=wait_s,
        )


def _check_takes_part(work: UnitOfWork, model: UUID, algo: UUID | None, problem_id: UUID) -> None:
    submission = None if algo is None else _known_submission(work, algo)
    if submission is None or submission.problem != problem_id:
        raise InvalidInput(f"model: {model} is of an algo that takes no part in this problem", field="model")


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


def check_stored(
    work: UnitOfWork, field: str, kind: ArtifactKind, ids: Sequence[UUID], *, by: Principal = SYSTEM
) -> None:
    """
    Do nothing if storage has these artifacts, and somebody sees them.

    Raises:
        InvalidInput: it lacks one; the error is about this field.
        Quarantined: the blob of one is lost or damaged.
    """
    if missing := work.artifacts.missing(kind, ids, by=by):
        raise InvalidInput(f"{field}: {kind} {missing[0]} not found in storage", field=field)
    for artifact in work.artifacts.quarantined(kind, ids):
        check_usable(artifact)
