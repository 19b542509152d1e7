"""
What chance does to mean scores: the paired bootstrap over test files.

Test files are drawn with replacement, as many as there are, `RESAMPLES` times, and every algo is scored on the same
draws: what a hard file does to all of them cancels out in their differences (Koehn 2004, "Statistical Significance
Tests for Machine Translation Evaluation"; for rankings of challenges, Wiesenfarth et al. 2021, "Methods and open-source
toolkit for analyzing and visualizing challenge results"). An interval has the middle of the drawn means (Efron and
Tibshirani 1993, "An Introduction to the Bootstrap", section 13.3), at a level that makes up for few files (`tail`).

The draws come from a fixed seed: the same scores give the same numbers, on the same version of numpy. Scores are added
as whole numbers, which a float holds exactly: how two algos compare does not depend on which others there are, nor on
the order in which a processor adds, and can be kept while others change.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

#: Rows are algos, columns are test files.
Scores = NDArray[np.float64]
#: Rows are algos, columns are draws.
Sums = NDArray[np.float64]
#: Which row is better than which column.
Won = NDArray[np.bool_]
_Rows = NDArray[np.intp]

LEVEL = 0.95
RESAMPLES = 1000
#: With fewer files, no test of two algos that assumes nothing of their scores can reach the level: the chance that one
#: of two equals is better on all of n files is 2 to the 1 - n.
MIN_FILES = 6
#: Two means that differ by less do not differ: scores are shown to this precision.
RESOLUTION = 1e-6
#: Binary digits of a score that is 1, after the point.
_BITS = 30

_SEED = 20170401
#: Draws in which two algos are compared first: those in which the better one is at its worst. A byte can count them.
_FIRST = 100
#: Not worth it for an algo that has to be compared with fewer others.
_FEW = 64
#: Of about so many algos, what is usual in a draw is found out.
_USUAL = 64
#: Pairs compared at once, as many as a processor's cache holds.
_PAIRS = 256


def tail(files: int) -> int:
    """
    Return how many draws an interval leaves out at each end.

    The plain 2.5 % make intervals that are too short by the factor of a population's standard deviation and of the
    normal distribution in place of Student's; the expanded percentile interval (Hesterberg 2015, "What Teachers Should
    Know About the Bootstrap", section 3.2) leaves out less. Student's quantile is Abramowitz and Stegun's 26.7.5.
    """
    normal = NormalDist()
    z, v = normal.inv_cdf((1 + LEVEL) / 2), files - 1
    t = z + (z**3 + z) / (4 * v) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
    t += (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
    return int(RESAMPLES * normal.cdf(-math.sqrt(files / v) * t))


def unit_of(scores: Scores) -> float:
    """Return the step to which scores are rounded: 2 to the -30, or that part of what is usual if it is more than 1."""
    usual = max(1.0, float(np.median(np.abs(scores)))) if scores.size else 1.0
    return math.ldexp(1.0, math.ceil(math.log2(usual)) - _BITS)


def draw(scores: Scores, unit: float) -> Sums:
    """
    Return the sum of the scores of each draw, in units: whole numbers, of shape (algos, `RESAMPLES`).

    Args:
        scores: Those that are thousands of times what is usual count as less, so that a sum stays exact.
        unit: As of `unit_of`.
    """
    files = scores.shape[1]
    most = 2**52 // files
    sums: Sums = np.rint(np.clip(scores / unit, -most, most)) @ _counts(files).T
    return sums


def intervals(sums: Sums, files: int, unit: float) -> Scores:
    """
    Return the interval of each algo's mean score, low and high, of shape (algos, 2).

    Args:
        sums: As of `draw`.
        files: Of which there are at least two.
        unit: Of the sums.
    """
    ends = [tail(files), RESAMPLES - 1 - tail(files)]
    ordered: Scores = np.partition(sums, ends, axis=1)[:, ends] * (unit / files)
    return ordered


def wins(sums: Sums, files: int, unit: float) -> Won:
    """
    Return which algo is significantly better than which that comes after it, of shape (algos, algos).

    That is, the interval of the difference of their means is above zero: at most `tail` of the draws favour the other.

    Args:
        sums: As of `draw`; a higher one is better.
        files: With fewer than `MIN_FILES`, nobody wins.
        unit: Of the sums.
    """
    count = len(sums)
    if count == 0 or files < MIN_FILES:
        return np.zeros((count, count), dtype=np.bool_)
    allowed, slack = tail(files), _slack(files, unit)
    # Relative to what is usual in each draw, so that algos that are far apart can be told without looking at each.
    sums = sums - np.rint(np.median(sums[:: 1 + count // _USUAL], axis=0))
    # Two intervals of half the level that do not overlap leave no more draws than are allowed: no need to count.
    ordered = np.sort(sums, axis=1)
    low = ordered[:, allowed // 2] - slack
    high = ordered[:, RESAMPLES - 1 - (allowed - allowed // 2)]
    won = np.triu(high < low[:, None], k=1)
    level = sums - slack
    lost, limit = _first_losses(sums, level, np.triu(~won, k=1))
    better, other = np.nonzero(lost <= allowed)
    # In any other draw the first is above its limit, so the second can come up to it only where it is above that, too.
    spare = allowed - lost[better, other].astype(np.intp)
    sure = ordered[other, RESAMPLES - 1 - spare] < limit[better]
    sure[~sure] = _losses(sums, level, better[~sure], other[~sure]) <= allowed
    won[better[sure], other[sure]] = True
    return won


def compare_again(won: Won, sums: Sums, rows: Sequence[int], files: int, unit: float) -> None:
    """Write into what `wins` returned how some algos compare with all others; with too few files, nobody wins."""
    if files < MIN_FILES:
        return
    allowed, slack = tail(files), _slack(files, unit)
    for row in rows:
        won[row, row + 1 :] = np.count_nonzero(sums[row + 1 :] >= sums[row] - slack, axis=1) <= allowed
        won[:row, row] = np.count_nonzero(sums[:row] <= sums[row] + slack, axis=1) <= allowed


def _slack(files: int, unit: float) -> float:
    """Return by how many units two sums may differ that do not."""
    return float(math.floor(RESOLUTION * files / unit))


def _first_losses(sums: Sums, level: Sums, undecided: Won) -> tuple[NDArray[np.uint8], Sums]:
    """
    Compare algos with many others in the draws in which their own level is lowest.

    Most pairs that cannot be told apart are known after these few.

    Returns:
        In how many of these draws the second of a pair comes up to the first, of shape (algos, algos), 255 for pairs
        that are decided; and for each algo the least level that it has in any other draw, or less.
    """
    lost = np.where(undecided, np.uint8(0), np.uint8(255))
    limit = np.full(len(sums), -np.inf)
    rows = np.flatnonzero(np.count_nonzero(undecided, axis=1) >= _FEW)
    draws = np.argpartition(level[rows], _FIRST, axis=1)[:, : _FIRST + 1]
    levels = np.take_along_axis(level[rows], draws, axis=1)
    limit[rows] = levels[:, _FIRST]
    # Nearly all that are between the first and the last are undecided: algos that are alike are side by side.
    starts = undecided[rows].argmax(axis=1)
    stops = undecided.shape[1] - undecided[rows, ::-1].argmax(axis=1)
    by_draw = np.ascontiguousarray(sums.T)
    for position, (row, start, stop) in enumerate(zip(rows.tolist(), starts.tolist(), stops.tolist(), strict=True)):
        up = by_draw[draws[position, :_FIRST], start:stop] >= levels[position, :_FIRST, None]
        lost[row, start:stop] |= up.view(np.uint8).sum(axis=0, dtype=np.uint8)  # 255 stays
    return lost, limit


def _losses(sums: Sums, level: Sums, better: _Rows, other: _Rows) -> _Rows:
    """Return for each pair of rows in how many draws the second comes up to the first."""
    lost = np.empty(len(better), dtype=np.intp)
    for start in range(0, len(better), _PAIRS):
        some = slice(start, start + _PAIRS)
        up = sums.take(other[some], axis=0) >= level.take(better[some], axis=0)
        # Eight at a time, each in a byte of its own.
        eights = up.view(np.uint64).sum(axis=1)
        lost[some] = eights.view(np.uint8).reshape(-1, 8).sum(axis=1, dtype=np.intp)
    return lost


def _counts(files: int) -> NDArray[np.float64]:
    """Return how often each file is in each draw, of shape (draws, files)."""
    drawn = np.random.default_rng(_SEED).integers(files, size=(RESAMPLES, files))
    drawn += np.arange(RESAMPLES)[:, None] * files
    counts = np.bincount(drawn.ravel(), minlength=RESAMPLES * files).reshape(RESAMPLES, files)
    return counts.astype(np.float64)
