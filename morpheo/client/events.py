"""Logs of jobs as events of the compute API, over as many connections as it takes."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import requests

from morpheo.client.http import HttpClient
from morpheo.errors import ApiError, ApiUnavailable
from morpheo.models import JobState, StepName

#: How long the service may be out while a log is followed, in seconds.
OUTAGE_S = 60.0
#: Pauses before another connection, in seconds.
_FIRST_PAUSE_S = 0.2
_LAST_PAUSE_S = 5.0
#: Seconds to connect, and seconds without any byte: the service sends one each 15.
_TIMEOUT = (5, 45)


@dataclass(frozen=True, kw_only=True)
class LogEvent:
    """Something that a container wrote."""

    step: StepName
    attempt: int
    text: str


def follow_log_events(
    http: HttpClient, path: str, params: Mapping[str, str], *, outage_s: float
) -> Iterator[LogEvent | JobState]:
    """
    Return the events of a log until its end.

    Raises:
        ApiError: the service refused.
        ApiUnavailable: it was out for `outage_s` seconds.
    """
    last_id = ""
    heard, pause_s = time.monotonic(), _FIRST_PAUSE_S
    while True:
        try:
            for event in _connection(http, path, params, last_id):
                heard, pause_s = time.monotonic(), _FIRST_PAUSE_S
                if event.get("event") == "end":
                    yield JobState(json.loads(event["data"])["state"])
                    return
                if event.get("event") == "log":
                    last_id = event["id"]
                    data = json.loads(event["data"])
                    yield LogEvent(step=StepName(data["step"]), attempt=data["attempt"], text=data["text"])
        except (ApiUnavailable, ApiError) as exc:
            if isinstance(exc, ApiError) and exc.status < requests.codes.server_error:
                raise
            if time.monotonic() - heard > outage_s:
                raise
        except requests.RequestException as exc:
            if time.monotonic() - heard > outage_s:
                raise ApiUnavailable(f"no answer from {http.url}; is it running?") from exc
        time.sleep(pause_s)
        pause_s = min(pause_s * 2, _LAST_PAUSE_S)


def _connection(http: HttpClient, path: str, params: Mapping[str, str], last_id: str) -> Iterator[dict[str, str]]:
    headers = {"Accept": "text/event-stream", **({"Last-Event-ID": last_id} if last_id else {})}
    with http.request("GET", path, params=params, headers=headers, stream=True, timeout=_TIMEOUT) as response:
        yield from _events(line.decode() for line in response.iter_lines(chunk_size=None))


def _events(lines: Iterable[str]) -> Iterator[dict[str, str]]:
    """Return the fields of each event; of a comment, none."""
    fields: dict[str, str] = {}
    for line in lines:
        if not line:
            yield fields
            fields = {}
        else:
            name, _, value = line.partition(":")
            fields[name] = value.removeprefix(" ")
