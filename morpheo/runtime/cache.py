"""
What a node keeps so that no byte is fetched and no image is made twice.

::

    <data_dir>/cache/
        blobs/sha256/<digest>    read-only files, hard-linked into workspaces
        detarget/<key>/          test sets without their targets
        images/<kind>-<digest>   empty files: when images of the engine were used last
        locks/                   one file for each thing that is being fetched or built

A file that a workspace has linked has a second link, and is not evicted; nor is an image whose file it has linked.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from filelock import FileLock, Timeout

from morpheo.errors import CorruptBlob
from morpheo.models import Artifact
from morpheo.runtime.contract import Interrupt

OpenBlob = Callable[[str], AbstractContextManager[Iterator[bytes]]]

#: How often a job that waits for another's fetch or build looks whether it was told to stop, in seconds.
LOCK_POLL_S = 1.0
#: A file that is being fetched is not evicted, unless nothing was written to it for so long.
_STALE_FETCH_S = 3600.0
_FETCHING = "fetch-"
_MAKING = "make-"
_REMOVING = "remove-"
#: What names begin with of that which is written under a lock, and what the name of that lock begins with.
_UNDER_LOCK = {_FETCHING: "", _MAKING: "detarget-"}


class NodeCache:
    """
    The caches of one machine, shared by all its workers.

    Args:
        folder: Where; on the same file system as the workspaces.
        open_blob: Opens a blob by its key.
        max_bytes: Least recently used blobs go when there are more, and likewise detargeted test sets.
    """

    def __init__(self, folder: Path, open_blob: OpenBlob, *, max_bytes: int) -> None:
        self._blobs = folder / "blobs" / "sha256"
        self._detarget = folder / "detarget"
        self._images = folder / "images"
        self._locks = folder / "locks"
        self._open_blob = open_blob
        self._max_bytes = max_bytes

    @contextlib.contextmanager
    def lock(self, name: str, interrupt: Interrupt) -> Iterator[None]:
        """
        Hold a lock that all workers of this machine share.

        Raises:
            Interrupted: the interrupt was set while somebody else held it.
        """
        self._locks.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self._locks / name)
        while True:
            interrupt.check()
            with contextlib.suppress(Timeout):
                lock.acquire(timeout=LOCK_POLL_S)
                break
        try:
            yield
        finally:
            lock.release()

    def link(self, artifact: Artifact, target: Path, interrupt: Interrupt) -> None:
        """
        Make a blob appear as a read-only file, fetched only if this machine does not have it.

        Raises:
            NotFound: the blob store does not have it.
            CorruptBlob: what the blob store has is something else.
            Interrupted: the interrupt was set.
        """
        cached = self._blobs / artifact.sha256
        if not _link_whole(cached, target, artifact.size_bytes):
            with self.lock(artifact.sha256, interrupt):
                if not _link_whole(cached, target, artifact.size_bytes):  # fetched by another job meanwhile
                    self._fetch(artifact, cached, target, interrupt)
        os.utime(target)  # the time of its last use

    def _fetch(self, artifact: Artifact, cached: Path, target: Path, interrupt: Interrupt) -> None:
        cached.parent.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256()
        partial = cached.with_name(_FETCHING + cached.name)  # nobody else's: it is written under the lock
        partial.unlink(missing_ok=True)
        try:
            with partial.open("wb") as file, self._open_blob(artifact.blob_key) as pieces:
                for piece in pieces:
                    interrupt.check()
                    digest.update(piece)
                    file.write(piece)
                file.flush()
                os.fsync(file.fileno())  # or after a power cut there would be its name, and not what is in it
            if digest.hexdigest() != artifact.sha256:
                raise CorruptBlob(f"the blob of {artifact.kind} {artifact.id} has changed since it was stored")
            partial.chmod(0o444)
            # Linked first: a blob that can be evicted before it is linked would be fetched again, perhaps for ever.
            os.link(partial, target)
            partial.rename(cached)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        self._evict()

    def _evict(self) -> None:
        files = []
        for path in self._blobs.iterdir():
            with contextlib.suppress(FileNotFoundError):
                files.append((path, path.stat()))
        excess = sum(stat.st_size for _, stat in files) - self._max_bytes
        for path, stat in sorted(files, key=lambda item: item[1].st_mtime):
            if excess <= 0:
                break
            fetching = path.name.startswith(_FETCHING) and time.time() - stat.st_mtime < _STALE_FETCH_S
            if stat.st_nlink == 1 and not fetching:
                path.unlink(missing_ok=True)
                excess -= stat.st_size

    def drop_abandoned(self) -> int:
        """Remove what workers that were killed had half fetched, made or removed; return how much there was."""
        count = 0
        self._locks.mkdir(parents=True, exist_ok=True)
        for path in [*_children(self._blobs), *_children(self._detarget)]:
            for beginning, lock_name in _UNDER_LOCK.items():
                if path.name.startswith(beginning):
                    # Whoever is at it holds its lock.
                    lock = FileLock(self._locks / (lock_name + path.name.removeprefix(beginning)), timeout=0)
                    with contextlib.suppress(Timeout), lock:
                        _remove(path)
                        count += 1
            if path.name.startswith(_REMOVING):
                _remove(path)
                count += 1
        return count

    def has(self, artifact: Artifact) -> bool:
        """Whether this machine has a blob."""
        return (self._blobs / artifact.sha256).exists()

    def evict(self, enough: Callable[[], bool]) -> None:
        """Remove what no job uses, blobs and detargeted test sets, least recently used first, until there is room."""
        idle: list[tuple[float, Path]] = []
        for path in [*_children(self._blobs), *_children(self._detarget)]:
            with contextlib.suppress(FileNotFoundError):
                found = path.stat()
                fetching = path.name.startswith(_FETCHING) and time.time() - found.st_mtime < _STALE_FETCH_S
                in_use = path.name.startswith(_MAKING) if path.is_dir() else found.st_nlink > 1 or fetching
                if not in_use:
                    idle.append((found.st_mtime, path))
        for _, path in sorted(idle):
            if enough():
                return
            _remove(path)

    def hold_image(self, name: str, target: Path, interrupt: Interrupt) -> None:
        """
        Keep an image from being evicted, and remember that it was used now.

        Args:
            name: Of the image; also of the lock under which it is built and evicted.
            target: A name for the link that holds it, in a workspace.
            interrupt: Ends the waiting for the lock.
        """
        with self.lock(f"image-{name}", interrupt):
            self._images.mkdir(parents=True, exist_ok=True)
            (self._images / name).touch()
            target.unlink(missing_ok=True)
            os.link(self._images / name, target)

    def idle_images(self) -> list[str]:
        """Return the names of the images that no workspace holds, least recently used first."""
        idle = []
        for path in _children(self._images):
            with contextlib.suppress(FileNotFoundError):
                if (found := path.stat()).st_nlink == 1:
                    idle.append((found.st_mtime, path.name))
        return [name for _, name in sorted(idle)]

    def forget_image(self, name: str, remove: Callable[[], bool]) -> None:
        """Remove an image if nobody holds or builds it at this moment."""
        path = self._images / name
        lock = FileLock(self._locks / f"image-{name}", timeout=0)
        with contextlib.suppress(Timeout, FileNotFoundError), lock:
            if path.stat().st_nlink == 1 and remove():
                path.unlink()

    def damaged(self, *, remove: bool) -> Iterator[str]:
        """Read all cached blobs; return the names of those that are not what their names say, removed if asked to."""
        for path in sorted(self._blobs.iterdir()) if self._blobs.is_dir() else ():
            with contextlib.suppress(FileNotFoundError):  # evicted meanwhile
                if path.name.startswith(_FETCHING) or _digest(path) == path.name:
                    continue
                if remove:
                    path.unlink()
                yield path.name

    def link_detargeted(self, key: str, folder: Path, names: Collection[str]) -> bool:
        """
        Fill a folder with a test set whose targets were hidden before.

        Args:
            key: Of the test set.
            folder: One without files.
            names: Of the files that the test set has; one that lacks some, after a power cut, is none.

        Returns:
            Whether it is here; if not, the folder has no files.
        """
        cached, linked = self._detarget / key, set[str]()
        try:
            os.utime(cached)  # the time of its last use
            for path in cached.iterdir():
                os.link(path, folder / path.name)
                linked.add(path.name)
        except FileNotFoundError:  # never made, or evicted just now
            pass
        else:
            if linked == set(names):
                return True
        for name in linked:
            (folder / name).unlink()
        _remove(cached)
        return False

    def keep_detargeted(self, key: str, folder: Path) -> None:
        """Remember a test set whose targets are hidden, under its lock; its files must not change any more."""
        temporary = self._detarget / f"{_MAKING}{key}"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            for path in folder.iterdir():
                if path.is_file():
                    _sync(path)
                    os.link(path, temporary / path.name)
            _sync(temporary)
            with contextlib.suppress(OSError):  # it is there
                temporary.rename(self._detarget / key)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        self._evict_detargeted(key)

    def _evict_detargeted(self, kept: str) -> None:
        # What a running job has linked stays where it is linked.
        sizes = {}
        for folder in self._detarget.iterdir():
            with contextlib.suppress(FileNotFoundError):
                sizes[folder] = folder.stat().st_mtime, sum(path.stat().st_size for path in folder.iterdir())
        excess = sum(size for _, size in sizes.values()) - self._max_bytes
        for folder, (_, size) in sorted(sizes.items(), key=lambda item: item[1][0]):
            if excess > 0 and folder.name != kept and not folder.name.startswith(_MAKING):
                _remove(folder)
                excess -= size


def _link_whole(cached: Path, target: Path, size_bytes: int) -> bool:
    """Link a cached file; False if it is not there, or cut short: what was written just before a power cut may be."""
    try:
        os.link(cached, target)
    except FileNotFoundError:
        return False
    if target.stat().st_size == size_bytes:
        return True
    target.unlink()
    cached.unlink(missing_ok=True)
    return False


def _remove(path: Path) -> None:
    """Remove a file, or a folder as a whole: a part of one must not be taken for it, whoever is killed meanwhile."""
    if not path.is_dir():
        path.unlink(missing_ok=True)
        return
    doomed = path.with_name(f"{_REMOVING}{secrets.token_hex(8)}")
    with contextlib.suppress(FileNotFoundError):  # somebody else was faster
        path.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _children(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def detarget_key(problem: Artifact, test_data: list[Artifact]) -> str:
    """Return the name under which the result of detarget is kept: it depends on nothing else."""
    members = sorted(f"{item.id} {item.sha256}" for item in test_data)
    digest = hashlib.sha256("\n".join(members).encode()).hexdigest()
    return f"{problem.sha256}-{digest}"
