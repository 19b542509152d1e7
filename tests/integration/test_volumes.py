"""The output folders of an attempt: a file system of their own, or counted."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from morpheo.errors import DiskFull, RuntimeUnavailable
from morpheo.runtime import volume
from morpheo.runtime.contract import Folder
from morpheo.runtime.quota import Quota, QuotaWatch, exceeds, used_bytes
from morpheo.runtime.volume import mount_volume, unmount_below, why_no_volumes
from morpheo.runtime.workspace import Workspace, remove_tree
from tests.support.filesystems import small_disk
from tests.support.services import wait_until

MIB = 1 << 20
QUOTA = Quota(max_bytes=8 * MIB, max_files=100)
OUTPUTS = (Folder.MODEL, Folder.TEST_PRED)


def can_mount() -> str:
    return why_no_volumes(Path(f"/tmp/volume-trial-tests-{os.getpid()}"), [])


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    """A workspace whose output folders have a file system of their own."""
    if why := can_mount():
        if os.environ.get("CI"):
            pytest.fail(f"{why}, and CI is set")
        pytest.skip(why)
    with Workspace(tmp_path / "work", job_id=uuid4(), attempt=1, owner=10001) as made:
        made.bound(OUTPUTS, QUOTA)
        yield made


def mounts_below(folder: Path) -> list[str]:
    points = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    return [point for point in points if point.startswith(str(folder))]


def loops_of(folder: Path) -> list[str]:
    found = []
    for path in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            text = path.read_text()
        except OSError:  # freed in this moment
            continue
        found += [text] if text.startswith(str(folder)) else []
    return found


def write(path: Path, size: int) -> None:
    with path.open("wb") as file:
        for _ in range(size // 4096):
            file.write(bytes(4096))


def test_bytes_end_at_the_quota_and_the_disk_beside_it_has_room(workspace: Workspace) -> None:
    write(workspace[Folder.MODEL] / "within", QUOTA.max_bytes // 2)
    assert not workspace.is_full
    with pytest.raises(OSError, match="No space left") as full:
        write(workspace[Folder.MODEL] / "over", 2 * QUOTA.max_bytes)
    assert full.value.errno == errno.ENOSPC
    assert workspace.is_full
    assert used_bytes([workspace[Folder.MODEL]]) >= QUOTA.max_bytes
    (workspace[Folder.TEST] / "input").write_bytes(b"x" * MIB)  # inputs are elsewhere


def test_files_end_at_the_quota(workspace: Workspace) -> None:
    def flood() -> None:
        for number in range(10_000):
            (workspace[Folder.TEST_PRED] / str(number)).touch()

    with pytest.raises(OSError, match="No space left"):
        flood()
    assert QUOTA.max_files <= len(list(workspace[Folder.TEST_PRED].iterdir())) <= QUOTA.max_files + 64
    assert workspace.is_full


def test_the_folders_are_the_containers_and_nothing_in_them_can_be_run_or_is_a_device(workspace: Workspace) -> None:
    assert workspace[Folder.MODEL].stat().st_uid == 10001
    flags = os.statvfs(workspace[Folder.MODEL]).f_flag
    wanted = os.ST_NOEXEC | os.ST_NOSUID | os.ST_NODEV
    assert flags & wanted == wanted
    assert workspace[Folder.MODEL].stat().st_dev != workspace[Folder.TEST].stat().st_dev


def test_what_does_not_reach_the_disk_below_is_found_out(tmp_path: Path) -> None:
    """The program is told that all was written, and reads zeros when the kernel has dropped its pages."""
    if why := can_mount():
        pytest.fail(why) if os.environ.get("CI") else pytest.skip(why)
    with (
        small_disk(tmp_path / "disk", "size=8m") as disk,
        Workspace(disk / "work", job_id=uuid4(), attempt=1, owner=10001) as made,
    ):
        made.bound(OUTPUTS, Quota(max_bytes=32 * MIB, max_files=100))
        with made.watched() as check:
            write(made[Folder.MODEL] / "small", MIB)
            check()
        with made.watched() as check:
            write(made[Folder.MODEL] / "large", 24 * MIB)
            with pytest.raises(DiskFull, match="did not fit on this worker's disk"):
                check()


def test_nothing_is_left_of_it(workspace: Workspace) -> None:
    assert mounts_below(workspace.path)
    remove_tree(workspace.path)
    assert not workspace.path.exists()
    assert not mounts_below(workspace.path)
    wait_until(lambda: not loops_of(workspace.path))


def test_what_is_in_use_is_taken_away_all_the_same(workspace: Workspace) -> None:
    with (workspace[Folder.MODEL] / "open").open("wb"):
        remove_tree(workspace.path)
        assert not mounts_below(workspace.path)
        assert not workspace.path.exists()
    wait_until(lambda: not loops_of(workspace.path))


def test_what_a_killed_worker_left_goes_with_its_folder(workspace: Workspace, tmp_path: Path) -> None:
    program = """
import sys, time
from pathlib import Path
from uuid import UUID
from morpheo.runtime.contract import Folder
from morpheo.runtime.quota import Quota
from morpheo.runtime.workspace import Workspace
with Workspace(Path(sys.argv[1]), job_id=UUID(int=1), attempt=1, owner=10001) as made:
    made.bound([Folder.MODEL], Quota(max_bytes=8 << 20, max_files=10))
    print("ready", flush=True)
    time.sleep(600)
"""
    folder = tmp_path / "killed"
    process = subprocess.Popen([sys.executable, "-c", program, str(folder)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.kill()
    process.wait()
    process.stdout.close()
    (left,) = folder.iterdir()
    assert mounts_below(left)
    remove_tree(left)  # as the sweeper does
    assert not mounts_below(left)
    assert not left.exists()
    wait_until(lambda: not loops_of(left))


def test_it_takes_the_room_that_is_used(workspace: Workspace, tmp_path: Path) -> None:
    folder = tmp_path / "cost"
    folder.mkdir()
    mount_volume(folder, Quota(max_bytes=3 << 30, max_files=5000))
    try:
        assert (folder / volume.IMAGE).stat().st_blocks * 512 < 8 * MIB  # of 3 GiB
    finally:
        unmount_below(folder)


def test_why_a_machine_has_none_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "trial"
    if not can_mount():
        assert why_no_volumes(folder, [os.getpid()]) == ""
        assert "runs elsewhere" in why_no_volumes(folder, [None])
        monkeypatch.setattr(volume, "_OPTIONS", "loop,nonsense=1")
        monkeypatch.setattr(volume, "_TRIES", 1)
        assert "mounts no file" in why_no_volumes(folder, [])
        with pytest.raises(RuntimeUnavailable):
            mount_volume(tmp_path, QUOTA)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert can_mount() in ("this machine has no mkfs.ext4", "the worker is not root, and may not mount")
    monkeypatch.setattr(os, "getuid", lambda: 1000)
    assert can_mount() == "the worker is not root, and may not mount"
    assert not folder.exists()


def test_folders_without_one_are_counted(tmp_path: Path) -> None:
    write(tmp_path / "a", MIB)
    assert not exceeds([tmp_path], Quota(max_bytes=2 * MIB, max_files=1))
    assert exceeds([tmp_path], Quota(max_bytes=MIB // 2, max_files=1))
    assert not exceeds([tmp_path], Quota(max_bytes=2 * MIB, max_files=1))
    (tmp_path / "b").touch()
    assert exceeds([tmp_path], Quota(max_bytes=2 * MIB, max_files=1))
    os.truncate(tmp_path / "b", 1 << 40)  # a hole takes no room
    assert not exceeds([tmp_path], Quota(max_bytes=2 * MIB, max_files=2))


def test_a_watch_calls_once_when_it_is_too_much(tmp_path: Path) -> None:
    killed: list[int] = []
    with QuotaWatch([tmp_path], Quota(max_bytes=MIB, max_files=9), lambda: killed.append(1), every_s=0.05) as watch:
        assert not watch.exceeded
        write(tmp_path / "a", 3 * MIB)
        wait_until(lambda: watch.exceeded)
    assert killed == [1]
    with QuotaWatch([tmp_path], None, lambda: killed.append(2), every_s=0.01) as watch:
        pass
    assert not watch.exceeded
