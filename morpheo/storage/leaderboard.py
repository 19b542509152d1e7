"""What the leaderboard needs of the database: few columns of many rows, and the scores of few."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any
from uuid import UUID

from pydantic import BaseModel
from sqlalchemy import String, Text, cast, func, select
from sqlalchemy.orm import Session
from sqlalchemy.sql.elements import ColumnElement

from morpheo.models import JobKind, JobState
from morpheo.standings import Chain
from morpheo.storage.tables import JobRow, SubmissionRow

#: Jobs in one statement: databases have limits.
_JOBS = 1000
_MAX = sys.float_info.max


class _Scores(BaseModel):
    """What is read of the scores of a job, which pydantic does several times faster than the standard library."""

    test_perf: dict[str, float]


class LeaderboardRepository:
    """Reads trained ranks and their scores, in one transaction."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def chains(self, problem: UUID) -> list[Chain]:
        """Return the chains of all algos of a problem, in the order of registration, with their trained ranks."""
        # Ids as text, and rows that are not objects of the ORM: either takes longer than to read 20,000 rows.
        trained = (
            select(cast(JobRow.algo_id, String), cast(JobRow.id, String), JobRow.rank, JobRow.train_files, JobRow.perf)
            .where(*_trained(problem))
            .order_by(JobRow.rank)
        )
        found: dict[str, tuple[list[Any], list[Any], list[Any], list[Any]]] = {}
        for algo, job, rank, train_files, perf in self._session.connection().execute(trained).all():
            jobs, ranks, files, scores = found.get(algo) or found.setdefault(algo, ([], [], [], []))
            jobs.append(job)
            ranks.append(rank)
            files.append(train_files)
            scores.append(perf)
        chains = {UUID(algo): columns for algo, columns in found.items()}
        submissions = (
            select(SubmissionRow.algo_id, SubmissionRow.name)
            .where(SubmissionRow.problem_id == problem)
            .order_by(SubmissionRow.created_at, SubmissionRow.algo_id)
        )
        return [_chain(algo, name, chains.get(algo)) for algo, name in self._session.connection().execute(submissions)]

    def state(self, problem: UUID) -> tuple[int, int]:
        """Return how many algos and trained ranks a problem has: its leaderboard is the same until these change."""
        algos = select(func.count()).select_from(SubmissionRow).where(SubmissionRow.problem_id == problem)
        ranks = select(func.count()).select_from(JobRow).where(*_trained(problem))
        return self._session.scalar(algos) or 0, self._session.scalar(ranks) or 0

    def test_perf(self, jobs: Sequence[UUID]) -> dict[UUID, dict[str, float]]:
        """Return, by job, the score of each test file by its id."""
        found: dict[UUID, dict[str, float]] = {}
        for start in range(0, len(jobs), _JOBS):
            query = select(JobRow.id, cast(JobRow.scores, Text)).where(JobRow.id.in_(jobs[start : start + _JOBS]))
            for job, scores in self._session.execute(query):
                found[job] = _Scores.model_validate_json(scores).test_perf
        return found


def _trained(problem: UUID) -> tuple[ColumnElement[bool], ...]:
    return (
        JobRow.problem_id == problem,
        JobRow.planned.is_(True),
        JobRow.kind == JobKind.LEARN.value,
        JobRow.state == JobState.SUCCEEDED.value,
        JobRow.perf.between(-_MAX, _MAX),  # neither NULL nor NaN
    )


def _chain(algo: UUID, name: str, columns: tuple[list[Any], list[Any], list[Any], list[Any]] | None) -> Chain:
    jobs, ranks, train_files, perf = columns or ((), (), (), ())
    return Chain(algo=algo, name=name, jobs=jobs, ranks=ranks, train_files=train_files, perf=perf)
