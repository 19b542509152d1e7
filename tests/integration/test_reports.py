"""Reports to an outside orchestrator, over HTTP on loopback, from a node with a fake engine."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import func, select, update

from morpheo import reports
from morpheo.client.http import HttpClient
from morpheo.models import ArtifactKind, Blame, Cause, Failure, JobSpec
from morpheo.reports import LONGEST_TROUBLE_S, TROUBLE_IN_A_ROW, Reporter
from morpheo.storage.reports import Report
from morpheo.storage.tables import ReportRow
from tests.support.api import basic
from tests.support.services import wait_until
from tests.support.workbench import Workbench, make_workbench

BROKEN = Failure(cause=Cause.EXIT_CODE, blame=Blame.SUBMITTER, message="exit code 1")


class Orchestrator:
    """An orchestrator that notes what it is told, and answers as a test says; it can be stopped and started again."""

    def __init__(self) -> None:
        self.told: list[tuple[str, dict[str, Any]]] = []
        self.headers: list[Any] = []
        #: Status of the answer to the n-th request to a path.
        self.answer: Callable[[str, int], int] = lambda _path, _times: 200
        self._lock = threading.Lock()
        with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as probe:
            self.port = probe.server_port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def paths(self, job: UUID) -> list[str]:
        return [path for path, _ in self.told if path.endswith(str(job))]

    @contextmanager
    def running(self) -> Iterator[None]:
        told = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with told._lock:
                    told.told.append((self.path, body))
                    told.headers.append(self.headers)
                    times = sum(path == self.path for path, _ in told.told)
                self.send_response(told.answer(self.path, times))
                self.end_headers()

            def log_message(self, *_args: Any) -> None:
                pass

        with ThreadingHTTPServer(("127.0.0.1", self.port), Handler) as server:
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
            thread.start()
            try:
                yield
            finally:
                server.shutdown()
                thread.join()


@pytest.fixture
def orchestrator() -> Orchestrator:
    return Orchestrator()


@pytest.fixture
def bench(sqlite_url: str, tmp_path: Path, orchestrator: Orchestrator) -> Iterator[Workbench]:
    made = make_workbench(sqlite_url, tmp_path / "node", orchestrator_url=orchestrator.url)
    yield made
    made.database.close()


def deliver(bench: Workbench) -> bool:
    assert bench.resources.reporter is not None
    return bench.resources.reporter.deliver()


def run(bench: Workbench, spec: JobSpec) -> None:
    bench.resources.jobs.submit(spec)
    bench.resources.runner.run(spec.id)


def backlog(bench: Workbench) -> int:
    with bench.database.read() as work:
        return work.reports.backlog()[0]


def let_time_pass(bench: Workbench) -> None:
    """Make all that was put off due."""
    with bench.database.connect() as connection:
        connection.execute(update(ReportRow).values(not_before=0.0))
        connection.commit()


def let_no_time_pass(bench: Workbench) -> None:
    """Keep what was put off from being due soon, however slow this machine is."""
    with bench.database.connect() as connection:
        connection.execute(update(ReportRow).where(ReportRow.tries > 0).values(not_before=ReportRow.not_before + 3600))
        connection.commit()


def delays(bench: Workbench) -> list[float]:
    """Return for how many seconds reports are put off."""
    with bench.database.connect() as connection:
        now = connection.execute(select(ReportRow.not_before - ReportRow.created_at)).scalars()
        return list(now)


def test_a_job_is_reported_in_the_words_of_2017(bench: Workbench, orchestrator: Orchestrator) -> None:
    learnt = bench.learn_spec()
    run(bench, learnt)
    predicted = bench.predict_spec(learnt.model_end)
    run(bench, predicted)
    with orchestrator.running():
        assert deliver(bench)
    worker = {"worker": bench.resources.runner.worker}
    scores = bench.resources.jobs.get(learnt.id).scores
    assert scores is not None
    done = {"status": "done", "perf": scores.perf, "train_perf": scores.train_perf, "test_perf": scores.test_perf}
    assert orchestrator.told == [
        (f"/worker/learnuplet/{learnt.id}", worker),
        (f"/learndone/{learnt.id}", done),
        (f"/worker/preduplet/{predicted.id}", worker),
        (f"/preddone/{predicted.id}", {"status": "done", "prediction_storage_uuid": str(predicted.prediction)}),
    ]
    assert {headers["Authorization"] for headers in orchestrator.headers} == {basic("u", "p")}
    assert {headers["Content-Type"] for headers in orchestrator.headers} == {"application/json"}
    assert backlog(bench) == 0


def test_what_fails_or_is_cancelled_is_reported_as_failed(bench: Workbench, orchestrator: Orchestrator) -> None:
    bad = bench.learn_spec(algo=bench.store(ArtifactKind.ALGO, b"no archive", name="bad"))
    run(bench, bad)
    cancelled = bench.learn_spec()
    bench.resources.jobs.submit(cancelled)
    bench.resources.jobs.cancel(cancelled.id)
    with orchestrator.running():
        assert deliver(bench)
    assert [path for path, _ in orchestrator.told] == [
        f"/worker/learnuplet/{bad.id}",
        f"/learndone/{bad.id}",
        f"/learndone/{cancelled.id}",
    ]
    assert [body for path, body in orchestrator.told if "done" in path] == [{"status": "failed"}] * 2


def test_a_second_attempt_is_not_reported_as_a_start(bench: Workbench, orchestrator: Orchestrator) -> None:
    spec = bench.learn_spec()
    bench.resources.jobs.submit(spec)
    with bench.database.begin() as work:
        assert work.jobs.claim(spec.id, worker="dead", lease_s=-1, max_attempts=3) is not None
    assert bench.resources.sweeper.recover_lost() == 1
    bench.resources.runner.run(spec.id)
    with orchestrator.running():
        assert deliver(bench)
    assert orchestrator.paths(spec.id) == [f"/worker/learnuplet/{spec.id}", f"/learndone/{spec.id}"]


def test_nothing_is_reported_without_an_orchestrator(sqlite_url: str, tmp_path: Path) -> None:
    bench = make_workbench(sqlite_url, tmp_path / "node")
    run(bench, bench.learn_spec())
    assert bench.resources.reporter is None
    assert backlog(bench) == 0


def test_an_orchestrator_that_was_down_gets_everything_in_order(bench: Workbench, orchestrator: Orchestrator) -> None:
    with orchestrator.running():
        first = bench.learn_spec()
        run(bench, first)
        assert deliver(bench)
    specs = [bench.learn_spec() for _ in range(4)]
    for spec in specs:
        run(bench, spec)
    for _ in range(8):  # an hour
        let_time_pass(bench)
        assert not deliver(bench)
    with bench.database.connect() as connection:  # each round asked once
        assert connection.execute(select(func.sum(ReportRow.tries))).scalar_one() == 8
    let_time_pass(bench)
    with orchestrator.running():
        assert deliver(bench)
    for spec in (first, *specs):
        assert orchestrator.paths(spec.id) == [f"/worker/learnuplet/{spec.id}", f"/learndone/{spec.id}"]
    assert backlog(bench) == 0


def test_the_thread_of_a_worker_delivers_when_the_orchestrator_returns(
    bench: Workbench, orchestrator: Orchestrator, caplog: pytest.LogCaptureFixture
) -> None:
    reporter, stop = bench.resources.reporter, threading.Event()
    assert reporter is not None
    thread = threading.Thread(target=reporter.run, args=(stop,))
    thread.start()
    try:
        spec = bench.learn_spec()
        run(bench, spec)
        wait_until(lambda: "no answer from" in caplog.text, what="the first try")
        with orchestrator.running():
            wait_until(lambda: backlog(bench) == 0, what="the delivery")
    finally:
        stop.set()
        thread.join()
    assert orchestrator.paths(spec.id) == [f"/worker/learnuplet/{spec.id}", f"/learndone/{spec.id}"]


@pytest.mark.parametrize("status", [401, 403, 408, 429, 500, 502, 503])
def test_a_refusal_that_may_end_is_tried_again(
    bench: Workbench, orchestrator: Orchestrator, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setattr(reports, "_delay_s", lambda _tries, *, longest_s: 3600.0)  # however slow this machine is
    orchestrator.answer = lambda path, times: status if "worker" in path and times == 1 else 200
    spec = bench.learn_spec()
    run(bench, spec)
    with orchestrator.running():
        assert deliver(bench)
        assert backlog(bench) == 2
        let_no_time_pass(bench)
        assert deliver(bench)  # it is not due, and what follows it waits for it
        assert orchestrator.paths(spec.id) == [f"/worker/learnuplet/{spec.id}"]
        let_time_pass(bench)
        assert deliver(bench)
    start, end = f"/worker/learnuplet/{spec.id}", f"/learndone/{spec.id}"
    assert orchestrator.paths(spec.id) == [start, start, end]


@pytest.mark.parametrize("status", [400, 409])
def test_a_refusal_for_good_is_an_answer(
    bench: Workbench, orchestrator: Orchestrator, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    orchestrator.answer = lambda _path, _times: status
    spec = bench.learn_spec()
    run(bench, spec)
    with orchestrator.running():
        assert deliver(bench)
    assert orchestrator.paths(spec.id) == [f"/worker/learnuplet/{spec.id}", f"/learndone/{spec.id}"]
    assert caplog.text.count(f"report refused for good: {status}") == 2
    assert backlog(bench) == 0


def age_s(bench: Workbench) -> float:
    """Return how old the oldest report is, in seconds."""
    with bench.database.read() as work:
        return work.reports.backlog()[1]


def test_pauses_grow_up_to_five_minutes(bench: Workbench, orchestrator: Orchestrator) -> None:
    orchestrator.answer = lambda _path, _times: 503
    spec = bench.learn_spec()
    bench.resources.jobs.submit(spec)
    bench.resources.jobs.cancel(spec.id)
    grown = []
    with orchestrator.running():
        for _ in range(12):
            let_time_pass(bench)
            before_s = age_s(bench)
            assert deliver(bench)
            # What passes meanwhile is in the one and not in the other.
            grown.append((delays(bench)[0] - age_s(bench), delays(bench)[0] - before_s))
    assert grown[0][0] <= 1
    assert grown[0][1] > 0
    assert grown[-1][1] >= LONGEST_TROUBLE_S / 2 - 1
    assert grown[-1][0] <= LONGEST_TROUBLE_S
    assert len(orchestrator.told) == 12


def test_a_report_that_is_never_taken_holds_up_no_other_job(bench: Workbench, orchestrator: Orchestrator) -> None:
    specs = [bench.learn_spec() for _ in range(TROUBLE_IN_A_ROW)]
    for spec in specs:
        run(bench, spec)
    bad, *others = specs
    orchestrator.answer = lambda path, _times: 500 if path.endswith(str(bad.id)) else 200
    with orchestrator.running():
        for _ in range(3):
            assert deliver(bench)
            let_time_pass(bench)
    for spec in others:
        assert orchestrator.paths(spec.id) == [f"/worker/learnuplet/{spec.id}", f"/learndone/{spec.id}"]
    paths = orchestrator.paths(bad.id)
    assert len(paths) >= 3  # more if so much time has passed by itself
    assert set(paths) == {f"/worker/learnuplet/{bad.id}"}
    assert backlog(bench) == 2


def test_an_orchestrator_that_takes_nothing_is_not_sent_everything(
    bench: Workbench, orchestrator: Orchestrator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reports, "_delay_s", lambda _tries, *, longest_s: 3600.0)  # however slow this machine is
    for _ in range(TROUBLE_IN_A_ROW + 1):
        run(bench, bench.learn_spec())
    orchestrator.answer = lambda _path, _times: 503
    with orchestrator.running():
        assert not deliver(bench)
        assert len(orchestrator.told) == TROUBLE_IN_A_ROW
        assert deliver(bench)  # the one that is left
    assert len(orchestrator.told) == TROUBLE_IN_A_ROW + 1


@pytest.mark.database
def test_two_workers_do_not_send_the_same(postgres_url: str, tmp_path: Path, orchestrator: Orchestrator) -> None:
    bench = make_workbench(postgres_url, tmp_path / "node", orchestrator_url=orchestrator.url)
    specs = [bench.learn_spec() for _ in range(30)]
    for spec in specs:
        bench.resources.jobs.submit(spec)
        with bench.database.begin() as work:
            work.jobs.claim(spec.id, worker="w", lease_s=60, max_attempts=3)
        with bench.database.begin() as work:
            work.jobs.fail(spec.id, 1, BROKEN)
    reporters = [Reporter(bench.database, HttpClient(orchestrator.url, retries=0)) for _ in range(4)]
    with orchestrator.running(), ThreadPoolExecutor() as pool:
        while backlog(bench):
            assert all(pool.map(Reporter.deliver, reporters))
    for spec in specs:
        assert orchestrator.paths(spec.id) == [f"/worker/learnuplet/{spec.id}", f"/learndone/{spec.id}"]
    bench.database.close()


def test_what_a_dead_worker_had_taken_is_sent_by_another(bench: Workbench, orchestrator: Orchestrator) -> None:
    spec = bench.learn_spec()
    bench.resources.jobs.submit(spec)
    bench.resources.jobs.cancel(spec.id)
    with bench.database.begin() as work:
        taken = work.reports.take(for_s=60)
    assert taken == Report(job=spec.id, number=1, path=f"/learndone/{spec.id}", body={"status": "failed"})
    with orchestrator.running():
        assert deliver(bench)
        assert orchestrator.told == []
        let_time_pass(bench)
        assert deliver(bench)
    assert len(orchestrator.told) == 1
