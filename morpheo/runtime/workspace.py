"""
The folder of one attempt at a job.

::

    <data_dir>/work/<job>-<attempt>/
        test/          the hidden test data, with targets        read-only in detarget and perf
        detargeted/    what detarget writes
        train/         the train data, with a mount point ``pred``   read-only in train and perf
        visible/       the harvested detargeted test data, with a mount point ``pred``; read-only in train and perf
        model/         the model to start from; what train writes
        train_pred/    what train writes, mounted at train/pred
        test_pred/     what train or predict writes, mounted at test/pred
        perf/          what perf writes
        train_clean/   what sanitize writes
        test_clean/    the same
        harvest/       copies of outputs, which no container can write
        tmp/           archives on their way
        volume.img     a file system for the output folders, if this machine can mount it,
        volume/        and where it is mounted; the output folders are then in here

Only the output folders belong to the containers' user: ``detargeted``, ``model``, ``train_pred``, ``test_pred``,
``train_clean``, ``test_clean`` and ``perf``.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import subprocess
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self
from uuid import UUID

from morpheo.errors import DiskFull, RuntimeUnavailable
from morpheo.runtime.contract import Bind, Folder, Owner, Step
from morpheo.runtime.quota import Quota
from morpheo.runtime.volume import MOUNT, check_written, is_full, mount_volume, unmount_below

#: What algos write; problems and the platform write the rest.
_OF_ALGOS = frozenset({Folder.MODEL, Folder.TRAIN_PRED, Folder.TEST_PRED})


class Workspace:
    """
    A folder tree that lives as long as the ``with`` block, whatever happens in it.

    Args:
        root: Folder of all workspaces; the container engine sees it at the same path.
        job_id: Whose.
        attempt: Which try.
        owner: User and group id of the containers.
        algo_owner: The same of those that run algos, if another engine has other ids.
    """

    def __init__(self, root: Path, *, job_id: UUID, attempt: int, owner: int, algo_owner: int | None = None) -> None:
        self.path = root / f"{job_id}-{attempt}"
        self._owner = owner
        self._algo_owner = owner if algo_owner is None else algo_owner
        self._volume: Path | None = None
        self._bounded: frozenset[Folder] = frozenset()

    def __enter__(self) -> Self:
        remove_tree(self.path)
        try:
            self.path.mkdir(parents=True, mode=0o711)
            for folder in Folder:
                (self.path / folder).mkdir(mode=0o755)
                if folder.is_output:
                    self._give_away(folder, self.path / folder)
            for name in ("harvest", "tmp"):
                (self.path / name).mkdir(mode=0o700)
        except OSError as exc:
            remove_tree(self.path)
            if exc.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
                raise DiskFull(f"no workspace could be made on this worker's disk: {exc.strerror}") from exc
            raise RuntimeUnavailable(f"no workspace could be made: {exc.strerror}") from exc
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        remove_tree(self.path)

    def __getitem__(self, folder: Folder) -> Path:
        return self.path / MOUNT / folder if folder in self._bounded else self.path / folder

    def bound(self, folders: Iterable[Folder], quota: Quota) -> None:
        """
        Let output folders, which are empty, lie on a file system of their own.

        Raises:
            DiskFull: the disk has no room for it.
            RuntimeUnavailable: it could not be made.
        """
        self._volume = mount_volume(self.path, quota)
        self._bounded = frozenset(folders)
        for folder in self._bounded:
            self[folder].mkdir(mode=0o755)
            self._give_away(folder, self[folder])

    @property
    def is_full(self) -> bool:
        """Whether the file system of the output folders takes no more; False without one."""
        return self._volume is not None and is_full(self._volume)

    @contextlib.contextmanager
    def watched(self) -> Iterator[Callable[[], None]]:
        """
        Give something to call in the block in which a container writes, when it has ended.

        It raises DiskFull if the disk has not all that was written to the file system of the output folders, though
        the container was not told so.
        """
        if self._volume is None:
            yield lambda: None
            return
        descriptor = os.open(self._volume, os.O_RDONLY | os.O_DIRECTORY)
        try:
            yield functools.partial(check_written, descriptor)
        finally:
            os.close(descriptor)

    def harvest(self, folder: Folder) -> Path:
        """Return the folder for copies of an output."""
        path = self.path / "harvest" / folder
        path.mkdir(mode=0o755, exist_ok=True)
        return path

    def binds(self, step: Step) -> tuple[Bind, ...]:
        """Return where a step's mounts are on this machine; makes the mount points that lie inside other mounts."""
        binds = []
        for mount in step.mounts:
            for outer in step.mounts:
                if mount.target.startswith(outer.target + "/"):
                    (self[outer.folder] / mount.target.removeprefix(outer.target + "/")).mkdir(exist_ok=True)
            source = self.harvest(mount.folder) if mount.harvested else self[mount.folder]
            binds.append(Bind(source=source, target=mount.target, writable=mount.writable))
        return tuple(binds)

    def temporary(self, name: str) -> Path:
        """Return the path of a temporary file."""
        return self.path / "tmp" / name

    def give(self, folder: Folder) -> None:
        """Let the containers' user write to what was put into an output folder."""
        for path in sorted(self[folder].rglob("*")):
            self._give_away(folder, path)

    def _give_away(self, folder: Folder, path: Path) -> None:
        if os.getuid() == 0:
            owner = self._algo_owner if folder in _OF_ALGOS else self._owner
            os.chown(path, owner, owner, follow_symlinks=False)


def owner_of(path: Path) -> Owner | None:
    """Return whose workspace a folder is, None if it is not one."""
    job_id, _, attempt = path.name.rpartition("-")
    try:
        return Owner(job_id=UUID(job_id), attempt=int(attempt))
    except ValueError:
        return None


def remove_tree(path: Path) -> None:
    """
    Remove a folder, if it is there, and unmount what is mounted in it.

    By the ``rm`` program: a tree that a hostile program made can be too deep for `shutil.rmtree`.
    """
    unmount_below(path)
    remove = ["rm", "-rf", "--one-file-system", "--", str(path)]
    if path.exists() and subprocess.run(remove, check=False, capture_output=True).returncode:
        # The program had the worker's own user id, and made folders that their owner may not read.
        subprocess.run(["chmod", "-R", "u+rwx", "--", str(path)], check=False, capture_output=True)
        subprocess.run(remove, check=False, capture_output=True)
