"""
The folder of trials, and what stays from one to the next.

::

    <home>/
        lock        held while a trial runs: one at a time for each person
        images      tags of the images that trials have made and not removed, latest first
        data/       the data folder of the trial that runs

A trial that was killed leaves its ``data`` folder, containers and images; the next one removes them.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from morpheo.errors import InvalidInput
from morpheo.runtime.contract import ContainerRuntime
from morpheo.runtime.workspace import remove_tree

#: Problem images that are kept, so that the next trial need not build one; the one used last first.
PROBLEMS_KEPT = 2


def default_home() -> Path:
    """Return where trials of this person are by default."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache).absolute() / "morpheo" / "try"


def owner_name() -> str:
    """Return what marks the containers and images of this person's trials on an engine that others use too."""
    return f"morpheo-try-{os.getuid()}"


class Home:
    """
    The folder of trials.

    Args:
        folder: Where; the container engine must see it at the same path.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._data_dir = folder / "data"

    @contextlib.contextmanager
    def held(self, on_wait: Callable[[], None]) -> Iterator[None]:
        """
        Keep other trials of this person out of the folder.

        Args:
            on_wait: Called if another trial runs, which is waited for.

        Raises:
            InvalidInput: the folder cannot be used.
        """
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            lock = FileLock(self._folder / "lock")
            try:
                lock.acquire(blocking=False)
            except Timeout:
                on_wait()
                lock.acquire()
        except OSError as exc:
            raise InvalidInput(f"{self._folder} cannot be used: {exc.strerror}; set XDG_CACHE_HOME to another") from exc
        try:
            yield
        finally:
            lock.release()

    @contextlib.contextmanager
    def data(self) -> Iterator[Path]:
        """Give an empty data folder that is gone after the block."""
        remove_tree(self._data_dir)
        self._data_dir.mkdir(mode=0o700)
        (self._data_dir / "node-id").write_text(owner_name())
        try:
            yield self._data_dir
        finally:
            remove_tree(self._data_dir)

    def made(self, tag: str) -> None:
        """Note that an image is there, or soon will be."""
        self._write([tag, *(other for other in self._tags() if other != tag)])

    def clear(self, engine: ContainerRuntime, *, keep_algo: bool = False) -> None:
        """
        Remove what trials left on the engine, apart from a few images.

        Args:
            engine: Made with this folder's data folder.
            keep_algo: Whether the image of the algo that was tried last stays too.
        """
        for owner in engine.owners():
            engine.remove(owner)
        room = {"problem": PROBLEMS_KEPT, "algo": int(keep_algo)}
        kept: list[str] = []
        for tag in self._tags():
            kind = "problem" if "/problem:" in tag else "algo"
            if room[kind]:
                room[kind] -= 1
                kept.append(tag)
            elif image_id := engine.find_image(tag):
                engine.remove_image(image_id)
        self._write(kept)

    def _tags(self) -> list[str]:
        with contextlib.suppress(FileNotFoundError):
            return (self._folder / "images").read_text().split()
        return []

    def _write(self, tags: list[str]) -> None:
        (self._folder / "images").write_text("".join(f"{tag}\n" for tag in tags))
