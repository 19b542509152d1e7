"""What a trial says, and how the command prints it."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from click.testing import CliRunner

from morpheo.cli import morpheo
from morpheo.cli import trial as command
from morpheo.cli.common import EXIT_JOB_FAILED
from morpheo.config import Settings
from morpheo.errors import NotFound
from morpheo.models import Blame, Cause
from morpheo.trial.findings import Check, JobFailure, Report, State
from morpheo.trial.limits import network_use
from morpheo.trial.report import wrong_names
from morpheo.trial.run import Inputs
from morpheo.trial.sample import Item
from morpheo.trial.watch import Left, look_into
from tests.support.trials import write_folder

GOOD = Report(
    passed=True,
    checks=(
        Check(name="train runs", state=State.PASSED, seconds=1.25),
        Check(name="needs no network", state=State.WARNING, detail="it said [Errno 101]"),
    ),
    score=0.5,
    seconds=3.0,
)
BAD = Report(
    passed=False,
    checks=(
        Check(name="train runs", state=State.FAILED, detail="train ended with exit code 1"),
        Check(name="train leaves a model", state=State.NOT_REACHED),
    ),
    failures=(
        JobFailure(
            job="train",
            cause=Cause.MISSING_OUTPUT,
            blame=Blame.SUBMITTER,
            message="train left no model",
            log="".join(f"line {number}\n" for number in range(30)),
        ),
    ),
)


class Desk:
    """The command, with a trial that ends as it is told."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.report = GOOD
        self.given: list[tuple[Inputs, Settings, dict[str, Any]]] = []
        (folder / "algo").mkdir()
        (folder / "problem").mkdir()
        monkeypatch.setattr(command, "run_trial", self._run)
        monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))

    def _run(self, inputs: Inputs, settings: Settings, **words: Any) -> Report:
        self.given.append((inputs, settings, words))
        return self.report

    def run(self, *arguments: str, status: int = 0) -> str:
        words = ["try", str(self.folder / "algo"), *arguments]
        if "--problem" not in arguments:
            words += ["--problem", str(self.folder / "problem")]
        result = CliRunner().invoke(morpheo, words)
        assert result.exit_code == status, result.output
        return result.output


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    logger = logging.getLogger("morpheo")
    level = logger.level
    yield Desk(tmp_path, monkeypatch)
    logger.setLevel(level)


def test_each_check_is_one_line(desk: Desk) -> None:
    lines = desk.run().splitlines()
    assert lines[:2] == [
        "✓ train runs          1.2 s",
        "! needs no network           it said [Errno 101]",
    ]
    assert lines[-1] == "nothing would fail (3.0 s)"


def test_a_failure_is_printed_with_its_words_and_the_end_of_the_log(desk: Desk) -> None:
    desk.report = BAD
    output = desk.run(status=EXIT_JOB_FAILED)
    lines = output.splitlines()
    assert lines[:2] == ["✗ train runs                     train ended with exit code 1", "- train leaves a model"]
    assert "train: MISSING_OUTPUT\ntrain left no model\nThe end of its log:\nline 10\n" in output
    assert "line 29\n" in output
    assert lines[-1] == "a job with this algo would fail (0.0 s)"


def test_json_is_for_scripts(desk: Desk) -> None:
    desk.report = BAD
    document = json.loads(desk.run("--json", status=EXIT_JOB_FAILED))
    assert document["passed"] is False
    assert document["checks"][0] == {
        "name": "train runs",
        "state": "failed",
        "detail": "train ended with exit code 1",
        "seconds": None,
    }
    assert document["failures"][0]["cause"] == "MISSING_OUTPUT"


def test_limits_are_those_of_the_settings_unless_they_are_given(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MORPHEO_MEMORY_BYTES", str(64 << 20))
    monkeypatch.setenv("MORPHEO_PREDICT_TIMEOUT_S", "7")
    desk.run()
    desk.run("--memory", "1.5G", "--cpus", "0.5", "--timeout", "9", "--keep")
    (_, first, words), (_, second, kept) = desk.given
    assert (first.memory_bytes, first.learn_timeout_s, first.predict_timeout_s) == (64 << 20, 1200, 7)
    assert (second.memory_bytes, second.cpus) == (3 << 29, 0.5)
    assert (second.learn_timeout_s, second.predict_timeout_s) == (9, 9)
    assert (words["keep_algo"], kept["keep_algo"]) == (False, True)


@pytest.mark.parametrize(
    ("given", "size"),
    [("64M", 64 << 20), ("64MiB", 64 << 20), ("64 mb", 64 << 20), ("2g", 2 << 30), ("16777216", 16 << 20)],
)
def test_sizes(desk: Desk, given: str, size: int) -> None:
    desk.run("--memory", given)
    assert desk.given[0][1].memory_bytes == size


@pytest.mark.parametrize(
    ("given", "complaint"), [("much", "is not a size, such as 512M"), ("1M", "is less than 16M"), ("-1G", "not a size")]
)
def test_what_is_no_size_is_refused(desk: Desk, given: str, complaint: str) -> None:
    assert complaint in " ".join(desk.run(f"--memory={given}", status=2).split())


def test_a_problem_that_is_nowhere_is_refused(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def find_problem(_given: str) -> None:
        raise NotFound("no problem is called 'nowhere'")

    monkeypatch.setattr("morpheo.cli.trial.find_problem", find_problem)
    result = CliRunner().invoke(morpheo, ["try", str(desk.folder / "algo"), "--problem", "nowhere"])
    assert "nowhere is no folder and no .tar.gz here" in str(result.exception)
    assert "no problem is called 'nowhere'" in str(result.exception)
    assert desk.given == []


@pytest.mark.parametrize(
    "line",
    [
        "ping: example.org: Temporary failure in name resolution",
        "psycopg.OperationalError: could not translate host name: Name or service not known",
        "OSError: [Errno 101] Network is unreachable",
        "urllib.error.URLError: <urlopen error [Errno 111] Connection refused>",
        "Failed to establish a new connection: [Errno 110] Connection timed out",
        "curl: (6) Could not resolve host: example.org",
        "requests.exceptions.ConnectTimeout: HTTPSConnectionPool(host='example.org', port=443)",
        "fatal: unable to access 'https://example.org/x.git/': ...",
        "ERROR: Could not fetch URL https://packages.example/simple/numpy/: connection error",
    ],
)
def test_what_programs_say_without_a_network_is_known(line: str) -> None:
    assert network_use(f"epoch 1\n{line}\nepoch 2\n") == line


@pytest.mark.parametrize("line", ["training the network", "layer connection 3 of 4", "timeout: 20", ""])
def test_other_lines_are_not_taken_for_it(line: str) -> None:
    assert network_use(line) is None


def test_names_of_predictions() -> None:
    items = [Item(id=uuid4(), name=f"item {number}") for number in range(8)]
    first, second = str(items[0].id), str(items[1].id)
    assert wrong_names(Left(files={str(item.id): 1 for item in items}), items, where="/p") == ""
    found = wrong_names(Left(files={f"{first}.csv": 1, second: 1, "notes": 3}), items[:2], where="/p")
    assert found == (
        f"found {first}.csv, expected {first}; unexpected notes: write /p/<data id> for each file and nothing else"
    )
    assert "and 3 more" in wrong_names(Left(), items, where="/p")
    assert f"not a regular file: {first}" in wrong_names(Left(others=(first,)), items[:1], where="/p")


def test_a_folder_is_looked_into_without_following_links(tmp_path: Path) -> None:
    write_folder(tmp_path, {"a": "12", "deep/b": "1"})
    (tmp_path / "deep" / "link").symlink_to("/")
    assert look_into(tmp_path) == Left(files={"a": 2, "deep/b": 1}, others=("deep/link",))
