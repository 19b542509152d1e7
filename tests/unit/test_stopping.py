"""How long a node that is told to stop waits; a test that waits for a grace of an hour does not end."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from morpheo.tasks import stopping
from morpheo.tasks.stopping import at_work, make_file, wait_for_jobs

AN_HOUR_S = 3600
WORKS = """
import time
from morpheo.tasks.stopping import at_work
with at_work():
    print("works", flush=True)
    time.sleep(3600)
"""


@pytest.fixture(autouse=True)
def file(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(stopping, "LOOK_S", 0.01)
    monkeypatch.setenv("_MORPHEO_AT_WORK", "")  # so that it is put back
    make_file()
    path = Path(os.environ["_MORPHEO_AT_WORK"])
    yield path
    path.unlink(missing_ok=True)


def test_nobody_is_waited_for() -> None:
    wait_for_jobs(AN_HOUR_S)


def test_all_jobs_are_waited_for() -> None:
    waiting = threading.Thread(target=wait_for_jobs, args=(AN_HOUR_S,))
    with at_work():
        with at_work():
            waiting.start()
        waiting.join(0.2)
        assert waiting.is_alive()
    waiting.join(60)
    assert not waiting.is_alive()


def test_a_grace_that_is_over_ends_the_waiting() -> None:
    with at_work():
        wait_for_jobs(0.1)


def test_a_job_that_fails_is_not_waited_for() -> None:
    with pytest.raises(SystemExit), at_work():
        raise SystemExit
    wait_for_jobs(AN_HOUR_S)


def test_a_process_of_ones_own_that_is_killed_is_not_waited_for() -> None:
    with subprocess.Popen([sys.executable, "-c", WORKS], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"works\n"
        waiting = threading.Thread(target=wait_for_jobs, args=(AN_HOUR_S,))
        waiting.start()
        waiting.join(0.2)
        assert waiting.is_alive()
        process.kill()
        waiting.join(60)
        assert not waiting.is_alive()


def test_without_its_file_a_job_runs_and_the_grace_is_waited_out(file: Path) -> None:
    file.unlink()
    done = []
    with at_work():
        done.append("job")
    wait_for_jobs(0.1)
    assert done == ["job"]


def test_a_process_that_is_no_nodes_runs_jobs_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("_MORPHEO_AT_WORK")
    with at_work():
        pass
