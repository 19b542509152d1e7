"""Small file systems of their own, to be filled."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_disk(folder: Path, *options: str) -> Iterator[Path]:
    """Mount a tmpfs; skips the test, or fails it in CI, where that is not allowed."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(folder)]
    if os.getuid() or subprocess.run(command, check=False, capture_output=True).returncode:
        if os.environ.get("CI"):
            pytest.fail("this test mounts a file system, and CI is set: run it as root")
        pytest.skip("this test mounts a file system, which only root can")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def remount(folder: Path, *options: str) -> None:
    """Change the options of a mounted file system."""
    subprocess.run(["mount", "-o", ",".join(["remount", *options]), str(folder)], check=True)


def fill(folder: Path, *, leave: int = 0) -> Path:
    """Write a file that leaves so many bytes of a file system free; gives its path."""
    path = folder / "filler"
    with path.open("wb") as file:
        for _ in range(20):
            found = os.statvfs(folder)
            try:
                os.posix_fallocate(file.fileno(), 0, max(1, found.f_bavail * found.f_frsize - leave))
            except OSError as exc:
                if exc.errno != errno.ENOSPC:
                    raise
                os.ftruncate(file.fileno(), 0)  # somebody else took some of it meanwhile
            else:
                return path
    raise AssertionError(f"{folder} does not stand still")
