"""Lines of the log: text and JSON, what they are about, and no secret in them."""

from __future__ import annotations

import base64
import io
import json
import logging
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from pydantic import SecretStr

from morpheo import logs
from morpheo.config import Settings

SETTINGS = Settings(
    database_url=SecretStr("postgresql+psycopg://morpheo:db%40Pass1@db.example/morpheo"),
    broker_url=SecretStr("redis://:brokerPass1@redis.example:6379/0"),
    s3_secret_key=SecretStr('s3"Secret/Key+1'),
    user="morpheo",
    password=SecretStr("storagePass1"),
)
JOB = UUID("00000000-0000-4000-8000-000000000001")


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    """What a logger of its own writes, as text."""
    yield from writing(logs.TextLines(logs.make_redact(SETTINGS)))


@pytest.fixture
def json_lines() -> Iterator[io.StringIO]:
    """What a logger of its own writes, as JSON."""
    yield from writing(logs.JsonLines(logs.make_redact(SETTINGS)))


def writing(formatter: logging.Formatter) -> Iterator[io.StringIO]:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter)
    LOGGER.addHandler(handler)
    yield stream
    LOGGER.removeHandler(handler)


@pytest.fixture(autouse=True)
def nothing_said_before() -> None:
    logs.about_nothing()  # the requests of other tests' clients end without it


LOGGER = logging.getLogger("morpheo.test_logs")
LOGGER.setLevel(logging.DEBUG)


def parsed(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_of_json_says_when_what_and_who(json_lines: io.StringIO) -> None:
    LOGGER.warning("a %s line\nand another", "first", extra={"cause": "EXIT_CODE", "strikes": 2})
    assert json_lines.getvalue().count("\n") == 1
    (line,) = parsed(json_lines)
    when = datetime.fromisoformat(line.pop("time"))
    assert when.utcoffset() == timedelta(0)
    assert abs(datetime.now(UTC) - when) < timedelta(minutes=1)
    assert isinstance(line.pop("process"), int)
    assert line == {
        "level": "WARNING",
        "logger": "morpheo.test_logs",
        "message": "a first line\nand another",
        "cause": "EXIT_CODE",
        "strikes": 2,
    }


def test_an_exception_is_in_its_line_of_json(json_lines: io.StringIO) -> None:
    try:
        raise ValueError("broken")
    except ValueError:
        LOGGER.exception("it failed")
    (line,) = parsed(json_lines)
    assert line["exception"].startswith("Traceback")
    assert line["exception"].endswith("ValueError: broken")


def test_what_a_text_line_is_about_stands_at_the_end_of_its_message(lines: io.StringIO) -> None:
    with logs.about_job(JOB), logs.adding(attempt=2), logs.adding(step="train"):
        try:
            raise ValueError("broken")
        except ValueError:
            LOGGER.info("it failed", extra={"cause": "EXIT_CODE"}, exc_info=True)
    first, *rest = lines.getvalue().splitlines()
    assert first.endswith(f"INFO morpheo.test_logs it failed job={JOB} attempt=2 step=train cause=EXIT_CODE")
    assert rest[-1] == "ValueError: broken"


def test_words_are_there_as_long_as_their_block_lasts(json_lines: io.StringIO) -> None:
    with logs.about_job(JOB):
        with logs.adding(attempt=1):
            with logs.adding(step="train"):
                LOGGER.info("in the step")
            LOGGER.info("after it")
        LOGGER.info("after the attempt")
    LOGGER.info("after the job")
    names = ("job", "attempt", "step")
    assert [tuple(line.get(name) for name in names) for line in parsed(json_lines)] == [
        (str(JOB), 1, "train"),
        (str(JOB), 1, None),
        (str(JOB), None, None),
        (None, None, None),
    ]


def test_a_thread_speaks_of_the_one_job_and_of_its_present_step(json_lines: io.StringIO) -> None:
    """As heartbeats do, which begin before a step, and the threads of libraries, which were told nothing."""
    go, done = threading.Event(), threading.Event()

    def beat() -> None:
        go.wait(20)
        LOGGER.info("beat")
        done.set()

    with logs.about_job(JOB), logs.adding(attempt=3):
        thread = threading.Thread(target=beat)
        thread.start()
        with logs.adding(step="perf"):
            go.set()
            assert done.wait(20)
        thread.join()
    (line,) = parsed(json_lines)
    assert (line["job"], line["attempt"], line["step"]) == (str(JOB), 3, "perf")


def test_jobs_of_two_threads_are_not_mixed_up(json_lines: io.StringIO) -> None:
    both = threading.Barrier(2, timeout=20)
    jobs = [uuid4(), uuid4()]

    def run(job: UUID) -> None:
        with logs.about_job(job):
            both.wait()
            LOGGER.info("%s", job)
            stranger = threading.Thread(target=LOGGER.info, args=("stranger",))
            stranger.start()
            stranger.join()
            both.wait()

    threads = [threading.Thread(target=run, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    said = [(line["message"], line.get("job")) for line in parsed(json_lines)]
    assert sorted(said, key=str) == sorted(
        [*((str(job), str(job)) for job in jobs), ("stranger", None), ("stranger", None)], key=str
    )


def test_lines_of_a_request_carry_its_name(json_lines: io.StringIO) -> None:
    logs.about_request("abc")
    LOGGER.info("during")
    logs.about_nothing()
    LOGGER.info("after")
    assert [line.get("request") for line in parsed(json_lines)] == ["abc", None]


HEADER = base64.b64encode(b"other:password9").decode()
SIGNATURE = "0123456789abcdef" * 4
PRESIGNED = "&".join(
    [
        "X-Amz-Algorithm=AWS4-HMAC-SHA256",
        "X-Amz-Credential=AKIAOTHER%2F20260101%2Fx",
        "X-Amz-Security-Token=tokenTOKEN",
        f"X-Amz-Signature={SIGNATURE}",
        "X-Amz-Expires=60",
    ]
)
#: What is logged, and what must not be seen of it.
SECRETS = {
    "broker-url": ("connecting to redis://:brokerPass1@redis.example:6379/0", ["brokerPass1"]),
    "database-url": (
        "postgresql+psycopg://morpheo:db%40Pass1@db.example/morpheo does not answer",
        ["db%40Pass1", "db@Pass1"],
    ),
    "database-password": ("FATAL: no user morpheo with db@Pass1", ["db@Pass1"]),
    "url-of-others": ("GET https://someone:hunter2@example.org/x", ["hunter2"]),
    "url-in-quotes": ("Retry('http://someone:h/n:t@r2@example.org/x')", ["h/n:t@r2", "r2@"]),
    "s3-secret": ('denied for s3"Secret/Key+1', ['s3"Secret', "Key+1"]),
    "s3-secret-quoted": ("denied for s3%22Secret%2FKey%2B1", ["Secret%2F"]),
    "basic-own": (f"Basic {base64.b64encode(b'morpheo:storagePass1').decode()}", [" bW9yc"]),
    "basic-other": (f"send: b'GET / HTTP/1.1\\r\\nAuthorization: Basic {HEADER}\\r\\nHost: x'", [HEADER]),
    "basic-in-a-dict": (f"headers {{'Authorization': 'Basic {HEADER}', 'Host': 'x'}}", [HEADER]),
    "bearer": ("Authorization: Bearer abc.def.ghi", ["abc.def"]),
    "signed-header": (
        f"'Authorization': 'AWS4-HMAC-SHA256 Credential=AKIAOTHER/2026/x, SignedHeaders=host, Signature={SIGNATURE}'",
        ["AKIAOTHER", SIGNATURE],
    ),
    "presigned-url": (
        f'"GET /x?{PRESIGNED} HTTP/1.1" 200',
        ["AKIAOTHER", "tokenTOKEN", SIGNATURE],
    ),
    "presigned-in-another": (
        f"/login?to=https%3A%2F%2Fs3%2Fx%3FX-Amz-Signature%3D{SIGNATURE}%26X-Amz-Date%3D1",
        [SIGNATURE],
    ),
    "old-presigned-url": ("/x?AWSAccessKeyId=AKIAOTHER&Signature=abcDEF%3D&Expires=1", ["AKIAOTHER", "abcDEF"]),
    "words": ("password='hunter22' secret_key: hunter33, token=hunter44", ["hunter22", "hunter33", "hunter44"]),
}


@pytest.mark.parametrize(("text", "secrets"), SECRETS.values(), ids=SECRETS)
def test_no_secret_is_written(lines: io.StringIO, json_lines: io.StringIO, text: str, secrets: list[str]) -> None:
    LOGGER.info("before %s after", text, extra={"key": text, "what": {"nested": [text]}})
    try:
        raise ConnectionError(f"raised: {text}")
    except ConnectionError:
        LOGGER.warning("failed", exc_info=True)
    for written in (lines.getvalue(), *(str(value) for line in parsed(json_lines) for value in line.values())):
        assert not [secret for secret in secrets if secret in written]
    assert lines.getvalue().count("***") >= 4
    assert parsed(json_lines)[0]["message"].startswith("before ")


@pytest.mark.parametrize(
    "text",
    [
        "send the user and password of the storage API with HTTP Basic authentication",
        "GET /jobs?limit=2&state=failed 200",
        "blob model/1/2 has another sha256 than 0123456789abcdef",
        "listening at http://127.0.0.1:8081 and mail me@example.org",
        "/x?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Expires=60",
        "morpheo.runner: token ring, signature expected, password wrong",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert logs.make_redact(SETTINGS)(text) == text


def test_the_short_defaults_are_not_searched_in_every_word() -> None:
    assert logs.make_redact(Settings())("up and running: u:p") == "up and running: u:p"


def test_the_root_logger_is_configured_once_however_often(monkeypatch: pytest.MonkeyPatch) -> None:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    monkeypatch.setattr("sys.excepthook", None)
    monkeypatch.setattr(threading, "excepthook", None)
    root.handlers = []
    try:
        for _ in range(2):
            logs.configure(Settings(log="json", log_level="WARNING"))
        (handler,) = root.handlers
        assert isinstance(handler.formatter, logs.JsonLines)
        assert root.level == logging.WARNING
    finally:
        logging.captureWarnings(capture=False)
        root.handlers = before
        root.setLevel(level)
