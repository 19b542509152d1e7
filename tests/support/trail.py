"""The audit trail as tests look at it."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from morpheo.audit import Event, verify
from morpheo.storage.database import Database


class Told(NamedTuple):
    """What an event says, without its place in the chain."""

    actor: str
    action: str
    subject: str
    detail: dict[str, Any]


def trail(database: Database) -> list[Event]:
    """Return the audit trail, verified."""
    with database.read(one_moment=True) as work:
        events = list(work.events.all())
        verdict = verify(events, work.events.head())
    assert verdict.intact, verdict
    return events


def told(database: Database, *, after: int = 0) -> list[Told]:
    """Return what the events after a number say, oldest first; ids are not told from kinds."""
    return [
        Told(event.actor, event.action, f"{event.subject_kind} {event.subject_id}", json.loads(event.detail))
        for event in trail(database)[after:]
    ]


def actions(database: Database) -> list[tuple[str, str]]:
    """Return who did what, oldest first."""
    return [(event.actor, event.action) for event in told(database)]
