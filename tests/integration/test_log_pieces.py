"""Logs of jobs while they are written: stored in pieces, read and followed, whatever fails meanwhile."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from morpheo import pieces, steps
from morpheo.errors import DatabaseUnavailable, InvalidInput, StorageUnavailable
from morpheo.models import AttemptOutcome, Job, JobState, StepName, StepRecord
from morpheo.pieces import LogShipper
from morpheo.storage.blobs import BlobStore, Source
from morpheo.storage.database import Database
from morpheo.storage.dump import blob_refs, dump_rows
from morpheo.storage.steps import StepRepository
from morpheo.testing import FakeContainer, MemoryBlobStore
from morpheo.transcripts import LogText, Position, Transcripts
from tests.support.services import wait_until
from tests.support.workbench import Workbench, algo, flag, make_workbench


class Act:
    """A job whose train container writes what a test tells it to, while it runs in a thread."""

    def __init__(self, bench: Workbench) -> None:
        self.bench = bench
        self.spec = bench.learn_spec()
        bench.resources.jobs.submit(self.spec)
        bench.programs["algo"] = self._run
        self._lines: list[bytes] = []
        self._is_over = False
        self._turn = threading.Condition()
        self._thread = threading.Thread(target=bench.resources.runner.run, args=[self.spec.id])
        self._thread.start()

    def _run(self, container: FakeContainer) -> int:
        while flag(container, "-T") == "train":
            with self._turn:
                self._turn.wait_for(lambda: self._lines or self._is_over)
                if not self._lines:
                    break
                container.log.write(self._lines.pop(0))
        return algo(container)

    def write(self, content: bytes) -> None:
        with self._turn:
            self._lines.append(content)
            self._turn.notify()

    def end(self) -> Job:
        """Let the container end, and wait for the job."""
        self.stop()
        return self.bench.resources.jobs.get(self.spec.id)

    def stop(self) -> None:
        with self._turn:
            self._is_over = True
            self._turn.notify()
        self._thread.join(60)

    def log(self) -> bytes:
        """Return what can be read of train's log."""
        return dict(self.bench.resources.jobs.logs(self.spec.id)).get(StepName.TRAIN, b"")

    def steps(self) -> list[StepName]:
        """Return the steps that have rows."""
        return [step.name for attempt in self.bench.resources.jobs.get(self.spec.id).attempts for step in attempt.steps]

    def pieces(self) -> int:
        with self.bench.database.read() as work:
            return sum(map(len, work.steps.pieces(self.spec.id).values()))


Begin = Callable[..., Act]


@pytest.fixture
def begin(sqlite_url: str, tmp_path: Path) -> Iterator[Begin]:
    """Begin a job; it ends with the test."""
    acts: list[Act] = []

    def make(*, database: Database | None = None, blobs: BlobStore | None = None, **settings: Any) -> Act:
        bench = make_workbench(database.url if database else sqlite_url, tmp_path, **settings)
        if blobs is not None:
            vars(bench.resources)["blobs"] = blobs
        acts.append(Act(bench))
        return acts[-1]

    yield make
    for act in acts:
        act.stop()
        act.bench.database.close()


def keys(blobs: BlobStore) -> set[str]:
    return {blob.key for blob in blobs.list("logs/")}


def test_a_log_can_be_read_while_it_is_written(begin: Begin, database: Database, blobs: BlobStore) -> None:
    act = begin(database=database, blobs=blobs)
    act.write(b"one\n")
    wait_until(lambda: act.log() == b"one\n")
    act.write(b"two \xff\x00\n")
    wait_until(lambda: act.log() == b"one\ntwo \xff\x00\n")
    assert act.pieces() == 1  # it grew
    job = act.end()
    assert job.state is JobState.SUCCEEDED
    assert act.log() == b"one\ntwo \xff\x00\nremembers 2\n"
    assert act.pieces() == 0
    assert keys(blobs) == {step.log_key for step in job.attempts[0].steps if step.log_key}
    assert all(key.startswith(f"logs/{job.id}/1/") for key in keys(blobs))


def test_head_and_tail_of_a_long_log_are_kept(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "PIECE_BYTES", 4)
    act = begin(log_bytes=20)
    act.write(b"abcdefgh")
    wait_until(lambda: act.log() == b"abcdefgh")
    act.write(b"ijklmnopqrstuvwxyz\n")
    wait_until(lambda: act.pieces() == 3)
    assert act.log() == b"abcdefgh" + b"ij\n[7 bytes left out]\nrstuvwxyz\n"
    assert act.end().state is JobState.SUCCEEDED
    assert act.log() == b"abcdefghij\n[19 bytes left out]\nmembers 2\n"


def test_a_flood_is_bounded_everywhere(begin: Begin) -> None:
    act = begin(log_bytes=200_000)
    most_pieces = most_bytes = 0
    for _ in range(20):
        for _ in range(100):
            act.write(b"x" * 65_536)
        wait_until(lambda: not act._lines)
        most_pieces = max(most_pieces, act.pieces())
        most_bytes = max(most_bytes, sum(blob.size_bytes for blob in act.bench.blobs.list("logs/")))
    assert act.end().state is JobState.SUCCEEDED
    assert most_pieces <= 6
    assert most_bytes <= 2 * 200_000 + 10_000  # old pieces go when the new ones are there
    assert len(act.log()) < 200_100
    assert b"bytes left out]" in act.log()
    assert act.log().endswith(b"remembers 2\n")


class LogsUnavailable(MemoryBlobStore):
    """A blob store that takes no logs, or not yet."""

    def __init__(self) -> None:
        super().__init__()
        self.is_down = threading.Event()
        self.opens: threading.Event | None = None

    def put(self, key: str, source: Source, *, length: int | None = None) -> int:
        if key.startswith("logs/"):
            if self.opens is not None:
                self.opens.wait(60)
            if self.is_down.is_set():
                raise StorageUnavailable("the blob store does not answer; try again")
        return super().put(key, source, length=length)


def test_a_blob_store_that_is_out_delays_the_log_and_not_the_job(begin: Begin) -> None:
    blobs = LogsUnavailable()
    blobs.is_down.set()
    act = begin(blobs=blobs)
    act.write(b"written meanwhile\n")
    wait_until(lambda: act.steps()[-1:] == [StepName.TRAIN])
    assert act.log() == b""
    blobs.is_down.clear()
    wait_until(lambda: act.log() == b"written meanwhile\n")
    blobs.is_down.set()
    act.write(b"the end\n")
    timer = threading.Timer(0.5, blobs.is_down.clear)
    timer.start()
    assert act.end().state is JobState.SUCCEEDED
    timer.join()
    assert act.log() == b"written meanwhile\nthe end\nremembers 2\n"


def test_a_blob_store_that_hangs_does_not_hold_up_the_job(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "FINISH_S", 0.1)
    blobs = LogsUnavailable()
    blobs.opens = threading.Event()
    act = begin(blobs=blobs)
    act.write(b"late\n")
    job = act.end()
    assert job.state is JobState.SUCCEEDED
    assert act.log() == b""
    blobs.opens.set()
    wait_until(lambda: act.log() == b"late\nremembers 2\n")
    wait_until(lambda: all(step.seconds is not None for step in act.bench.resources.jobs.get(job.id).attempts[0].steps))


def test_a_database_that_is_out_delays_the_log_and_not_the_job(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    is_down = threading.Event()
    is_latest = StepRepository.is_latest

    def broken(self: StepRepository, *args: Any) -> bool:
        if is_down.is_set():
            raise DatabaseUnavailable("the database does not answer; try again")
        return is_latest(self, *args)

    monkeypatch.setattr(StepRepository, "is_latest", broken)
    is_down.set()
    act = begin()
    act.write(b"written meanwhile\n")
    wait_until(lambda: act.bench.runtime.history[-1:] == [f"morpheo-{act.spec.id}-1-train"])
    assert act.steps() == []
    timer = threading.Timer(0.5, is_down.clear)
    timer.start()
    job = act.end()
    timer.join()
    assert job.state is JobState.SUCCEEDED
    assert act.steps() == ["build_problem", "build_algo", "detarget", "train", "perf"]
    assert act.log() == b"written meanwhile\nremembers 2\n"


def claim(bench: Workbench) -> Job:
    spec = bench.learn_spec()
    bench.resources.jobs.submit(spec)
    with bench.database.begin() as work:
        job = work.jobs.claim(spec.id, worker="w", lease_s=30, max_attempts=3)
    assert job is not None
    return job


def again(bench: Workbench, job: Job, outcome: AttemptOutcome = AttemptOutcome.LOST) -> Job:
    with bench.database.begin() as work:
        work.jobs.requeue(job.id, job.attempt, outcome=outcome, message="", delay_s=0, strikes=0)
        next_try = work.jobs.claim(job.id, worker="w2", lease_s=30, max_attempts=3)
    assert next_try is not None
    return next_try


@pytest.fixture
def bench(sqlite_url: str, tmp_path: Path) -> Iterator[Workbench]:
    made = make_workbench(sqlite_url, tmp_path)
    yield made
    made.database.close()


def shipper(bench: Workbench, job: Job, log_bytes: int = 1 << 20) -> LogShipper:
    return LogShipper(bench.database, bench.blobs, job, log_bytes=log_bytes)


def record(name: StepName = StepName.TRAIN) -> StepRecord:
    return StepRecord(name=name, started_at=datetime.now(UTC), seconds=1.0, exit_code=0)


def logs(bench: Workbench, job: Job, attempt: int | None = None) -> dict[StepName, bytes]:
    return dict(bench.resources.jobs.logs(job.id, attempt=attempt))


def test_what_a_dead_worker_has_stored_stays_and_what_a_zombie_writes_is_thrown_away(bench: Workbench) -> None:
    job = claim(bench)
    dead = shipper(bench, job)
    stream = dead.begin(StepName.TRAIN)
    stream.log.write(b"before its death\n")
    wait_until(lambda: logs(bench, job, 1) == {StepName.TRAIN: b"before its death\n"})
    before = keys(bench.blobs)
    again(bench, job)
    stream.log.write(b"after it\n")
    dead._thread.join(30)  # it has learnt that it is replaced
    assert not dead._thread.is_alive()
    dead.end(stream, record())
    dead.finish(1)
    assert logs(bench, job, 1) == {StepName.TRAIN: b"before its death\n"}
    assert logs(bench, job) == {}
    assert keys(bench.blobs) == before


def test_only_blobs_without_a_row_are_swept(bench: Workbench) -> None:
    whole, running = claim(bench), claim(bench)
    done = shipper(bench, whole)
    stream = done.begin(StepName.TRAIN)
    stream.log.write(b"whole\n")
    done.end(stream, record())
    done.finish(10)
    live = shipper(bench, running)
    live.begin(StepName.TRAIN).log.write(b"piece\n")
    wait_until(lambda: logs(bench, running) == {StepName.TRAIN: b"piece\n"})
    again(bench, running)
    live._thread.join(0.01)
    named = keys(bench.blobs)
    for key in (f"logs/{whole.id}/1/train-lost", "logs/junk"):
        bench.blobs.put(key, io.BytesIO(b"x"))
    old = datetime.now(UTC) - timedelta(days=2)
    young = f"logs/{whole.id}/1/train-young"
    bench.blobs._blobs = {key: (content, old) for key, (content, _) in bench.blobs._blobs.items()}
    bench.blobs.put(young, io.BytesIO(b"x"))
    assert Transcripts(bench.database, bench.blobs).sweep() == 2
    assert keys(bench.blobs) == named | {young}


def test_backups_have_the_pieces(bench: Workbench) -> None:
    job = claim(bench)
    shipper(bench, job).begin(StepName.TRAIN).log.write(b"piece\n")
    wait_until(lambda: bool(logs(bench, job)))
    again(bench, job)
    rows = io.StringIO()
    dump_rows(bench.database, rows)
    named = {ref.key for ref in blob_refs(rows.getvalue().splitlines())}
    assert keys(bench.blobs) <= named


class Follower:
    """Follows a job in a thread."""

    def __init__(self, bench: Workbench, job: Job, after: Position | None = None) -> None:
        self.texts: list[LogText] = []
        self.state: JobState | None = None
        self._items = bench.resources.jobs.follow_logs(job.id, after=after)
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def _follow(self) -> None:
        for item in self._items:
            if isinstance(item, LogText):
                self.texts.append(item)
            elif item is not None:
                self.state = item

    def text(self, attempt: int | None = None) -> str:
        return "".join(item.text for item in self.texts if attempt in (None, item.attempt))

    def end(self) -> None:
        self._thread.join(30)
        assert not self._thread.is_alive()


def test_following_a_job_whose_log_is_lost_ends(bench: Workbench) -> None:
    job = claim(bench)
    steps = shipper(bench, job)
    train = steps.begin(StepName.TRAIN)
    train.log.write(b"one\n")
    steps.end(train, record())
    steps.finish(10)
    with bench.database.begin() as work:
        work.jobs.succeed(job.id, 1, None)
    for key in keys(bench.blobs):
        bench.blobs.delete(key)
    follower = Follower(bench, job)
    follower.end()
    assert follower.state is JobState.SUCCEEDED


def test_a_log_is_followed_into_the_next_attempt_and_to_the_end(bench: Workbench) -> None:
    job = claim(bench)
    follower = Follower(bench, job)
    first = shipper(bench, job)
    first.begin(StepName.TRAIN).log.write(b"one\n")
    wait_until(lambda: follower.text() == "one\n")
    job = again(bench, job)
    second = shipper(bench, job)
    train, perf = second.begin(StepName.TRAIN), None
    train.log.write(b"two\n")
    wait_until(lambda: follower.text(2) == "two\n")
    train.log.write(b"three\n")
    second.end(train, record())
    perf = second.begin(StepName.PERF)
    perf.log.write(b"four\n")
    second.end(perf, record(StepName.PERF))
    second.finish(10)
    assert follower.state is None
    with bench.database.begin() as work:
        work.jobs.succeed(job.id, 2, None)
    follower.end()
    assert follower.state is JobState.SUCCEEDED
    assert follower.text(1) == "one\n"
    assert follower.text(2) == "two\nthree\nfour\n"
    assert [item.step for item in follower.texts][-1] == "perf"


def test_following_goes_on_after_any_event_and_cuts_no_character(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("morpheo.transcripts.EVENT_BYTES", 5)
    job = claim(bench)
    follower = Follower(bench, job)
    writer = shipper(bench, job)
    stream = writer.begin(StepName.TRAIN)
    text = "Prädiktion → ✓ \N{GRINNING FACE}\x00\n" * 3
    content = text.encode()
    stream.log.write(content[:3])  # in the middle of a letter
    wait_until(lambda: follower.text() == "Pr")
    stream.log.write(content[3:] + b"\xff\xe2\x9c")
    writer.end(stream, record())
    writer.finish(10)
    with bench.database.begin() as work:
        work.jobs.succeed(job.id, 1, None)
    follower.end()
    whole = text + "\N{REPLACEMENT CHARACTER}" * 2
    assert follower.text() == whole
    for place, item in enumerate(follower.texts):
        rest = Follower(bench, job, Position.parse(str(item.after)))
        rest.end()
        assert rest.text() == "".join(later.text for later in follower.texts[place + 1 :])


def test_a_gap_is_told_to_followers_before_and_after_the_end(bench: Workbench) -> None:
    job = claim(bench)
    writer = shipper(bench, job, log_bytes=20)
    stream = writer.begin(StepName.TRAIN)
    stream.log.write(b"abcdefghij" + b"-" * 30 + b"klmnopqrst")
    follower = Follower(bench, job)
    expected = "abcdefghij[30 bytes left out]\nklmnopqrst"
    wait_until(lambda: follower.text() == expected)
    writer.end(stream, record())
    writer.finish(10)
    with bench.database.begin() as work:
        work.jobs.succeed(job.id, 1, None)
    late = Follower(bench, job)
    for one in (follower, late):
        one.end()
        assert one.text() == expected


@pytest.mark.parametrize("text", ["", "x", "1-2", "1-2-3-4", "-1-2-3", "1-2-99999999999999999999"])
def test_what_is_no_place_in_a_log_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="Last-Event-ID"):
        Position.parse(text)
