"""Failures: each end of a container has a cause, somebody to blame, and a sentence that says what to do."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from morpheo.errors import (
    ApiUnavailable,
    BrokerUnavailable,
    DatabaseUnavailable,
    DiskFull,
    RuntimeUnavailable,
    StorageUnavailable,
)
from morpheo.failures import check_result, failed, infrastructure_failure, last_lines, worker_lost
from morpheo.models import CANCELLED, Attempt, AttemptOutcome, Blame, Cause, Failure, JobFailed, StepName
from morpheo.runtime.contract import StepResult


def failure_of(**values: Any) -> Failure:
    result = StepResult(**{"exit_code": 1, "seconds": 1.0, "log": b"loading\nValueError: no such column", **values})
    with pytest.raises(JobFailed) as caught:
        check_result(result, StepName.TRAIN, Blame.SUBMITTER, timeout_s=90, memory_bytes=512 << 20)
    return caught.value.failure


def test_a_container_that_ended_well_is_no_failure() -> None:
    result = StepResult(exit_code=0, seconds=1.0)
    check_result(result, StepName.TRAIN, Blame.SUBMITTER, timeout_s=90, memory_bytes=1)


def test_a_child_that_ran_out_of_memory_is_the_programs_own_affair() -> None:
    result = StepResult(exit_code=0, oom_killed=True, seconds=1.0)
    check_result(result, StepName.TRAIN, Blame.SUBMITTER, timeout_s=90, memory_bytes=1)


@pytest.mark.parametrize(
    ("values", "cause", "sentence"),
    [
        ({"exit_code": 1}, Cause.EXIT_CODE, "train ended with exit code 1. Its last lines:\nloading\nValueError"),
        ({"exit_code": 137}, Cause.EXIT_CODE, "exit code 137; it was killed, most likely for its memory: use smaller"),
        (
            {"exit_code": 1, "peak_memory_bytes": 511 << 20},
            Cause.EXIT_CODE,
            "1; peak 511 of 512 MiB in train: use smaller",
        ),
        ({"exit_code": 1, "peak_memory_bytes": 480 << 20}, Cause.EXIT_CODE, "train ended with exit code 1. Its last"),
        ({"exit_code": 126}, Cause.EXIT_CODE, "its ENTRYPOINT cannot be run"),
        ({"exit_code": 127}, Cause.EXIT_CODE, "its ENTRYPOINT cannot be run"),
        (
            {"exit_code": 137, "oom_killed": True},
            Cause.OUT_OF_MEMORY,
            "used all of its memory and was stopped; peak 512 of 512 MiB in train: use",
        ),
        (
            {"exit_code": 1, "oom_killed": True},
            Cause.OUT_OF_MEMORY,
            "use smaller batches, or ask the custodian for a higher limit",
        ),
        ({"exit_code": 153}, Cause.OUTPUT_LIMIT, "wrote a file larger than the limit"),
        ({"exit_code": 137, "timed_out": True}, Cause.TIME_LIMIT, "ran longer than 90 s and was stopped"),
        (
            {"exit_code": 0, "timed_out": True},
            Cause.TIME_LIMIT,
            "make it faster, or ask the custodian for a longer limit",
        ),
        ({"exit_code": 137, "timed_out": True, "oom_killed": True}, Cause.TIME_LIMIT, "ran longer"),
        ({"exit_code": None, "start_error": "exec: no such file"}, Cause.BAD_IMAGE, "exec: no such file; check"),
        ({"exit_code": None, "log": b""}, Cause.EXIT_CODE, "It wrote no log"),
    ],
)
def test_each_bad_end_has_its_cause_and_says_what_to_do(values: dict[str, Any], cause: Cause, sentence: str) -> None:
    failure = failure_of(**values)
    assert (failure.cause, failure.blame, failure.step) == (cause, Blame.SUBMITTER, StepName.TRAIN)
    assert sentence in failure.message


def test_the_blame_is_the_images_owners() -> None:
    with pytest.raises(JobFailed) as caught:
        check_result(
            StepResult(exit_code=2, seconds=1.0), StepName.PERF, Blame.PROBLEM, timeout_s=1, memory_bytes=1 << 20
        )
    assert caught.value.failure.blame is Blame.PROBLEM
    assert caught.value.failure.step is StepName.PERF


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (DatabaseUnavailable("the database is gone"), Cause.DATABASE_UNAVAILABLE),
        (StorageUnavailable("the store is gone"), Cause.STORAGE_UNAVAILABLE),
        (RuntimeUnavailable("the engine is gone"), Cause.RUNTIME_UNAVAILABLE),
        (DiskFull("the disk is gone"), Cause.DISK_FULL),
    ],
    ids=lambda value: str(value) if isinstance(value, Cause) else None,
)
def test_infrastructure_that_fails_in_every_attempt_is_named(error: Exception, cause: Cause) -> None:
    failure = infrastructure_failure(error, 3)
    assert (failure.cause, failure.blame) == (cause, Blame.INFRASTRUCTURE)
    assert f"gave up after 3 attempts; the last one: {error}" in failure.message


@pytest.mark.parametrize(
    "error", [KeyError("secret"), OSError(5, "secret"), BrokerUnavailable("secret"), ApiUnavailable("secret")]
)
def test_an_unexpected_error_does_not_tell_the_submitter_what_it_was(error: Exception) -> None:
    failure = infrastructure_failure(error, 1)
    assert (failure.cause, failure.blame) == (Cause.INTERNAL_ERROR, Blame.INFRASTRUCTURE)
    assert "secret" not in failure.message
    assert "see the worker's log" in failure.message


def test_a_lost_worker_is_infrastructure() -> None:
    lost = AttemptOutcome.LOST
    attempts = [
        Attempt(number=1, worker="one-71-ab", outcome=lost, started_at=datetime.now(UTC), message="its disk was full"),
        Attempt(number=2, worker="two-72-cd", outcome=AttemptOutcome.RUNNING, started_at=datetime.now(UTC)),
    ]
    failure = worker_lost(attempts)
    assert (failure.cause, failure.blame) == (Cause.WORKER_LOST, Blame.INFRASTRUCTURE)
    assert "attempt 1 on one-71-ab: its disk was full" in failure.message
    assert "attempt 2 on two-72-cd: its worker stopped renewing the lease" in failure.message


def test_a_cancelled_job_is_nobodys_mistake() -> None:
    assert CANCELLED.cause is Cause.CANCELLED
    assert CANCELLED.message == "cancelled on request"


def test_a_failure_may_belong_to_no_step() -> None:
    assert failed(Cause.BAD_ARCHIVE, Blame.CUSTODIAN, "x").failure == Failure(
        cause=Cause.BAD_ARCHIVE, blame=Blame.CUSTODIAN, message="x", step=None
    )


# Logs


def test_only_the_end_of_a_log_is_quoted() -> None:
    quoted = last_lines(b"\n".join(b"line %d" % number for number in range(100)))
    assert quoted.splitlines()[1:] == [f"line {number}" for number in range(80, 100)]


def test_a_long_line_is_cut_at_its_beginning() -> None:
    quoted = last_lines(b"a" * 100_000 + b"the end")
    assert len(quoted) < 4100
    assert quoted.endswith("the end")


@pytest.mark.parametrize("log", [b"", b"\n\n  \n", b" "])
def test_an_empty_log_is_said_to_be_empty(log: bytes) -> None:
    assert last_lines(log) == ". It wrote no log"


@pytest.mark.parametrize(
    ("log", "text"),
    [
        (b"\x1b[1;31mred\x1b[0m", "red"),
        (b"\x1b]0;title\x07\x1b[2J", "�]0;title��[2J"),
        (b"a\0b", "a�b"),
        (b"caf\xc3\xa9 \xff", "café �"),
        (b"a\r\nb\r\n", "a\nb"),
        ("a\u202eb".encode(), "a�b"),
        (b"a\tb", "a\tb"),
    ],
    ids=["colour", "escape", "zero", "not-utf8", "windows", "right-to-left", "tab"],
)
def test_a_quoted_log_has_no_control_characters(log: bytes, text: str) -> None:
    assert last_lines(log) == f". Its last lines:\n{text}"


def test_the_documentation_tells_of_every_cause() -> None:
    page = (Path(__file__).parents[2] / "docs" / "failures.md").read_text()
    told = re.findall(r"^\| `([A-Z_]+)` \| ([a-z, ]+) \|", page, re.MULTILINE)
    assert sorted(name for name, _ in told) == sorted(Cause)
    assert {blame for _, blames in told for blame in blames.split(", ")} <= set(Blame)
