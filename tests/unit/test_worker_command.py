"""`morpheo worker` before it starts anything, and its supervisor with programs that are no workers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from morpheo.cli import morpheo
from morpheo.cli.common import EXIT_UNAVAILABLE, EXIT_USAGE
from morpheo.cli.worker import node_commands
from morpheo.config import Settings
from tests.support.services import wait_until
from tests.unit.test_cli import run_main


def nodes(**settings: object) -> dict[str, dict[str, str]]:
    """Return the options of each node's command."""
    commands = node_commands(Settings(**settings), "here")  # type: ignore[arg-type]
    return {
        name: dict(word.removeprefix("--").split("=") for word in command if "=" in word)
        for name, command in commands.items()
    }


def test_a_worker_is_a_node_for_each_kind() -> None:
    assert nodes(learn_parallelism=3) == {
        "learn@here": {"hostname": "learn@here", "queues": "learn", "concurrency": "3"},
        "predict@here": {"hostname": "predict@here", "queues": "predict", "concurrency": "1"},
    }


def test_tagged_jobs_are_taken_by_the_node_of_their_kind() -> None:
    found = nodes(queues=("learn", "gpu"))
    assert {name: options["queues"] for name, options in found.items()} == {
        "learn@here": "learn,learn.gpu",
        "predict@here": "predict.gpu",
    }


@pytest.mark.parametrize(
    "settings", [{"predict_parallelism": 0}, {"queues": ("learn",)}], ids=["parallelism", "queues"]
)
def test_a_kind_that_is_not_taken_has_no_node(settings: dict[str, object]) -> None:
    assert list(nodes(**settings)) == ["learn@here"]


@pytest.fixture
def environment() -> Iterator[None]:
    """The command's options become variables; take them away again."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--queues", "GPU"], "MORPHEO_QUEUES=GPU: 'GPU' is not a tag"),
        (["--queues", "a,b,c,d,e"], "MORPHEO_QUEUES=a,b,c,d,e: at most 4 tags"),
        (["--queues", ""], "MORPHEO_QUEUES=: name at least one of learn, predict, or a tag"),
        (["--learn-parallelism", "-1"], "MORPHEO_LEARN_PARALLELISM=-1: "),
        (["--learn-timeout", "0"], "MORPHEO_LEARN_TIMEOUT_S=0.0: "),
    ],
)
def test_a_bad_option_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert run_main(monkeypatch, "worker", *arguments) == EXIT_USAGE
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--learn-timeout", "soon"], "'soon' is not a duration such as 90, 90s, 20m or 2h"),
        (["--learn-parallelism", "0", "--queues", "learn"], "the parallelism is 0 for every kind"),
    ],
)
def test_a_useless_option_is_a_usage_error(arguments: list[str], words: str) -> None:
    result = CliRunner().invoke(morpheo, ["worker", *arguments])
    assert result.exit_code == EXIT_USAGE
    assert words in result.output


def test_durations_are_those_of_2017(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, object] = {}
    monkeypatch.setattr("morpheo.cli.worker._check_services", lambda: seen.update(os.environ))
    monkeypatch.setattr("morpheo.cli.worker.supervise", lambda commands: 0)
    before = dict(os.environ)
    try:
        CliRunner().invoke(morpheo, ["worker", "--learn-timeout", "20m", "--engine-timeout", "90"])
        assert (seen["MORPHEO_LEARN_TIMEOUT_S"], seen["MORPHEO_ENGINE_TIMEOUT_S"]) == ("1200.0", "90.0")
        assert seen["REMAP_SIGTERM"] == "SIGQUIT"
    finally:
        os.environ.clear()
        os.environ.update(before)


class Pair:
    """A supervisor in a process of its own, with two programs that write what happens to them."""

    def __init__(self, folder: Path, programs: dict[str, str]) -> None:
        self.folder = folder
        commands = {name: [sys.executable, "-c", program, str(folder / name)] for name, program in programs.items()}
        code = f"import sys; from morpheo.cli.supervisor import supervise; sys.exit(supervise({commands!r}))"
        self.process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, start_new_session=True)

    def said(self, name: str) -> str:
        path = self.folder / name
        return path.read_text() if path.exists() else ""

    def pid(self, name: str) -> int:
        wait_until(lambda: self.said(name).endswith("ready\n"), what=f"{name} to be ready")
        return int(self.said(name).split()[0])


#: Tells what signals it gets; SIGTERM ends it well.
PROGRAM = """
import os, signal, sys
file = open(sys.argv[1], "w", buffering=1)
def got(number, frame):
    file.write(signal.Signals(number).name + "\\n")
    if number == signal.SIGTERM:
        os._exit(0)
    if number == signal.SIGUSR1:
        os._exit(7)
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1):
    signal.signal(number, got)
file.write(f"{os.getpid()} ready\\n")
while True:
    signal.pause()
"""


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    found = Pair(tmp_path, {"learn": PROGRAM, "predict": PROGRAM})
    for name in ("learn", "predict"):
        found.pid(name)
    yield found
    found.process.kill()
    found.process.wait()
    assert found.process.stderr is not None
    found.process.stderr.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT])
def test_each_signal_reaches_each_node_once(pair: Pair, number: signal.Signals) -> None:
    os.killpg(pair.process.pid, number)
    for name in ("learn", "predict"):
        wait_until(lambda name=name: number.name in pair.said(name))  # type: ignore[misc]
    os.killpg(pair.process.pid, signal.SIGTERM)
    assert pair.process.wait(60) == 0
    assert [pair.said(name).split()[2:] for name in ("learn", "predict")] == [[number.name, "SIGTERM"]] * 2


def test_a_node_that_ends_well_was_drained_and_the_other_goes_on(pair: Pair) -> None:
    os.kill(pair.pid("learn"), signal.SIGTERM)
    wait_until(lambda: "SIGTERM" in pair.said("learn"))
    assert pair.process.poll() is None
    os.kill(pair.pid("predict"), signal.SIGINT)
    wait_until(lambda: "SIGINT" in pair.said("predict"))
    assert "SIGTERM" not in pair.said("predict")
    os.kill(int(pair.said("predict").split()[0]), signal.SIGTERM)
    assert pair.process.wait(60) == 0


@pytest.mark.parametrize(("number", "status"), [(signal.SIGUSR1, 7), (signal.SIGKILL, 137)])
def test_a_node_that_dies_takes_the_other_with_it(pair: Pair, number: signal.Signals, status: int) -> None:
    os.kill(pair.pid("predict"), number)
    assert pair.process.wait(60) == status
    assert "SIGTERM" in pair.said("learn")
    assert pair.process.stderr is not None
    assert f"predict has died (status {status})" in pair.process.stderr.read().decode()


def test_a_supervisor_that_is_killed_leaves_no_node(pair: Pair) -> None:
    pair.process.kill()
    for name in ("learn", "predict"):
        wait_until(lambda name=name: "SIGTERM" in pair.said(name))  # type: ignore[misc]


@pytest.mark.usefixtures("environment")
def test_without_a_broker_it_says_which(tmp_path: Path) -> None:
    # In a process of its own: Celery reads its settings once.
    done = subprocess.run(
        [sys.executable, "-m", "morpheo", "worker"],
        env={**os.environ, "MORPHEO_BROKER_URL": "redis://:hunter2@127.0.0.1:9/0"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == EXIT_UNAVAILABLE
    assert "no broker answers at redis://:**@127.0.0.1:9/0; start it, or set MORPHEO_BROKER_URL" in done.stderr
    assert done.stderr.count("\n") == 1
