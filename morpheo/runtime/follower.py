"""
Reads a container's log from the engine while it runs.

The engine is asked again and again instead of being listened to: a question can be repeated after a restart of the
engine, it has a time limit, and its answer is never larger than the file that the engine keeps. That file is emptied
when it is full, so a container that writes faster than it is read loses some of its log; the log then says so.
"""

from __future__ import annotations

import logging
import struct
import threading
import time
from typing import Self

import requests
from docker import APIClient
from docker.errors import DockerException, NotFound

from morpheo.runtime.log import BoundedLog

logger = logging.getLogger(__name__)

#: First wait and longest wait between two questions, in seconds.
_FIRST_WAIT_S = 0.05
_LAST_WAIT_S = 0.25
#: The wait is so many times as long as a question took, up to a limit in seconds: some logs take long to read.
_SHARE = 10
_BUSY_WAIT_S = 1.0
#: How many of the latest entries are asked for; all of them if that was too few.
_LATEST = 1000
#: Of a frame of the engine's answer: stream, three bytes without meaning, length.
_HEADER = struct.Struct(">BxxxL")
_STDOUT, _STDERR = 1, 2

#: Stream, and timestamp with content, of one entry: unique, because the timestamp has nanoseconds.
Entry = tuple[int, bytes]


class LogFollower:
    """
    Copies what a container writes into a log, from a thread of its own.

    Args:
        client: Of the engine.
        container_id: Which container; it must have no terminal.
        log: Where to.
        file_bytes: Size at which the engine empties its file.
    """

    def __init__(self, client: APIClient, container_id: str, log: BoundedLog, *, file_bytes: int) -> None:
        self._client = client
        self._container_id = container_id
        self._log = log
        self._file_bytes = file_bytes
        self._last: Entry | None = None
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, name=f"log-{container_id[:12]}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        # Not joined: the thread may wait for an engine that does not answer.
        self._ended.set()

    def finish(self) -> None:
        """
        Copy what is left, when the container has ended.

        Raises:
            docker.errors.NotFound: it was removed.
            requests.RequestException: the engine does not answer.
        """
        self._ended.set()
        with self._lock:
            self._copy(everything=True)

    def _follow(self) -> None:
        wait_s = _FIRST_WAIT_S
        while not self._ended.wait(wait_s):
            began = time.monotonic()
            try:
                with self._lock:
                    if self._ended.is_set():
                        return
                    self._copy(everything=False)
            except (DockerException, requests.RequestException) as exc:
                logger.debug("the engine does not tell a log: %s", exc)
            busy_s = min(_SHARE * (time.monotonic() - began), _BUSY_WAIT_S)
            wait_s = max(min(wait_s * 2, _LAST_WAIT_S), busy_s)

    def _copy(self, *, everything: bool) -> None:
        entries = self._ask("all" if everything or self._last is None else str(_LATEST))
        new = self._after_last(entries)
        if new is None and not everything:
            entries = self._ask("all")
            new = self._after_last(entries)
        if new is None:
            self._log.note("some output is missing here: the engine keeps less than was written meanwhile")
            new = entries
        elif self._last is None and sum(len(content) for _, content in new) > self._file_bytes // 2:
            self._log.note("the beginning may be missing: the engine keeps less than was written at the start")
        for _, content in new:
            self._log.write(content.partition(b" ")[2])
        if new:
            self._last = new[-1]

    def _after_last(self, entries: list[Entry]) -> list[Entry] | None:
        """Return the entries that are new; None if the last one that was copied is not among them."""
        if self._last is None:
            return entries
        for index in range(len(entries) - 1, -1, -1):
            if entries[index] == self._last:
                return entries[index + 1 :]
        return None

    def _ask(self, tail: str) -> list[Entry]:
        # Not through docker-py's method: it drops the borders of entries, or else the time limit.
        url = f"{self._client.base_url}/v{self._client.api_version}/containers/{self._container_id}/logs"
        wanted = {"stdout": "1", "stderr": "1", "timestamps": "1", "tail": tail}
        response = self._client.get(url, params=wanted, timeout=self._client.timeout)
        if response.status_code == requests.codes.not_found:
            raise NotFound("the container is gone")
        response.raise_for_status()
        return _entries(response.content)


def _entries(answer: bytes) -> list[Entry]:
    entries, place = [], 0
    while place + _HEADER.size <= len(answer):
        stream, length = _HEADER.unpack_from(answer, place)
        place += _HEADER.size
        if stream in (_STDOUT, _STDERR):  # and not an error of the engine
            entries.append((stream, answer[place : place + length]))
        place += length
    return entries
