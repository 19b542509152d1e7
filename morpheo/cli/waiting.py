"""Waiting for what runs elsewhere: until it is over, the person has enough, or the time is up."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from http import HTTPStatus
from typing import TypeVar
from uuid import UUID

from morpheo.cli.common import EXIT_INTERRUPTED, EXIT_TIMEOUT, compute_client, err, remark, shown
from morpheo.client.compute import FIRST_POLL_S, LAST_POLL_S
from morpheo.errors import ApiError, ApiUnavailable, MorpheoError

T = TypeVar("T")

#: How long a service may be out while something is followed, in seconds: a restart takes less.
OUTAGE_S = 60.0
_OUT = (HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.GATEWAY_TIMEOUT)
_LOG_LINES = 20


def wait_until(
    look: Callable[[], T], over: Callable[[T], bool], *, show: Callable[[T], None], timeout_s: float | None
) -> T:
    """
    Look at something until it is over, more and more seldom while it stays as it is.

    Args:
        look: Asks a service; may fail for `OUTAGE_S` at a stretch.
        over: Whether nothing more will come.
        show: Told of every look that found a change.
        timeout_s: How long to wait; None is for ever.

    Raises:
        TimeoutError: it is not over in time.
    """
    began = answered = time.monotonic()
    pause_s = FIRST_POLL_S
    before: T | None = None
    while True:
        try:
            now = look()
        except (ApiUnavailable, ApiError) as exc:
            if not _is_outage(exc) or time.monotonic() - answered > OUTAGE_S:
                raise
        else:
            answered = time.monotonic()
            if now != before:
                show(now)
                before, pause_s = now, FIRST_POLL_S
            if over(now):
                return now
        left_s = None if timeout_s is None else began + timeout_s - time.monotonic()
        if left_s is not None and left_s <= 0:
            raise TimeoutError
        time.sleep(pause_s if left_s is None else min(pause_s, left_s))
        pause_s = min(pause_s * 1.2, LAST_POLL_S)


def _is_outage(error: MorpheoError) -> bool:
    return isinstance(error, ApiUnavailable) or (isinstance(error, ApiError) and error.status in _OUT)


@contextlib.contextmanager
def leaving(what: str, hint: str) -> Iterator[None]:
    """End the process if the person, or the time limit, stops the waiting; say that the work itself goes on."""
    try:
        yield
    except KeyboardInterrupt:
        remark(f"not followed any longer; {what}. {hint}")
        sys.exit(EXIT_INTERRUPTED)
    except TimeoutError:
        remark(f"not over in time; {what}. {hint}")
        sys.exit(EXIT_TIMEOUT)


def print_end_of_log(job_id: UUID) -> None:
    """Print the last lines that the containers of a job wrote, on stderr, if the compute API is there to tell."""
    try:
        lines = compute_client().logs(job_id).splitlines()
    except MorpheoError as exc:
        if isinstance(exc, ApiError) and exc.status == HTTPStatus.FORBIDDEN:
            remark(shown(str(exc)))  # its custodian's decision
            return
        err.print(f"the compute API does not tell the log; `morpheo logs {job_id}` does where it is reachable")
        return
    for line in lines[-_LOG_LINES:]:
        remark(f"  {shown(line)}")
