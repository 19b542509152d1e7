"""The database's own clock: leases are compared on it, so that no worker's clock matters."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.expression import ColumnElement, FunctionElement
from sqlalchemy.types import Double


class _DatabaseNow(FunctionElement[float]):
    name = "database_now"
    type = Double()
    inherit_cache = True


@compiles(_DatabaseNow, "sqlite")
def _sqlite(_element: _DatabaseNow, _compiler: Any, **_kwargs: Any) -> str:
    return "round((julianday('now') - 2440587.5) * 86400.0, 3)"


@compiles(_DatabaseNow, "postgresql")
def _postgresql(_element: _DatabaseNow, _compiler: Any, **_kwargs: Any) -> str:
    # Not now(): that is the start of the transaction, which may have waited for a lock.
    return "CAST(round(CAST(EXTRACT(EPOCH FROM clock_timestamp()) AS NUMERIC), 3) AS DOUBLE PRECISION)"


def database_now() -> ColumnElement[float]:
    """
    Return the SQL expression of the present time, in seconds since the epoch.

    Rounded to the millisecond: such a number survives the way through a `datetime` and back, as paging needs it.
    """
    return _DatabaseNow()


def to_datetime(seconds: float) -> datetime:
    """Return an aware UTC datetime for seconds since the epoch."""
    return datetime.fromtimestamp(seconds, UTC)
