"""The nodes of the workers, as they answer through the broker."""

from __future__ import annotations

from dataclasses import dataclass

from morpheo.celery import app
from morpheo.errors import NotFound
from morpheo.tasks.publisher import connected

#: How long nodes may take to answer, in seconds; all are waited for, since nobody knows how many there are.
ANSWER_S = 2


@dataclass(frozen=True, kw_only=True)
class Node:
    """A Celery node: the part of a worker that runs one kind of job."""

    name: str
    queues: tuple[str, ...]
    #: How many jobs it runs at once.
    slots: int
    #: Ids of the jobs that it runs.
    running: tuple[str, ...]


def list_nodes() -> list[Node]:
    """
    Return the nodes that answer, by name. One that is being drained answers no more.

    Raises:
        BrokerUnavailable: the broker does not answer.
    """
    with connected() as connection:
        inspect = app.control.inspect(timeout=ANSWER_S, connection=connection)
        queues = inspect.active_queues() or {}
        if not queues:
            return []
        inspect = app.control.inspect(list(queues), timeout=ANSWER_S, connection=connection, limit=len(queues))
        running = inspect.active() or {}
        stats = inspect.stats() or {}
    return [
        Node(
            name=name,
            queues=tuple(sorted(queue["name"] for queue in queues[name])),
            slots=stats[name]["pool"]["max-concurrency"] if name in stats else 0,
            running=tuple(sorted(task["id"] for task in running.get(name, ()))),
        )
        for name in sorted(queues)
    ]


def drain(name: str) -> list[Node]:
    """
    Let nodes finish what they run, take nothing new, and end.

    Args:
        name: Of one node (``learn@host``), or of a worker (``host``), which is all of its nodes.

    Returns:
        The nodes as they were when they were told.

    Raises:
        NotFound: no node of that name answers.
        BrokerUnavailable: the broker does not answer.
    """
    nodes = [node for node in list_nodes() if name in (node.name, node.name.partition("@")[2])]
    if not nodes:
        raise NotFound(f"no worker {name} answers; `morpheo workers list` shows those that do")
    with connected() as connection:
        app.control.shutdown(destination=[node.name for node in nodes], connection=connection)
    return nodes
