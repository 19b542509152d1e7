"""Steps of attempts, and the pieces of their logs, in the database."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import delete, insert, select, tuple_, update
from sqlalchemy.orm import Session

from morpheo.models import StepName, StepRecord
from morpheo.storage.clock import database_now
from morpheo.storage.tables import JobRow, LogPieceRow, StepRow


@dataclass(frozen=True, kw_only=True)
class LogPiece:
    """Part of the log of a step, in a blob of its own."""

    number: int
    #: Place of its first byte among all that the step wrote.
    start: int
    size_bytes: int
    blob_key: str

    @property
    def end(self) -> int:
        """Place after the last byte."""
        return self.start + self.size_bytes


class StepRepository:
    """Reads and writes the steps of attempts in one transaction."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def is_latest(self, job_id: UUID, attempt: int) -> bool:
        """Return whether there is no later attempt at the job: a worker that was replaced writes nothing any more."""
        return self._session.scalar(select(JobRow.attempt).where(JobRow.id == job_id)) == attempt

    def begin(self, job_id: UUID, attempt: int, name: StepName, *, position: int, ago_s: float = 0.0) -> None:
        """Record that a step has started, so many seconds ago."""
        self._session.execute(
            insert(StepRow).values(
                job_id=job_id, attempt=attempt, name=name.value, position=position, started_at=database_now() - ago_s
            )
        )

    def end(self, job_id: UUID, attempt: int, record: StepRecord) -> None:
        """Record how a step ended."""
        self._session.execute(
            update(StepRow)
            .where(StepRow.job_id == job_id, StepRow.attempt == attempt, StepRow.name == record.name.value)
            .values(
                seconds=record.seconds,
                exit_code=record.exit_code,
                oom_killed=record.oom_killed,
                peak_memory_bytes=record.peak_memory_bytes,
                log_key=record.log_key,
                log_bytes=record.log_bytes,
                log_gap_at=record.log_gap_at,
                log_gap_bytes=record.log_gap_bytes,
            )
        )

    def logs_after(self, last: tuple[UUID, int, str] | None, *, limit: int) -> list[tuple[UUID, int, str, str]]:
        """Return job, attempt, name and log key of steps that have a log, in that order, those after the last one."""
        key = StepRow.job_id, StepRow.attempt, StepRow.name
        query = select(*key, StepRow.log_key).where(StepRow.log_key.is_not(None)).order_by(*key).limit(limit)
        rows = self._session.execute(query if last is None else query.where(tuple_(*key) > last))
        return [(row[0], row[1], row[2], row[3] or "") for row in rows]

    def pieces(self, job_id: UUID) -> dict[tuple[int, StepName], list[LogPiece]]:
        """Return the pieces of a job's logs in their order, by attempt and step."""
        found: dict[tuple[int, StepName], list[LogPiece]] = {}
        query = select(LogPieceRow).where(LogPieceRow.job_id == job_id).order_by(LogPieceRow.start)
        for row in self._session.scalars(query):
            piece = LogPiece(number=row.number, start=row.start, size_bytes=row.size_bytes, blob_key=row.blob_key)
            found.setdefault((row.attempt, StepName(row.step)), []).append(piece)
        return found

    def add_pieces(self, job_id: UUID, attempt: int, step: StepName, pieces: Iterable[LogPiece]) -> None:
        """Add pieces to the log of a step."""
        for piece in pieces:
            self._session.execute(
                insert(LogPieceRow).values(
                    job_id=job_id,
                    attempt=attempt,
                    step=step.value,
                    number=piece.number,
                    start=piece.start,
                    size_bytes=piece.size_bytes,
                    blob_key=piece.blob_key,
                )
            )

    def remove_pieces(
        self, job_id: UUID, attempt: int, step: StepName, numbers: Iterable[int] | None = None
    ) -> list[str]:
        """Remove some pieces of the log of a step, or all; return the keys of their blobs."""
        query = delete(LogPieceRow).where(
            LogPieceRow.job_id == job_id, LogPieceRow.attempt == attempt, LogPieceRow.step == step.value
        )
        if numbers is not None:
            query = query.where(LogPieceRow.number.in_(list(numbers)))
        return list(self._session.scalars(query.returning(LogPieceRow.blob_key)))

    def log_keys(self, job_ids: Iterable[UUID]) -> set[str]:
        """Return the keys of all blobs with logs of some jobs."""
        ids = list(job_ids)
        whole = select(StepRow.log_key).where(StepRow.job_id.in_(ids), StepRow.log_key.is_not(None))
        pieces = select(LogPieceRow.blob_key).where(LogPieceRow.job_id.in_(ids))
        return {key for query in (whole, pieces) for key in self._session.scalars(query) if key is not None}
