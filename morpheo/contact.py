"""
Says again and again that this node reaches the database, and writes the ends that waited until it did.

It runs in a thread of the worker's main process, beside the sweeper, whose turns may take long.
"""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable, Iterable

from morpheo.actors import acting_as
from morpheo.ends import EndWriter
from morpheo.errors import MorpheoError, Unavailable
from morpheo.spool import Spool
from morpheo.storage.database import Database

logger = logging.getLogger(__name__)

#: Signs of life in one lease.
SIGNS = 10


class Contact:
    """
    Keeps the row of a node, and empties the spool.

    Args:
        database: Keeps the rows.
        spool: Ends that wait for the database.
        writer: Writes them.
        node: Id of this machine's data folder.
        lease_s: Life of a lease, in seconds.
    """

    def __init__(self, database: Database, spool: Spool, writer: EndWriter, *, node: str, lease_s: float) -> None:
        self._database = database
        self._spool = spool
        self._writer = writer
        self._node = node
        self._lease_s = lease_s
        self._is_out = False

    def run(self, stop: threading.Event, *, name: str, queues: Callable[[], Iterable[str]]) -> None:
        """Do so until told to stop, and then say that the node has ended."""
        while True:
            self.touch(name, queues())
            self.commit_kept()
            if stop.wait(self._lease_s / SIGNS):
                break
        try:
            with self._database.reserved.begin() as work:
                work.nodes.forget(self._node, name)
        except MorpheoError:
            logger.warning("the end of this node is not recorded", exc_info=True)

    def touch(self, name: str, queues: Iterable[str]) -> None:
        """Say that the node is there, and what it takes."""
        try:
            with self._database.reserved.begin() as work:
                work.nodes.touch(self._node, name, queues, lease_s=self._lease_s)
        except MorpheoError as exc:
            if not self._is_out:
                logger.warning("no contact with the database: %s", exc)
            self._is_out = True
        else:
            if self._is_out:
                logger.info("contact with the database again")
            self._is_out = False

    def commit_kept(self) -> None:
        """Write the ends that wait on this machine, if the database answers."""
        try:
            with acting_as(f"sweeper:{socket.gethostname()}"):
                self._spool.commit(self._writer)
        except Unavailable as exc:
            logger.warning("ends of jobs are kept on this machine: %s", exc)
        except Exception:
            logger.exception("ends of jobs cannot be written")
