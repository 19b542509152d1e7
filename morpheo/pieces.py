"""
Brings the logs of an attempt's steps to the blob store while they are written, from a thread of its own.

What a container has written is then there when its worker is killed. Neither the container nor the job waits for the
database or the blob store: a log is kept in bounded memory, and what cannot be stored now is stored later, without what
was dropped meanwhile. Rows are fenced by the attempt; keys are unique to one write: a piece that grows is a new blob.
"""

from __future__ import annotations

import io
import logging
import secrets
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace

from morpheo.errors import Conflict, MorpheoError, Unavailable
from morpheo.logs import adding
from morpheo.models import Job, StepName, StepRecord
from morpheo.runtime.log import BoundedLog, Run
from morpheo.storage.blobs import BlobStore
from morpheo.storage.database import Database
from morpheo.storage.steps import LogPiece, StepRepository

logger = logging.getLogger(__name__)

#: A log is stored at most so often, in seconds.
EVERY_S = 0.4
#: The last piece of a log grows until it is so large, in bytes: there are never many.
PIECE_BYTES = 64 << 10
#: Longest pause after a failure, in seconds.
LONGEST_PAUSE_S = 10.0
#: How long logs that could not be stored are kept in memory after the attempt's end, in seconds.
LATE_S = 120.0


@dataclass
class Stream:
    """The log of one step, and what is stored of it."""

    name: StepName
    position: int
    log: BoundedLog
    began: float = field(default_factory=time.monotonic)
    #: How the step ended; None while it runs.
    record: StepRecord | None = None
    pieces: list[LogPiece] = field(default_factory=list)
    #: Place up to which the log is stored.
    stored: int = 0
    next_number: int = 0
    has_row: bool = False
    is_recorded: bool = False
    is_done: bool = False
    due_at: float = 0.0
    pause_s: float = 0.0

    @property
    def has_news(self) -> bool:
        """Whether there is anything to store."""
        return not self.is_done and (not self.has_row or self.record is not None or self.log.total > self.stored)


class _Fenced(Exception):
    """There is a later attempt at the job."""


class LogShipper:
    """
    Stores the steps of one attempt and their logs.

    Args:
        database: Keeps the rows.
        blobs: Keeps the logs, under ``logs/<job>/<attempt>/``.
        job: The job, with the number of the attempt.
        log_bytes: How much of a log is kept.
    """

    def __init__(self, database: Database, blobs: BlobStore, job: Job, *, log_bytes: int) -> None:
        self._database = database
        self._blobs = blobs
        self._job = job
        self._log_bytes = log_bytes
        self._streams: list[Stream] = []
        self._written = threading.Event()
        self._urgent = threading.Event()
        self._gives_up_at: float | None = None
        self._thread = threading.Thread(target=self._run, name=f"log-{job.id}", daemon=True)

    def begin(self, name: StepName) -> Stream:
        """Begin a step; its log may be written to."""
        stream = Stream(name, len(self._streams), BoundedLog(self._log_bytes, written=self._written))
        self._streams.append(stream)
        if self._thread.ident is None:
            self._thread.start()
        self._hurry()
        return stream

    def end(self, stream: Stream, record: StepRecord) -> None:
        """Say how a step ended; nothing may be written to its log any more."""
        stream.record = record
        self._hurry()

    def finish(self, timeout_s: float) -> None:
        """Wait until everything is stored, but not for long; what is not stored then, is tried for a while longer."""
        self._gives_up_at = time.monotonic() + LATE_S
        if self._thread.ident is not None:
            self._hurry()
            self._thread.join(timeout_s)

    def _hurry(self) -> None:
        for stream in self._streams:
            stream.due_at = 0.0
        self._urgent.set()
        self._written.set()

    def _run(self) -> None:
        try:
            while not self._is_over():
                self._wait()
                for stream in list(self._streams):
                    if stream.has_news and time.monotonic() >= stream.due_at:
                        with adding(step=stream.name):
                            self._store(stream)
        except _Fenced:
            logger.info("the log is not stored any more: there is a later attempt")

    def _is_over(self) -> bool:
        if self._gives_up_at is None or not any(stream.has_news for stream in self._streams):
            return self._gives_up_at is not None
        if late := time.monotonic() > self._gives_up_at:
            logger.warning("the end of a log is lost: it could not be stored")
        return late

    def _wait(self) -> None:
        if not any(stream.has_news for stream in self._streams):
            self._written.wait()
        self._written.clear()
        # A container that writes all the time does not make this thread run all the time.
        due = [stream.due_at for stream in self._streams if stream.has_news]
        self._urgent.wait(max(0.0, min(due, default=0.0) - time.monotonic()))
        self._urgent.clear()

    def _store(self, stream: Stream) -> None:
        try:
            self._store_news(stream)
        except (Unavailable, OSError) as exc:
            logger.log(logging.DEBUG if stream.pause_s else logging.WARNING, "log not stored yet: %s", exc)
            longest_s = LONGEST_PAUSE_S if self._gives_up_at is None else EVERY_S  # at the end somebody waits
            stream.pause_s = min(max(2 * stream.pause_s, EVERY_S), longest_s)
            stream.due_at = time.monotonic() + stream.pause_s
        except _Fenced:
            raise
        except Exception:
            stream.is_done = True
            logger.exception("log not stored")
        else:
            stream.pause_s, stream.due_at = 0.0, time.monotonic() + EVERY_S

    def _store_news(self, stream: Stream) -> None:
        if not stream.has_row:
            self._begin(stream)
        if stream.record is not None:
            self._finish(stream, stream.record)
        elif stream.log.total > stream.stored:
            self._add(stream)

    def _begin(self, stream: Stream) -> None:
        def write(steps: StepRepository) -> list[str]:
            ago_s = round(time.monotonic() - stream.began, 3)
            steps.begin(self._job.id, self._job.attempt, stream.name, position=stream.position, ago_s=ago_s)
            return []

        with suppress(Conflict):  # the answer to the same write was lost
            self._write([], write)
        stream.has_row = True

    def _add(self, stream: Stream) -> None:
        """Store what is new: the last piece grows, or another one follows. What left the tail goes."""
        last = stream.pieces[-1:]
        grown = [piece for piece in last if piece.size_bytes < PIECE_BYTES]
        runs = stream.log.since(grown[0].start if grown else stream.stored)
        kept = [piece for piece in stream.pieces if piece not in grown and not stream.log.has_dropped(piece.end)]
        gone = [piece.number for piece in stream.pieces if piece not in kept]
        new = [self._put_piece(stream, run) for run in runs]

        def write(steps: StepRepository) -> list[str]:
            removed = steps.remove_pieces(self._job.id, self._job.attempt, stream.name, gone)
            steps.add_pieces(self._job.id, self._job.attempt, stream.name, new)
            return removed

        self._write([piece.blob_key for piece in new], write)
        stream.pieces = kept + new
        stream.stored = new[-1].end

    def _put_piece(self, stream: Stream, run: Run) -> LogPiece:
        stream.next_number += 1  # and never again, should the answer to the commit be lost
        key = self._put(stream, run.content)
        return LogPiece(number=stream.next_number, start=run.start, size_bytes=len(run.content), blob_key=key)

    def _finish(self, stream: Stream, record: StepRecord) -> None:
        """Put one blob in the place of the pieces."""
        if runs := stream.log.since(0):
            try:
                key = self._put(stream, b"".join(run.content for run in runs))
            except (Unavailable, OSError):
                if not stream.is_recorded:  # what is known of the step does not wait for its log
                    self._end(stream, record, [])
                stream.is_recorded = True
                raise
            record = replace(
                record,
                log_key=key,
                log_bytes=sum(len(run.content) for run in runs),
                log_gap_at=runs[0].end if len(runs) > 1 else None,
                log_gap_bytes=runs[-1].start - runs[0].end if len(runs) > 1 else 0,
            )
        self._end(stream, record, [record.log_key] if record.log_key else [])
        stream.is_done = True

    def _end(self, stream: Stream, record: StepRecord, new: list[str]) -> None:
        def write(steps: StepRepository) -> list[str]:
            steps.end(self._job.id, self._job.attempt, record)
            return steps.remove_pieces(self._job.id, self._job.attempt, stream.name) if new else []

        self._write(new, write)

    def _put(self, stream: Stream, content: bytes) -> str:
        key = f"logs/{self._job.id}/{self._job.attempt}/{stream.name}-{secrets.token_hex(8)}"
        self._blobs.put(key, io.BytesIO(content), length=len(content))
        return key

    def _write(self, new: list[str], write: Callable[[StepRepository], list[str]]) -> None:
        """Write rows that name new blobs, and remove the blobs that no row names any more."""
        try:
            with self._database.begin() as work:
                if not work.steps.is_latest(self._job.id, self._job.attempt):
                    raise _Fenced
                gone = write(work.steps)
        except _Fenced:
            self._discard(new)
            raise
        self._discard(gone)

    def _discard(self, keys: list[str]) -> None:
        for key in keys:
            try:
                self._blobs.delete(key)
            except (MorpheoError, OSError):
                logger.warning("blob left behind", extra={"key": key}, exc_info=True)  # the sweep finds it
