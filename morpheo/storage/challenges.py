"""Challenges in the database: problems, submissions and data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from uuid import UUID

from sqlalchemy import func, insert, select, update
from sqlalchemy.orm import Session

from morpheo.challenges import Dataset, Problem, Submission
from morpheo.errors import NotFound
from morpheo.storage.clock import database_now, to_datetime
from morpheo.storage.tables import DatasetRow, ProblemDataRow, ProblemRow, SubmissionRow


class ChallengeRepository:
    """Reads and writes problems, submissions and data in one transaction; lists are in the order of registration."""

    def __init__(self, session: Session) -> None:
        self._session = session

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
                created_at=database_now(),
            )
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

    def add_submission(self, algo: UUID, problem: UUID, name: str) -> None:
        """
        Let an algo take part.

        Raises:
            Conflict: it does already.
        """
        values = {"algo_id": algo, "problem_id": problem, "name": name, "created_at": database_now()}
        self._session.execute(insert(SubmissionRow).values(values))

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

    def submissions(self, problem: UUID | None = None) -> list[Submission]:
        """Return the submissions of one problem, or of all."""
        query = select(SubmissionRow).order_by(SubmissionRow.created_at, SubmissionRow.algo_id)
        if problem is not None:
            query = query.where(SubmissionRow.problem_id == problem)
        return [_to_submission(row) for row in self._session.scalars(query)]

    def end_stalls(self, problem: UUID) -> None:
        """Let all chains of a problem go on."""
        self._session.execute(update(SubmissionRow).where(SubmissionRow.problem_id == problem).values(stalled=False))

    def set_stalled(self, algo: UUID, stalled: bool) -> None:
        """Record whether a chain waits for a person or for new data."""
        self._session.execute(update(SubmissionRow).where(SubmissionRow.algo_id == algo).values(stalled=stalled))

    def add_data(self, problem: UUID, data: Sequence[UUID]) -> list[UUID]:
        """Register data for a problem that is locked; return which of it is new there, in the order given."""
        known = set(self._session.scalars(select(DatasetRow.id).where(DatasetRow.id.in_(data))))
        rows = [{"id": item} for item in data if item not in known]
        if rows:
            self._session.execute(insert(DatasetRow).values(created_at=database_now()), rows)
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
        return fresh

    def data_of(self, problem: UUID) -> list[UUID]:
        """Return the data of a problem."""
        query = select(ProblemDataRow.dataset_id).where(ProblemDataRow.problem_id == problem)
        return list(self._session.scalars(query.order_by(ProblemDataRow.position)))

    def datasets(self, ids: Iterable[UUID] | None = None) -> list[Dataset]:
        """Return some data, or all."""
        query = select(DatasetRow).order_by(DatasetRow.created_at, DatasetRow.id)
        links = select(ProblemDataRow.dataset_id, ProblemDataRow.problem_id).order_by(ProblemDataRow.problem_id)
        if ids is not None:
            wanted = list(ids)
            query, links = query.where(DatasetRow.id.in_(wanted)), links.where(ProblemDataRow.dataset_id.in_(wanted))
        problems: dict[UUID, list[UUID]] = {}
        for dataset, problem in self._session.execute(links):
            problems.setdefault(dataset, []).append(problem)
        return [
            Dataset(id=row.id, problems=tuple(problems.get(row.id, ())), created_at=to_datetime(row.created_at))
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
        created_at=to_datetime(row.created_at),
    )


def _to_submission(row: SubmissionRow) -> Submission:
    return Submission(
        algo=row.algo_id,
        problem=row.problem_id,
        name=row.name,
        stalled=row.stalled,
        created_at=to_datetime(row.created_at),
    )
