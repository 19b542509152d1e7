"""
Downloads in the audit trail: recorded before the first byte goes out, or nothing goes out.

A client that reads a blob in many ranges is one event in ten minutes, not thousands: which parts it read is not
recorded, only that it had access to the blob.
"""

from __future__ import annotations

import time

from morpheo.actors import current_actor
from morpheo.audit import Action
from morpheo.models import Artifact
from morpheo.storage.database import Database

#: For how long a client that reads a blob in ranges is one event, in seconds.
RANGES_S = 600
#: How many such clients a process remembers.
MAX_READERS = 10_000


class DownloadLog:
    """
    Records what is sent out.

    Args:
        database: Keeps the trail.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        #: When the ranges that somebody reads were last recorded, by the monotonic clock.
        self._readers: dict[tuple[str, str, str], float] = {}

    def record(self, artifact: Artifact, *, client: str, partial: bool) -> None:
        """
        Record that a blob is about to be sent.

        Args:
            artifact: Whose blob.
            client: What tells clients of one actor apart, such as an address; it is not recorded.
            partial: Whether only a range is sent.

        Raises:
            DatabaseUnavailable: it could not be recorded; nothing may be sent.
        """
        reader = (current_actor(), client, artifact.blob_key)
        now = time.monotonic()
        if partial and now - self._readers.get(reader, -RANGES_S) < RANGES_S:
            return
        with self._database.begin() as work:
            work.events.record(
                Action.ARTIFACT_DOWNLOADED,
                artifact.kind,
                artifact.id,
                sha256=artifact.sha256,
                size_bytes=artifact.size_bytes,
                partial=partial,
            )
        if partial:
            if len(self._readers) >= MAX_READERS:
                self._readers.clear()
            self._readers[reader] = now
