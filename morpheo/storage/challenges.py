"""Challenges in the database: problems, submissions and data."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from datetime import timedelta
from uuid import UUID

from sqlalchemy import func, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from morpheo.access import SYSTEM, Principal
from morpheo.audit import Action, list_digest
from morpheo.challenges import Dataset, Problem, Submission
from morpheo.disclosure import Disclosure, Logs
from morpheo.errors import NotFound
from morpheo.models import ArtifactKind
from morpheo.storage.clock import database_now, to_datetime
from morpheo.storage.events import EventRepository
from morpheo.storage.tables import ArtifactRow, DatasetRow, ProblemDataRow, ProblemRow, SubmissionRow
from morpheo.storage.visibility import seen_datasets, seen_submissions


class ChallengeRepository:
    """Reads and writes problems, submissions and data in one transaction; lists are in the order of registration."""

    def __init__(self, session: Session, events: EventRepository) -> None:
        self._session = session
        self._events = events

    def add_problem(self, problem: Problem) -> None:
        """
        Insert a problem; its time of creation is the database's.

        Raises:
            Conflict: one with that id exists.
        """
        self._session.execute(
            insert(ProblemRow).values(
                id=problem.id,
                workflow_id=problem.workflow,
                test_data=[str(item) for item in problem.test_data],
                batch_size=problem.batch_size,
                higher_is_better=problem.higher_is_better,
                parallel_ranks=problem.parallel_ranks,
                **dataclasses.asdict(problem.disclosure),
                created_at=database_now(),
                owner=problem.owner,
            )
        )
        self._events.record(
            Action.PROBLEM_REGISTERED,
            "problem",
            problem.id,
            workflow=problem.workflow,
            test_files=len(problem.test_data),
            test_data=list_digest(problem.test_data),
        )

    def problem(self, problem_id: UUID) -> Problem:
        """
        Return a problem.

        Raises:
            NotFound: there is none.
        """
        row = self._session.scalar(select(ProblemRow).where(ProblemRow.id == problem_id))
        if row is None:
            raise NotFound(f"problem {problem_id} not found")
        return _to_problem(row)

    def problems(self) -> list[Problem]:
        """Return all problems."""
        rows = self._session.scalars(select(ProblemRow).order_by(ProblemRow.created_at, ProblemRow.id))
        return [_to_problem(row) for row in rows]

    def disclose(self, problem_id: UUID, disclosure: Disclosure) -> None:
        """Change what goes out of a problem."""
        values = dataclasses.asdict(disclosure)
        self._session.execute(update(ProblemRow).where(ProblemRow.id == problem_id).values(values))
        self._events.record(Action.PROBLEM_CHANGED, "problem", problem_id, **values)

    def lock(self, problem_id: UUID) -> bool:
        """
        Wait until no other transaction plans for a problem, and keep others from it until this one ends.

        Returns:
            Whether there is such a problem.
        """
        locked = self._session.execute(
            update(ProblemRow)
            .where(ProblemRow.id == problem_id)
            .values(batch_size=ProblemRow.batch_size)
            .returning(ProblemRow.id)
        )
        return locked.scalar_one_or_none() is not None

    def add_submission(self, algo: UUID, problem: UUID, name: str, *, owner: str = "") -> None:
        """
        Let an algo take part.

        Raises:
            Conflict: it does already.
        """
        values = {"algo_id": algo, "problem_id": problem, "name": name, "created_at": database_now(), "owner": owner}
        self._session.execute(insert(SubmissionRow).values(values))
        self._events.record(Action.ALGO_REGISTERED, "algo", algo, problem=problem)

    def submission(self, algo: UUID) -> Submission:
        """
        Return a submission.

        Raises:
            NotFound: that algo takes part in nothing.
        """
        row = self._session.scalar(select(SubmissionRow).where(SubmissionRow.algo_id == algo))
        if row is None:
            raise NotFound(f"algo {algo} not found")
        return _to_submission(row)

    def submissions(self, problem: UUID | None = None, *, by: Principal = SYSTEM) -> list[Submission]:
        """Return the submissions of one problem, or of all, that somebody sees."""
        query = select(SubmissionRow).order_by(SubmissionRow.created_at, SubmissionRow.algo_id)
        query = query.where(seen_submissions(by))
        if problem is not None:
            query = query.where(SubmissionRow.problem_id == problem)
        return [_to_submission(row) for row in self._session.scalars(query)]

    def next_submission_s(self, problem: UUID, owner: str, *, limit: int, within: timedelta) -> float:
        """
        Return how long somebody must wait until they may add an algo to a problem that is locked, in seconds.

        Args:
            problem: The problem.
            owner: Who they are.
            limit: How many algos they may add to it.
            within: In which time, any of that length.
        """
        # The one that has to be so long ago: with a limit of 3, the third latest.
        counted = select(SubmissionRow.created_at).where(
            SubmissionRow.problem_id == problem, SubmissionRow.owner == owner
        )
        latest = counted.order_by(SubmissionRow.created_at.desc()).offset(limit - 1).limit(1).scalar_subquery()
        wait_s = self._session.scalar(select(latest + within.total_seconds() - database_now()))
        return max(0.0, wait_s or 0.0)

    def end_stalls(self, problem: UUID) -> None:
        """Let all chains of a problem go on."""
        self._session.execute(update(SubmissionRow).where(SubmissionRow.problem_id == problem).values(stalled_by=None))

    def set_stalled(self, algo: UUID, job: UUID | None) -> None:
        """Record which job stalls a chain, None if it goes on."""
        self._session.execute(update(SubmissionRow).where(SubmissionRow.algo_id == algo).values(stalled_by=job))

    def add_data(self, problem: UUID, data: Sequence[UUID]) -> list[UUID]:
        """Register data for a problem that is locked; return which of it is new there, in the order given."""
        self._add_datasets(data)
        last = func.coalesce(func.max(ProblemDataRow.position), -1)
        start = self._session.scalar(select(last).where(ProblemDataRow.problem_id == problem)) or 0
        taken = select(ProblemDataRow.dataset_id).where(ProblemDataRow.problem_id == problem)
        present = set(self._session.scalars(taken.where(ProblemDataRow.dataset_id.in_(data))))
        fresh = [item for item in data if item not in present]
        links = [
            {"problem_id": problem, "dataset_id": item, "position": start + offset}
            for offset, item in enumerate(fresh, start=1)
        ]
        if links:
            self._session.execute(insert(ProblemDataRow), links)
            self._events.record(
                Action.DATA_REGISTERED,
                "problem",
                problem,
                first_position=start + 1,
                files=len(fresh),
                data=list_digest(fresh),
            )
        return fresh

    def _add_datasets(self, data: Sequence[UUID]) -> None:
        # Others may register the same data for other problems at the same time: in one order, so that no two of them
        # wait for each other, and what is there already is no error.
        dialect = postgresql if self._session.get_bind().dialect.name == "postgresql" else sqlite
        add = dialect.insert(DatasetRow).values(created_at=database_now()).on_conflict_do_nothing()
        owners = select(ArtifactRow.id, ArtifactRow.owner).where(
            ArtifactRow.kind == ArtifactKind.DATA.value, ArtifactRow.id.in_(data)
        )
        owner = {found.id: found.owner for found in self._session.execute(owners)}
        self._session.execute(add, [{"id": item, "owner": owner.get(item, "")} for item in sorted(set(data))])

    def data_of(self, problem: UUID) -> list[UUID]:
        """Return the data of a problem."""
        query = select(ProblemDataRow.dataset_id).where(ProblemDataRow.problem_id == problem)
        return list(self._session.scalars(query.order_by(ProblemDataRow.position)))

    def datasets(self, ids: Iterable[UUID] | None = None, *, by: Principal = SYSTEM) -> list[Dataset]:
        """Return some data, or all, that somebody sees."""
        query = select(DatasetRow).where(seen_datasets(by)).order_by(DatasetRow.created_at, DatasetRow.id)
        links = select(ProblemDataRow.dataset_id, ProblemDataRow.problem_id).order_by(ProblemDataRow.problem_id)
        if ids is not None:
            wanted = list(ids)
            query, links = query.where(DatasetRow.id.in_(wanted)), links.where(ProblemDataRow.dataset_id.in_(wanted))
        problems: dict[UUID, list[UUID]] = {}
        for dataset, problem in self._session.execute(links):
            problems.setdefault(dataset, []).append(problem)
        return [
            Dataset(
                id=row.id,
                problems=tuple(problems.get(row.id, ())),
                created_at=to_datetime(row.created_at),
                owner=row.owner,
            )
            for row in self._session.scalars(query)
        ]


def _to_problem(row: ProblemRow) -> Problem:
    return Problem(
        id=row.id,
        workflow=row.workflow_id,
        test_data=tuple(UUID(item) for item in row.test_data),
        batch_size=row.batch_size,
        higher_is_better=row.higher_is_better,
        parallel_ranks=row.parallel_ranks,
        disclosure=Disclosure(
            logs=Logs(row.logs),
            model_download=row.model_download,
            score_digits=row.score_digits,
            submissions_per_day=row.submissions_per_day,
            time_step_s=row.time_step_s,
        ),
        created_at=to_datetime(row.created_at),
        owner=row.owner,
        name=row.name or "",
    )


def _to_submission(row: SubmissionRow) -> Submission:
    return Submission(
        algo=row.algo_id,
        problem=row.problem_id,
        name=row.name,
        stalled_by=row.stalled_by,
        created_at=to_datetime(row.created_at),
        owner=row.owner,
    )
