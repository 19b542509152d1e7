"""
What chance does to mean scores: the paired bootstrap over test files.

Test files are drawn with replacement, as many as there are, `RESAMPLES` times, and every algo is scored on the same
draws: what a hard file does to all of them cancels out in their differences (Koehn 2004, "Statistical Significance
Tests for Machine Translation Evaluation"; for rankings of challenges, Wiesenfarth et al. 2021, "Methods and open-source
toolkit for analyzing and visualizing challenge results"). An interval has the middle of the drawn means (Efron and
Tibshirani 1993, "An Introduction to the Bootstrap", section 13.3), at a level that makes up for few files (`tail`).

The draws come from a fixed seed: the same scores give the same numbers, on the same version of numpy.
"""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

#: Rows are algos, columns are test files.
Scores = NDArray[np.float64]
_Rows = NDArray[np.intp]

LEVEL = 0.95
RESAMPLES = 1000
#: With fewer files, no test of two algos that assumes nothing of their scores can reach the level: the chance that one
#: of two equals is better on all of n files is 2 to the 1 - n.
MIN_FILES = 6
#: Two means that differ by less do not differ: scores are shown to this precision.
RESOLUTION = 1e-6

_SEED = 20170401
#: Draws compared at once: a byte can count them, and most pairs that chance can turn are known after the first ones.
_DRAWS = 250
#: Pairs compared at once, as many as a processor's cache holds.
_PAIRS = 1024


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


def intervals(scores: Scores) -> Scores:
    """
    Return the interval of each algo's mean score, low and high, of shape (algos, 2).

    Args:
        scores: Of at least two files.
    """
    mean = scores.mean(axis=1, keepdims=True)
    off = np.sort((scores - mean).astype(np.float32) @ _weights(scores.shape[1]).T, axis=1)
    cut = tail(scores.shape[1])
    ends: Scores = mean + off[:, [cut, RESAMPLES - 1 - cut]]
    return ends


def wins(scores: Scores) -> NDArray[np.bool_]:
    """
    Return which algo is significantly better than which that comes after it, of shape (algos, algos).

    That is, the interval of the difference of their means is above zero: at most `tail` of the draws favour the other.

    Args:
        scores: A higher one is better; of magnitudes below 1e38. With fewer files than `MIN_FILES`, nobody wins.
    """
    count, files = scores.shape
    if count == 0 or files < MIN_FILES:
        return np.zeros((count, count), dtype=np.bool_)
    allowed = tail(files)
    means = _relative_means(scores)
    # Two intervals of half the level that do not overlap leave no more draws than are allowed: no need to count.
    ordered = np.sort(means, axis=1)
    low = ordered[:, allowed // 2] - np.float32(RESOLUTION)
    high = ordered[:, RESAMPLES - 1 - (allowed - allowed // 2)]
    won = np.triu(high < low[:, None], k=1)
    better, other = _beaten(means, *np.nonzero(np.triu(~won, k=1)), allowed=allowed)
    won[better, other] = True
    return won


def _beaten(means: NDArray[np.float32], better: _Rows, other: _Rows, *, allowed: int) -> tuple[_Rows, _Rows]:
    """Return those pairs of rows whose second comes up to the first in no more draws than are allowed."""
    lost = np.zeros(len(better), dtype=np.intp)
    for start in range(0, RESAMPLES, _DRAWS):
        block = np.ascontiguousarray(means[:, start : start + _DRAWS])
        level = block - np.float32(RESOLUTION)
        for first in range(0, len(better), _PAIRS):
            some = slice(first, first + _PAIRS)
            up = block.take(other[some], axis=0) >= level.take(better[some], axis=0)
            lost[some] += up.view(np.uint8).sum(axis=1, dtype=np.uint8)
        left = lost <= allowed
        better, other, lost = better[left], other[left], lost[left]
    return better, other


def _relative_means(scores: Scores) -> NDArray[np.float32]:
    """
    Return the mean of each draw, of shape (algos, draws), relative to what is usual for its files.

    Differences stay as they are. What files do to all algos is gone, so that algos that are far apart can be told
    without looking at each draw, and 32 bits are precise enough.
    """
    relative = (scores - np.median(scores, axis=0)).astype(np.float32)
    means: NDArray[np.float32] = relative @ _weights(scores.shape[1]).T
    return means


def _weights(files: int) -> NDArray[np.float32]:
    """Return how often each file is in each draw, as a share of the draw, of shape (draws, files)."""
    drawn = np.random.default_rng(_SEED).integers(files, size=(RESAMPLES, files))
    drawn += np.arange(RESAMPLES)[:, None] * files
    counts = np.bincount(drawn.ravel(), minlength=RESAMPLES * files).reshape(RESAMPLES, files)
    return (counts / files).astype(np.float32)
