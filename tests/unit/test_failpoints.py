"""Failpoints do what a file says, once or each time; without a folder they do nothing."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

import morpheo
from morpheo import failpoints
from morpheo.failpoints import FAILPOINTS, FailpointError, failpoint
from tests.support.services import wait_until

_CALL = re.compile(r"failpoint\(\"([a-z_]+)\"\)")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(failpoints, "FOLDER", str(tmp_path))
    return tmp_path


def test_every_failpoint_is_somewhere_and_no_other() -> None:
    sources = Path(morpheo.__file__).parent.rglob("*.py")
    assert {name for path in sources for name in _CALL.findall(path.read_text())} == FAILPOINTS.keys()


def test_without_a_folder_nothing_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert failpoints.FOLDER is None
    monkeypatch.chdir(tmp_path)
    (tmp_path / "received").write_text("raise")
    failpoint("received")
    assert (tmp_path / "received").exists()


def test_an_action_happens_once(folder: Path) -> None:
    (folder / "received").write_text("raise")
    failpoint("after_claim")
    with pytest.raises(FailpointError, match="received"):
        failpoint("received")
    failpoint("received")
    assert [path.name for path in folder.iterdir()] == ["received.hit"]


def test_an_action_that_stays_happens_each_time(folder: Path) -> None:
    (folder / "received.always").write_text("raise")
    for _ in range(2):
        with pytest.raises(FailpointError):
            failpoint("received")


def test_an_unknown_action_says_which_there_are(folder: Path) -> None:
    (folder / "received").write_text("explode")
    with pytest.raises(ValueError, match="'explode' is none of kill, die, stop, hold, raise"):
        failpoint("received")


def test_hold_waits_to_be_let_go(folder: Path) -> None:
    (folder / "received").write_text("hold")
    thread = threading.Thread(target=failpoint, args=("received",), daemon=True)
    thread.start()
    wait_until((folder / "received.hit").exists)
    assert thread.is_alive()
    (folder / "received.go").touch()
    thread.join(30)
    assert not thread.is_alive()


@pytest.mark.parametrize("action", ["kill", "die"])
def test_kill_takes_the_process_group_and_die_only_the_process(tmp_path: Path, action: str) -> None:
    (tmp_path / "received").write_text(action)
    reach = "from morpheo.failpoints import failpoint; failpoint('received')"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {reach!r}]); print('alive')"
    done = subprocess.run(
        [sys.executable, "-c", parent],
        env={**os.environ, "MORPHEO_FAILPOINTS": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        start_new_session=True,
    )
    assert (done.returncode, done.stdout) == ((-signal.SIGKILL, "") if action == "kill" else (0, "alive\n"))


def test_stop_lets_no_thread_of_the_group_go_on(tmp_path: Path) -> None:
    """Also not the one that came there, while the signal is on its way to another thread of the process."""
    count = tmp_path / "count"
    program = (
        "import pathlib, sys, threading, time; from morpheo.failpoints import failpoint\n"
        "def reach():\n"
        "    for number in range(1, 99):\n"
        f"        failpoint('received'); pathlib.Path({str(count)!r}).write_text(str(number))\n"
        "threading.Thread(target=reach, daemon=True).start()\n"
        "while True: time.sleep(0.001)\n"
    )
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {program!r}])"
    (tmp_path / "received.always").write_text("stop")
    group = subprocess.Popen(
        [sys.executable, "-c", parent],
        env={**os.environ, "MORPHEO_FAILPOINTS": str(tmp_path)},
        start_new_session=True,
    )
    try:
        for number in range(10):
            wait_until(
                lambda: (
                    all(state == psutil.STATUS_STOPPED for state in states(group.pid)) and len(states(group.pid)) > 1
                )
            )
            assert (count.read_text() if count.exists() else "0") == str(number)
            os.killpg(group.pid, signal.SIGCONT)
            wait_until(lambda number=number: count.exists() and count.read_text() == str(number + 1))  # type: ignore[misc]
    finally:
        os.killpg(group.pid, signal.SIGKILL)
        group.wait()


def states(group: int) -> list[str]:
    """Return the states of all processes of a session."""
    found: list[str] = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            if os.getsid(process.pid) == group:
                found.append(process.status())
    return found
