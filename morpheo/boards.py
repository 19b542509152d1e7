"""
The leaderboards of an orchestrator, remembered.

Most requests find that nothing has changed, and most others that one algo was trained once more. What is in a chain
stays: a training that ended with a model is never taken back, and its scores never change. So how many there are of
each algo tells which chains have to be read again, whoever changed them.

Leaderboards are made of published scores (`morpheo.disclosure`), not only rounded when they are shown: whatever is
computed from them, such as a mean or a place, can then tell no more than they do.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING
from uuid import UUID

from morpheo.challenges import Problem
from morpheo.disclosure import rounded
from morpheo.standings import Chain, Leaderboard
from morpheo.storage.database import Database, UnitOfWork

if TYPE_CHECKING:
    from morpheo.leaderboard import Comparisons

#: With more algos than that to read again, all are read: it takes as long.
_MANY = 100


@dataclass(frozen=True, kw_only=True)
class _Known:
    """A leaderboard, and what it was made from."""

    #: By the `hex` of an algo's id, in the order of registration, how many of its trainings ended with a model.
    trained: dict[str, int]
    chains: dict[str, Chain]
    #: By job, of the best rank of each chain, the scores of test files.
    test_perf: dict[str, array[float]]
    comparisons: Comparisons
    board: Leaderboard
    #: Of the scores, after the decimal point.
    digits: int


class Boards:
    """
    Makes leaderboards, and remembers the last one of each problem.

    Args:
        database: Keeps the chains.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._known: dict[UUID, _Known] = {}

    def make_all(self) -> None:
        """Make the leaderboards of all problems, newest first, so that the first who asks need not wait for them."""
        with self._database.read() as work:
            problems = work.challenges.problems()
        for problem in reversed(problems):
            self.get(problem.id)

    def get(self, problem_id: UUID) -> Leaderboard:
        """
        Return the leaderboard of a problem as it is now.

        Raises:
            NotFound: there is no such problem.
        """
        with self._database.read() as work:
            problem = work.challenges.problem(problem_id)
            digits = problem.disclosure.score_digits
            known = self._known.get(problem_id)
            if known is not None and known.digits != digits:
                known = None
            trained = work.leaderboard.trained(problem_id)
            if known is not None and known.trained == trained:
                return known.board
            chains = _chains(work, problem, trained, known)
            test_perf = _test_perf(work, problem, list(chains.values()), known)
        from morpheo.leaderboard import Comparisons, make_leaderboard  # noqa: PLC0415 - numpy: 25 MB no worker needs

        comparisons = Comparisons() if known is None else known.comparisons
        board = make_leaderboard(problem, list(chains.values()), test_perf, comparisons)
        self._known[problem_id] = _Known(
            trained=trained, chains=chains, test_perf=test_perf, comparisons=comparisons, board=board, digits=digits
        )
        return board


def _chains(work: UnitOfWork, problem: Problem, trained: dict[str, int], known: _Known | None) -> dict[str, Chain]:
    """Return the chains of all algos, in the order of registration; those that have not grown as they are known."""
    changed = [algo for algo, count in trained.items() if known is None or known.trained.get(algo) != count]
    some = changed if known is not None and len(changed) <= _MANY else None
    digits = problem.disclosure.score_digits
    read = {
        chain.algo.hex: replace(chain, perf=[rounded(value, digits) for value in chain.perf])
        for chain in work.leaderboard.chains(problem.id, some)
    }
    old = {} if known is None else known.chains
    return {algo: read.get(algo) or old[algo] for algo in trained}


def _test_perf(
    work: UnitOfWork, problem: Problem, chains: list[Chain], known: _Known | None
) -> dict[str, array[float]]:
    best = [(chain, chain.best(higher_is_better=problem.higher_is_better)) for chain in chains]
    jobs = [chain.jobs[position] for chain, position in best if position is not None]
    old = {} if known is None else known.test_perf
    digits = problem.disclosure.score_digits
    read = {
        job: array("d", [rounded(value, digits) for value in scores])
        for job, scores in work.leaderboard.test_perf(
            [job for job in jobs if job not in old], problem.test_data
        ).items()
    }
    return {job: old[job] if job in old else read[job] for job in jobs}
