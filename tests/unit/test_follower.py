"""The log of a container as its engine tells it, from an engine that is none."""

from __future__ import annotations

import struct
from types import SimpleNamespace
from typing import Any

import pytest
from docker.errors import NotFound

from morpheo.runtime.follower import LogFollower
from morpheo.runtime.log import BoundedLog
from tests.support.services import wait_until

FILE_BYTES = 100


class Engine:
    """Keeps entries of a log, of which it may lose the first ones; an entry is a stream and a line."""

    base_url, api_version, timeout = "http://engine", "1.41", 1

    def __init__(self) -> None:
        self.entries: list[tuple[int, str]] = []
        self.asked: list[str] = []
        self.status = 200

    def get(self, _url: str, *, params: dict[str, str], timeout: float) -> Any:
        self.asked.append(params["tail"])
        last = self.entries if params["tail"] == "all" else self.entries[-int(params["tail"]) :]
        lines = ((stream, f"2026-01-01T00:00:00.{line} {line}\n".encode()) for stream, line in last)
        content = b"".join(struct.pack(">BxxxL", stream, len(line)) + line for stream, line in lines)
        return SimpleNamespace(status_code=self.status, content=content, raise_for_status=lambda: None)


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
def log() -> BoundedLog:
    return BoundedLog(1 << 20)


@pytest.fixture
def follower(engine: Engine, log: BoundedLog) -> LogFollower:
    return LogFollower(engine, "c" * 64, log, file_bytes=FILE_BYTES)  # type: ignore[arg-type]


def test_each_entry_is_copied_once(engine: Engine, log: BoundedLog, follower: LogFollower) -> None:
    for line in ("a", "b", "c"):
        engine.entries.append((1, line))
        follower.finish()
    follower.finish()
    assert log.text() == b"a\nb\nc\n"


def test_the_same_words_of_two_streams_are_two_entries(engine: Engine, log: BoundedLog, follower: LogFollower) -> None:
    engine.entries = [(1, "a")]
    follower.finish()
    engine.entries = [(1, "a"), (2, "a")]
    follower.finish()
    assert log.text() == b"a\na\n"


def test_what_the_engine_says_of_itself_is_not_the_containers(
    engine: Engine, log: BoundedLog, follower: LogFollower
) -> None:
    engine.entries = [(1, "a"), (3, "error reading the log"), (1, "b")]
    follower.finish()
    assert log.text() == b"a\nb\n"


def test_a_gap_is_said_where_it_is(engine: Engine, log: BoundedLog, follower: LogFollower) -> None:
    engine.entries = [(1, "a"), (1, "b")]
    follower.finish()
    engine.entries = [(1, "d"), (1, "e")]
    follower.finish()
    engine.entries.append((1, "f"))
    follower.finish()
    note = b"[some output is missing here: the engine keeps less than was written meanwhile]\n"
    assert log.text() == b"a\nb\n" + note + b"d\ne\nf\n"


@pytest.mark.parametrize(("entries", "missing"), [(1, False), (4, True)])
def test_a_beginning_that_may_be_missing_is_said(
    engine: Engine, log: BoundedLog, follower: LogFollower, entries: int, missing: bool
) -> None:
    """The first answer is longer than half of the file that the engine empties when it is full."""
    engine.entries = [(1, str(number)) for number in range(entries)]
    follower.finish()
    assert log.text().startswith(b"[the beginning may be missing") == missing
    assert log.text().endswith(b"0\n" if entries == 1 else b"0\n1\n2\n3\n")


def test_all_entries_are_asked_for_if_the_latest_are_not_enough(engine: Engine, log: BoundedLog) -> None:
    engine.entries = [(1, "a")]
    with LogFollower(engine, "c" * 64, log, file_bytes=1 << 20):  # type: ignore[arg-type]
        wait_until(lambda: engine.asked[1:3] == ["1000", "1000"], what="questions for the latest")
        assert engine.asked[0] == "all"
        engine.entries += [(1, str(number)) for number in range(2000)]
        wait_until(lambda: log.text().endswith(b"1999\n"), what="all that was written")
    assert "all" in engine.asked[1:]
    assert log.text() == b"a\n" + b"".join(b"%d\n" % number for number in range(2000))


def test_a_container_that_was_removed_is_said_to_be(engine: Engine, follower: LogFollower) -> None:
    engine.status = 404
    with pytest.raises(NotFound):
        follower.finish()
