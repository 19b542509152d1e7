"""
A small file system of its own for what the containers of one attempt may write, so that bytes and inodes end there.

It is ext4 in a sparse file, mounted by way of a loop device, which the kernel frees with the last mount. Whether a
machine allows that is found out once; where it does not, output folders are counted instead (`morpheo.runtime.quota`).
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path

from morpheo.errors import DiskFull, RuntimeUnavailable
from morpheo.runtime.quota import Quota

#: The file that a file system is in, and where it is mounted, in a workspace.
IMAGE, MOUNT = "volume.img", "volume"
#: The smallest file system that is made, and an inode, in bytes.
_SMALLEST = 4 << 20
_INODE = 256
#: Files that are there besides those of containers: reserved inodes, ``lost+found`` and the output folders.
_OWN_FILES = 32
#: What superblock, bitmaps and folders take, besides a sixty-fourth of the whole, in bytes.
_OWN_BYTES = 1 << 20
#: A file system is full when less than this part of it is free.
_NEARLY = 16
#: How often a loop device is asked for, since two that look for a free one at once may find the same; and the pause.
_TRIES, _AGAIN_S = 5, 0.1
#: No journal, since nothing outlives a crash here, and nothing kept for root: the whole of it is for containers.
_MAKE = ("mkfs.ext4", "-q", "-F", "-m", "0", "-O", "^has_journal,^resize_inode", "-E", "lazy_itable_init=1,nodiscard")
_OPTIONS = "loop,nosuid,nodev,noexec"


def mount_volume(folder: Path, quota: Quota) -> Path:
    """
    Make a file system for a quota in a folder and mount it there; return where.

    Raises:
        DiskFull: the disk has no room for it.
        RuntimeUnavailable: this machine does not allow it.
    """
    image, target = folder / IMAGE, folder / MOUNT
    inodes = quota.max_files + _OWN_FILES
    size = quota.max_bytes + inodes * _INODE + quota.max_bytes // 64 + _OWN_BYTES
    with image.open("xb") as file:
        file.truncate(max(size, _SMALLEST))
    target.mkdir(mode=0o711)
    _run([*_MAKE, "-N", str(inodes), str(image)])
    for tries_left in reversed(range(_TRIES)):
        try:
            _run(["mount", "-t", "ext4", "-o", _OPTIONS, str(image), str(target)])
        except RuntimeUnavailable:
            if not tries_left:
                raise
            time.sleep(_AGAIN_S)
        else:
            break
    return target


def is_full(mount: Path) -> bool:
    """Return whether a file system is full, or so nearly that a program can have met its end."""
    found = os.statvfs(mount)
    # What does not fit as a whole may not be written at all, and leaves some room.
    return found.f_bavail * _NEARLY < found.f_blocks or found.f_favail == 0


def check_written(descriptor: int) -> None:
    """
    Let all that was written to a file system reach the disk.

    Nobody was told if that failed: the file is sparse, and programs write to memory first.

    Args:
        descriptor: Of a folder in it, open since before anything was written: only so is an error told (syncfs(2)).

    Raises:
        DiskFull: not all of it did, since the disk is full or broken.
    """
    if ctypes.CDLL(None, use_errno=True).syncfs(descriptor):
        why = os.strerror(ctypes.get_errno())
        raise DiskFull(f"what the containers wrote did not fit on this worker's disk ({why}); make room there")


def unmount_below(folder: Path) -> None:
    """Unmount whatever is mounted in a folder or below it; a container that still has it keeps it until it ends."""
    for mount in sorted(_mounts(Path("/proc/self/mountinfo"), folder), reverse=True):
        if subprocess.run(["umount", mount], check=False, capture_output=True).returncode:
            subprocess.run(["umount", "--lazy", mount], check=False, capture_output=True)


def why_no_volumes(folder: Path, engine_pids: Iterable[int | None]) -> str:
    """
    Return why attempts cannot have file systems of their own on this machine, empty if they can.

    Args:
        folder: A folder that is not there, beside the workspaces, for a trial.
        engine_pids: Process ids of the engines, None of one that is not on this machine: whether it sees what is
            mounted here is asked of the kernel.
    """
    if os.getuid() != 0:
        return "the worker is not root, and may not mount"
    for program in ("mkfs.ext4", "mount", "umount"):
        if shutil.which(program) is None:
            return f"this machine has no {program}"
    try:
        folder.mkdir()
        mount = mount_volume(folder, Quota(max_bytes=_SMALLEST, max_files=1))
        for pid in engine_pids:
            if pid is None:
                return "the container engine runs elsewhere, and does not see what the worker mounts"
            if not _mounts(Path(f"/proc/{pid}/mountinfo"), mount):
                return "the container engine has other mounts than the worker"
    except (OSError, DiskFull, RuntimeUnavailable) as exc:
        return f"this machine mounts no file: {exc}"
    finally:
        unmount_below(folder)
        shutil.rmtree(folder, ignore_errors=True)
    return ""


def _mounts(table: Path, folder: Path) -> list[str]:
    """Return the mount points in a folder, and the folder if it is one; from a table as in ``man 5 proc``."""
    points = (_unescaped(line.split()[4]) for line in table.read_text().splitlines())
    root = str(folder.absolute())
    return [point for point in points if point == root or point.startswith(f"{root}/")]


def _unescaped(point: str) -> str:
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        point = point.replace(code, character)
    return point


def _run(command: list[str]) -> None:
    done = subprocess.run(command, check=False, capture_output=True, env={**os.environ, "LC_ALL": "C"})
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip()
        if "No space left on device" in said:
            raise DiskFull("no room for the output folders on this worker's disk; make room there")
        raise RuntimeUnavailable(f"{command[0]}: {said[-300:] or f'exit status {done.returncode}'}")
