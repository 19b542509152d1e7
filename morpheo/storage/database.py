"""The database: an engine, and units of work that hand out repositories."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import DBAPIError, IntegrityError, InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm import Session, sessionmaker

from morpheo.errors import Conflict, DatabaseUnavailable, MorpheoError
from morpheo.models import JobSpec, JobState
from morpheo.storage.artifacts import ArtifactRepository
from morpheo.storage.chains import ChainRepository
from morpheo.storage.challenges import ChallengeRepository
from morpheo.storage.jobs import JobRepository
from morpheo.storage.leaderboard import LeaderboardRepository
from morpheo.storage.messages import MessageRepository
from morpheo.storage.reports import ReportRepository
from morpheo.storage.statistics import StatisticsRepository
from morpheo.storage.steps import StepRepository

#: How long a statement waits for a lock, in seconds.
LOCK_TIMEOUT_S = 10
#: How long a connection may be without a sign of life from the server's machine, in seconds. Without a limit, a
#: statement whose answer was lost on the way would wait for hours.
SILENCE_S = 10


class UnitOfWork:
    """One transaction and the repositories that work in it."""

    def __init__(self, session: Session) -> None:
        self.artifacts = ArtifactRepository(session)
        self.jobs = JobRepository(session)
        self.messages = MessageRepository(session)
        self.steps = StepRepository(session)
        self.challenges = ChallengeRepository(session)
        self.chains = ChainRepository(session)
        self.leaderboard = LeaderboardRepository(session)
        self.reports = ReportRepository(session)
        self.statistics = StatisticsRepository(session)


#: What must happen in the transaction that gave a job to a worker or ended it.
JobRule = Callable[[UnitOfWork, UUID, JobState], None]


class Database:
    """
    Opens units of work on a SQLAlchemy URL; thread-safe, but not to be shared with a forked child.

    Args:
        url: ``sqlite:///…`` or ``postgresql+psycopg://…``.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._rules: Sequence[JobRule] = ()
        self._publish: Callable[[list[JobSpec]], None] | None = None
        self.engine = _create_engine(url)
        self._sessions = sessionmaker(self.engine)

    def attach(self, *, rules: Sequence[JobRule] = (), publish: Callable[[list[JobSpec]], None] | None = None) -> None:
        """
        Say what follows from jobs.

        Args:
            rules: Called before a commit for each job that the transaction gave to a worker or ended.
            publish: Called after a commit with the jobs that it queued.
        """
        self._rules, self._publish = rules, publish

    @contextlib.contextmanager
    def begin(self) -> Iterator[UnitOfWork]:
        """
        Open a unit of work that commits at the end of the block, or rolls back if it raises.

        Raises:
            Conflict: a row with that key exists.
            DatabaseUnavailable: the database does not answer.
        """
        with _mapped_errors(), self._sessions.begin() as session:
            work = UnitOfWork(session)
            yield work
            for job_id, state in work.jobs.changes:
                for rule in self._rules:
                    rule(work, job_id, state)
        if work.jobs.queued and self._publish is not None:
            self._publish(work.jobs.queued)

    @contextlib.contextmanager
    def read(self) -> Iterator[UnitOfWork]:
        """
        Open a unit of work that only reads; on SQLite it waits for no writer.

        Raises:
            DatabaseUnavailable: the database does not answer.
        """
        with _mapped_errors(), self._sessions() as session:
            session.connection(execution_options={"morpheo_read": True})
            yield UnitOfWork(session)

    def check(self) -> None:
        """
        Find out whether the database answers and has its tables.

        Raises:
            DatabaseUnavailable: it does not, or has not.
        """
        with self.read() as work:
            work.jobs.touch()

    @contextlib.contextmanager
    def connect(self) -> Iterator[Connection]:
        """
        Open a bare connection, for migrations.

        Raises:
            DatabaseUnavailable: the database does not answer.
        """
        with _mapped_errors(), self.engine.connect() as connection:
            yield connection

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()


def _create_engine(url: str) -> Engine:
    if make_url(url).get_backend_name() == "postgresql":
        return create_engine(
            url,
            pool_pre_ping=True,
            pool_recycle=1800,
            pool_timeout=LOCK_TIMEOUT_S,
            connect_args={
                "connect_timeout": 5,
                "keepalives_idle": SILENCE_S // 2,
                "keepalives_interval": SILENCE_S // 5,
                "tcp_user_timeout": SILENCE_S * 1000,
                "options": f"-c lock_timeout={LOCK_TIMEOUT_S}s -c statement_timeout=30s"
                " -c idle_in_transaction_session_timeout=60s",
            },
        )
    path = make_url(url).database
    if path and path != ":memory:":
        Path(path).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    engine = create_engine(url, connect_args={"timeout": LOCK_TIMEOUT_S})
    event.listen(engine, "connect", _configure_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _configure_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # the driver must not open transactions by itself: _begin_sqlite does
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    # A transaction that reads and then writes would fail at once if another wrote in between: take the lock first.
    reads_only = connection.get_execution_options().get("morpheo_read")
    connection.exec_driver_sql("BEGIN" if reads_only else "BEGIN IMMEDIATE")


@contextlib.contextmanager
def _mapped_errors() -> Iterator[None]:
    try:
        yield
    except IntegrityError as exc:
        raise Conflict("a row with that id exists") from exc
    except (OperationalError, InterfaceError, PoolTimeoutError) as exc:
        raise DatabaseUnavailable(_hint(exc)) from exc
    except DBAPIError as exc:
        if exc.connection_invalidated or "UndefinedTable" in str(exc):
            raise DatabaseUnavailable(_hint(exc)) from exc
        raise MorpheoError("the database refused a statement") from exc
    except SQLAlchemyError as exc:
        raise MorpheoError("the database could not be used") from exc


def _hint(exc: SQLAlchemyError) -> str:
    if "no such table" in str(exc) or "UndefinedTable" in str(exc):
        return "the database has no tables; run `morpheo migrate`"
    return "the database does not answer; try again"
