"""What the leaderboard needs of the database: few columns of many rows, and the scores of few."""

from __future__ import annotations

import math
import sys
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import repeat
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
_ROWS = 500
_MAX = sys.float_info.max


class _Scores(BaseModel):
    """What is read of the scores of a job, which pydantic does several times faster than the standard library."""

    test_perf: dict[str, float]


class LeaderboardRepository:
    """Reads trained ranks and their scores, in one transaction."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def trained(self, problem: UUID) -> dict[str, int]:
        """Return how many trained ranks each algo of a problem has, in the order of registration, by its id's `hex`."""
        ranks = select(cast(JobRow.algo_id, String), func.count()).where(*_trained(problem)).group_by(JobRow.algo_id)
        counts = {str(algo): count for algo, count in self._session.connection().execute(ranks)}
        return {_hex(algo): counts.get(algo, 0) for algo, _ in self._submissions(problem)}

    def chains(self, problem: UUID, only: Iterable[str] | None = None) -> list[Chain]:
        """
        Return chains with their trained ranks, in the order in which their algos were registered.

        Args:
            problem: Of which problem.
            only: Those of the algos whose `hex` these are, if given.
        """
        some = None if only is None else set(only)
        # Ids as text, and rows that are not objects of the ORM: either takes longer than to read 20,000 rows.
        trained = (
            select(cast(JobRow.algo_id, String), cast(JobRow.id, String), JobRow.rank, JobRow.train_files, JobRow.perf)
            .where(*_trained(problem))
            .order_by(JobRow.algo_id, JobRow.rank)
        )
        algos: list[str] = []
        columns: list[list[Any]] = [[], [], [], []]
        if some is not None:
            trained = trained.where(JobRow.algo_id.in_(list(map(UUID, some))))
        # In parts, of which few are there at once: else Python looks through 20,000 rows for garbage, again and again.
        for rows in self._session.connection().execute(trained).partitions(_ROWS):
            part, *more = zip(*rows, strict=True)
            algos.extend(part)
            for column, values in zip(columns, more, strict=True):
                column.extend(values)
        chains: dict[str, list[list[Any]]] = {}
        first = 0
        for algo, count in Counter(algos).items():
            chains[algo] = [column[first : first + count] for column in columns]
            first += count
        return [
            _chain(UUID(algo), name, chains.get(algo))
            for algo, name in self._submissions(problem)
            if some is None or _hex(algo) in some
        ]

    def _submissions(self, problem: UUID) -> list[tuple[str, str]]:
        query = (
            select(cast(SubmissionRow.algo_id, String), SubmissionRow.name)
            .where(SubmissionRow.problem_id == problem)
            .order_by(SubmissionRow.created_at, SubmissionRow.algo_id)
        )
        return [(algo, name) for algo, name in self._session.connection().execute(query)]

    def test_perf(self, jobs: Sequence[str], files: Sequence[UUID]) -> dict[str, array[float]]:
        """Return, by job, the scores of test files in the order of these; NaN for one that it does not have."""
        names = list(map(str, files))
        found: dict[str, array[float]] = {}
        for start in range(0, len(jobs), _JOBS):
            ids = list(map(UUID, jobs[start : start + _JOBS]))
            query = select(cast(JobRow.id, String), cast(JobRow.scores, Text)).where(JobRow.id.in_(ids))
            for job, scores in self._session.connection().execute(query):
                # An array of floats at once: to keep the texts of 100,000 ids takes longer than to parse them.
                test_perf = _Scores.model_validate_json(scores).test_perf
                found[job] = array("d", map(test_perf.get, names, repeat(math.nan)))
        return found


def _trained(problem: UUID) -> tuple[ColumnElement[bool], ...]:
    return (
        JobRow.problem_id == problem,
        JobRow.planned.is_(True),
        JobRow.kind == JobKind.LEARN.value,
        JobRow.state == JobState.SUCCEEDED.value,
        JobRow.perf.between(-_MAX, _MAX),  # neither NULL nor NaN
    )


def _hex(algo: str) -> str:
    """Return an id without the hyphens that PostgreSQL has in it, as `UUID.hex`."""
    return algo.replace("-", "")


def _chain(algo: UUID, name: str, columns: list[list[Any]] | None) -> Chain:
    jobs, ranks, train_files, perf = columns or ([], [], [], [])
    return Chain(algo=algo, name=name, jobs=jobs, ranks=ranks, train_files=train_files, perf=perf)
