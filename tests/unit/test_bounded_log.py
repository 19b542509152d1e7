"""Head and tail of what is written."""

from __future__ import annotations

import threading

import pytest

from morpheo.runtime.log import BoundedLog, Run, joined


def written(limit: int, *pieces: bytes) -> BoundedLog:
    log = BoundedLog(limit)
    for piece in pieces:
        log.write(piece)
    return log


@pytest.mark.parametrize("content", [b"", b"abc", b"0123456789"])
def test_what_fits_is_kept(content: bytes) -> None:
    assert written(10, content).text() == content


@pytest.mark.parametrize("size", [1, 3, 7, 26])
def test_of_more_the_head_and_the_tail_are_kept(size: int) -> None:
    letters = b"abcdefghijklmnopqrstuvwxyz"
    log = written(10, *(letters[place : place + size] for place in range(0, 26, size)))
    assert log.since(0) == [Run(0, b"abcde"), Run(21, b"vwxyz")]
    assert log.text() == b"abcde\n[16 bytes left out]\nvwxyz"
    assert log.total == 26


def test_what_is_new_can_be_asked_for() -> None:
    log = written(10, b"abc")
    assert log.since(3) == []
    log.write(b"defgh")
    assert log.since(3) == [Run(3, b"defgh")]
    log.write(b"ijklmnop")
    assert log.since(3) == [Run(3, b"de"), Run(11, b"lmnop")]
    assert log.since(8) == [Run(11, b"lmnop")]
    assert [end for end in range(1, 17) if log.has_dropped(end)] == [6, 7, 8, 9, 10, 11]


def test_a_flood_takes_no_memory() -> None:
    log, flood = BoundedLog(1000), b"x" * (1 << 16)
    for _ in range(1000):
        log.write(flood)
    assert len(log._head) + len(log._tail) <= 2000
    assert sum(len(run.content) for run in log.since(0)) == 1000


def test_a_note_is_a_line_of_its_own() -> None:
    log = written(1000, b"half a line")
    log.note("remark")
    log.note("remark")
    assert log.text() == b"half a line\n[remark]\n[remark]\n"


def test_whoever_waits_is_told() -> None:
    told = threading.Event()
    log = BoundedLog(10, written=told)
    log.write(b"")
    assert not told.is_set()
    log.write(b"a")
    assert told.is_set()


def test_a_gap_at_the_beginning_is_told_too() -> None:
    assert joined([Run(5, b"abc\n"), Run(9, b"d")]) == b"[5 bytes left out]\nabc\nd"
