"""How much containers may write to their output folders where no file system of its own bounds them."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

#: How often folders are counted while a container runs, in seconds: what it writes in between is not noticed.
LOOK_EVERY_S = 2.0
#: How long a size is counted, in seconds.
_COUNT_S = 60


@dataclass(frozen=True, kw_only=True)
class Quota:
    """What all output folders of an attempt may hold."""

    max_bytes: int
    #: Files and folders.
    max_files: int


class QuotaWatch:
    """
    Counts folders again and again during a ``with`` block, and calls something once when they hold too much.

    Args:
        folders: What is counted.
        quota: What they may hold; None counts nothing.
        kill: What is called.
        every_s: How often, in seconds.
    """

    def __init__(
        self, folders: Sequence[Path], quota: Quota | None, kill: Callable[[], None], *, every_s: float = LOOK_EVERY_S
    ) -> None:
        self._folders = folders
        self._quota = quota
        self._kill = kill
        self._every_s = every_s
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="quota", daemon=True)
        #: Whether they held too much.
        self.exceeded = False

    def __enter__(self) -> Self:
        if self._quota is not None and self._folders:
            self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join()

    def _watch(self) -> None:
        while not self._closing.wait(self._every_s):
            if self._quota is not None and exceeds(self._folders, self._quota):
                self.exceeded = True
                self._kill()
                return


def exceeds(folders: Iterable[Path], quota: Quota) -> bool:
    """Return whether folders hold more than a quota, or something in them cannot be counted."""
    folders = list(folders)
    return any(
        counted is None or counted > limit
        for counted, limit in (
            (_count(folders, "--block-size=1"), quota.max_bytes),
            (_count(folders, "--inodes"), quota.max_files + len(folders)),
        )
    )


def used_bytes(folders: Iterable[Path]) -> int:
    """Return how much room folders take, 0 if that takes too long to count."""
    return _count(list(folders), "--block-size=1") or 0


def _count(folders: list[Path], unit: str) -> int | None:
    """Return a total of ``du``, since a hostile tree can be too deep for Python; None if it may not look somewhere."""
    command = ["du", "--summarize", "--one-file-system", "--total", unit, "--", *map(str, folders)]
    try:
        result = subprocess.run(
            command, check=False, capture_output=True, timeout=_COUNT_S, env={**os.environ, "LC_ALL": "C"}
        )
    except subprocess.TimeoutExpired:
        return None
    if b"Permission denied" in result.stderr:
        return None
    total = result.stdout.rpartition(b"\ttotal")[0].rpartition(b"\n")[2]
    return int(total or 0)
