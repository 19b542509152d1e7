"""
Computes the leaderboard of a problem: who is how good, and how sure that is.

An algo counts with its best rank by ``perf``, whose model is the one that predicts. Its interval is of the mean of its
scores of single test files, which is not ``perf`` for a metric that is no mean, such as one that is pooled over files.
So one entry is *better* than another only if its ``perf`` is and the interval of the paired difference of their means
(`morpheo.bootstrap`) says the same.

The range of an entry is from 1 + the number of entries that are better to the number of entries that are not worse
(Mogstad, Romano, Shaikh and Wilhelm 2024, "Inference for Ranks with Applications to Mobility across Neighbourhoods and
Academic Achievement across Countries", section 3). It always has the entry's own place in it. The level is that of each
comparison, not of all of them together: of 1,000 equal algos, some seem better than some others.

Only scores of files of the test data count. An entry that lacks one of them is told apart from no other.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from morpheo.bootstrap import MIN_FILES, Scores, Sums, Won, compare_again, draw, intervals, unit_of, wins
from morpheo.challenges import Problem
from morpheo.standings import Chain, Entry, Leaderboard, LearningCurve, Spread

#: Scores of files beyond it count as this: their squares and sums have room then, and what is so bad is bad enough.
_HUGE = 1e30
#: With more new entries than that, all are compared anew: it takes as long.
_MANY = 16


@dataclass(frozen=True, kw_only=True, eq=False)
class Comparison:
    """How the entries compare that have a score of every test file: what need not be computed again."""

    #: Of their scores, best entry first.
    jobs: tuple[str, ...]
    files: int
    unit: float
    sums: Sums
    won: Won


class Comparisons:
    """Remembers how entries of one problem compared last."""

    def __init__(self) -> None:
        self._last: Comparison | None = None

    def compare(self, jobs: Sequence[str], scores: Scores) -> Comparison:
        """
        Compare entries, those that were compared last only with those that were not.

        Args:
            jobs: Which the scores are of; those that were there last have the order that they had.
            scores: Of the same test files as last; a higher one is better.
        """
        files, unit, before = scores.shape[1], unit_of(scores), self._last
        known = before if before is not None and before.unit == unit else None
        old = {job: row for row, job in enumerate(known.jobs)} if known else {}
        fresh = [row for row, job in enumerate(jobs) if job not in old]
        if known is None or not old or len(fresh) > _MANY:
            sums = draw(scores, unit)
            won = wins(sums, files, unit)
        else:
            rows = [old.get(job, 0) for job in jobs]
            sums, won = known.sums[rows], known.won[np.ix_(rows, rows)]
            sums[fresh] = draw(scores[fresh], unit)
            compare_again(won, sums, fresh, files, unit)
        self._last = Comparison(jobs=tuple(jobs), files=files, unit=unit, sums=sums, won=won)
        return self._last


def make_leaderboard(
    problem: Problem,
    chains: Sequence[Chain],
    test_perf: Mapping[str, Sequence[float]],
    comparisons: Comparisons | None = None,
) -> Leaderboard:
    """
    Return the leaderboard of a problem.

    Args:
        problem: Says which scores are better, on which files they are computed, and how many of their digits are shown.
        chains: Of all its algos, in the order of registration.
        test_perf: By job, of the best rank of each chain, the score of each test file in the problem's order of
            them; NaN is none.
        comparisons: Remembers those of the last leaderboard of the problem, and now of this one.
    """
    sign = 1 if problem.higher_is_better else -1
    digits = problem.disclosure.score_digits
    curves = _curves(chains, digits)
    best = {
        row: position
        for row, chain in enumerate(chains)
        if (position := chain.best(higher_is_better=problem.higher_is_better)) is not None
    }
    order = sorted(best, key=lambda row: -sign * curves[row].perf[best[row]])
    places = _places([curves[row].perf[best[row]] for row in order])
    jobs = [chains[row].jobs[best[row]] for row in order]
    scores = _matrix(problem, [test_perf[job] for job in jobs])
    complete = np.all(~np.isnan(scores), axis=1)
    compared = (comparisons or Comparisons()).compare(
        list(itertools.compress(jobs, complete.tolist())), sign * scores[complete]
    )
    descriptions = _describe(scores, complete, sign, compared, digits)
    described = zip(_ranges(compared.won, complete, places), descriptions, strict=True)
    entries = [
        _entry(chains[row], curves[row], best[row], place, span, description)
        for row, place, (span, description) in zip(order, places, described, strict=True)
    ]
    entries += [Entry(algo=chain.algo, name=chain.name) for row, chain in enumerate(chains) if row not in best]
    return Leaderboard(
        problem=problem.id,
        higher_is_better=problem.higher_is_better,
        test_files=len(problem.test_data),
        entries=tuple(entries),
    )


def _entry(
    chain: Chain,
    curve: LearningCurve,
    best: int,
    place: int,
    span: tuple[int, int],
    description: tuple[float | None, tuple[float, float] | None, Spread | None],
) -> Entry:
    mean, interval, spread = description
    return Entry(
        algo=chain.algo,
        name=chain.name,
        trainings=len(chain.ranks),
        curve=curve,
        place=place,
        range=span,
        perf=curve.perf[best],
        rank=chain.ranks[best],
        mean=mean,
        interval=interval,
        spread=spread,
    )


def _curves(chains: Sequence[Chain], digits: int) -> list[LearningCurve]:
    perf = iter(_shown([value for chain in chains for value in chain.perf], digits))
    return [
        LearningCurve(
            ranks=tuple(chain.ranks),
            train_files=tuple(itertools.accumulate(chain.train_files)),
            perf=tuple(itertools.islice(perf, len(chain.ranks))),
        )
        for chain in chains
    ]


def _shown(values: Scores | list[float], digits: int) -> list[float]:
    """Return scores rounded to so many decimals; those that are too large to have any as they are."""
    exact = np.asarray(values, dtype=np.float64)
    rounded = np.clip(exact, -_HUGE, _HUGE).round(digits) + 0.0  # zero has no sign
    shown: list[float] = np.where(np.abs(exact) < 2.0**52 / 10**digits, rounded, exact).tolist()
    return shown


def _places(perf: Sequence[float]) -> list[int]:
    """Return the places of some scores, best first: 1, 1, 3 if the first two are equal."""
    places: list[int] = []
    for row, value in enumerate(perf):
        places.append(places[-1] if row and value == perf[row - 1] else row + 1)
    return places


def _matrix(problem: Problem, test_perf: Sequence[Sequence[float]]) -> Scores:
    """Return the score of each file for each entry, of shape (entries, files); NaN is none."""
    files = problem.test_data
    matrix = np.array(test_perf, dtype=np.float64).reshape(len(test_perf), len(files))
    matrix[~np.isfinite(matrix)] = np.nan
    # By id, so that the order in which files were listed does not decide which of them are drawn.
    by_id = sorted(range(len(files)), key=lambda column: str(files[column]))
    return np.clip(matrix[:, by_id], -_HUGE, _HUGE)


def _ranges(won: Won, complete: NDArray[np.bool_], places: Sequence[int]) -> list[tuple[int, int]]:
    """Return first and last place of each entry, best first, of which those that are complete were compared."""
    place = np.array(places, dtype=np.int32)[complete]
    better = won & (place[:, None] < place)
    first = np.ones(len(places), dtype=np.intp)
    last = np.full(len(places), len(places))
    first[complete] += better.sum(axis=0)
    last[complete] -= better.sum(axis=1)
    return list(zip(first.tolist(), last.tolist(), strict=True))


def _describe(
    scores: Scores, complete: NDArray[np.bool_], sign: int, compared: Comparison, digits: int
) -> list[tuple[float | None, tuple[float, float] | None, Spread | None]]:
    """Return mean, interval and spread of each entry."""
    rows = scores[complete]
    ends: list[tuple[float, float] | None] = [None] * len(rows)
    if scores.shape[1] >= MIN_FILES:
        both = np.sort(sign * intervals(compared.sums, compared.files, compared.unit))
        low, high = (_shown(ends_of_all, digits) for ends_of_all in both.T)
        ends = list(zip(low, high, strict=True))
    whole = zip(_shown(rows.mean(axis=1), digits), ends, _spreads(rows, digits), strict=True)
    return [
        next(whole) if is_complete else (None, None, _spread(row[~np.isnan(row)], digits))
        for row, is_complete in zip(scores, complete, strict=True)
    ]


def _spread(scores: Scores, digits: int) -> Spread | None:
    return _spreads(scores[None], digits)[0] if len(scores) else None


def _spreads(scores: Scores, digits: int) -> list[Spread]:
    """Return the spread of each row."""
    files = scores.shape[1]
    deviations: Sequence[float | None] = [None] * len(scores)
    if files > 1:
        deviations = _shown(scores.std(axis=1, ddof=1), digits)
    columns = (scores.min(axis=1), np.median(scores, axis=1), scores.max(axis=1))
    return [
        Spread(files=files, sd=sd, min=lowest, median=median, max=highest)
        for sd, lowest, median, highest in zip(deviations, *(_shown(column, digits) for column in columns), strict=True)
    ]
