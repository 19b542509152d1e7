"""Waits that double, and how many requests a user has."""

from __future__ import annotations

import pytest

from morpheo import throttle
from morpheo.throttle import Backoff, RateLimit


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_the_wait_doubles_after_the_free_tries_up_to_the_longest(clock: Clock) -> None:
    backoff = Backoff(free=2, longest_s=5, clock=clock)
    waits, told = [], []
    for _ in range(7):
        told.append(backoff.failed("a"))
        waits.append(backoff.wait_s("a"))
        clock.now += waits[-1]
    assert waits == [0, 0, 1, 2, 4, 5, 5]
    assert told == [False, False, True, False, False, False, False]
    assert backoff.wait_s("b") == 0


def test_a_wait_ends(clock: Clock) -> None:
    backoff = Backoff(free=0, longest_s=8, clock=clock)
    backoff.failed("a")
    clock.now += 0.75
    assert backoff.wait_s("a") == 0.25
    clock.now += 0.25
    assert backoff.wait_s("a") == 0


def test_success_and_time_forgive(clock: Clock) -> None:
    backoff = Backoff(free=1, longest_s=8, forget_s=100, clock=clock)
    for _ in range(3):
        backoff.failed("a")
    backoff.succeeded("a")
    assert (backoff.failed("a"), backoff.wait_s("a")) == (False, 0)
    backoff.failed("a")
    clock.now += 101
    assert (backoff.failed("a"), backoff.wait_s("a")) == (False, 0)


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    monkeypatch.setattr(throttle, "MAX_KEYS", 2)
    backoff, limit = Backoff(free=0, longest_s=8, clock=clock), RateLimit(1, clock=clock)
    for name in ("a", "b", "c"):
        backoff.failed(name)
        limit.take(name)
    assert [backoff.wait_s(name) > 0 for name in ("a", "b", "c")] == [False, True, True]
    assert [limit.take(name) > 0 for name in ("c", "b", "a")] == [True, True, False]


def test_a_minute_has_so_many_requests(clock: Clock) -> None:
    limit = RateLimit(60, clock=clock)
    assert [limit.take("a") for _ in range(60)] == [0] * 60
    assert limit.take("a") == pytest.approx(1)
    assert limit.take("b") == 0
    clock.now += 2
    assert [limit.take("a") > 0 for _ in range(3)] == [False, False, True]


def test_no_limit_is_none(clock: Clock) -> None:
    limit = RateLimit(0, clock=clock)
    assert {limit.take("a") for _ in range(1000)} == {0}
