"""What libraries and services really log, without secrets and with the job that it is about."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
import requests
import urllib3
from minio import Minio
from pydantic import SecretStr

from morpheo import logs
from morpheo.config import Settings
from morpheo.errors import DatabaseUnavailable
from morpheo.models import JobState, StepName
from morpheo.storage.database import Database
from morpheo.storage.jobs import JobRepository
from morpheo.storage.s3 import MIN_PART, S3BlobStore
from morpheo.testing import FakeContainer
from tests.support.api_server import migrate, serving
from tests.support.services import S3Server, free_port, wait_until
from tests.support.workbench import Workbench, make_workbench

SECRET = "s3cret-of-the-database"


@contextmanager
def recording(settings: Settings) -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """Write all that is logged in this process as a service would; gives what reads it."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logs.JsonLines(logs.make_redact(settings)))
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    try:
        yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    finally:
        root.removeHandler(handler)
        root.setLevel(level)


def test_the_traceback_of_a_failed_connection_has_no_password() -> None:
    url = f"postgresql://morpheo:{SECRET}@127.0.0.1:{free_port()}/morpheo"
    with recording(Settings()) as read:  # settings that know nothing of it: its place gives it away
        try:
            try:
                psycopg.connect(url, connect_timeout=5)
            except psycopg.OperationalError as exc:
                raise ConnectionError(f"cannot connect to {url}") from exc
        except ConnectionError:
            logging.getLogger("morpheo.test").exception("no connection to %s", url)
        line = read()[-1]
    assert "psycopg.OperationalError: " in line["exception"]
    assert "ConnectionError: cannot connect to postgresql://morpheo:***@127.0.0.1:" in line["exception"]
    assert SECRET not in json.dumps(line)


@pytest.mark.s3
def test_a_presigned_url_is_no_key_to_anybody_who_reads_the_log(s3: S3Server, s3_blobs: S3BlobStore) -> None:
    s3_blobs.put("model/1/a", io.BytesIO(b"x"), length=1)
    client = Minio(s3.endpoint, access_key=s3.access_key, secret_key=s3.secret_key, secure=False, region="us-east-1")
    url = client.presigned_get_object(s3_blobs._bucket, "model/1/a", expires=timedelta(minutes=1))
    assert "X-Amz-Signature=" in url
    with recording(Settings()) as read:
        assert urllib3.request("GET", url).data == b"x"
        line = next(line for line in read() if "model/1/a" in line["message"])
    assert line["logger"] == "urllib3.connectionpool"
    assert "X-Amz-Signature=***" in line["message"]
    assert s3.access_key not in line["message"]
    assert url.partition("X-Amz-Signature=")[2][:64] not in line["message"]


@pytest.mark.s3
def test_threads_of_a_library_log_for_the_job_whose_upload_they_make(s3_blobs: S3BlobStore) -> None:
    with recording(Settings()) as read, logs.about_job(uuid4()), logs.adding(attempt=1, step="train"):
        s3_blobs.put("model/1/b", io.BytesIO(b"x" * (3 * MIN_PART)))
        lines = [line for line in read() if "partNumber" in line["message"]]
    assert len(lines) >= 3
    assert {(line.get("attempt"), line.get("step")) for line in lines} == {(1, "train")}


@pytest.fixture
def bench(sqlite_url: str, tmp_path: Path) -> Workbench:
    return make_workbench(sqlite_url, tmp_path / "node")


def test_every_line_of_a_job_names_it_and_heartbeats_the_step_too(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    beats: list[int] = []

    def renew(*_args: object, **_kwargs: object) -> bool:
        beats.append(1)
        raise DatabaseUnavailable

    def train(container: FakeContainer) -> int:
        seen = len(beats)
        wait_until(lambda: len(beats) >= seen + 2, what="heartbeats")  # one that began in this step has ended
        logging.getLogger("some.library").warning("from within")
        return algo(container)

    algo = bench.programs["algo"]
    bench.programs["algo"] = train
    spec = bench.learn_spec()
    bench.resources.jobs.submit(spec)
    monkeypatch.setattr(JobRepository, "renew", renew)
    with recording(bench.resources.settings) as read:
        job = bench.resources.runner.run(spec.id)
        lines = read()
    assert job is not None
    assert job.state is JobState.SUCCEEDED
    assert {line["job"] for line in lines} == {str(spec.id)}
    assert {line["attempt"] for line in lines} == {1}
    said = {(line["message"], line.get("step")) for line in lines}
    assert {
        ("job claimed", None),
        ("job succeeded", None),
        ("from within", StepName.TRAIN),
        ("lease not renewed", StepName.TRAIN),
    } <= said


def test_lines_after_a_job_do_not_name_it(bench: Workbench) -> None:
    spec = bench.learn_spec()
    bench.resources.jobs.submit(spec)
    bench.resources.runner.run(spec.id)
    with recording(bench.resources.settings) as read:
        logging.getLogger("morpheo.test").info("after")
        assert "job" not in read()[0]


@pytest.mark.parametrize("form", ["json", "text"])
def test_all_that_an_api_writes_has_one_form(tmp_path: Path, form: str) -> None:
    """From its start to its end, a malformed request and an unexpected error included."""
    migrate(tmp_path)
    settings = {"log": form, "log_level": "DEBUG", "password": "storagePass1", "api_processes": "1"}
    with serving("storage-api", tmp_path, **settings) as server:
        auth = ("u", "storagePass1")
        named = requests.get(f"{server.url}/algo", auth=auth, headers={"X-Request-ID": "a-1"}, timeout=20)
        other = requests.get(f"{server.url}/nothing?X-Amz-Signature=0123456789", timeout=20)
        with server.connect() as peer:
            peer.sendall(b"GET /algo HTTP/1.1\r\nContent-Length: x\r\n\r\n")
            assert peer.recv(100).startswith(b"HTTP/1.1 400 ")
        raw = {"Content-Type": "application/octet-stream"}
        stored = requests.post(f"{server.url}/data", data=b"x", auth=auth, headers=raw, timeout=20).json()["uuid"]
        server.blobs()[0].unlink()
        broken = requests.get(f"{server.url}/data/{stored}/blob", auth=auth, timeout=20)
        log = next(tmp_path.glob("storage-api-*.log"))
    assert (named.headers["X-Request-ID"], other.status_code, broken.status_code) == ("a-1", 401, 500)
    written = log.read_text()
    assert "storagePass1" not in written
    assert "0123456789" not in written
    if form == "text":
        assert "INFO gunicorn.access GET /algo 200 request=a-1 seconds=" in written
        return
    lines = [json.loads(line) for line in written.splitlines()]
    assert {"time", "level", "logger", "message", "process"} <= set.intersection(*(set(line) for line in lines))
    by_request = {line["request"]: line for line in lines if line["logger"] == "gunicorn.access" and "request" in line}
    assert by_request["a-1"]["message"] == "GET /algo 200"
    assert by_request[other.headers["X-Request-ID"]]["message"] == "GET /nothing?X-Amz-Signature=*** 401"
    failed = [line for line in lines if line.get("request") == broken.headers["X-Request-ID"]]
    assert any("Traceback" in line.get("exception", "") for line in failed)
    assert any(line["message"].startswith("Invalid request from") and "request" not in line for line in lines)


def test_the_error_of_a_database_that_is_down_has_no_password() -> None:
    settings = Settings(database_url=SecretStr(f"postgresql+psycopg://m:{SECRET}@127.0.0.1:{free_port()}/m"))
    with recording(settings) as read:
        with pytest.raises(DatabaseUnavailable) as caught:
            Database(settings.database).check()
        logging.getLogger("morpheo.test").error("down", exc_info=caught.value)
        assert SECRET not in json.dumps(read())
