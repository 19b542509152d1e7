"""What goes out, as values: scores, times, failures, logs."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from morpheo.access import Principal, Role
from morpheo.challenges import Problem, is_insider
from morpheo.disclosure import (
    ALGO_STEPS,
    DEFAULT,
    MAX_LINE,
    MEMORY_STEP_BYTES,
    Disclosure,
    Logs,
    View,
    advice,
    escaped,
    rounded,
)
from morpheo.failures import check_result
from morpheo.models import (
    Attempt,
    AttemptOutcome,
    Blame,
    Cause,
    Failure,
    Job,
    JobFailed,
    JobKind,
    JobState,
    Scores,
    StepName,
    StepRecord,
)
from morpheo.runtime.contract import StepResult
from morpheo.testing import make_learn_spec

NOW = datetime(2026, 5, 1, 12, 0, 1, 234567, tzinfo=UTC)
PERF = 0.123456789
CANARY = "c4n4ry"


def outside(**disclosure: object) -> View:
    return View(disclosure=replace(DEFAULT, **disclosure), insider=False)  # type: ignore[arg-type]  # fields of it


INSIDE = View(disclosure=Disclosure(logs=Logs.NONE, score_digits=0, time_step_s=3600), insider=True)


def make_job() -> Job:
    step = StepRecord(name=StepName.TRAIN, started_at=NOW, seconds=1.5, exit_code=7, peak_memory_bytes=1)
    attempt = Attempt(
        number=1,
        worker="w",
        outcome=AttemptOutcome.FAILED,
        started_at=NOW,
        ended_at=NOW + timedelta(seconds=2),
        message=CANARY,
        steps=(step, replace(step, name=StepName.PERF)),
    )
    message = f"train ended with exit code 7. Its last lines:\n{CANARY}"
    return Job(
        id=uuid4(),
        kind=JobKind.LEARN,
        state=JobState.FAILED,
        worker="w",
        held_by="walt",
        spec=make_learn_spec(),
        created_at=NOW,
        started_at=NOW,
        ended_at=NOW + timedelta(seconds=2),
        failure=Failure(cause=Cause.EXIT_CODE, blame=Blame.SUBMITTER, step=StepName.TRAIN, message=message),
        scores=Scores(perf=PERF, train_perf={"a": PERF}, test_perf={"b": -PERF}),
        attempts=(attempt,),
    )


def test_an_insider_sees_a_job_as_it_is_whatever_goes_out() -> None:
    job = make_job()
    assert INSIDE.job(job) == job
    assert INSIDE.steps == frozenset(StepName)
    assert INSIDE.text("\x1b[31m") == "\x1b[31m"


@pytest.mark.parametrize("logs", Logs)
def test_all_that_is_seen_of_a_job_is_coarse(logs: Logs) -> None:
    job = outside(logs=logs, score_digits=2, time_step_s=60).job(make_job())
    minute = datetime(2026, 5, 1, 12, 1, tzinfo=UTC)
    assert (job.created_at, job.started_at, job.ended_at) == (minute, minute, minute)
    assert job.scores == Scores(perf=0.12, train_perf={"a": 0.12}, test_perf={"b": -0.12})
    (attempt,) = job.attempts
    assert (attempt.started_at, attempt.ended_at, attempt.message) == (minute, minute, "")
    assert (job.worker, job.held_by, attempt.worker) == (None, None, "")
    for step in attempt.steps:
        assert (step.started_at, step.seconds, step.exit_code) == (minute, 60.0, 7)
        assert step.peak_memory_bytes == MEMORY_STEP_BYTES
    assert bool(attempt.steps) is (logs is not Logs.NONE)


def test_what_a_container_wrote_is_in_a_failure_only_where_the_custodian_lets_it_out() -> None:
    failure = make_job().failure
    assert failure is not None
    assert outside(logs=Logs.NONE).failure(failure) is None
    told = outside(logs=Logs.CAUSE).failure(failure)
    assert told is not None
    assert (told.cause, told.blame, told.step) == (failure.cause, failure.blame, failure.step)
    assert CANARY not in told.message
    assert "exit code 7" in told.message
    assert outside(logs=Logs.ALL).failure(failure) == failure


def test_a_failure_of_the_problem_is_never_told_in_its_own_words() -> None:
    failure = Failure(cause=Cause.EXIT_CODE, blame=Blame.PROBLEM, step=StepName.PERF, message=f"perf: {CANARY}")
    for logs in (Logs.CAUSE, Logs.ALL):
        told = outside(logs=logs).failure(failure)
        assert told is not None
        assert CANARY not in told.message
        assert "its custodian has the log" in told.message


@pytest.mark.parametrize("blame", Blame)
@pytest.mark.parametrize("cause", Cause)
def test_advice_is_made_of_nothing_that_a_container_chose(cause: Cause, blame: Blame) -> None:
    told = {
        advice(Failure(cause=cause, blame=blame, step=StepName.TRAIN, message=message))
        for message in ("", CANARY, f"{CANARY} train ended with exit code 77", "x" * 100)
    }
    assert len(told) == 1
    assert next(iter(told)).startswith("train: ")


@pytest.mark.parametrize("code", [1, 137, 255])
def test_an_exit_code_is_told_as_failures_are_worded(code: int) -> None:
    result = StepResult(exit_code=code, seconds=1.0, log=b"train ended with exit code 99\n")
    with pytest.raises(JobFailed) as raised:
        check_result(result, StepName.TRAIN, Blame.SUBMITTER, timeout_s=9, memory_bytes=1 << 30)
    assert advice(raised.value.failure).endswith(f"(exit code {code})")


def test_logs_are_those_of_the_algo_at_most() -> None:
    assert outside(logs=Logs.NONE).steps == frozenset()
    assert outside(logs=Logs.CAUSE).steps == frozenset()
    assert outside(logs=Logs.ALL).steps == ALGO_STEPS == {StepName.BUILD_ALGO, StepName.TRAIN, StepName.PREDICT}


@given(st.floats(allow_nan=False, allow_infinity=False, width=32), st.integers(0, 15))
def test_a_rounded_score_stays_as_it_is_when_it_is_rounded_again(value: float, digits: int) -> None:
    once = rounded(value, digits)
    assert rounded(once, digits) == once
    assert abs(once - value) <= 0.5 * 10.0**-digits + math.ulp(value)


def test_zero_has_no_sign() -> None:
    assert str(rounded(-0.001, 2)) == "0.0"


@given(st.floats(0.001, 1e7), st.integers(1, 86400))
def test_durations_are_rounded_up(seconds: float, step_s: int) -> None:
    shown = outside(time_step_s=step_s).seconds(seconds)
    assert shown % step_s == 0
    assert seconds <= shown < seconds + step_s


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("plain é ☃\ttab\n", "plain é ☃\ttab\n"),
        ("\x1b[2J\x1b]0;title\x07", "\\x1b[2J\\x1b]0;title\\x07"),
        ("a\r\nb\rc", "a\nb\\rc"),
        ("\0\x7f\x85\u2028\u202e\u200b\ufeff", "\\x00\\x7f\\x85\\u2028\\u202e\\u200b\\ufeff"),
        ("x\n==> perf <==\n", "x\n\\==> perf <==\n"),
        ("==> perf <==", "\\==> perf <=="),
        ("x ==> perf", "x ==> perf"),
    ],
)
def test_text_of_a_container_is_made_harmless(written: str, shown: str) -> None:
    assert escaped(written) == shown


def test_long_lines_are_cut_with_a_mark() -> None:
    text = escaped("x" * (1 << 20) + "\nshort\n")
    assert text == "x" * MAX_LINE + f" [{(1 << 20) - MAX_LINE} characters left out]\nshort\n"


@given(st.text())
def test_nothing_that_is_left_steers_a_terminal(text: str) -> None:
    shown = escaped(text)
    assert all(letter.isprintable() or letter in "\n\t" for letter in shown)
    assert not any(line.startswith("==> ") for line in shown.splitlines())


def problem(owner: str) -> Problem:
    return Problem(id=uuid4(), workflow=uuid4(), test_data=(uuid4(),), batch_size=1, created_at=NOW, owner=owner)


@pytest.mark.parametrize(
    ("name", "role", "owner", "insider"),
    [
        ("ada", Role.ADMIN, None, True),
        ("ada", Role.ADMIN, "cleo", True),
        ("cleo", Role.CUSTODIAN, "cleo", True),
        ("cleo", Role.CUSTODIAN, "carl", False),
        ("cleo", Role.CUSTODIAN, None, False),
        ("", Role.CUSTODIAN, "", False),
        ("cleo", Role.SUBMITTER, "cleo", False),
        ("cleo", Role.WORKER, "cleo", False),
        ("cleo", Role.READER, "cleo", False),
    ],
)
def test_insiders_are_admins_and_the_custodian_who_owns_the_problem(
    name: str, role: Role, owner: str | None, insider: bool
) -> None:
    principal = Principal(name=name, roles=frozenset({role}))
    assert is_insider(principal, None if owner is None else problem(owner)) is insider
