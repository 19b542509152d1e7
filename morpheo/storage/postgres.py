"""Connections to a PostgreSQL server that may hang."""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg.pq import TransactionStatus

#: How long the server may work on a statement, in seconds.
STATEMENT_TIMEOUT_S = 30
#: How long it is waited for, in seconds: one that hangs ends no statement, while its machine still says it is there.
ANSWER_S = STATEMENT_TIMEOUT_S + 10.0


class ImpatientConnection(psycopg.Connection[Any]):
    """A connection that is closed if the server does not answer in time."""

    def wait(self, gen: Any, interval: float = 0.1, timeout: float | None = None) -> Any:
        """
        Wait until a statement has been answered.

        Raises:
            psycopg.OperationalError: it was not, within `ANSWER_S`.
        """
        try:
            return super().wait(gen, interval, ANSWER_S if timeout is None else timeout)
        except psycopg.OperationalError:
            if self.pgconn.transaction_status == TransactionStatus.ACTIVE:
                self.close()  # in the middle of a statement: whoever used it next would read this one's answer
            raise
