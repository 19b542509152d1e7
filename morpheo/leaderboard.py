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
import math
from collections.abc import Mapping, Sequence
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from morpheo.bootstrap import MIN_FILES, Scores, intervals, wins
from morpheo.challenges import Problem
from morpheo.standings import Chain, Entry, Leaderboard, LearningCurve, Spread

#: Decimals of all scores that are shown: more would tell submitters more of the hidden data than they need.
DECIMALS = 6
#: Scores of files beyond it count as this: their squares and sums have room then, and what is so bad is bad enough.
_HUGE = 1e30


def make_leaderboard(
    problem: Problem, chains: Sequence[Chain], test_perf: Mapping[UUID, Mapping[str, float]]
) -> Leaderboard:
    """
    Return the leaderboard of a problem.

    Args:
        problem: Says which scores are better, and on which files they are computed.
        chains: Of all its algos, in the order of registration.
        test_perf: By job, the score of each test file by its id, of the best rank of each chain.
    """
    sign = 1 if problem.higher_is_better else -1
    curves = _curves(chains)
    best = {
        row: position
        for row, chain in enumerate(chains)
        if (position := chain.best(higher_is_better=problem.higher_is_better)) is not None
    }
    order = sorted(best, key=lambda row: -sign * curves[row].perf[best[row]])
    places = _places([curves[row].perf[best[row]] for row in order])
    # By id, so that the order in which files were listed does not decide which of them are drawn.
    files = sorted(map(str, problem.test_data))
    scores = _matrix(files, [test_perf.get(UUID(chains[row].jobs[best[row]]), {}) for row in order])
    described = zip(_ranges(sign * scores, places), _describe(scores), strict=True)
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


def _curves(chains: Sequence[Chain]) -> list[LearningCurve]:
    perf = iter(_shown([value for chain in chains for value in chain.perf]))
    return [
        LearningCurve(
            ranks=tuple(chain.ranks),
            train_files=tuple(itertools.accumulate(chain.train_files)),
            perf=tuple(itertools.islice(perf, len(chain.ranks))),
        )
        for chain in chains
    ]


def _shown(values: Scores | list[float]) -> list[float]:
    """Return scores rounded; those that are too large to have decimals as they are."""
    exact = np.asarray(values, dtype=np.float64)
    rounded = np.clip(exact, -_HUGE, _HUGE).round(DECIMALS) + 0.0  # zero has no sign
    shown: list[float] = np.where(np.abs(exact) < 2.0**52 / 10**DECIMALS, rounded, exact).tolist()
    return shown


def _places(perf: Sequence[float]) -> list[int]:
    """Return the places of some scores, best first: 1, 1, 3 if the first two are equal."""
    places: list[int] = []
    for row, value in enumerate(perf):
        places.append(places[-1] if row and value == perf[row - 1] else row + 1)
    return places


def _matrix(files: Sequence[str], test_perf: Sequence[Mapping[str, float]]) -> Scores:
    """Return the score of each file for each entry, of shape (entries, files); NaN is none."""
    rows = (map(scores.get, files, itertools.repeat(math.nan)) for scores in test_perf)
    matrix = np.fromiter(itertools.chain.from_iterable(rows), dtype=np.float64, count=len(test_perf) * len(files))
    matrix[~np.isfinite(matrix)] = np.nan
    return np.clip(matrix, -_HUGE, _HUGE).reshape(len(test_perf), len(files))


def _complete(scores: Scores) -> NDArray[np.bool_]:
    """Return which entries have a score of every file."""
    complete: NDArray[np.bool_] = np.all(~np.isnan(scores), axis=1)
    return complete


def _ranges(scores: Scores, places: Sequence[int]) -> list[tuple[int, int]]:
    """Return first and last place of each entry; a higher score is better, and the best entry comes first."""
    complete = _complete(scores)
    place = np.array(places, dtype=np.int32)[complete]
    better = wins(scores[complete]) & (place[:, None] < place)
    first = np.ones(len(places), dtype=np.intp)
    last = np.full(len(places), len(places))
    first[complete] += better.sum(axis=0)
    last[complete] -= better.sum(axis=1)
    return list(zip(first.tolist(), last.tolist(), strict=True))


def _describe(scores: Scores) -> list[tuple[float | None, tuple[float, float] | None, Spread | None]]:
    """Return mean, interval and spread of each entry."""
    complete = _complete(scores)
    rows = scores[complete]
    ends: list[tuple[float, float] | None] = [None] * len(rows)
    if scores.shape[1] >= MIN_FILES:
        low, high = map(_shown, intervals(rows).T)
        ends = list(zip(low, high, strict=True))
    whole = zip(_shown(rows.mean(axis=1)), ends, _spreads(rows), strict=True)
    return [
        next(whole) if is_complete else (None, None, _spread(row[~np.isnan(row)]))
        for row, is_complete in zip(scores, complete, strict=True)
    ]


def _spread(scores: Scores) -> Spread | None:
    return _spreads(scores[None])[0] if len(scores) else None


def _spreads(scores: Scores) -> list[Spread]:
    """Return the spread of each row."""
    files = scores.shape[1]
    deviations: Sequence[float | None] = [None] * len(scores)
    if files > 1:
        deviations = _shown(scores.std(axis=1, ddof=1))
    columns = (scores.min(axis=1), np.median(scores, axis=1), scores.max(axis=1))
    return [
        Spread(files=files, sd=sd, min=lowest, median=median, max=highest)
        for sd, lowest, median, highest in zip(deviations, *map(_shown, columns), strict=True)
    ]
