"""The database: an engine, and units of work that hand out repositories."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import DBAPIError, IntegrityError, InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm import Session, sessionmaker

from morpheo.errors import Conflict, DatabaseUnavailable, MorpheoError, RowLocked
from morpheo.models import JobSpec, JobState
from morpheo.storage.accounts import AccountRepository
from morpheo.storage.artifacts import ArtifactRepository
from morpheo.storage.chains import ChainRepository
from morpheo.storage.challenges import ChallengeRepository
from morpheo.storage.events import EventRepository
from morpheo.storage.jobs import JobRepository
from morpheo.storage.leaderboard import LeaderboardRepository
from morpheo.storage.messages import MessageRepository
from morpheo.storage.nodes import NodeRepository
from morpheo.storage.postgres import STATEMENT_TIMEOUT_S, ImpatientConnection
from morpheo.storage.recovery import RecoveryRepository
from morpheo.storage.reports import ReportRepository
from morpheo.storage.statistics import StatisticsRepository
from morpheo.storage.steps import StepRepository
from morpheo.storage.turns import TurnRepository
from morpheo.storage.visibility import VisibilityRepository

#: How long a statement waits for a lock, in seconds.
LOCK_TIMEOUT_S = 10
#: The same on SQLite, whose writers wait for each other's syncs in no fair order.
SQLITE_TIMEOUT_S = 30
#: How long a connection may be without a sign of life from the server's machine, in seconds. Without a limit, a
#: statement whose answer was lost on the way would wait for hours.
SILENCE_S = 10
#: After so long PostgreSQL ends the transaction of a silent client, in seconds. Less than a lease: who is cut
#: off while a lease is renewed must not hold the row of the job for longer than the lease.
IDLE_S = 25
#: PostgreSQL's name of the error that a lock was waited for in vain.
_LOCK_NOT_AVAILABLE = "55P03"


class UnitOfWork:
    """One transaction and the repositories that work in it."""

    def __init__(self, session: Session, *, apart: bool = False) -> None:
        self.events = EventRepository(session)
        self.artifacts = ArtifactRepository(session, self.events)
        self.jobs = JobRepository(session, self.events, apart=apart)
        self.messages = MessageRepository(session)
        self.nodes = NodeRepository(session)
        self.recovery = RecoveryRepository(session, self.jobs)
        self.steps = StepRepository(session)
        self.turns = TurnRepository(session)
        self.challenges = ChallengeRepository(session, self.events)
        self.accounts = AccountRepository(session, self.events)
        self.visibility = VisibilityRepository(session)
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
        connections: Most connections that are kept open.
        more: Most connections besides, while that many are in use.
    """

    def __init__(self, url: str, *, connections: int = 5, more: int = 10) -> None:
        self.url = url
        self._rules: Sequence[JobRule] = ()
        self._publish: Callable[[list[JobSpec]], None] | None = None
        self._apart = False
        self.engine = _create_engine(url, pool_size=connections, max_overflow=more)
        self._sessions = sessionmaker(self.engine)

    @functools.cached_property
    def reserved(self) -> Database:
        """The same database over one connection that stays open, and that nobody else of this process can take."""
        return Database(self.url, connections=1, more=0)

    def attach(
        self,
        *,
        rules: Sequence[JobRule] = (),
        publish: Callable[[list[JobSpec]], None] | None = None,
        apart: bool = False,
    ) -> None:
        """
        Say what follows from jobs.

        Args:
            rules: Called before a commit for each job that the transaction gave to a worker or ended.
            publish: Called after a commit with the jobs that it queued.
            apart: Whether the jobs of each submitter's algos are for workers of their own (`morpheo.queues.in_lane`).
        """
        self._rules, self._publish, self._apart = rules, publish, apart

    @contextlib.contextmanager
    def begin(self) -> Iterator[UnitOfWork]:
        """
        Open a unit of work that commits at the end of the block, or rolls back if it raises.

        Raises:
            Conflict: a row with that key exists.
            DatabaseUnavailable: the database does not answer.
        """
        with _mapped_errors(), self._sessions.begin() as session:
            work = UnitOfWork(session, apart=self._apart)
            yield work
            for job_id, state in work.jobs.changes:
                for rule in self._rules:
                    rule(work, job_id, state)
            work.events.write()  # last: from here to the commit, nobody else can append
        if work.jobs.queued and self._publish is not None:
            self._publish(work.jobs.queued)

    @contextlib.contextmanager
    def read(self, *, one_moment: bool = False) -> Iterator[UnitOfWork]:
        """
        Open a unit of work that only reads; on SQLite it waits for no writer.

        Args:
            one_moment: Whether several queries must see the same moment, while others write.

        Raises:
            DatabaseUnavailable: the database does not answer.
        """
        options: dict[str, object] = {"morpheo_read": True}
        if one_moment and self.engine.dialect.name == "postgresql":  # on SQLite it is so anyway
            options["isolation_level"] = "REPEATABLE READ"
        with _mapped_errors(), self._sessions() as session:
            session.connection(execution_options=options)
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
        if "reserved" in vars(self):
            self.reserved.close()
        self.engine.dispose()


def _create_engine(url: str, **pool: int) -> Engine:
    if make_url(url).get_backend_name() == "postgresql":
        engine = create_engine(
            url,
            pool_pre_ping=True,
            pool_recycle=1800,
            pool_timeout=LOCK_TIMEOUT_S,
            json_deserializer=_load_json,
            **pool,
            connect_args={
                "connect_timeout": 5,
                "keepalives_idle": SILENCE_S // 2,
                "keepalives_interval": SILENCE_S // 5,
                "tcp_user_timeout": SILENCE_S * 1000,
                "options": f"-c lock_timeout={LOCK_TIMEOUT_S}s -c statement_timeout={STATEMENT_TIMEOUT_S}s"
                f" -c idle_in_transaction_session_timeout={IDLE_S}s",
            },
        )
        event.listen(engine, "do_connect", _connect_postgres)
        return engine
    path = make_url(url).database
    if path and path != ":memory:":
        Path(path).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    pool = {} if path in (None, "", ":memory:") else pool
    engine = create_engine(url, connect_args={"timeout": SQLITE_TIMEOUT_S}, json_deserializer=_load_json, **pool)
    event.listen(engine, "connect", _configure_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _connect_postgres(_dialect: object, _record: object, args: Sequence[Any], words: dict[str, Any]) -> object:
    return ImpatientConnection.connect(*args, **words)


def _load_json(text: str) -> Any:
    # What is not JSON must not keep the other rows of an answer from being read; whoever needs it finds it missing.
    try:
        return json.loads(text)
    except ValueError:
        return None


def _configure_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # the driver must not open transactions by itself: _begin_sqlite does
    # NORMAL would lose the last commits with the power: orders that were accepted.
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
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
        if getattr(getattr(exc, "orig", None), "sqlstate", None) == _LOCK_NOT_AVAILABLE:
            raise RowLocked("another transaction has kept a row for too long; try again") from exc
        raise DatabaseUnavailable(_hint(exc)) from exc
    except DBAPIError as exc:
        # One that only reads may be a copy that is about to take the place of the one that failed.
        if exc.connection_invalidated or "UndefinedTable" in str(exc) or "ReadOnlySqlTransaction" in str(exc):
            raise DatabaseUnavailable(_hint(exc)) from exc
        raise MorpheoError("the database refused a statement") from exc
    except SQLAlchemyError as exc:
        raise MorpheoError("the database could not be used") from exc


def _hint(exc: SQLAlchemyError) -> str:
    if "no such table" in str(exc) or "UndefinedTable" in str(exc):
        return "the database has no tables; run `morpheo migrate`"
    return "the database does not answer; try again"
