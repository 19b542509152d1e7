"""Logs as server-sent events (``text/event-stream`` of the HTML standard)."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any
from uuid import UUID

from flask import Flask, Response, current_app, request

from morpheo.api.errors import problem
from morpheo.config import SHORT_THREADS, Settings
from morpheo.disclosure import View
from morpheo.jobs import JobService
from morpheo.models import JobState
from morpheo.transcripts import LogText, Position

#: A comment is sent after so long without an event, in seconds, so that nobody on the way hangs up.
HEARTBEAT_S = 15.0
#: A client that takes nothing for so long is hung up on, in seconds.
STALLED_S = 60
#: Name, among an application's extensions, of a function that tells whether the server stops.
STOPPING = "morpheo.stopping"
_FOLLOWERS = "morpheo.followers"


_STREAM = """: the log follows

id: 1-0-12
event: log
data: {"step": "train", "attempt": 1, "text": "remembers 2\\n"}

event: end
data: {"state": "succeeded"}

"""
#: What the OpenAPI document says of logs.
LOG = {
    "parameters": [
        {
            "name": "Last-Event-ID",
            "in": "header",
            "description": "Id of the last event that a follower has got: the log goes on from there",
            "schema": {"type": "string"},
            "example": "1-0-512",
        }
    ],
    "responses": {
        "200": {
            "description": "What is written, or what follows",
            "content": {
                "text/plain": {"schema": {"type": "string"}, "example": "==> train <==\nremembers 2\n"},
                "text/event-stream": {
                    "schema": {"type": "string"},
                    "example": _STREAM,
                },
            },
        }
    },
}


def limit_followers(app: Flask, *, settings: Settings) -> None:
    """Let an application have as many followers at once as its settings say, and leave a thread for other long ones."""
    most = max(1, settings.api_threads - SHORT_THREADS - 1)
    app.extensions[_FOLLOWERS] = threading.BoundedSemaphore(min(settings.api_followers, most))


def follow(jobs: JobService, job_id: UUID, *, attempt: int | None, view: View) -> Response:
    """
    Return a response that tells what those steps of a job write that a view shows, and ends when the job has.

    Events are ``log`` (step, attempt, text) and at last ``end`` (state). A client that lost its connection sends the id
    of the last event that it has got as ``Last-Event-ID``, and the log goes on from there.
    """
    after = Position(attempt) if attempt is not None else None
    if last := request.headers.get("Last-Event-ID"):
        after = Position.parse(last)
    stopping = current_app.extensions.get(STOPPING, lambda: False)
    items = jobs.follow_logs(job_id, after=after, steps=view.steps, stopping=stopping)
    followers: threading.BoundedSemaphore = current_app.extensions[_FOLLOWERS]
    if not followers.acquire(blocking=False):
        return problem(503, "too many follow logs at this moment; try again, or ask for the log without follow")
    response = Response(_events(items, _connection(request.environ), view), content_type="text/event-stream")
    response.call_on_close(followers.release)
    response.headers["Cache-Control"] = "no-store"
    response.headers["X-Accel-Buffering"] = "no"  # nginx would hold events back
    return response


def _events(
    items: Iterable[LogText | JobState | None], connection: socket.socket | None, view: View
) -> Iterator[bytes]:
    yield b": the log follows\n\n"
    sent = time.monotonic()
    for item in items:
        if item is not None:
            yield _event(item, view)
        elif _has_hung_up(connection):
            return
        elif time.monotonic() - sent < HEARTBEAT_S:
            continue
        else:
            yield b": still there\n\n"
        sent = time.monotonic()


def _event(item: LogText | JobState, view: View) -> bytes:
    if isinstance(item, JobState):
        return f"event: end\ndata: {json.dumps({'state': item})}\n\n".encode()
    text = view.text(item.text)
    data = json.dumps({"step": item.step, "attempt": item.attempt, "text": text})  # ASCII, in one line
    return f"id: {item.after}\nevent: log\ndata: {data}\n\n".encode()


def _connection(environ: dict[str, Any]) -> socket.socket | None:
    connection = environ.get("gunicorn.socket") or environ.get("werkzeug.socket")
    if isinstance(connection, socket.socket):
        # A thread that sends to a client that reads nothing would wait for hours.
        with suppress(OSError):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, STALLED_S * 1000)
        return connection
    return None


def _has_hung_up(connection: socket.socket | None) -> bool:
    """Return whether the client has closed its side: a follower takes a thread, which others want."""
    if connection is None:
        return False
    try:
        return not connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except OSError:
        return True
