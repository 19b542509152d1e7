"""Watches the memory of a running container; the engine forgets a container's counters when it ends."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path
from typing import Any, Self

import requests
from docker import APIClient
from docker.errors import DockerException

_CGROUPS = Path("/sys/fs/cgroup")
#: Files with the highest value since a container's start, on cgroup v1 and v2, with cgroupfs and systemd.
_PEAK_FILES = (
    "memory/docker/{id}/memory.max_usage_in_bytes",
    "memory/system.slice/docker-{id}.scope/memory.max_usage_in_bytes",
    "docker/{id}/memory.peak",
    "system.slice/docker-{id}.scope/memory.peak",
)
_FIRST_WAIT_S = 0.005
_LAST_WAIT_S = 1.0


class MemoryWatch:
    """
    Notes the highest memory use of a container, from a thread of its own.

    On the engine's own machine the kernel's counter is read, often at first, because many containers are short. From
    elsewhere the engine is asked, whose figures are a second apart: a short container's peak is then unknown.
    """

    def __init__(self, client: APIClient, container_id: str) -> None:
        self.peak_bytes: int | None = None
        self._client = client
        self._container_id = container_id
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name=f"memory-{container_id[:12]}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        # Not joined: the engine takes its time to answer for a container that has ended.
        self._ended.set()

    def _watch(self) -> None:
        wait_s = _FIRST_WAIT_S
        while not self._ended.wait(wait_s):
            wait_s = min(wait_s * 2, _LAST_WAIT_S)
            seen = self._read_kernel()
            if seen is None:
                seen = self._ask_engine()
            if seen:
                self.peak_bytes = max(self.peak_bytes or 0, seen)

    def _read_kernel(self) -> int | None:
        for name in _PEAK_FILES:
            with contextlib.suppress(OSError, ValueError):
                return int((_CGROUPS / name.format(id=self._container_id)).read_text())
        return None

    def _ask_engine(self) -> int | None:
        with contextlib.suppress(DockerException, requests.RequestException):
            stats: dict[str, Any] = self._client.stats(self._container_id, stream=False, one_shot=True)
            memory = stats.get("memory_stats") or {}
            return memory.get("max_usage") or memory.get("usage")
        return None
