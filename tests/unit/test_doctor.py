"""How checks are run and told, without services."""

from __future__ import annotations

import json
import threading

import pytest
from click.testing import CliRunner

from morpheo.cli import doctor as command
from morpheo.cli import morpheo
from morpheo.cli.common import EXIT_FAILED, EXIT_USAGE
from morpheo.config import Settings
from morpheo.doctor import subjects
from morpheo.doctor.findings import Check, Finding, Status, clock, examine, fail, is_local, ok, shown_url, warn


def check(name: str, finding: Finding, *needs: str) -> Check:
    return Check(name=name, run=lambda: finding, needs=needs)


def run(*checks: Check) -> list[tuple[str, Status]]:
    return [(finding.check, finding.status) for finding in examine([checks], lambda _: None)]


def test_what_depends_on_a_failure_is_skipped_and_what_does_not_is_run() -> None:
    found = run(
        check("a", fail("broken", "mend it")),
        check("b", ok("well"), "a"),
        check("c", ok("well"), "b"),
        check("d", ok("well")),
        check("e", ok("well"), "d"),
    )
    skipped, well = Status.SKIPPED, Status.OK
    assert found == [("a", Status.FAIL), ("b", skipped), ("c", skipped), ("d", well), ("e", well)]


def test_a_warning_is_no_reason_to_skip() -> None:
    assert run(check("a", warn("odd", "look")), check("b", ok("well"), "a"))[1] == ("b", Status.OK)


def test_a_check_that_hangs_is_left_behind() -> None:
    ended = threading.Event()

    def hang() -> Finding:
        ended.wait()
        return ok("late")

    hanging = Check(name="a", run=hang, deadline_s=0.05)
    (first, second) = examine([[hanging, check("b", ok("well"))]], lambda _: None)
    ended.set()
    assert first.status is Status.FAIL
    assert "no answer within 0.05 s" in first.cause
    assert second.status is Status.OK


@pytest.mark.parametrize("error", [ValueError("odd\nthing"), SystemExit("Error: bad settings")])
def test_a_check_that_breaks_is_a_failure_and_ends_nothing_else(error: BaseException) -> None:
    def break_down() -> Finding:
        raise error

    (first, second) = examine([[Check(name="a", run=break_down), check("b", ok("well"))]], lambda _: None)
    assert first.status is Status.FAIL
    assert " ".join(str(error).split()) in first.cause
    assert second.status is Status.OK


def test_every_finding_is_told_as_it_comes() -> None:
    told: list[Finding] = []
    found = examine([[check("a", ok("1"))], [check("b", ok("2"))]], told.append)
    assert sorted(told, key=lambda finding: finding.check) == found


@pytest.mark.parametrize(
    ("difference_s", "status"),
    [(0.4, Status.OK), (-1.9, Status.OK), (2.1, Status.WARN), (-9.9, Status.WARN), (10.1, Status.FAIL)],
)
def test_a_clock_may_be_off_by_little(difference_s: float, status: Status) -> None:
    found = clock("Redis", difference_s, lease_s=30)
    assert found.status is status
    assert ("behind" in found.cause) == (difference_s < -2)


def test_passwords_are_not_shown() -> None:
    assert shown_url("redis://:hunter2@host:6379/0") == "redis://host:6379/0"
    assert shown_url("redis://host:6379/0") == "redis://host:6379/0"


def test_what_is_on_this_machine() -> None:
    assert all(map(is_local, (None, "", "localhost", "127.0.0.1", "127.1.2.3", "::1", "/run/postgresql")))
    assert not any(map(is_local, ("redis", "10.0.0.1", "example.org")))


def test_every_check_needs_only_what_comes_before_it() -> None:
    for name, checks in subjects(Settings(s3_endpoint="127.0.0.1:9000")).items():
        seen: set[str] = set()
        for one in checks:
            assert one.name.startswith(f"{name}.")
            assert set(one.needs) <= seen
            seen.add(one.name)


@pytest.fixture
def three(monkeypatch: pytest.MonkeyPatch) -> None:
    """A doctor with one healthy and two ill subjects."""
    made = {
        "engine": [check("engine.answers", ok("unix:///x"))],
        "broker": [check("broker.answers", warn("odd", "look"))],
        "database": [
            check("database.answers", fail("[broken]", "`createdb [x]`")),
            check("database.writable", ok("well"), "database.answers"),
        ],
    }
    monkeypatch.setattr(command, "subjects", lambda settings: made)


@pytest.mark.usefixtures("three")
def test_the_status_is_1_if_a_check_fails() -> None:
    result = CliRunner().invoke(morpheo, ["doctor"])
    assert result.exit_code == EXIT_FAILED
    assert "database.answers: `createdb [x]`" in result.output
    assert "[broken]" in result.output
    assert "1 ok, 1 warn, 1 fail, 1 skipped" in result.output


@pytest.mark.usefixtures("three")
def test_warnings_are_no_failures() -> None:
    assert CliRunner().invoke(morpheo, ["doctor", "--only", "engine, redis"]).exit_code == 0


@pytest.mark.usefixtures("three")
def test_scripts_get_json() -> None:
    result = CliRunner().invoke(morpheo, ["doctor", "--json", "--only", "sql"])
    assert result.exit_code == EXIT_FAILED
    assert json.loads(result.stdout) == [
        {"check": "database.answers", "status": "fail", "cause": "[broken]", "fix": "`createdb [x]`"},
        {"check": "database.writable", "status": "skipped", "cause": "needs database.answers", "fix": ""},
    ]


def test_a_subject_that_is_none_is_a_usage_error() -> None:
    result = CliRunner().invoke(morpheo, ["doctor", "--only", "engine,disk"])
    assert result.exit_code == EXIT_USAGE
    assert "no subject disk; there are engine, broker" in result.output
