"""A workspace: it is made, it is removed whatever happens, and containers own only what they may write."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from uuid import uuid4

import pytest

from morpheo.errors import DiskFull, RuntimeUnavailable
from morpheo.models import StepName
from morpheo.runtime.contract import Bind, Folder, Image, Mount, Owner, Step
from morpheo.runtime.workspace import Workspace, owner_of, remove_tree
from morpheo.workflow import learn_steps, predict_step

USER = 10001
OUTPUTS = {
    Folder.DETARGETED,
    Folder.MODEL,
    Folder.TRAIN_PRED,
    Folder.TEST_PRED,
    Folder.TRAIN_CLEAN,
    Folder.TEST_CLEAN,
    Folder.PERF,
}


def make(root: Path, attempt: int = 1) -> Workspace:
    return Workspace(root / "work", job_id=uuid4(), attempt=attempt, owner=USER)


def make_deep(folder: Path, depth: int) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=descriptor)
        inner = os.open("d", os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = inner
    os.close(descriptor)


def test_a_workspace_has_its_folders_as_long_as_the_block_lasts(tmp_path: Path) -> None:
    with make(tmp_path) as workspace:
        assert {path.name for path in workspace.path.iterdir()} == {*Folder, "harvest", "tmp"}
        assert workspace[Folder.MODEL] == workspace.path / "model"
        assert workspace.temporary("x.tar").parent.is_dir()
    assert not workspace.path.exists()
    assert not list((tmp_path / "work").iterdir())


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_workspace_is_removed_whatever_ends_the_block(tmp_path: Path, error: type[BaseException]) -> None:
    workspace = make(tmp_path)

    def attempt() -> None:
        with workspace:
            (workspace[Folder.MODEL] / "a").write_bytes(b"1")
            raise error

    with pytest.raises(error):
        attempt()
    assert not workspace.path.exists()


def test_a_workspace_may_have_been_removed_by_somebody_else(tmp_path: Path) -> None:
    with make(tmp_path) as workspace:
        remove_tree(workspace.path)
    assert not workspace.path.exists()


def test_what_an_earlier_process_left_of_the_same_attempt_is_gone(tmp_path: Path) -> None:
    workspace = make(tmp_path)
    (workspace.path / "model" / "old").mkdir(parents=True)
    with workspace:
        assert not list(workspace[Folder.MODEL].iterdir())


def test_two_attempts_of_one_job_share_nothing(tmp_path: Path) -> None:
    job_id = uuid4()
    with (
        Workspace(tmp_path, job_id=job_id, attempt=1, owner=USER) as first,
        Workspace(tmp_path, job_id=job_id, attempt=2, owner=USER) as second,
    ):
        (first[Folder.MODEL] / "a").touch()
        assert not list(second[Folder.MODEL].iterdir())


@pytest.mark.parametrize(
    ("number", "error"), [(errno.ENOSPC, DiskFull), (errno.EROFS, DiskFull), (errno.EIO, RuntimeUnavailable)]
)
def test_a_workspace_that_cannot_be_made_is_the_machines_fault_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, error: type[Exception]
) -> None:
    mkdir = Path.mkdir

    def fail_at_tmp(path: Path, mode: int = 0o777, *, parents: bool = False, exist_ok: bool = False) -> None:
        if path.name == "tmp":
            raise OSError(number, "what is wrong")
        mkdir(path, mode, parents, exist_ok)

    monkeypatch.setattr(Path, "mkdir", fail_at_tmp)
    workspace = make(tmp_path)
    with pytest.raises(error, match=r"no workspace could be made.*: what is wrong"):
        workspace.__enter__()
    assert not workspace.path.exists()


def test_a_file_in_the_place_of_the_root_is_the_machines_fault(tmp_path: Path) -> None:
    (tmp_path / "work").touch()
    with pytest.raises(RuntimeUnavailable):
        make(tmp_path).__enter__()


def test_a_tree_of_3000_folders_in_each_other_is_removed(tmp_path: Path) -> None:
    with make(tmp_path) as workspace:
        make_deep(workspace[Folder.MODEL], 3000)
    assert not workspace.path.exists()


def test_folders_that_their_owner_may_not_read_are_removed(tmp_path: Path) -> None:
    # It says most where the worker is not root: then containers run as the worker's own user.
    with make(tmp_path) as workspace:
        (workspace[Folder.MODEL] / "a" / "b").mkdir(parents=True)
        (workspace[Folder.MODEL] / "a" / "b" / "c").touch()
        (workspace[Folder.MODEL] / "a" / "b").chmod(0)
        (workspace[Folder.MODEL] / "a").chmod(0)
    assert not workspace.path.exists()


def test_a_tree_that_cannot_be_removed_at_once_is_made_removable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin").mkdir()
    for name in ("rm", "chmod"):  # an rm that works only after chmod
        script = tmp_path / "bin" / name
        body = "[ -e {0}/changed ] && exec /bin/rm {1}; exit 1" if name == "rm" else "touch {0}/changed"
        script.write_text("#!/bin/sh\n" + body.format(tmp_path / "bin", '"$@"') + "\n")
        script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    (tmp_path / "tree" / "a").mkdir(parents=True)
    remove_tree(tmp_path / "tree")
    assert not (tmp_path / "tree").exists()


def test_removing_does_not_follow_links(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").touch()
    with make(tmp_path) as workspace:
        (workspace[Folder.MODEL] / "l").symlink_to(tmp_path / "precious")
    assert (tmp_path / "precious" / "file").exists()


def test_removing_what_is_not_there_does_nothing(tmp_path: Path) -> None:
    remove_tree(tmp_path / "nothing")
    assert not list(tmp_path.iterdir())


def test_a_name_that_looks_like_an_option_is_removed_as_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "--help").mkdir()
    remove_tree(Path("--help"))
    assert not (tmp_path / "--help").exists()


def test_only_output_folders_belong_to_the_containers(tmp_path: Path) -> None:
    assert {folder for folder in Folder if folder.is_output} == OUTPUTS
    with make(tmp_path) as workspace:
        for folder in Folder:
            info = workspace[folder].stat()
            theirs = folder in OUTPUTS and os.getuid() == 0
            assert info.st_uid == (USER if theirs else os.getuid()), folder
            assert stat.S_IMODE(info.st_mode) & 0o022 == 0, folder
        for name in ("harvest", "tmp"):
            assert stat.S_IMODE((workspace.path / name).stat().st_mode) == 0o700


def test_what_was_put_into_an_output_folder_can_be_given_to_the_containers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[tuple[str, int, int, bool]] = []

    def chown(path: Path, user: int, group: int, *, follow_symlinks: bool) -> None:
        given.append((path.name, user, group, follow_symlinks))

    with make(tmp_path) as workspace:
        (workspace[Folder.MODEL] / "sub").mkdir()
        (workspace[Folder.MODEL] / "sub" / "a").touch()
        monkeypatch.setattr(os, "chown", chown)
        monkeypatch.setattr(os, "getuid", lambda: 0)
        workspace.give(Folder.MODEL)
    assert given == [("sub", USER, USER, False), ("a", USER, USER, False)]


def test_the_binds_of_a_step_are_its_mounts_on_this_machine(tmp_path: Path) -> None:
    with make(tmp_path) as workspace:
        assert workspace.binds(predict_step()) == (
            Bind(source=workspace.path / "test", target="/data/test"),
            Bind(source=workspace.path / "test_pred", target="/data/test/pred", writable=True),
            Bind(source=workspace.path / "model", target="/data/model"),
        )


def test_a_mount_inside_another_has_a_mount_point_there(tmp_path: Path) -> None:
    _, train, _ = learn_steps("hidden")
    with make(tmp_path) as workspace:
        workspace.binds(train)
        workspace.binds(train)  # a second time, with the mount points there
        assert [path.name for path in workspace[Folder.TRAIN].iterdir()] == ["pred"]
        assert [path.name for path in workspace[Folder.VISIBLE].iterdir()] == ["pred"]
        assert workspace[Folder.TRAIN].joinpath("pred").stat().st_uid == os.getuid()


def test_a_target_that_only_begins_like_another_is_not_inside_it(tmp_path: Path) -> None:
    step = Step(
        name=StepName.TRAIN,
        image=Image.ALGO,
        args=(),
        mounts=(Mount(folder=Folder.TEST, target="/data/t"), Mount(folder=Folder.TRAIN, target="/data/train")),
    )
    with make(tmp_path) as workspace:
        workspace.binds(step)
        assert not list(workspace[Folder.TEST].iterdir())


def test_a_harvested_mount_shows_the_copies_and_is_read_only(tmp_path: Path) -> None:
    _, _, perf = learn_steps("hidden")
    with make(tmp_path) as workspace:
        (workspace[Folder.TEST_PRED] / "late").touch()
        binds = {bind.target: bind for bind in workspace.binds(perf)}
        bind = binds["/submission_data/test/pred"]
        assert bind.source == workspace.harvest(Folder.TEST_PRED) == workspace.path / "harvest" / "test_pred"
        assert not bind.writable
        assert not list(bind.source.iterdir())


def test_every_bind_of_every_step_lies_in_the_workspace_and_exists(tmp_path: Path) -> None:
    with make(tmp_path) as workspace:
        for step in (*learn_steps("hidden"), predict_step()):
            for bind in workspace.binds(step):
                assert bind.source.is_relative_to(workspace.path)
                assert bind.source.is_dir()


def test_a_workspace_says_whose_it_is() -> None:
    job_id = uuid4()
    assert owner_of(Path("/x") / f"{job_id}-12") == Owner(job_id=job_id, attempt=12)


JOB = "8b9c7d1e-0000-4000-8000-000000000001"


@pytest.mark.parametrize("name", ["", "lost+found", "a-1", JOB, f"{JOB}-", f"{JOB}-x", "-1"])
def test_another_folder_is_nobodys(name: str) -> None:
    assert owner_of(Path("/x") / name) is None
