"""Stops a running attempt from another thread."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from morpheo.errors import Interrupted


class Interrupt:
    """
    Tells a running attempt to stop, from another thread.

    `set` may be called more than once; the first reason stays. What is registered with `calling` is called at once
    when it is set, or has been.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._callbacks: list[Callable[[], None]] = []
        self.reason: str | None = None

    def set(self, reason: str) -> None:
        """Stop whatever is registered."""
        with self._lock:
            if self.reason is not None:
                return
            self.reason = reason
            callbacks = list(self._callbacks)
        for callback in callbacks:
            callback()

    def check(self) -> None:
        """
        Do nothing if it is not set.

        Raises:
            Interrupted: it is.
        """
        if self.reason is not None:
            raise Interrupted(self.reason)

    @contextmanager
    def calling(self, callback: Callable[[], None]) -> Iterator[None]:
        """Call something if the interrupt is set during the block."""
        with self._lock:
            self._callbacks.append(callback)
            already = self.reason is not None
        try:
            if already:
                callback()
            yield
        finally:
            with self._lock:
                self._callbacks.remove(callback)
