"""Records the steps of one attempt as they happen: a row for each, and its log in the blob store."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Self

from morpheo.logs import adding
from morpheo.models import Job, StepName, StepRecord
from morpheo.pieces import LogShipper
from morpheo.runtime.contract import StepResult
from morpheo.runtime.log import BoundedLog
from morpheo.storage.blobs import BlobStore
from morpheo.storage.database import Database

#: How long the end of an attempt waits for its logs to be stored, in seconds.
FINISH_S = 5.0


@dataclass
class OpenStep:
    """A step that is under way; what is known of it so far."""

    #: Takes what its container or build writes.
    log: BoundedLog
    result: StepResult | None = None


class StepLog:
    """
    Writes the steps of one attempt; used in a ``with`` block that lasts as long as the attempt.

    Steps are for people to read: a database or blob store that does not answer delays them, and never the job.

    Args:
        database: Keeps the rows.
        blobs: Keeps the logs.
        job: The job, with the number of the attempt.
        log_bytes: How much of each log is kept.
    """

    def __init__(self, database: Database, blobs: BlobStore, job: Job, *, log_bytes: int) -> None:
        self._shipper = LogShipper(database, blobs, job, log_bytes=log_bytes)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._shipper.finish(FINISH_S)

    @contextlib.contextmanager
    def recording(self, name: StepName) -> Iterator[OpenStep]:
        """Record a step that lasts as long as the block, however that ends."""
        stream = self._shipper.begin(name)
        step = OpenStep(stream.log)
        began = time.monotonic()
        try:
            with adding(step=name):
                yield step
        finally:
            result = step.result
            record = StepRecord(
                name=name,
                started_at=datetime.now(UTC),  # the row has the database's time
                seconds=time.monotonic() - began,
                exit_code=result.exit_code if result else None,
                oom_killed=bool(result and result.oom_killed),
                peak_memory_bytes=result.peak_memory_bytes if result else None,
            )
            self._shipper.end(stream, record)
