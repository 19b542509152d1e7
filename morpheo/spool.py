"""
Ends of attempts that the database could not take: kept on this machine until it can.

The worker goes on to its next job meanwhile. One SQLite file in the data folder is shared by all processes of a
machine. What it holds is worth a computation, not an order: without it the lease runs out and the job is tried again.
So a file that is damaged is set aside, and no fault of it stops a worker.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import sqlite3
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

from morpheo.ends import End, EndWriter
from morpheo.errors import DatabaseUnavailable
from morpheo.logs import about_job, adding
from morpheo.models import Artifact, ArtifactKind, AttemptOutcome, Blame, Cause, Failure, Scores, StepName

logger = logging.getLogger(__name__)

#: Name of the file in the data folder.
FILE_NAME = "spool.db"
#: How long a process waits for another one that writes to the file, in seconds.
LOCK_TIMEOUT_S = 5.0

_DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_TABLE = """
CREATE TABLE IF NOT EXISTS ends (
    id INTEGER PRIMARY KEY, job TEXT NOT NULL, attempt INTEGER NOT NULL, document TEXT NOT NULL, UNIQUE (job, attempt)
)
"""


class Spool:
    """
    Keeps ends in a file; safe to use from several threads and processes.

    Args:
        path: The file; made when it is first needed.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def keep(self, end: End) -> bool:
        """Keep an end, also when the power fails; of one attempt, the first one stays. Return whether it is kept."""
        values = str(end.job), end.attempt, json.dumps(dataclasses.asdict(end), default=str)
        for _ in range(2):  # a damaged file is set aside, and a new one takes its place
            try:
                with self._connected() as connection:
                    connection.execute("INSERT OR IGNORE INTO ends (job, attempt, document) VALUES (?, ?, ?)", values)
            except (sqlite3.Error, OSError) as exc:
                self._note(exc)
            else:
                return True
        return False

    def waiting(self) -> list[tuple[int, End]]:
        """Return what is kept, oldest first, with the number to `remove` it by; what cannot be read is removed."""
        if not self._path.exists():
            return []
        try:
            with self._connected() as connection:
                rows = connection.execute("SELECT id, document FROM ends ORDER BY id").fetchall()
        except (sqlite3.Error, OSError) as exc:
            self._note(exc)
            return []
        found = []
        for number, document in rows:
            try:
                found.append((number, _to_end(json.loads(document))))
            except (ValueError, KeyError, TypeError):
                logger.exception("an end in %s cannot be read; its job is tried again", self._path)
                self.remove(number)
        return found

    def remove(self, number: int) -> None:
        """Forget an end."""
        try:
            with self._connected() as connection:
                connection.execute("DELETE FROM ends WHERE id = ?", [number])
        except (sqlite3.Error, OSError) as exc:
            self._note(exc)  # it is written again, which changes nothing

    def commit(self, writer: EndWriter) -> int:
        """
        Write what is kept; return how many ends that were. Harmless if two do it at once.

        Raises:
            DatabaseUnavailable: the database does not answer; the rest stays.
        """
        count = 0
        for number, end in self.waiting():
            with about_job(end.job), adding(attempt=end.attempt):
                try:
                    writer.write(end)
                except DatabaseUnavailable:
                    raise
                except Exception:
                    logger.exception("an end that was kept is refused; its job is tried again")
                    writer.discard(end)
            self.remove(number)
            count += 1
        return count

    @contextlib.contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with contextlib.closing(sqlite3.connect(self._path, timeout=LOCK_TIMEOUT_S)) as connection:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")
            with connection:
                connection.execute(_TABLE)
                yield connection

    def _note(self, exc: sqlite3.Error | OSError) -> None:
        code = getattr(exc, "sqlite_errorcode", None)
        if code is None or code & 0xFF not in _DAMAGE:
            logger.error("%s cannot be used: %s", self._path, exc)
            return
        aside = self._path.with_name(f"{self._path.name}.damaged-{time.time_ns()}")
        text = "%s is damaged (%s); it is now %s, and the jobs whose ends it held are tried again"
        logger.error(text, self._path, exc, aside.name)
        for suffix in ("", "-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):  # another process was faster
                Path(f"{self._path}{suffix}").rename(f"{aside}{suffix}")


def _to_end(values: dict[str, Any]) -> End:
    scores, failure = values["scores"], values["failure"]
    return End(
        job=UUID(values["job"]),
        attempt=int(values["attempt"]),
        outcome=AttemptOutcome(values["outcome"]),
        artifacts=tuple(_to_artifact(item) for item in values["artifacts"]),
        scores=None if scores is None else Scores(**scores),
        failure=None if failure is None else _to_failure(failure),
        message=values["message"],
        delay_s=values["delay_s"],
        strikes=values["strikes"],
    )


def _to_artifact(values: dict[str, Any]) -> Artifact:
    return Artifact(
        **{
            **values,
            "id": UUID(values["id"]),
            "kind": ArtifactKind(values["kind"]),
            "algo": UUID(values["algo"]) if values["algo"] else None,
            "created_at": datetime.fromisoformat(values["created_at"]),
        }
    )


def _to_failure(values: dict[str, Any]) -> Failure:
    return Failure(
        cause=Cause(values["cause"]),
        blame=Blame(values["blame"]),
        message=values["message"],
        step=StepName(values["step"]) if values["step"] else None,
    )
