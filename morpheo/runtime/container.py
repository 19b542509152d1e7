"""One container of a Docker engine, from its start to its end."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from typing import Any, Self, TypeVar

import requests
from docker import APIClient
from docker.errors import APIError, DockerException, NotFound
from urllib3.exceptions import HTTPError

from morpheo.errors import RuntimeUnavailable
from morpheo.failpoints import failpoint
from morpheo.runtime.contract import SIGKILLED, ContainerSpec, Interrupt, Profile, StepResult
from morpheo.runtime.follower import LogFollower
from morpheo.runtime.log import BoundedLog
from morpheo.runtime.memory import MemoryWatch
from morpheo.runtime.profile import LABEL_LIMIT, LABEL_NODE
from morpheo.runtime.quota import QuotaWatch

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: What the engine may take for the end of a container that was killed, in seconds.
KILL_GRACE_S = 30
#: A container that should be dead is killed again after so long, in seconds.
KILL_AGAIN_S = 5
#: How often an engine that is out is asked whether it is back, in seconds.
RETURN_EVERY_S = 0.2
#: A container is overdue so long after its deadline, in seconds: its own worker comes first.
OVERDUE_S = 5
#: How long an engine may take to say that a container ended for lack of memory after it has said that it ended, and
#: how often it is asked, in seconds (containerd issues 8180 and 12260).
OOM_LATE_S, _OOM_EVERY_S = 5.0, 0.1
#: Exit codes from here on are the signals' that ended a program, or mean that the engine does not know.
_KILLED = 128


class RunningContainer:
    """
    Waits for a container, and goes on waiting if the engine is restarted.

    Args:
        client: Of the engine.
        container_id: Of the container, created.
        spec: What it is.
        profile: What it may use.
        interrupt: Stops it from outside.
        log: Where its output goes.
        return_s: How long an engine that is out may take to come back.
    """

    def __init__(
        self,
        client: APIClient,
        container_id: str,
        spec: ContainerSpec,
        profile: Profile,
        *,
        interrupt: Interrupt,
        log: BoundedLog,
        return_s: float,
    ) -> None:
        self._client = client
        self._id = container_id
        self._spec = spec
        self._profile = profile
        self._interrupt = interrupt
        self._log = log
        self._return_s = return_s
        #: Whether the engine was out while the container ran.
        self._engine_was_out = False
        #: Whether the engine was told to kill it.
        self._was_killed = False

    def run(self) -> StepResult:
        """
        Start the container, and return how it ended.

        Raises:
            RuntimeUnavailable: the engine did not come back, or the container ended with it.
            docker.errors.DockerException, requests.RequestException: the engine failed otherwise.
        """
        follower = LogFollower(self._client, self._id, self._log, file_bytes=self._profile.log_bytes)
        began = time.monotonic()
        with self._interrupt.calling(self._kill_soon), _Deadline(self._spec.timeout_s, self._kill):
            self._client.start(self._id)
            failpoint("after_start")
            if self._interrupt.reason is not None:  # it was set before there was anything to kill
                self._kill()
            written = [bind.source for bind in self._spec.binds if bind.writable]
            quota = QuotaWatch(written, self._spec.quota, self._kill)
            with MemoryWatch(self._client, self._id) as memory, follower, quota:
                failpoint("in_wait")
                state = self._wait(began)
            seconds = time.monotonic() - began
        failpoint("after_exit")
        if self._engine_was_out:  # and may have come back long after the end
            seconds = min(seconds, _seconds(state["StartedAt"], state["FinishedAt"]))
        killed = state["ExitCode"] >= _KILLED
        timed_out = seconds >= self._spec.timeout_s and (killed or self._engine_was_out)
        if self._engine_was_out and killed and not (timed_out or state["OOMKilled"]):
            raise RuntimeUnavailable("the container engine was restarted, and the container ended with it")
        if self._is_overdue_by_the_clock_only(state, seconds):
            raise RuntimeUnavailable("the clock of the container engine jumped, or the machine slept, while it ran")
        self._patiently(follower.finish)
        return StepResult(
            exit_code=state["ExitCode"],
            oom_killed=state["OOMKilled"],
            timed_out=timed_out,
            over_quota=quota.exceeded,
            seconds=seconds,
            peak_memory_bytes=self._profile.memory_bytes if state["OOMKilled"] else memory.peak_bytes,
            log=self._log.text(),
        )

    def _is_overdue_by_the_clock_only(self, state: dict[str, Any], seconds: float) -> bool:
        # Then whoever sweeps has killed it (`kill_overdue`), and it has not had its time.
        was_killed = state["ExitCode"] == SIGKILLED and not (state["OOMKilled"] or self._was_killed)
        limit_s = self._spec.timeout_s
        return was_killed and seconds < limit_s <= _seconds(state["StartedAt"], state["FinishedAt"])

    def _wait(self, began: float) -> dict[str, Any]:
        """Return the state of the container when it has ended."""
        ends_at = began + self._spec.timeout_s
        while True:
            now = time.monotonic()
            if self._interrupt.reason is not None:
                ends_at = min(ends_at, now)
            if ends_at <= now:  # what killed it may not have reached the engine
                self._kill()
            self._wait_once(max(ends_at - now, KILL_AGAIN_S))
            state: dict[str, Any] = self._patiently(lambda: self._client.inspect_container(self._id))["State"]
            if not state["Running"]:
                return self._with_cause(state)
            if time.monotonic() > ends_at + KILL_GRACE_S + self._return_s:
                raise RuntimeUnavailable("the container engine does not end a container that it was told to kill")

    def _with_cause(self, state: dict[str, Any]) -> dict[str, Any]:
        # Nobody here killed it: then it was the kernel, most likely for its memory, which the engine learns apart.
        give_up = time.monotonic() + OOM_LATE_S
        while state["ExitCode"] == SIGKILLED and not (state["OOMKilled"] or self._was_killed or self._engine_was_out):
            if time.monotonic() > give_up:
                break
            time.sleep(_OOM_EVERY_S)
            state = self._patiently(lambda: self._client.inspect_container(self._id))["State"]
        return state

    def _wait_once(self, seconds: float) -> None:
        """Wait until the container ends, the engine hangs up, or it is time to look whether the engine is alive."""
        seconds = math.ceil(min(seconds, self._client.timeout))
        began = time.monotonic()
        try:
            self._client.wait(self._id, timeout=seconds)
        except NotFound:
            raise
        except (DockerException, requests.RequestException, HTTPError):
            if time.monotonic() - began < seconds:
                self._engine_was_out = True
                logger.warning("the container engine hung up", exc_info=True)
                time.sleep(RETURN_EVERY_S)

    def _patiently(self, ask: Callable[[], T]) -> T:
        """Ask the engine something that can be asked again, until it answers or has been out for too long."""
        give_up = time.monotonic() + self._return_s
        while True:
            try:
                return ask()
            except NotFound:
                raise
            except (DockerException, requests.RequestException, HTTPError):
                self._engine_was_out = True
                if time.monotonic() > give_up or self._interrupt.reason is not None:
                    raise
                time.sleep(RETURN_EVERY_S)

    def _kill(self) -> None:
        self._was_killed = True
        # Whatever goes wrong, `_wait` sees it as a container that does not end, and kills it again.
        with suppress(DockerException, requests.RequestException, HTTPError):
            self._client.kill(self._id)

    def _kill_soon(self) -> None:
        # Not in the thread that interrupts: it renews the lease, and must not wait for an engine that hangs.
        threading.Thread(target=self._kill, name=f"kill-{self._id[:12]}", daemon=True).start()


class _Deadline:
    """Calls something once if a block takes too long."""

    def __init__(self, seconds: float, action: Callable[[], None]) -> None:
        self._timer = threading.Timer(seconds, action)
        self._timer.daemon = True

    def __enter__(self) -> Self:
        self._timer.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._timer.cancel()


def _seconds(start: str, end: str) -> float:
    """Return the time between two of the engine's timestamps."""
    return (datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds()


def kill_overdue(client: APIClient, *, node: str) -> int:
    """Kill the containers of a node that are past their deadlines, by the engine's clock; return how many."""
    running = client.containers(filters={"label": [LABEL_LIMIT, f"{LABEL_NODE}={node}"], "status": "running"})
    if not running:
        return 0
    now = datetime.fromisoformat(client.info()["SystemTime"])
    return sum(_kill_if_overdue(client, container, now) for container in running)


def _kill_if_overdue(client: APIClient, container: dict[str, Any], now: datetime) -> bool:
    limit_s = float(container["Labels"][LABEL_LIMIT]) + OVERDUE_S
    if now.timestamp() - container["Created"] <= limit_s:
        return False
    try:
        started = datetime.fromisoformat(client.inspect_container(container["Id"])["State"]["StartedAt"])
        if (now - started).total_seconds() <= limit_s:
            return False
        client.kill(container["Id"])
    except APIError:  # it has ended meanwhile
        return False
    logger.warning("a container was killed long after its deadline", extra={"container": container["Names"]})
    return True
