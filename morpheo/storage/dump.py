"""
All rows as lines of JSON, in the same form for every database.

The first line says which tables they are of, the last how many rows there are: a file that was cut off is recognised.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TextIO
from uuid import UUID

from sqlalchemy import Connection, Table, delete, func, insert, select
from sqlalchemy.orm import Session

from morpheo.audit import Action
from morpheo.errors import Conflict, InvalidInput
from morpheo.storage import migrate
from morpheo.storage.database import Database
from morpheo.storage.events import EventRepository
from morpheo.storage.tables import ArtifactRow, Base, EventHeadRow, LogPieceRow, NodeRow, StepRow

#: Rows in memory at once.
BATCH = 500

#: Nodes are not part of a stack's memory: those that run say so again.
_TABLES = {table.name: table for table in Base.metadata.sorted_tables if table is not NodeRow.__table__}


@dataclass(frozen=True, kw_only=True)
class BlobRef:
    """A blob that a row names."""

    key: str
    #: None if the row does not tell.
    sha256: str | None


def dump_rows(database: Database, target: TextIO) -> None:
    """
    Write all rows as of one moment, while others write.

    Raises:
        DatabaseUnavailable: the database does not answer.
    """
    revision, _ = migrate.revisions(database)
    count = 0
    with database.connect() as connection:
        # Several SELECTs must see the same moment: on PostgreSQL that is not so by default, on SQLite it is.
        if connection.dialect.name == "postgresql":
            connection.execution_options(isolation_level="REPEATABLE READ")
        connection.execution_options(morpheo_read=True, yield_per=BATCH)
        _write(target, {"revision": revision})
        for name, table in _TABLES.items():
            for row in connection.execute(select(table)).mappings():
                _write(target, {"table": name, "row": {key: _plain(value) for key, value in row.items()}})
                count += 1
    _write(target, {"rows": count})


def blob_refs(lines: Iterable[str]) -> Iterator[BlobRef]:
    """
    Return the blobs that dumped rows name.

    Raises:
        InvalidInput: the lines are no complete dump.
    """
    for table, row in _rows(lines):
        if table is ArtifactRow.__table__:
            yield BlobRef(key=row["blob_key"], sha256=row["sha256"])
        elif table is StepRow.__table__ and row["log_key"] is not None:
            yield BlobRef(key=row["log_key"], sha256=None)
        elif table is LogPieceRow.__table__:
            yield BlobRef(key=row["blob_key"], sha256=None)


def check_empty(database: Database) -> None:
    """
    Find out whether the tables are there and empty.

    Raises:
        Conflict: there are rows.
        DatabaseUnavailable: the database does not answer, or has no tables.
    """
    with database.connect() as connection:
        for name, table in _TABLES.items():
            if table is EventHeadRow.__table__:  # has a row from the start, which is replaced
                continue
            if connection.execute(select(func.count()).select_from(table)).scalar_one():
                raise Conflict(f"the database is not empty: table {name} has rows; restore to a new one")


def load_rows(database: Database, lines: Iterable[str], *, source: str) -> int:
    """
    Insert dumped rows into empty tables, all or none, and return how many there were.

    The audit trail goes on from that of the dump, with the event that it was restored from this source.

    Raises:
        InvalidInput: the lines are no complete dump, or one of another revision.
        Conflict: there are rows.
        DatabaseUnavailable: the database does not answer.
    """
    check_empty(database)
    revision, _ = migrate.revisions(database)
    count = 0
    with database.connect() as connection:
        connection.execute(delete(EventHeadRow))
        for table, rows in _batches(_rows(lines, revision=revision)):
            _insert(connection, table, rows)
            count += len(rows)
        events = EventRepository(Session(connection))
        events.record(Action.BACKUP_RESTORED, "backup", source)
        events.write()
        connection.commit()
    return count


def _insert(connection: Connection, table: Table, rows: list[dict[str, Any]]) -> None:
    ids = [column.name for column in table.columns if column.type.python_type is UUID]
    for row in rows:
        row.update({name: UUID(row[name]) for name in ids if row[name] is not None})
    connection.execute(insert(table), rows)


def _rows(lines: Iterable[str], *, revision: str | None = None) -> Iterator[tuple[Table, dict[str, Any]]]:
    count = 0
    end = None
    try:
        for line in lines:
            entry = json.loads(line)
            if "table" in entry:
                count += 1
                yield _TABLES[entry["table"]], entry["row"]
            elif revision is not None and entry.get("revision", revision) != revision:
                raise InvalidInput(
                    f"the backup is of revision {entry['revision']}, this Morpheo has {revision}: restore it with the "
                    "version that made it, and upgrade then"
                )
            end = entry.get("rows")
    except (ValueError, KeyError, EOFError) as exc:
        raise InvalidInput("the backup's rows cannot be read") from exc
    if end != count:
        raise InvalidInput("the backup's rows are cut off")


def _batches(rows: Iterable[tuple[Table, dict[str, Any]]]) -> Iterator[tuple[Table, list[dict[str, Any]]]]:
    batch: list[dict[str, Any]] = []
    present: Table | None = None
    for table, row in rows:
        if present is not None and (table is not present or len(batch) == BATCH):
            yield present, batch
            batch = []
        present = table
        batch.append(row)
    if present is not None:
        yield present, batch


def _write(target: TextIO, entry: dict[str, Any]) -> None:
    target.write(json.dumps(entry) + "\n")


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, UUID) else value
