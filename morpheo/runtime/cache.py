"""
What a node keeps so that no byte is fetched and no image is made twice.

::

    <data_dir>/cache/
        blobs/sha256/<digest>    read-only files, hard-linked into workspaces
        detarget/<key>/          test sets without their targets
        locks/                   one file for each thing that is being fetched or built

A file that a workspace has linked has a second link, and is not evicted.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
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
        try:
            os.link(cached, target)
        except FileNotFoundError:
            with self.lock(artifact.sha256, interrupt):
                try:
                    os.link(cached, target)  # fetched by another job meanwhile
                except FileNotFoundError:
                    self._fetch(artifact, cached, target, interrupt)
        os.utime(target)  # the time of its last use

    def _fetch(self, artifact: Artifact, cached: Path, target: Path, interrupt: Interrupt) -> None:
        cached.parent.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256()
        descriptor, name = tempfile.mkstemp(dir=cached.parent, prefix=_FETCHING)
        try:
            with open(descriptor, "wb") as file, self._open_blob(artifact.blob_key) as pieces:
                for piece in pieces:
                    interrupt.check()
                    digest.update(piece)
                    file.write(piece)
            if digest.hexdigest() != artifact.sha256:
                raise CorruptBlob(f"the blob of {artifact.kind} {artifact.id} has changed since it was stored")
            Path(name).chmod(0o444)
            # Linked first: a blob that can be evicted before it is linked would be fetched again, perhaps for ever.
            os.link(name, target)
            Path(name).rename(cached)
        except BaseException:
            Path(name).unlink(missing_ok=True)
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

    def link_detargeted(self, key: str, folder: Path) -> bool:
        """Fill a folder with a test set whose targets were hidden before; False if this one is not here."""
        cached = self._detarget / key
        linked: list[Path] = []
        try:
            os.utime(cached)  # the time of its last use
            for path in cached.iterdir():
                os.link(path, folder / path.name)
                linked.append(folder / path.name)
        except FileNotFoundError:  # never made, or evicted just now
            for path in linked:
                path.unlink()
            return False
        return True

    def keep_detargeted(self, key: str, folder: Path) -> None:
        """Remember a test set whose targets are hidden; its files must not change any more."""
        self._detarget.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=self._detarget))
        try:
            for path in folder.iterdir():
                if path.is_file():
                    os.link(path, temporary / path.name)
            with contextlib.suppress(OSError):  # another job was faster
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
            if excess > 0 and folder.name != kept:
                shutil.rmtree(folder, ignore_errors=True)
                excess -= size


def detarget_key(problem: Artifact, test_data: list[Artifact]) -> str:
    """Return the name under which the result of detarget is kept: it depends on nothing else."""
    members = sorted(f"{item.id} {item.sha256}" for item in test_data)
    digest = hashlib.sha256("\n".join(members).encode()).hexdigest()
    return f"{problem.sha256}-{digest}"
