"""
Who has to wait: logins that fail again and again, and users with too many requests.

What is counted is in the memory of one process. In the database each wrong password would be a write, which is what a
flood of them is after; here it costs a dictionary's entry, of which there are at most `MAX_KEYS`. An attacker has as
many tries as there are processes, which a wait that doubles makes up for with two or three of them.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

#: Most names and addresses that are remembered; those that were not seen for longest go first.
MAX_KEYS = 10_000


@dataclass
class _Failures:
    count: int = 0
    blocked_until: float = 0.0
    last: float = 0.0


class Backoff:
    """
    Doubles a wait with each failure.

    Args:
        free: Failures without a wait.
        longest_s: Longest wait, in seconds. It bounds for how long an attacker can keep a user out by failing in their
            name.
        forget_s: After so long without a failure nothing is known any more, in seconds.
        clock: A monotonic clock, in seconds.
    """

    def __init__(
        self, *, free: int, longest_s: float, forget_s: float = 900.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._free, self._longest_s, self._forget_s, self._clock = free, longest_s, forget_s, clock
        self._failures: OrderedDict[str, _Failures] = OrderedDict()
        self._lock = threading.Lock()

    def wait_s(self, key: str) -> float:
        """Return how long somebody must wait before another try, in seconds; 0 is not at all."""
        with self._lock:
            known = self._failures.get(key)
            return 0.0 if known is None else max(0.0, known.blocked_until - self._clock())

    def failed(self, key: str) -> bool:
        """Count a failure; return whether it is the first one that has to be waited after."""
        with self._lock:
            now = self._clock()
            known = self._failures.pop(key, None)
            if known is None or now - known.last > self._forget_s:
                known = _Failures()
            self._failures[key] = known
            known.count += 1
            known.last = now
            beyond = known.count - self._free
            if beyond > 0:
                known.blocked_until = now + min(2.0 ** min(beyond - 1, 32), self._longest_s)
            while len(self._failures) > MAX_KEYS:
                self._failures.popitem(last=False)
            return beyond == 1

    def succeeded(self, key: str) -> None:
        """Forget the failures of somebody."""
        with self._lock:
            self._failures.pop(key, None)


class RateLimit:
    """
    A token bucket for each user: so many requests at once, and as many again within a minute.

    Args:
        per_minute: How many; 0 is no limit.
        clock: A monotonic clock, in seconds.
    """

    def __init__(self, per_minute: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_minute, self._clock = per_minute, clock
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._lock = threading.Lock()

    def take(self, key: str) -> float:
        """Count a request; return how long it must wait instead, in seconds; 0 is not at all."""
        if not self._per_minute:
            return 0.0
        with self._lock:
            now = self._clock()
            left, at = self._left.pop(key, (float(self._per_minute), now))
            left = min(float(self._per_minute), left + (now - at) * self._per_minute / 60)
            allowed = left >= 1
            self._left[key] = (left - allowed, now)
            while len(self._left) > MAX_KEYS:
                self._left.popitem(last=False)
            return 0.0 if allowed else (1 - left) * 60 / self._per_minute
