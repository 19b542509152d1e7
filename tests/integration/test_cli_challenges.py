"""A challenge from the command line alone: the real APIs on loopback, and a fake engine that does the jobs."""

from __future__ import annotations

import csv
import io
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from morpheo.cli.common import EXIT_INTERRUPTED, EXIT_JOB_FAILED
from morpheo.models import JobKind, JobState
from morpheo.testing import FakeContainer
from tests.support.api_server import environment, morpheo
from tests.support.apis import serving_node
from tests.support.commands import Terminal
from tests.support.services import child, wait_until
from tests.support.workbench import Workbench, make_workbench


@pytest.fixture
def bench(sqlite_url: str, tmp_path: Path) -> Workbench:
    return make_workbench(sqlite_url, tmp_path / "node")


@pytest.fixture
def terminal(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Terminal]:
    """A terminal in front of services and a worker."""
    with serving_node(bench) as urls:
        for name, url in urls.items():
            monkeypatch.setenv(f"MORPHEO_{name.upper()}_URL", url)
        yield Terminal(capsys)


def make_folder(path: Path, program: str) -> Path:
    """Make the folder of an image that runs a program of the fake engine."""
    path.mkdir()
    (path / "Dockerfile").write_text(f'FROM morpheo/base:1\nENTRYPOINT ["{program}"]\n')
    (path / ".dockerignore").write_text("secret.txt\n")
    (path / "secret.txt").write_text("not for others")
    return path


def make_files(folder: Path, *contents: str) -> list[Path]:
    """Make files of data, one for each content."""
    paths = [folder / f"{content.strip().replace(':', '-')}.csv" for content in contents]
    for path, content in zip(paths, contents, strict=True):
        path.write_text(content)
    return paths


def add_problem(terminal: Terminal, folder: Path) -> None:
    """Add a problem of two test files, with two batches of data to train on: the first one is of no use."""
    tests = [argument for path in make_files(folder, "a:1\n", "c:3\n") for argument in ("--test", path)]
    image = make_folder(folder / "sleep", "problem")
    printed, _ = terminal.run("problem", "add", image, "--batch-size", 2, *tests)
    assert printed.endswith(" (sleep)\n")
    train = folder / "train"
    train.mkdir()
    _, remarks = terminal.run("data", "add", *make_files(train, "x:1", "y:2", "a:1", "c:3"), "--problem", "sleep")
    assert "trainings to come: 0; there is no algo yet" in remarks


def guess(container: FakeContainer) -> int:
    """An algo that always says 1."""
    volume = container.args[container.args.index("-V") + 1]
    container.write(f"{volume}/model/model", b"1")
    for part in ("train", "test"):
        for file in container.path(f"{volume}/{part}").iterdir():
            if file.is_file():
                container.write(f"{volume}/{part}/pred/{file.name}", b"1")
    return 0


def test_a_challenge_runs_from_a_folder_to_a_place_and_a_prediction(
    terminal: Terminal, bench: Workbench, tmp_path: Path
) -> None:
    bench.programs["guess"] = guess
    add_problem(terminal, tmp_path)
    printed, remarks = terminal.run("submit", make_folder(tmp_path / "oak", "guess"), "--problem", "sleep", "--wait")
    assert "score 0.5000 (rank 0, model " in printed
    assert printed.endswith("place 1 of 1\n")
    assert "rank 1: done, perf 0.5000, " in remarks
    result = terminal.run_json(
        "submit", make_folder(tmp_path / "ash", "algo"), "--problem", "sleep", "--name", "elm", "--wait"
    )
    assert [rank["perf"] for rank in result["ranks"]] == [0.0, 1.0]
    assert (result["place"]["place"], result["place"]["range"], result["place"]["name"]) == (1, [1, 2], "elm")

    printed, _ = terminal.run("leaderboard", "sleep")
    rows = [line.replace("│", " ").split() for line in printed.splitlines() if "│" in line]
    assert [row[:3] for row in rows] == [["1-2", "elm", "1.0000"], ["1-2", "oak", "0.5000"]]
    names = [row["name"] for row in csv.DictReader(io.StringIO(terminal.run("leaderboard", "sleep", "--csv")[0]))]
    assert names == [entry["name"] for entry in terminal.run_json("leaderboard", "sleep")["entries"]] == ["elm", "oak"]

    (question,) = make_files(tmp_path, "c")
    target = tmp_path / "prediction"
    assert terminal.run("pred", question, "--problem", "sleep")[0] == "3"
    terminal.run("pred", question, "--problem", "sleep", "--output", target)
    assert target.read_text() == "3"

    assert [(item["name"], item["state"]) for item in terminal.run_json("algo", "ls")] == [
        ("oak", "done"),
        ("elm", "done"),
    ]
    (problem,) = terminal.run_json("problem", "ls")
    assert (problem["name"], problem["algos"], problem["data"]) == ("sleep", 2, 4)
    assert len(terminal.run_json("data", "ls", "--problem", problem["id"][:8])) == 4


def test_what_is_uploaded_lacks_what_dockerignore_names(terminal: Terminal, bench: Workbench, tmp_path: Path) -> None:
    add_problem(terminal, tmp_path)
    terminal.run("submit", make_folder(tmp_path / "oak", "algo"), "--problem", "sleep")
    (algo,) = terminal.run_json("ls", "algo")
    packed = tmp_path / "oak.tar.gz"
    terminal.run("download", "algo", algo["id"], packed)
    listed = subprocess.run(["tar", "tzf", packed], capture_output=True, text=True, check=True).stdout.split()
    assert "Dockerfile" in listed
    assert "secret.txt" not in listed


def test_a_chain_that_stalls_is_explained_and_goes_on_after_a_retry(
    terminal: Terminal, bench: Workbench, tmp_path: Path
) -> None:
    add_problem(terminal, tmp_path)
    works = bench.programs["algo"]

    def broken(container: FakeContainer) -> int:
        container.print("there is no column called age")
        return 1

    bench.programs["algo"] = broken
    _, remarks = terminal.run(
        "submit", make_folder(tmp_path / "oak", "algo"), "--problem", "sleep", "--wait", status=EXIT_JOB_FAILED
    )
    assert "stopped at rank 0: EXIT_CODE (to blame: submitter)" in remarks
    assert "  there is no column called age\n" in remarks
    (item,) = terminal.run_json("algo", "ls")
    assert item["state"] == "stalled"
    stopped = item["stopped_at"]["job"]
    assert remarks.endswith(f"morpheo retry {stopped}\n")
    assert f"morpheo retry {stopped}" in terminal.run("algo", "ls")[0]

    waiting = next(job for job in bench.resources.orchestrator.jobs(JobKind.LEARN) if job.state is JobState.WAITING)
    bench.resources.jobs.cancel(waiting.id)
    printed, remarks = terminal.run("retry", waiting.id)
    assert remarks.endswith(f"another rank stalls its chain; try that one again, too: morpheo retry {stopped}\n")

    bench.programs["algo"] = works
    again = terminal.run_json("retry", stopped)["job"]
    printed, remarks = terminal.run("algo", "follow", "oak")
    assert "score 1.0000 (rank 1" in printed
    assert again != stopped
    assert "stopped" not in remarks


def test_ctrl_c_stops_the_following_and_not_the_trainings(
    bench: Workbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    oak, log = make_folder(tmp_path / "oak", "algo"), tmp_path / "log"
    with serving_node(bench, working=False) as urls:
        settings = {f"{name}_url": url for name, url in urls.items()}
        for name, url in settings.items():
            monkeypatch.setenv(f"MORPHEO_{name.upper()}", url)
        terminal = Terminal(capsys)
        add_problem(terminal, tmp_path)
        command = morpheo("submit", str(oak), "--problem", "sleep", "--wait")
        with child(command, log, env=environment(tmp_path / "data", **settings)) as process:
            wait_until(lambda: "rank 0: queued" in log.read_text(), what="following")
            process.send_signal(signal.SIGINT)
            assert process.wait(20) == EXIT_INTERRUPTED
        assert "the trainings go on. Follow them again with `morpheo algo follow " in log.read_text()
        (item,) = terminal.run_json("algo", "ls")
        assert (item["state"], item["trainings"]) == ("training", 2)
