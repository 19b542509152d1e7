"""
Which nodes reach the database, and what follows for jobs: when a lease is expired, and who leaves a job to others.

Nodes say that they are there several times in the life of a lease, by the database's clock. If all of them were silent
for longer than `SILENCE` of a lease, it was the database that was out of reach, or its clock that jumped: the owners of
leases could not renew them either, and have one lease to do so before anybody takes their jobs.
"""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import and_, case, delete, exists, func, insert, not_, or_, select, update
from sqlalchemy.orm import Session
from sqlalchemy.sql.elements import ColumnElement

from morpheo.models import LANE
from morpheo.queues import lane
from morpheo.storage.clock import database_now
from morpheo.storage.tables import JobRow, NodeRow

#: Part of a lease for which all nodes may be silent. Leases are renewed before half of them is over.
SILENCE = 1 / 3
#: How old the last sign of a node may be that counts as one that takes jobs, in seconds.
SEEN_S = 60.0
#: How long a job is kept from the node where infrastructure failed it, in seconds since it is due again.
AVOID_S = 120.0
#: Rows of nodes that were not seen for so long are removed, in seconds.
FORGET_S = 86_400.0


class NodeRepository:
    """Reads and writes in one transaction which nodes there are."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def touch(self, node: str, name: str, queues: Iterable[str], *, lease_s: float) -> None:
        """
        Record that a node reaches the database.

        Args:
            node: Id of the machine's data folder.
            name: Of the Celery node on it.
            queues: What it takes now.
            lease_s: Life of a lease.
        """
        silence_s = self._session.scalar(select(database_now() - func.max(NodeRow.last_seen)))
        values = {"queues": f",{','.join(sorted(queues))},", "last_seen": database_now()}
        if silence_s is not None and silence_s > lease_s * SILENCE:
            values["resumed_at"] = database_now()
        touched = self._session.execute(
            update(NodeRow).where(NodeRow.node == node, NodeRow.name == name).values(values).returning(NodeRow.node)
        )
        if touched.scalar_one_or_none() is None:
            self._session.execute(insert(NodeRow).values(node=node, name=name, **values))
        self._session.execute(delete(NodeRow).where(NodeRow.last_seen < database_now() - FORGET_S))

    def forget(self, node: str, name: str) -> None:
        """Record that a node has ended."""
        self._session.execute(delete(NodeRow).where(NodeRow.node == node, NodeRow.name == name))


def undisturbed(lease_s: float) -> ColumnElement[bool]:
    """Return the SQL condition that an expired lease is its owner's fault, as far as nodes tell."""
    is_reached = exists().where(NodeRow.last_seen >= database_now() - lease_s * SILENCE)
    resumed = exists().where(NodeRow.resumed_at.between(database_now() - lease_s, database_now()))
    return and_(or_(is_reached, not_(exists().where(NodeRow.node.is_not(None)))), not_(resumed))


def has_lane(submitter: str) -> ColumnElement[bool]:
    """Return the SQL condition that a job is for the workers of a submitter; empty is everybody's workers."""
    if not submitter:
        return not_(JobRow.tags.contains(LANE))
    return ("+" + JobRow.tags + "+").contains(f"+{lane(submitter)[0]}+", autoescape=True)


def left_to_others(node: str) -> ColumnElement[bool]:
    """Return the SQL condition that a node should leave a job to others: it failed there, and there is another one."""
    queue = case((JobRow.tags == "", JobRow.kind), else_=JobRow.kind + "." + JobRow.tags)
    other = exists().where(
        NodeRow.node != node,
        NodeRow.last_seen > database_now() - SEEN_S,
        NodeRow.queues.like("%," + func.replace(queue, "_", "/_") + ",%", escape="/"),
    )
    return and_(func.coalesce(JobRow.avoid_node, "") == node, JobRow.not_before > database_now() - AVOID_S, other)
