"""
What a leaderboard says. How it is computed is in `morpheo.leaderboard`.

Only the standard library is imported here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from uuid import UUID


@dataclass(frozen=True, kw_only=True)
class Chain:
    """The ranks of an algo that ended with a model, in their order; each sequence has one item for each of them."""

    algo: UUID
    name: str
    #: Ids of the jobs, as text of the database: 20,000 UUIDs take long to make.
    jobs: Sequence[str] = ()
    ranks: Sequence[int] = ()
    #: Files that the rank itself trained on.
    train_files: Sequence[int] = ()
    #: Finite.
    perf: Sequence[float] = ()

    def best(self, *, higher_is_better: bool) -> int | None:
        """Return the position of the best score, of equals the first; None if there is none."""
        return self.perf.index((max if higher_is_better else min)(self.perf)) if self.perf else None


@dataclass(frozen=True, kw_only=True)
class Spread:
    """How the scores of single test files differ."""

    files: int
    #: Standard deviation of a sample; None for one file.
    sd: float | None
    min: float
    median: float
    max: float


@dataclass(frozen=True, kw_only=True)
class LearningCurve:
    """Score against data: one item for each rank that ended with a model, in their order."""

    ranks: tuple[int, ...] = ()
    #: Files that this rank and those before it trained on.
    train_files: tuple[int, ...] = ()
    perf: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Entry:
    """An algo on a leaderboard. What is None before its first score is so for all of `place` to `spread`."""

    algo: UUID
    name: str
    #: How many of its trainings ended with a model.
    trainings: int = 0
    curve: LearningCurve = field(default_factory=LearningCurve)
    #: 1 is the best; equal scores have equal places.
    place: int | None = None
    #: First and last of the places that cannot be told apart from its own.
    range: tuple[int, int] | None = None
    #: The best.
    perf: float | None = None
    #: In which it has its best score.
    rank: int | None = None
    #: Of the scores of all test files; None if it lacks one.
    mean: float | None = None
    #: 95 % bootstrap interval of `mean`; None if it lacks a score, or if there are fewer than 6 files.
    interval: tuple[float, float] | None = None
    #: None if it has no scores of single files.
    spread: Spread | None = None

    @property
    def places(self) -> str:
        """Its range in words: ``1-3``, or ``2`` if it is told apart from all others, or nothing without a score."""
        return "" if self.range is None else "-".join(map(str, sorted(set(self.range))))


@dataclass(frozen=True, kw_only=True)
class Leaderboard:
    """All algos of a problem, best first; those without a score come last, in the order of registration."""

    problem: UUID
    higher_is_better: bool
    #: In the test data of the problem.
    test_files: int
    entries: tuple[Entry, ...]
