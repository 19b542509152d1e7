"""Logs as server-sent events, from a real compute API over real sockets."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import requests
from click.testing import CliRunner

from morpheo.cli.common import EXIT_INTERRUPTED
from morpheo.cli.jobs import logs as logs_command
from morpheo.client import ComputeClient
from morpheo.client.events import LogEvent
from morpheo.config import Settings
from morpheo.errors import ApiError, ApiUnavailable
from morpheo.models import Job, JobState, StepName, StepRecord
from morpheo.pieces import LogShipper
from morpheo.resources import Resources
from morpheo.testing import RecordingPublisher, make_learn_spec
from tests.support.api_server import Server, migrate, serving
from tests.support.services import wait_until


class Running:
    """A job that a worker, played by the test, runs."""

    def __init__(self, data_dir: Path) -> None:
        self.resources = Resources(Settings(data_dir=data_dir), RecordingPublisher())
        spec = make_learn_spec()
        with self.resources.database.begin() as work:
            work.jobs.add(spec, algo=spec.algo)
        with self.resources.database.begin() as work:
            job = work.jobs.claim(spec.id, worker="w", lease_s=300, max_attempts=3)
        assert job is not None
        self.job = job
        self._shipper = LogShipper(self.resources.database, self.resources.blobs, job, log_bytes=1 << 20)
        self._stream = self._shipper.begin(StepName.TRAIN)

    def write(self, content: bytes) -> None:
        self._stream.log.write(content)

    def end(self) -> None:
        record = StepRecord(name=StepName.TRAIN, started_at=datetime.now(UTC), seconds=1.0, exit_code=0)
        self._shipper.end(self._stream, record)
        self._shipper.finish(30)
        with self.resources.database.begin() as work:
            work.jobs.succeed(self.job.id, 1, None)


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    migrate(tmp_path)
    made = Running(tmp_path)
    yield made
    made._shipper.finish(30)
    made.resources.database.close()


@pytest.fixture
def server(running: Running, tmp_path: Path) -> Iterator[Server]:
    with serving("compute-api", tmp_path, api_processes="1", api_threads="6", api_followers="2") as made:
        yield made


class Follower:
    """A client that follows in a thread."""

    def __init__(self, url: str, job: Job) -> None:
        self.client = ComputeClient(url, user="u", password="p")
        self.events: list[LogEvent] = []
        self.state: JobState | None = None
        self._job = job
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def _follow(self) -> None:
        for event in self.client.follow_logs(self._job.id):
            if isinstance(event, JobState):
                self.state = event
            else:
                self.events.append(event)

    @property
    def text(self) -> str:
        return "".join(event.text for event in self.events)

    def end(self) -> None:
        self._thread.join(60)
        assert not self._thread.is_alive()


def stream(server: Server, running: Running, **headers: str) -> requests.Response:
    url = f"{server.url}/jobs/{running.job.id}/logs?follow=1"
    return requests.get(url, headers=headers, auth=("u", "p"), stream=True, timeout=30)


def test_what_is_written_comes_as_events(server: Server, running: Running) -> None:
    running.write(b'a "\x00\xe2\x9c\x93"\n')
    with stream(server, running) as answer:
        assert answer.headers["Content-Type"].startswith("text/event-stream")
        assert answer.headers["Cache-Control"] == "no-store"
        lines = answer.iter_lines(chunk_size=None)
        assert next(lines).startswith(b":")
        wanted = [b"", b"id: 1-0-9", b"event: log"]
        assert [next(lines) for _ in wanted] == wanted
        assert next(lines) == b'data: {"step": "train", "attempt": 1, "text": "a \\"\\u0000\\u2713\\"\\n"}'
        running.end()
        assert list(lines) == [b"", b"event: end", b'data: {"state": "succeeded"}', b""]
    with stream(server, running, **{"Last-Event-ID": "1-0-9"}) as answer:
        assert answer.text == ': the log follows\n\nevent: end\ndata: {"state": "succeeded"}\n\n'
    assert stream(server, running, **{"Last-Event-ID": "junk"}).status_code == 400
    assert (
        requests.get(f"{server.url}/jobs/{running.job.id}/logs?follow=perhaps", auth=("u", "p"), timeout=30).status_code
        == 400
    )


def test_a_client_follows_through_a_restart_of_the_service(server: Server, running: Running) -> None:
    follower = Follower(server.url, running.job)
    running.write(b"before\n")
    wait_until(lambda: follower.text == "before\n")
    os.kill(server.pids()[-1], signal.SIGKILL)
    running.write(b"after\n")
    wait_until(lambda: follower.text == "before\nafter\n", timeout_s=60)
    running.end()
    follower.end()
    assert follower.text == "before\nafter\n"
    assert follower.state is JobState.SUCCEEDED
    assert {(event.step, event.attempt) for event in follower.events} == {(StepName.TRAIN, 1)}


def test_followers_leave_threads_for_others_and_free_their_own(server: Server, running: Running) -> None:
    streams = [stream(server, running) for _ in range(2)]
    refused = stream(server, running)
    assert refused.status_code == 503
    assert int(refused.headers["Retry-After"]) > 0
    assert "without follow" in refused.json()["detail"]
    assert requests.get(server.url + "/health", timeout=30).status_code == 200
    running.write(b"x\n")
    wait_until(lambda: "x\n" in ComputeClient(server.url, user="u", password="p").logs(running.job.id))
    streams.pop().close()
    wait_until(lambda: _is_followed(server, running, streams))
    for one in streams:
        one.close()


def _is_followed(server: Server, running: Running, streams: list[requests.Response]) -> bool:
    streams.append(stream(server, running))
    return streams[-1].status_code == 200


def test_followers_do_not_keep_a_service_from_ending(server: Server, running: Running) -> None:
    with stream(server, running) as answer:
        server.process.terminate()
        assert server.process.wait(20) == 0  # its grace is 30 s
        assert b"event: end" not in answer.content


def test_jobs_that_do_not_exist_cannot_be_followed(server: Server) -> None:
    with pytest.raises(ApiError, match="not found") as refused:
        next(ComputeClient(server.url, user="u", password="p").follow_logs(make_learn_spec().id))
    assert refused.value.status == 404


def test_a_service_that_is_out_for_long_is_given_up() -> None:
    with pytest.raises(ApiUnavailable, match="is it running"):
        next(ComputeClient("http://127.0.0.1:9").follow_logs(make_learn_spec().id, outage_s=0))


def test_the_command_follows_to_the_end(server: Server, running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MORPHEO_COMPUTE_URL", server.url)
    running.write(b"half a line")
    timer = threading.Timer(0.5, running.end)
    timer.start()
    done = CliRunner().invoke(logs_command, [str(running.job.id), "--follow"])
    timer.join()
    assert done.exit_code == 0, done.output
    assert done.stdout == "==> train (attempt 1) <==\nhalf a line\n"
    assert "succeeded" in done.stderr
    plain = CliRunner().invoke(logs_command, [str(running.job.id)])
    assert plain.stdout == "==> train <==\nhalf a line\n"


def test_ctrl_c_ends_the_command_and_not_the_job(
    server: Server, running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MORPHEO_COMPUTE_URL", server.url)
    running.write(b"x\n")

    def interrupted(*_args: object, **_kwargs: object) -> Iterator[LogEvent]:
        yield LogEvent(step=StepName.TRAIN, attempt=1, text="x\n")
        raise KeyboardInterrupt

    monkeypatch.setattr(ComputeClient, "follow_logs", interrupted)
    done = CliRunner().invoke(logs_command, [str(running.job.id), "--follow"])
    assert done.exit_code == EXIT_INTERRUPTED
    assert "the job goes on" in done.stderr
