"""Ends of attempts in a file, until the database takes them."""

from __future__ import annotations

import logging
import sqlite3
import threading
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import pytest

from morpheo.ends import End
from morpheo.errors import DatabaseUnavailable, MorpheoError
from morpheo.models import Artifact, ArtifactKind, AttemptOutcome, Blame, Cause, Failure, Scores, StepName
from morpheo.spool import Spool

MODEL = Artifact(
    id=uuid4(),
    kind=ArtifactKind.MODEL,
    name="näme",
    algo=uuid4(),
    size_bytes=1 << 40,
    sha256="0" * 64,
    blob_key="model/x/1-abc",
    created_at=datetime(2026, 1, 31, 12, 0, 0, 123456, tzinfo=UTC),
)
FAILURE = Failure(cause=Cause.EXIT_CODE, blame=Blame.SUBMITTER, step=StepName.TRAIN, message="train ended with 1\n\tö")


def make_end(**changes: object) -> End:
    end = End(job=uuid4(), attempt=1, outcome=AttemptOutcome.CANCELLED)
    return replace(end, **changes)  # type: ignore[arg-type]


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "node" / "spool.db")


class Writer:
    """An `EndWriter` that remembers, or fails as it is told."""

    def __init__(self, *errors: Exception | None) -> None:
        self.errors = list(errors)
        self.written: list[End] = []
        self.discarded: list[End] = []

    def write(self, end: End) -> bool:
        error = self.errors.pop(0) if self.errors else None
        if error is not None:
            raise error
        self.written.append(end)
        return True

    def discard(self, end: End) -> None:
        self.discarded.append(end)


def ends(spool: Spool) -> list[End]:
    return [end for _, end in spool.waiting()]


@pytest.mark.parametrize(
    "changes",
    [
        {"outcome": AttemptOutcome.SUCCEEDED, "artifacts": (MODEL,), "scores": Scores(perf=0.1, test_perf={"a": 1.0})},
        {"outcome": AttemptOutcome.SUCCEEDED, "artifacts": (replace(MODEL, algo=None),)},
        {"outcome": AttemptOutcome.FAILED, "failure": FAILURE},
        {"outcome": AttemptOutcome.FAILED, "failure": replace(FAILURE, step=None)},
        {"outcome": AttemptOutcome.RETRIED, "message": "the disk is full", "delay_s": 2.5, "strikes": 1},
        {},
    ],
)
def test_an_end_comes_back_as_it_was(spool: Spool, changes: dict[str, object]) -> None:
    end = make_end(**changes)
    assert spool.keep(end)
    assert ends(spool) == [end]


def test_nothing_is_made_by_looking(spool: Spool, tmp_path: Path) -> None:
    assert spool.waiting() == []
    assert list(tmp_path.iterdir()) == []


def test_ends_are_written_in_their_order_and_forgotten(spool: Spool) -> None:
    kept = [make_end(), make_end(), make_end()]
    for end in kept:
        spool.keep(end)
    writer = Writer()
    assert spool.commit(writer) == 3  # type: ignore[arg-type]
    assert writer.written == kept
    assert ends(spool) == []


def test_what_the_database_does_not_take_stays(spool: Spool) -> None:
    first, second = make_end(), make_end()
    spool.keep(first)
    spool.keep(second)
    with pytest.raises(DatabaseUnavailable):
        spool.commit(Writer(None, DatabaseUnavailable()))  # type: ignore[arg-type]
    assert ends(spool) == [second]


def test_an_end_that_is_refused_holds_up_no_other(spool: Spool) -> None:
    bad, good = make_end(), make_end()
    spool.keep(bad)
    spool.keep(good)
    writer = Writer(MorpheoError("refused"))
    spool.commit(writer)  # type: ignore[arg-type]
    assert (writer.written, writer.discarded) == ([good], [bad])
    assert ends(spool) == []


def test_of_one_attempt_the_first_end_counts(spool: Spool) -> None:
    first = make_end(outcome=AttemptOutcome.SUCCEEDED, artifacts=(MODEL,))
    spool.keep(first)
    assert spool.keep(replace(first, outcome=AttemptOutcome.RELEASED, artifacts=()))
    spool.keep(replace(first, attempt=2))
    assert ends(spool) == [first, replace(first, attempt=2)]


def test_processes_share_the_file(spool: Spool, tmp_path: Path) -> None:
    kept = [make_end() for _ in range(24)]

    def keep(some: list[End]) -> None:
        mine = Spool(tmp_path / "node" / "spool.db")
        for end in some:
            assert mine.keep(end)

    threads = [threading.Thread(target=keep, args=(kept[start::4],)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {end.job for end in ends(spool)} == {end.job for end in kept}


@pytest.mark.parametrize(
    "junk", [b"no database at all, but long enough to be one" * 50, b"SQLite format 3\x00" + b"x" * 5000]
)
def test_a_damaged_file_is_set_aside(
    spool: Spool, tmp_path: Path, caplog: pytest.LogCaptureFixture, junk: bytes
) -> None:
    path = tmp_path / "node" / "spool.db"
    spool.keep(make_end())
    for name in ("spool.db-wal", "spool.db-shm"):
        (path.parent / name).unlink(missing_ok=True)
    path.write_bytes(junk)
    with caplog.at_level(logging.ERROR):
        end = make_end()
        assert spool.keep(end)
    assert ends(spool) == [end]
    (aside,) = path.parent.glob("spool.db.damaged-*")
    assert aside.read_bytes() == junk
    assert aside.name in caplog.text


def test_a_damaged_file_keeps_nobody_from_starting(spool: Spool, tmp_path: Path) -> None:
    path = tmp_path / "node" / "spool.db"
    path.parent.mkdir()
    path.write_bytes(b"junk" * 1000)
    assert spool.commit(Writer()) == 0  # type: ignore[arg-type]
    assert not path.exists()


def test_a_line_that_cannot_be_read_is_dropped_alone(spool: Spool, tmp_path: Path) -> None:
    first, last = make_end(), make_end()
    spool.keep(first)
    spool.keep(make_end())
    spool.keep(last)
    with closing(sqlite3.connect(tmp_path / "node" / "spool.db")) as connection, connection:
        connection.execute("UPDATE ends SET document = '{\"job\": 1' WHERE id = 2")
    assert ends(spool) == [first, last]
    assert [number for number, _ in spool.waiting()] == [1, 3]


def test_a_file_that_cannot_be_written_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "node").write_text("a file where the folder should be")
    assert not Spool(tmp_path / "node" / "spool.db").keep(make_end())
    assert "spool.db cannot be used" in caplog.text


def test_what_is_kept_outlives_a_power_cut(spool: Spool, tmp_path: Path) -> None:
    spool.keep(make_end())
    with spool._connected() as connection:
        assert connection.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
