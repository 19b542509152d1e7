"""Logs of jobs as people read them: whole, or while they are written."""

from __future__ import annotations

import codecs
import re
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Self
from uuid import UUID

from morpheo.errors import InvalidInput, NotFound, Unavailable
from morpheo.models import Attempt, AttemptOutcome, Job, JobState, StepName, StepRecord
from morpheo.runtime.log import Run, gap_line, joined
from morpheo.storage.blobs import BlobStore
from morpheo.storage.database import Database
from morpheo.storage.steps import LogPiece

#: How often a log that is followed is looked at, in seconds.
LOOK_EVERY_S = 0.15
#: Most bytes of a log in one event.
EVENT_BYTES = 64 << 10
#: How often a log is looked up again because its blobs were replaced meanwhile.
TRIES = 5
#: Blobs of logs that no row names are removed when they are older.
ORPHAN_AGE = timedelta(days=1)
ALL_STEPS = frozenset(StepName)
#: How many blobs are looked up at once.
_BATCH = 500
_MARK = re.compile(r"(\d{1,9})-(\d{1,9})-(\d{1,18})")
_KEY = re.compile(r"logs/([0-9a-f-]{36})/")

Pieces = dict[tuple[int, StepName], list[LogPiece]]


@dataclass(frozen=True)
class Position:
    """A place in the logs of a job."""

    attempt: int
    #: Place of the step in its attempt.
    step: int = 0
    #: Byte among all that the step wrote.
    offset: int = 0

    def __str__(self) -> str:
        return f"{self.attempt}-{self.step}-{self.offset}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """
        Read what `str` gives.

        Raises:
            InvalidInput: it is something else.
        """
        if (match := _MARK.fullmatch(text)) is None:
            raise InvalidInput("Last-Event-ID must be the id of an event of this stream", field="Last-Event-ID")
        return cls(*map(int, match.groups()))


@dataclass(frozen=True, kw_only=True)
class LogText:
    """Something that a step wrote."""

    step: StepName
    attempt: int
    text: str
    #: Where the log goes on after it.
    after: Position


@dataclass(frozen=True)
class _Part:
    """Some bytes of a log, and where they are."""

    start: int
    #: Place after the last byte; None is not known.
    end: int | None
    key: str
    #: Byte of the blob.
    at: int = 0


class _Replaced(Exception):
    """A blob has gone: another one has taken its place meanwhile, or it is lost."""


class Transcripts:
    """
    Reads logs.

    Args:
        database: Knows where they are.
        blobs: Keeps them.
    """

    def __init__(self, database: Database, blobs: BlobStore) -> None:
        self._database = database
        self._blobs = blobs

    def read(
        self, job_id: UUID, *, attempt: int | None = None, steps: Collection[StepName] = ALL_STEPS
    ) -> Iterator[tuple[StepName, bytes]]:
        """
        Return what some steps of one attempt, the latest by default, have written until now.

        Raises:
            NotFound: there is no such job or attempt, or the blob store has lost a log.
        """
        for tries in range(TRIES):
            job, pieces = self._look(job_id)
            wanted = job.attempt if attempt is None else attempt
            found = next((item for item in job.attempts if item.number == wanted), None)
            if found is None and attempt is not None:
                raise NotFound(f"job {job_id} has no attempt {attempt}")
            try:
                logs = self._logs(found, steps, pieces) if found else []
            except _Replaced as exc:
                if tries == TRIES - 1:
                    raise NotFound(f"a log of job {job_id} is lost") from exc
            else:
                yield from ((name, log) for name, log in logs if log)
                return

    def follow(
        self,
        job_id: UUID,
        after: Position,
        *,
        steps: Collection[StepName] = ALL_STEPS,
        stopping: Callable[[], bool] = lambda: False,
    ) -> Iterator[LogText | JobState | None]:
        """
        Return what the steps of a job write, as they write it, and at last the state that the job ended in.

        None comes whenever there is nothing new. A database or blob store that does not answer is waited for.

        Args:
            job_id: Which job.
            after: Where to begin; goes on into later attempts.
            steps: Which of them.
            stopping: Whether to stop before the end.
        """
        now, final, tries = None, None, 0
        while not stopping():
            try:
                job, pieces = self._look(job_id)
                now = job.state if job.state.is_final else None
                for text in self._news(job, pieces, after, steps):
                    after = text.after
                    yield text
            except (_Replaced, Unavailable) as exc:
                final = now if isinstance(exc, _Replaced) else final  # a log that is lost is not to be waited for
                tries = 0 if final is None else tries + 1
                over = tries >= TRIES
            else:
                over, tries = final is not None, 0  # nothing was written after the look before
                final = now
            if over and final is not None:
                yield final
                return
            yield None
            time.sleep(LOOK_EVERY_S)

    def sweep(self) -> int:
        """Remove blobs of logs that no row names and that are older than `ORPHAN_AGE`; return how many."""
        horizon = datetime.now(UTC) - ORPHAN_AGE
        removed, batch = 0, list[str]()
        for blob in self._blobs.list("logs/"):
            if blob.modified_at < horizon:
                batch.append(blob.key)
            if len(batch) == _BATCH:
                removed += self._sweep(batch)
                batch.clear()
        return removed + self._sweep(batch)

    def _sweep(self, keys: list[str]) -> int:
        jobs = {UUID(match[1]) for key in keys if (match := _KEY.match(key))}
        with self._database.read() as work:
            named = work.steps.log_keys(jobs)
        orphans = [key for key in keys if key not in named]
        for key in orphans:
            self._blobs.delete(key)
        return len(orphans)

    def _logs(self, attempt: Attempt, steps: Collection[StepName], pieces: Pieces) -> list[tuple[StepName, bytes]]:
        shown = [step for step in attempt.steps if step.name in steps]
        return [(step.name, self._text(_parts(attempt, step, pieces))) for step in shown]

    def _look(self, job_id: UUID) -> tuple[Job, Pieces]:
        with self._database.read() as work:
            pieces = work.steps.pieces(job_id)  # first: they are still there if the whole log is not yet
            return work.jobs.get(job_id), pieces

    def _news(self, job: Job, pieces: Pieces, after: Position, steps: Collection[StepName]) -> Iterator[LogText]:
        for attempt in job.attempts:
            for number, step in enumerate(attempt.steps):
                place = Position(attempt.number, number)
                if (place.attempt, place.step) < (after.attempt, after.step) or step.name not in steps:
                    continue
                offset = after.offset if (place.attempt, place.step) == (after.attempt, after.step) else 0
                is_over = step.seconds is not None or attempt.outcome is not AttemptOutcome.RUNNING
                runs = self._runs(_parts(attempt, step, pieces), offset)
                for text, end in _texts(runs, offset, is_over=is_over):
                    after = Position(attempt.number, number, end)
                    yield LogText(step=step.name, attempt=attempt.number, text=text, after=after)

    def _text(self, parts: list[_Part]) -> bytes:
        return joined(self._runs(parts, 0))

    def _runs(self, parts: list[_Part], offset: int) -> list[Run]:
        """Return what is stored of a log from a place on; consecutive bytes in one run."""
        runs: list[Run] = []
        for part in parts:
            if part.end is not None and part.end <= offset:
                continue
            start = max(part.start, offset)
            content = self._content(part, start)
            if runs and runs[-1].end == start:
                runs[-1] = Run(runs[-1].start, runs[-1].content + content)
            elif content:
                runs.append(Run(start, content))
            offset = start + len(content)
        return runs

    def _content(self, part: _Part, start: int) -> bytes:
        at = part.at + start - part.start
        try:
            with self._blobs.get(part.key, offset=at, length=None if part.end is None else part.end - start) as pieces:
                return b"".join(pieces)
        except NotFound as exc:
            raise _Replaced from exc


def _parts(attempt: Attempt, step: StepRecord, pieces: Pieces) -> list[_Part]:
    """Return where the log of a step is: in one blob when it is whole, before that in pieces."""
    if step.log_key is None:
        found = pieces.get((attempt.number, step.name), [])
        return [_Part(piece.start, piece.end, piece.blob_key) for piece in found]
    if step.log_gap_at is None or step.log_bytes is None:
        return [_Part(0, step.log_bytes, step.log_key)]
    total = step.log_bytes + step.log_gap_bytes
    tail_start = step.log_gap_at + step.log_gap_bytes
    return [
        _Part(0, step.log_gap_at, step.log_key),
        _Part(tail_start, total, step.log_key, at=step.log_gap_at),
    ]


def _texts(runs: list[Run], offset: int, *, is_over: bool) -> Iterator[tuple[str, int]]:
    """
    Return the text of runs, and the place after each part of it.

    A character whose last bytes are not there yet is left for later, unless nothing follows.
    """
    for run in runs:
        if run.start > offset:
            yield gap_line(run.start - offset).decode(), run.start
        offset = run.start
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        ends = is_over or run is not runs[-1]
        for begin in range(0, len(run.content), EVENT_BYTES):
            piece = run.content[begin : begin + EVENT_BYTES]
            is_last = begin + EVENT_BYTES >= len(run.content)
            text = decoder.decode(piece, final=ends and is_last)
            offset = run.start + begin + len(piece) - len(decoder.getstate()[0])
            if text:
                yield text, offset
