"""
Who does what this thread does, for the audit trail.

An actor is a kind and a name: ``user:NAME`` (who gave a password to an API), ``anonymous`` (who needed none),
``worker:NAME``, ``outside:NAME`` (a worker that is not ours), ``sweeper:HOST``, ``cli:USER`` (a command that works on
the database itself). A thread of which nobody has said for whom it works is ``unknown``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

ANONYMOUS = "anonymous"
UNKNOWN = "unknown"

_actor: ContextVar[str] = ContextVar("actor", default=UNKNOWN)


def current_actor() -> str:
    """Return for whom this thread works."""
    return _actor.get()


def act_as(actor: str) -> None:
    """Work for somebody until the next call, as a server's thread does, which is told at the start of each request."""
    _actor.set(actor)


@contextmanager
def acting_as(actor: str) -> Iterator[None]:
    """Work for somebody as long as the block lasts."""
    token = _actor.set(actor)
    try:
        yield
    finally:
        _actor.reset(token)
