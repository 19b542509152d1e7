"""
The audit trail in the database.

Repositories `record` what they do; `Database.begin` writes it right before the commit, as the last statements of the
transaction. These take the lock of the one row of ``event_head``, so that events are chained in the order in which
they are committed. Being the last lock of every transaction, it can be part of no deadlock, and is held shortly.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sqlalchemy import Text, bindparam, func, insert, select, true, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from morpheo.actors import current_actor
from morpheo.audit import Action, Event, Head, canonical, chained
from morpheo.errors import MorpheoError
from morpheo.storage.clock import database_now
from morpheo.storage.tables import Base, EventHeadRow, EventRow

#: Rows in memory at once.
BATCH = 1000
#: After so long PostgreSQL ends the transaction of a host that froze while it held the lock that all others need.
HOLD_S = 5

#: Of the only row of ``event_head``.
HEAD_ID = 1

# Made once, and of tables rather than classes: what Python does between these statements, others wait for.
_EVENTS, _HEAD = (Base.metadata.tables[row.__tablename__] for row in (EventRow, EventHeadRow))
_SELECT_HEAD = select(_HEAD.c.seq, _HEAD.c.digest).where(_HEAD.c.id == HEAD_ID)
_LOCK_HEAD = _SELECT_HEAD.add_columns(database_now()).with_for_update()
#: On PostgreSQL; what it sets ends with the transaction.
_LOCK_HEAD_FOR = _LOCK_HEAD.add_columns(
    func.set_config("idle_in_transaction_session_timeout", bindparam("hold", type_=Text()), true())
)
_APPEND = insert(_EVENTS)
_MOVE_HEAD = update(_HEAD).where(_HEAD.c.id == HEAD_ID)


class EventRepository:
    """Records and reads events in one transaction."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._recorded: list[dict[str, Any]] = []

    def record(self, action: Action, subject_kind: str, subject_id: object, **detail: object) -> None:
        """
        Record what this transaction does; part of the trail if it is committed.

        Args:
            action: What.
            subject_kind: Of what kind the thing is that it is done to: artifact kind, ``job``, ``blob``, …
            subject_id: Which one.
            detail: What else must be known for ever: digests and numbers, no secrets and no text of containers. None
                is left out.
        """
        self._recorded.append(
            {
                "actor": current_actor(),
                "action": action,
                "subject_kind": subject_kind,
                "subject_id": str(subject_id),
                "detail": canonical({name: value for name, value in detail.items() if value is not None}),
            }
        )

    def write(self) -> None:
        """
        Append what was recorded to the trail. Nothing may follow in the transaction but its commit.

        Raises:
            MorpheoError: the trail has no head, or another one than its rows; nothing may be committed.
        """
        if not self._recorded:
            return
        self._session.flush()
        connection = self._session.connection()
        if connection.dialect.name == "postgresql":
            found = connection.execute(_LOCK_HEAD_FOR, {"hold": f"{HOLD_S}s"}).one_or_none()
        else:
            found = connection.execute(_LOCK_HEAD).one_or_none()
        if found is None:
            raise MorpheoError("the audit trail has no head; run `morpheo audit verify`")
        events = []
        head = Head(found[0], found[1])
        for recorded in self._recorded:
            events.append(chained(head, at=found[2], **recorded))
            head = Head(events[-1].seq, events[-1].digest)
        self._recorded.clear()
        try:
            connection.execute(_APPEND, [event._asdict() for event in events])
        except IntegrityError as exc:
            raise MorpheoError("the audit trail goes on behind its head; run `morpheo audit verify`") from exc
        connection.execute(_MOVE_HEAD, head._asdict())

    def head(self) -> Head | None:
        """Return the end of the trail, as it is kept apart from the events; None if it has gone."""
        found = self._session.execute(_SELECT_HEAD).one_or_none()
        return None if found is None else Head(*found)

    def all(self) -> Iterator[Event]:
        """Return all events by number, in bounded memory."""
        query = select(_EVENTS).order_by(EventRow.seq).execution_options(yield_per=BATCH)
        return (Event(*row) for row in self._session.execute(query))

    def latest(
        self,
        *,
        limit: int,
        subject: str | None = None,
        actor: str | None = None,
        since: float | None = None,
    ) -> list[Event]:
        """
        Return the latest events, newest first.

        Args:
            limit: How many at most.
            subject: Only those of the thing with this id.
            actor: Only those whose actor begins so.
            since: Only those at or after this time, in seconds since the epoch.
        """
        query = select(_EVENTS).order_by(EventRow.seq.desc()).limit(limit)
        if subject is not None:
            query = query.where(EventRow.subject_id == subject)
        if actor is not None:
            query = query.where(EventRow.actor.startswith(actor, autoescape=True))
        if since is not None:
            query = query.where(EventRow.at >= since)
        return [Event(*row) for row in self._session.execute(query)]
