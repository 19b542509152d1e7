"""The end of a container, as an engine tells of it piece by piece."""

from __future__ import annotations

from typing import Any, Self
from uuid import uuid4

import pytest
from docker import APIClient

from morpheo.errors import RuntimeUnavailable
from morpheo.models import StepName
from morpheo.runtime import container
from morpheo.runtime.container import RunningContainer
from morpheo.runtime.contract import SIGKILLED, ContainerSpec, Interrupt, Owner, Profile, StepResult
from morpheo.runtime.log import BoundedLog


class Engine(APIClient):
    """Tells of a container that has ended; after some questions, also that it lacked memory."""

    def __init__(self, *, exit_code: int, tells_after: int | None) -> None:
        self.timeout = 60
        self.asked = 0
        self.finished_at = "2020-01-01T00:00:01Z"
        self._exit_code = exit_code
        self._tells_after = tells_after

    def start(self, *_args: Any, **_words: Any) -> None:
        pass

    def wait(self, *_args: Any, **_words: Any) -> Any:
        pass

    def kill(self, *_args: Any, **_words: Any) -> None:
        pass

    def stats(self, *_args: Any, **_words: Any) -> dict[str, Any]:
        return {}

    def inspect_container(self, *_args: Any, **_words: Any) -> dict[str, Any]:
        self.asked += 1
        told = self._tells_after is not None and self.asked > self._tells_after
        times = {"StartedAt": "2020-01-01T00:00:00.5Z", "FinishedAt": self.finished_at}
        return {"State": {"Running": False, "ExitCode": self._exit_code, "OOMKilled": told, **times}}


class NoLog:
    """Follows a container that writes nothing."""

    def __init__(self, *_args: Any, **_words: Any) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        pass

    def finish(self) -> None:
        pass


def run(engine: Engine, interrupt: Interrupt, monkeypatch: pytest.MonkeyPatch) -> StepResult:
    monkeypatch.setattr(container, "LogFollower", NoLog)
    profile = Profile(
        user=1, memory_bytes=64 << 20, cpus=1, pids=9, tmp_bytes=1 << 20, log_bytes=1 << 16, file_bytes=1 << 20
    )
    spec = ContainerSpec(
        owner=Owner(job_id=uuid4(), attempt=1, worker="w"),
        step=StepName.TRAIN,
        image_id="sha256:0",
        args=(),
        binds=(),
        timeout_s=60,
    )
    return RunningContainer(engine, "c", spec, profile, interrupt=interrupt, log=BoundedLog(1 << 10), return_s=1).run()


def test_an_engine_that_tells_late_of_a_lack_of_memory_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(exit_code=SIGKILLED, tells_after=3)
    result = run(engine, Interrupt(), monkeypatch)
    assert (result.exit_code, result.oom_killed, result.peak_memory_bytes) == (SIGKILLED, True, 64 << 20)


def test_a_program_that_somebody_killed_has_not_run_out_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container, "OOM_LATE_S", 0.2)
    engine = Engine(exit_code=SIGKILLED, tells_after=None)
    assert not run(engine, Interrupt(), monkeypatch).oom_killed
    assert engine.asked > 1


def test_a_container_that_was_killed_since_a_clock_jumped_is_nobodys_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweeper kills by the engine's clock what is past its deadline, and a machine that sleeps has one that jumps."""
    monkeypatch.setattr(container, "OOM_LATE_S", 0.2)
    engine = Engine(exit_code=SIGKILLED, tells_after=None)
    engine.finished_at = "2020-01-01T00:25:00.5Z"
    with pytest.raises(RuntimeUnavailable, match="clock"):
        run(engine, Interrupt(), monkeypatch)


@pytest.mark.parametrize("exit_code", [0, 1, 143])
def test_other_ends_are_asked_for_once(monkeypatch: pytest.MonkeyPatch, exit_code: int) -> None:
    engine = Engine(exit_code=exit_code, tells_after=None)
    assert run(engine, Interrupt(), monkeypatch).exit_code == exit_code
    assert engine.asked == 1


def test_who_was_killed_from_here_is_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, interrupt = Engine(exit_code=SIGKILLED, tells_after=None), Interrupt()
    interrupt.set("cancelled")
    assert not run(engine, interrupt, monkeypatch).oom_killed
    assert engine.asked == 1
