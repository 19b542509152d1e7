"""
Room on this machine's disks: nothing starts that would cross the high mark, and caches go down to the low one.

An attempt says what it may need before it fetches anything. What it was promised is written into its workspace, where
other workers of this machine see it; it is given back when the workspace goes, whoever removes it.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from morpheo.errors import DiskFull
from morpheo.runtime.cache import NodeCache
from morpheo.runtime.contract import Interrupt
from morpheo.runtime.workspace import Workspace

logger = logging.getLogger(__name__)

MIB = 1 << 20
#: Where a workspace says what its attempt was promised.
PROMISE = "promised"
#: What programs print when a disk is full.
_SAID = (b"No space left on device", b"Disk quota exceeded", b"Read-only file system")
#: Errors of a file system that is full, or that turned read-only because its disk is broken.
_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)

#: Makes room: is asked again and again whether there is enough, and stops when there is, or when nothing is left.
Evict = Callable[[Callable[[], bool]], None]


@dataclass(frozen=True, kw_only=True)
class Marks:
    """
    The watermarks: a share of the file system that may be used (up to 1), or bytes that stay free (more than 1).
    """

    high: float
    low: float

    def high_free(self, total: int) -> int:
        """Return how many bytes of a file system must stay free."""
        return _free(self.high, total)

    def low_free(self, total: int) -> int:
        """Return how many bytes shall be free after caches went."""
        return max(_free(self.low, total), self.high_free(total))


def _free(mark: float, total: int) -> int:
    return int((1 - mark) * total) if mark <= 1 else int(mark)


@dataclass(frozen=True, kw_only=True)
class Need:
    """What an attempt may write, in bytes."""

    #: Below the data folder.
    data: int
    #: Images, in the engine.
    images: int = 0
    #: Files and folders, below the data folder.
    files: int = 0


@dataclass(frozen=True)
class _Room:
    free: int
    total: int
    #: Files that still fit; None is any number.
    files: int | None
    read_only: bool


class Disk:
    """
    Watches the data folder, and the engine's folder if this machine sees it.

    Args:
        data_dir: All that this machine keeps.
        work_dir: The workspaces.
        marks: The watermarks.
        cache: Has the lock that all workers of this machine share.
        engine_folders: Where engines keep images, if they are on this machine.
        evict: What can go, the first first.
    """

    def __init__(
        self,
        data_dir: Path,
        work_dir: Path,
        marks: Marks,
        cache: NodeCache,
        *,
        engine_folders: Callable[[], Iterable[Path]],
        evict: Sequence[Evict],
    ) -> None:
        self._data_dir = data_dir
        self._work_dir = work_dir
        self._marks = marks
        self._cache = cache
        self._engine_folders = engine_folders
        self._evict = evict

    def reserve(self, need: Need, workspace: Workspace, interrupt: Interrupt) -> None:
        """
        Promise an attempt what it needs, until its workspace goes; caches make room for it.

        Raises:
            DiskFull: it would cross the high mark; nothing was promised.
            Interrupted: the interrupt was set.
        """
        with self._cache.lock("disk", interrupt):
            others = self._promised(workspace.path)
            self._check(self._data_dir, need.data + others, need.files)
            for folder in self._engine_folders():
                same = folder.stat().st_dev == self._data_dir.stat().st_dev
                self._check(folder, need.images + (need.data + others if same else 0), 0)
            (workspace.path / PROMISE).write_text(str(need.data))

    def _promised(self, own: Path) -> int:
        total = 0
        for path in self._work_dir.glob(f"*/{PROMISE}"):
            if path.parent != own:
                with contextlib.suppress(FileNotFoundError, ValueError):
                    total += int(path.read_text())
        return total

    def _check(self, folder: Path, need: int, files: int) -> None:
        def enough(mark: Callable[[int], int]) -> bool:
            room = _room(folder)
            return room.free - need >= mark(room.total) and (room.files is None or room.files >= files)

        if enough(self._marks.high_free):
            return
        for evict in self._evict:
            if not enough(self._marks.low_free):
                evict(lambda: enough(self._marks.low_free))
        if enough(self._marks.high_free):
            return
        room = _room(folder)
        logger.warning("no room in %s: %s, %d bytes and %d files needed", folder, room, need, files)
        raise DiskFull(
            f"no room on this worker's disk: {room.free // MIB} MiB are free, the jobs of now may need "
            f"{need // MIB} MiB, and {self._marks.high_free(room.total) // MIB} MiB must stay free "
            "(MORPHEO_DISK_HIGH); make room there"
        )

    def has_engine_room(self) -> bool | None:
        """Whether there is room in the engine's folder above the high mark, None if this machine does not see it."""
        rooms = [_room(folder) for folder in self._engine_folders()]
        return not any(self._is_over(room, said=True) for room in rooms) if rooms else None

    def stopped(self, log: bytes) -> bool:
        """
        Whether a program that failed found a disk full: it says so, or nothing is free, and the high mark is crossed.

        Args:
            log: The last words of the program, or of the build.
        """
        said = any(words in log for words in _SAID)
        return any(self._is_over(_room(folder), said=said) for folder in [self._data_dir, *self._engine_folders()])

    def _is_over(self, room: _Room, *, said: bool) -> bool:
        if not said:
            return room.free < MIB
        return room.free < self._marks.high_free(room.total) or room.files == 0 or room.read_only

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """
        Turn the errors of a disk that is full, or cannot be written any more, into `DiskFull`.

        Raises:
            DiskFull: instead of the error.
        """
        try:
            yield
        except Exception as exc:
            if isinstance(exc, DiskFull) or (found := _disk_error(exc)) is None:
                raise
            raise DiskFull(f"this worker's disk cannot be written: {found.strerror}; make room there") from exc


def _room(folder: Path) -> _Room:
    found = os.statvfs(folder)
    return _Room(
        free=found.f_bavail * found.f_frsize,
        total=found.f_blocks * found.f_frsize,
        files=found.f_favail if found.f_files else None,
        read_only=bool(found.f_flag & os.ST_RDONLY),
    )


def _disk_error(error: BaseException) -> OSError | None:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in _ERRORS:
            return cause
        cause = cause.__cause__ or cause.__context__
    return None
