"""The database: PostgreSQL, or a SQLite file."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import psutil
from sqlalchemy import Connection, make_url, select, text
from sqlalchemy.exc import DBAPIError

from morpheo.config import Settings
from morpheo.doctor.findings import Check, Finding, clock, fail, ok, warn
from morpheo.errors import MorpheoError
from morpheo.storage import migrate
from morpheo.storage.clock import database_now
from morpheo.storage.database import Database

#: File systems on which SQLite's locks and shared memory do not work, or not across machines.
NETWORK_FILE_SYSTEMS = re.compile(r"nfs\d?|cifs|smb\w*|9p|ceph|lustre|afs|fuse\.(sshfs|s3fs|rclone|glusterfs)")

#: How old a report to an outside orchestrator may be before it is worth a word, in seconds.
REPORTS_WARN_S = 900.0

_SETTING = "MORPHEO_DATABASE_URL"
#: What PostgreSQL or its client says, and what helps.
_FIXES = (
    ("password authentication failed|no password supplied", f"put the right user and password into {_SETTING}"),
    ('role ".*" does not exist', f"`createuser --pwprompt USER` on the server, or another user in {_SETTING}"),
    ('database ".*" does not exist', "`createdb --owner USER DATABASE` on the server, then `morpheo migrate`"),
    ("pg_hba.conf", "a line for this machine in the server's pg_hba.conf, then `SELECT pg_reload_conf()`"),
    ("too many clients|remaining connection slots", "a higher max_connections in postgresql.conf, then restart it"),
    (
        "",
        f"start it (`systemctl start postgresql`), or set {_SETTING}=postgresql+psycopg://USER:PASSWORD@HOST/DATABASE",
    ),
)


def checks(settings: Settings) -> list[Check]:
    """Return the checks of the database."""
    database = _Postgresql(settings) if settings.database.startswith("postgresql") else _Sqlite(settings)
    needs = ("database.answers",)
    found = [
        Check(name="database.answers", run=database.check_answers),
        Check(name="database.migrations", run=database.check_migrations, needs=needs),
        Check(name="database.writable", run=database.check_writable, needs=needs),
    ]
    if settings.orchestrator_url:
        found.append(Check(name="database.reports", run=database.check_reports, needs=("database.migrations",)))
    if isinstance(database, _Sqlite):
        return [*found, Check(name="database.filesystem", run=database.check_filesystem, needs=needs)]
    return [
        *found,
        Check(name="database.isolation", run=database.check_isolation, needs=needs),
        Check(name="database.clock", run=database.check_clock, needs=needs),
    ]


class _Common:
    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._url = make_url(settings.database)

    @contextmanager
    def _connect(self) -> Iterator[Connection]:
        with closing(Database(self._settings.database)) as database, database.connect() as connection:
            connection.execution_options(morpheo_read=True)
            yield connection

    def _ask(self, query: str) -> str:
        with self._connect() as connection:
            return str(connection.execute(text(query)).scalar_one())

    def check_migrations(self) -> Finding:
        with closing(Database(self._settings.database)) as database:
            present, known = migrate.revisions(database)
        if not present:
            return fail("the database has no tables", "`morpheo migrate`")
        if present == known[-1]:
            return ok(f"revision {present}")
        if present in known:
            return fail(f"the tables are at revision {present}, this Morpheo needs {known[-1]}", "`morpheo migrate`")
        return fail(
            f"the tables are at revision {present}, unknown to this Morpheo (at {known[-1]}): a newer one made it",
            "upgrade Morpheo on this machine to the version of the others",
        )

    def check_reports(self) -> Finding:
        with closing(Database(self._settings.database)) as database, database.read() as work:
            count, age_s = work.reports.backlog()
        said = f"{count} reports wait for the orchestrator, the oldest for {age_s:.0f} s"
        if age_s > REPORTS_WARN_S:
            return warn(said, "see 'report put off' in the workers' logs: whether it answers, and takes the password")
        return ok(said if count else "no report waits for the orchestrator")


class _Postgresql(_Common):
    def check_answers(self) -> Finding:
        where = self._url.render_as_string(hide_password=True)
        try:
            version = self._ask("SHOW server_version")
        except MorpheoError as exc:
            said = _said(exc)
            fix = next(fix for pattern, fix in _FIXES if re.search(pattern, said))
            return fail(f"{where}: {said}", fix)
        return ok(f"PostgreSQL {version}")

    def check_writable(self) -> Finding:
        if self._ask("SELECT pg_is_in_recovery()") == "True":
            return fail("the server is a standby, which only reads", f"set {_SETTING} to the primary server")
        if self._ask("SHOW transaction_read_only") == "on":
            return fail(
                "the server only reads (default_transaction_read_only is on)",
                f"`ALTER DATABASE {self._url.database} SET default_transaction_read_only = off`, the same for the user "
                "(`ALTER ROLE`) and in postgresql.conf",
            )
        return ok("transactions may write")

    def check_isolation(self) -> Finding:
        level = self._ask("SHOW transaction_isolation")
        if level != "read committed":
            return fail(
                f"transactions are {level}: workers that claim jobs at the same time would fail instead of waiting",
                f"`ALTER DATABASE {self._url.database} SET default_transaction_isolation = 'read committed'`, the same "
                "for the user (`ALTER ROLE`) and in postgresql.conf",
            )
        return ok(level)

    def check_clock(self) -> Finding:
        with self._connect() as connection:
            before = time.time()
            theirs = connection.execute(select(database_now())).scalar_one()
            middle = (before + time.time()) / 2
        return clock("PostgreSQL", theirs - middle, lease_s=self._settings.lease_s)


class _Sqlite(_Common):
    @property
    def _path(self) -> Path:
        return Path(self._url.database or "")

    def check_answers(self) -> Finding:
        if not self._path.exists():
            return fail(f"there is no database file {self._path}", "`morpheo migrate`")
        try:
            return ok(f"SQLite {self._ask('SELECT sqlite_version()')}, {self._path}")
        except MorpheoError as exc:
            return fail(f"{self._path}: {_said(exc)}", f"restore it from a backup; `sqlite3 {self._path} .recover`")

    def check_writable(self) -> Finding:
        for path in (self._path, self._path.parent):
            if not os.access(path, os.W_OK, effective_ids=True):
                return fail(f"{path} cannot be written", f"`chown -R $(id -u) {self._path.parent}`, or remount it rw")
        if (mode := self._ask("PRAGMA journal_mode")) != "wal":
            return fail(
                f"the journal is in mode {mode}: readers and writers would wait for each other",
                f"`sqlite3 {self._path} 'PRAGMA journal_mode=WAL'`",
            )
        return ok("write-ahead log")

    def check_filesystem(self) -> Finding:
        kind = _file_system(self._path.resolve())
        if NETWORK_FILE_SYSTEMS.fullmatch(kind):
            return fail(
                f"{self._path} is on a network file system ({kind}), where SQLite's locks do not hold",
                f"MORPHEO_DATA_DIR on a local disk, or PostgreSQL in {_SETTING}",
            )
        return ok(kind or "unknown")


def _file_system(path: Path) -> str:
    mounts = {Path(mount.mountpoint): mount.fstype for mount in psutil.disk_partitions(all=True)}
    return next((mounts[parent] for parent in path.parents if parent in mounts), "")


def _said(exc: MorpheoError) -> str:
    cause = exc.__cause__
    said = str(cause.orig if isinstance(cause, DBAPIError) else cause or exc)
    return " ".join(said.split())[:300]
