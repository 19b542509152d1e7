"""The leaderboard: against a slow computation of the same, and what must hold whatever the scores are."""

from __future__ import annotations

import dataclasses
import itertools
import math
from datetime import UTC, datetime
from uuid import UUID, uuid5

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from morpheo import bootstrap
from morpheo.bootstrap import MIN_FILES, RESAMPLES, RESOLUTION, tail
from morpheo.challenges import Problem
from morpheo.leaderboard import Comparisons, make_leaderboard
from morpheo.standings import Chain, Entry, Leaderboard

SPACE = UUID(int=4)


def make_id(name: object) -> UUID:
    return uuid5(SPACE, str(name))


def make_problem(files: int, *, higher_is_better: bool = True) -> Problem:
    return Problem(
        id=make_id("problem"),
        workflow=make_id("workflow"),
        test_data=tuple(make_id(f"file {number}") for number in range(files)),
        batch_size=1,
        higher_is_better=higher_is_better,
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
    )


def board_of(
    scores: list[list[float]], *, higher_is_better: bool = True, perf: list[float] | None = None
) -> Leaderboard:
    """Return the board of algos with one rank each, whose perf is the mean unless told otherwise."""
    problem = make_problem(len(scores[0]), higher_is_better=higher_is_better)
    chains = [
        Chain(
            algo=make_id(number),
            name=f"algo {number}",
            jobs=(str(make_id(f"job {number}")),),
            ranks=(0,),
            train_files=(1,),
            perf=(float(np.mean(row)) if perf is None else perf[number],),
        )
        for number, row in enumerate(scores)
    ]
    test_perf = {str(make_id(f"job {number}")): row for number, row in enumerate(scores)}
    return make_leaderboard(problem, chains, test_perf)


def by_algo(board: Leaderboard) -> dict[UUID, Entry]:
    return {entry.algo: entry for entry in board.entries}


def slow_draws(files: int) -> list[list[int]]:
    draws: list[list[int]] = np.random.default_rng(20170401).integers(files, size=(RESAMPLES, files)).tolist()
    return draws


def slow_interval(values: list[float], cut: int) -> tuple[float, float]:
    """Return the interval of a mean, with loops."""
    means = sorted(sum(values[file] for file in draw) / len(draw) for draw in slow_draws(len(values)))
    return means[cut], means[RESAMPLES - 1 - cut]


def wins(scores: bootstrap.Scores) -> bootstrap.Won:
    """Return which algo is better than which that comes after it."""
    unit = bootstrap.unit_of(scores)
    return bootstrap.wins(bootstrap.draw(scores, unit), scores.shape[1], unit)


def intervals(scores: bootstrap.Scores) -> bootstrap.Scores:
    unit = bootstrap.unit_of(scores)
    return bootstrap.intervals(bootstrap.draw(scores, unit), scores.shape[1], unit)


def random_scores(algos: int, files: int, *, skill: float = 0.1, seed: int = 0) -> list[list[float]]:
    """Return scores of files that are more or less hard, best algo first."""
    random = np.random.default_rng(seed)
    scores = (
        random.normal(size=(algos, files)) * 0.2 + random.normal(size=files) + random.normal(size=(algos, 1)) * skill
    )
    rows: list[list[float]] = scores[np.argsort(-scores.mean(axis=1))].tolist()
    return rows


def test_intervals_are_those_of_the_slow_computation() -> None:
    scores = random_scores(4, 20)
    expected = [slow_interval(row, tail(20)) for row in scores]
    assert intervals(np.array(scores)) == pytest.approx(np.array(expected), abs=1e-6)


@pytest.mark.parametrize(("files", "skill"), [(8, 0.2), (30, 0.02), (30, 0.1), (30, 1.0)])
def test_wins_are_those_of_the_slow_computation(files: int, skill: float) -> None:
    scores = random_scores(12, files, skill=skill)
    won = wins(np.array(scores))
    for better, other in itertools.combinations(range(12), 2):
        differences = [a - b for a, b in zip(scores[better], scores[other], strict=True)]
        low, _ = slow_interval(differences, tail(files))
        assert won[better, other] == (low > RESOLUTION), (better, other, low)
    assert not np.tril(won).any()


@pytest.mark.parametrize("skill", [0.0, 0.05, 0.2, 2.0])
@pytest.mark.parametrize("files", [6, 100])
def test_wins_are_those_of_counting_all_draws(files: int, skill: float) -> None:
    """Of many algos, for each pair: which of all the shortcuts decides does not matter."""
    scores = np.array(random_scores(150, files, skill=skill))
    means = scores[:, slow_draws(files)].mean(axis=2)
    won = wins(scores)
    for better in range(150):
        lost = np.sum(means[better] - means[better + 1 :] <= RESOLUTION, axis=1)
        assert (won[better, better + 1 :] == (lost <= tail(files))).all()
    assert not np.tril(won).any()
    assert won.any() or files == 6


def test_pairs_are_compared_alike_in_one_piece_and_in_many(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = np.array(random_scores(60, 25))
    expected = wins(scores)
    assert 0 < expected.sum() < 60 * 59 / 2
    monkeypatch.setattr(bootstrap, "_PAIRS", 7)
    monkeypatch.setattr(bootstrap, "_FIRST", 30)
    assert (wins(scores) == expected).all()
    monkeypatch.setattr(bootstrap, "_FEW", 1)
    assert (wins(scores) == expected).all()


def test_the_level_makes_up_for_few_files() -> None:
    # Against tables: Student's quantiles 2.571, 2.262 and 1.984 for 5, 9 and 99 degrees of freedom.
    assert [tail(files) for files in (6, 10, 100, 10_000)] == [2, 8, 23, 24]


@pytest.mark.parametrize(("files", "most"), [(6, 0.08), (10, 0.065), (30, 0.06), (100, 0.06)])
def test_equals_are_seldom_told_apart(files: int, most: float) -> None:
    """The interval of the difference of two equals leaves zero out in little more than 5 % of all cases."""
    low, high = intervals(np.random.default_rng(1).normal(size=(4000, files))).T
    assert 0.04 < np.mean((low > 0) | (high < 0)) < most


def test_intervals_hold_the_mean_as_often_as_they_say() -> None:
    random = np.random.default_rng(2)
    low, high = intervals(random.normal(loc=3, size=(4000, 20))).T
    assert 0.94 < np.mean((low < 3) & (high > 3)) < 0.97


def test_the_paired_comparison_sees_what_intervals_hide() -> None:
    """Two algos on files that are very different, one of which is a little better on each."""
    random = np.random.default_rng(3)
    hardness = random.normal(size=40)
    first, second = by_algo(
        board_of([(hardness + random.normal(scale=0.01, size=40)).tolist(), (hardness - 0.05).tolist()])
    ).values()
    assert (first.range, second.range) == ((1, 1), (2, 2))
    assert first.interval is not None
    assert second.interval is not None
    assert first.interval[0] < second.interval[1]


matrices = st.integers(2, 9).flatmap(
    lambda files: st.lists(st.lists(st.floats(-1, 1, width=16), min_size=files, max_size=files), min_size=1, max_size=7)
)


@settings(max_examples=60)
@given(matrices, st.booleans())
def test_ranges_are_around_places(scores: list[list[float]], higher_is_better: bool) -> None:
    board = board_of(scores, higher_is_better=higher_is_better)
    count = len(scores)
    for number, entry in enumerate(board.entries):
        assert entry.place is not None
        assert entry.range is not None
        assert 1 <= entry.range[0] <= entry.place <= number + 1 <= count
        assert entry.place <= entry.range[1] <= count
        assert entry.spread is not None
        if len(scores[0]) < MIN_FILES:
            assert (entry.range, entry.interval) == ((1, count), None)
            continue
        assert entry.interval is not None
        assert entry.spread.min - 1e-6 <= entry.interval[0] <= entry.interval[1] <= entry.spread.max + 1e-6


@settings(max_examples=40)
@given(matrices, st.randoms(use_true_random=False))
def test_the_order_of_algos_and_files_does_not_matter(scores: list[list[float]], random: object) -> None:
    problem = make_problem(len(scores[0]))
    board = board_of(scores)
    turned = dataclasses.replace(problem, test_data=problem.test_data[::-1])
    chains = [
        Chain(
            algo=make_id(number),
            name=f"algo {number}",
            jobs=(str(make_id(f"job {number}")),),
            ranks=(0,),
            train_files=(1,),
            perf=(float(np.mean(row)),),
        )
        for number, row in reversed(list(enumerate(scores)))
    ]
    test_perf = {str(make_id(f"job {number}")): row[::-1] for number, row in enumerate(scores)}
    assert by_algo(make_leaderboard(turned, chains, test_perf)) == by_algo(board)


@settings(max_examples=40)
@given(matrices)
def test_lower_is_better_is_the_mirror_image(scores: list[list[float]]) -> None:
    # The draws are the same, so the ends of intervals change sides; the cut leaves out as many draws on either.
    higher = by_algo(board_of(scores))
    lower = by_algo(board_of([[-value for value in row] for row in scores], higher_is_better=False))
    for algo, entry in higher.items():
        other = lower[algo]
        assert (other.place, other.range) == (entry.place, entry.range)
        mirrored = entry.interval and tuple(-value for value in reversed(entry.interval))
        assert other.interval == (mirrored and pytest.approx(mirrored, abs=2e-6))


@settings(max_examples=40)
@given(st.integers(MIN_FILES, 12), st.integers(2, 6), st.integers(0, 1000))
def test_a_dominated_entry_is_behind_at_both_ends(files: int, algos: int, seed: int) -> None:
    scores = random_scores(algos, files, seed=seed)
    worse = [value - 0.1 for value in scores[0]]
    worst = [min(column) - 0.1 for column in zip(*scores, worse, strict=True)]
    entries = by_algo(board_of([*scores, worse, worst]))
    best, dominated, last = (entries[make_id(number)].range for number in (0, algos, algos + 1))
    assert best is not None
    assert dominated is not None
    assert best[0] < dominated[0]
    assert best[1] < dominated[1]
    assert last == (algos + 2, algos + 2)


def test_an_entry_does_not_change_who_else_is_told_apart() -> None:
    scores = random_scores(8, 20)
    alone = wins(np.array(scores))
    absurd = [[1e30] * 20, *scores, [-1e30] * 20]
    assert (wins(np.array(absurd))[1:-1, 1:-1] == alone).all()
    assert 0 < alone.sum() < 28


def test_equal_scores_have_equal_places_and_a_shared_range() -> None:
    scores = random_scores(1, 10)[0]
    board = board_of([[value - 1 for value in scores], scores, scores, [value + 1 for value in scores]])
    assert [entry.place for entry in board.entries] == [1, 2, 2, 4]
    assert [entry.places for entry in board.entries] == ["1", "2-3", "2-3", "4"]
    assert [entry.name for entry in board.entries][1:3] == ["algo 1", "algo 2"]  # as they were registered


def test_perf_and_mean_must_agree_for_one_to_be_better() -> None:
    scores = random_scores(1, 10)[0]
    board = board_of([scores, [value + 1 for value in scores]], perf=[0.9, 0.8])
    assert [(entry.place, entry.range) for entry in board.entries] == [(1, (1, 2)), (2, (1, 2))]
    assert board.entries[0].mean != board.entries[0].perf == 0.9


def test_a_missing_or_senseless_score_of_a_file_leaves_an_entry_with_all_others() -> None:
    scores = random_scores(1, 10)[0]
    rows = [[value + 2 for value in scores], [value + 1 for value in scores], scores]
    rows[0][3] = float("nan")
    board = board_of(rows, perf=[3.0, 2.0, 1.0])
    first = board.entries[0]
    assert (first.mean, first.interval, first.range) == (None, None, (1, 3))
    assert first.spread is not None
    assert first.spread.files == 9
    assert [entry.range for entry in board.entries[1:]] == [(1, 2), (2, 3)]
    rows[0] = [float("inf")] * 10
    assert board_of(rows, perf=[3.0, 2.0, 1.0]).entries[0].spread is None


def test_one_file_has_a_score_and_no_interval() -> None:
    first, second = board_of([[0.9], [0.1]]).entries
    assert (first.perf, first.mean, first.interval, first.range, second.range) == (0.9, 0.9, None, (1, 2), (1, 2))
    assert first.spread is not None
    assert (first.spread.sd, first.spread.min, first.spread.max) == (None, 0.9, 0.9)


def test_scores_without_any_bound_do_no_harm() -> None:
    board = board_of([[1e308] * 6, [-1e308, 1e308] * 3], perf=[1e308, -1e308])
    assert [entry.perf for entry in board.entries] == [1e308, -1e308]
    assert all(entry.spread and entry.spread.sd is not None for entry in board.entries)


def test_the_best_rank_counts_and_the_curve_shows_all() -> None:
    problem = make_problem(6)
    chain = Chain(
        algo=make_id(1),
        name="a",
        jobs=[str(make_id(f"job {rank}")) for rank in (0, 1, 3)],
        ranks=[0, 1, 3],
        train_files=[25, 25, 7],
        perf=[0.5, 0.75 + 4e-8, 0.75],
    )
    new = Chain(algo=make_id(2), name="b")
    test_perf = {str(make_id("job 1")): (0.7, 0.8) * 3}
    first, second = make_leaderboard(problem, [new, chain], test_perf).entries
    assert (first.perf, first.rank, first.trainings, first.place, first.range) == (0.75, 1, 3, 1, (1, 1))
    assert first.mean == 0.75
    assert first.spread is not None
    assert (first.spread.min, first.spread.median, first.spread.max) == (0.7, 0.75, 0.8)
    assert first.spread.sd == pytest.approx(0.05 * (6 / 5) ** 0.5, abs=1e-6)
    assert (first.curve.ranks, first.curve.train_files) == ((0, 1, 3), (25, 50, 57))
    assert first.curve.perf == (0.5, 0.75, 0.75)
    assert second == Entry(algo=make_id(2), name="b")


def test_a_problem_without_algos_has_an_empty_board() -> None:
    assert make_leaderboard(make_problem(3), [], {}).entries == ()
    assert make_leaderboard(make_problem(3), [Chain(algo=make_id(1), name="a")], {}).entries[0].place is None


@pytest.mark.parametrize("higher_is_better", [True, False])
@pytest.mark.parametrize("size", [1.0, 1e9])
@pytest.mark.parametrize("files", [1, 2, 4, 5, 20])
def test_what_is_remembered_gives_the_board_that_is_made_anew(higher_is_better: bool, size: float, files: int) -> None:
    """Chains grow, get a better rank or not, lack a file, and new ones come; scores are equal often."""
    random = np.random.default_rng(4)
    problem, comparisons = make_problem(files, higher_is_better=higher_is_better), Comparisons()
    chains: list[Chain] = []
    test_perf: dict[str, list[float]] = {}
    ranges = set()
    for turn in range(60):
        changed = range(40) if turn == 30 else random.integers(len(chains) + 1, size=random.integers(1, 4)).tolist()
        chains += [Chain(algo=make_id(number), name="new") for number in range(len(chains), max(changed) + 1)]
        for number in changed:
            chain, job = chains[number], str(make_id(f"job {turn} of {number}"))
            row = (random.normal(size=files).round(1) + random.integers(4)) * size
            lacks_one = files > 1 and random.random() < 0.1
            test_perf[job] = [math.nan, *row[1:].tolist()] if lacks_one else row.tolist()
            chains[number] = dataclasses.replace(
                chain,
                jobs=[*chain.jobs, job],
                ranks=[*chain.ranks, len(chain.ranks)],
                train_files=[*chain.train_files, 1],
                perf=[*chain.perf, float(row.mean().round(1))],
            )
        board = make_leaderboard(problem, chains, test_perf, comparisons)
        assert board == make_leaderboard(problem, chains, test_perf)
        ranges |= {entry.range for entry in board.entries}
    assert len(chains) > 40
    assert len(ranges) > 100 or files < 20
