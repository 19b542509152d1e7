"""
Cases 11, 12 and 34: a worker's disk that is full, has no inodes left, or is read-only, and a database without room.

Case 57, an engine's disk that is full of images of other jobs, is in ``tests/integration/test_disk_engine.py``: that
needs an engine with a small disk of its own.
"""

from __future__ import annotations

import contextlib
import errno
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from morpheo.config import PREFIX
from morpheo.errors import ApiError
from morpheo.models import ArtifactKind, AttemptOutcome, JobSpec, JobState
from tests.faults.rig import Rig
from tests.support.filesystems import fill, remount, small_disk

pytestmark = [pytest.mark.docker, pytest.mark.database, pytest.mark.redis, pytest.mark.s3]

MIB = 1 << 20
#: Of a node that has a disk of 50 MB.
SMALL = {"MODEL_BYTES": MIB, "PREDICTION_BYTES": MIB, "MODEL_FILES": 20, "DISK_HIGH": 2 * MIB, "DISK_LOW": 4 * MIB}


@contextlib.contextmanager
def small_node(rig: Rig) -> Iterator[Path]:
    """Give worker one a small disk of its own, and worker two no messages, during the block; then all jobs end."""
    data_dir = rig.one.data_dir
    rig.one.kill()
    aside = data_dir.rename(data_dir.with_name("aside"))
    try:
        with small_disk(data_dir, "size=50m", "nr_inodes=400"):
            try:
                for node in rig.one.nodes.values():
                    settings = {PREFIX + name: str(value) for name, value in SMALL.items()}
                    node.start(environment={**(node.environment or {}), **settings})
                with rig.two.links["redis"].down():
                    yield data_dir
                for spec in rig.ledger.orders:
                    rig.wait_done(spec)
            finally:
                rig.one.kill()  # before its disk goes, or it would write into the folder below
    finally:
        data_dir.rmdir()
        aside.rename(data_dir)


def check_put_off(rig: Rig, spec: JobSpec, words: str) -> None:
    """Wait until the first attempt has ended because of the disk; it has cost nothing and left nothing."""
    rig.wait(lambda: rig.job(spec).attempt >= 1 and rig.job(spec).state is JobState.QUEUED, "a job given back")
    job = rig.job(spec)
    assert (job.attempts[0].outcome, job.strikes) == (AttemptOutcome.RETRIED, 0)
    assert words in job.attempts[0].message
    assert not rig.one.workspaces()
    assert not list(rig.one.data_dir.glob("cache/blobs/sha256/fetch-*"))
    assert not rig.containers(spec)


def test_11_a_disk_that_fills_up_in_the_middle(rig: Rig) -> None:
    """At a download, before the harvest, and before the model is packed: the other worker does the job."""
    with small_node(rig) as disk:
        for name in ("after_download", "after_exit", "after_harvest"):
            rig.one.arm(name, "hold")
            spec = rig.order(fresh=name == "after_download")
            rig.one.wait_hit(name)
            filler = fill(disk)
            rig.one.disarm()
            check_put_off(rig, spec, "disk")
            filler.unlink()


def test_12_a_disk_without_inodes_and_one_that_is_read_only(rig: Rig) -> None:
    """The job waits without a strike, and is done when the disk is well, or by the other worker."""
    with small_node(rig) as disk:
        with no_inodes(disk):
            check_put_off(rig, rig.order(), "disk")
        remount(disk, "ro")
        try:
            check_put_off(rig, rig.order(), "ead-only file system")
        finally:
            remount(disk, "rw")


@contextlib.contextmanager
def no_inodes(disk: Path) -> Iterator[None]:
    """Use up all inodes of a file system during the block."""
    many = disk / "many"
    many.mkdir()
    try:
        for number in range(1_000_000):
            (many / str(number)).touch()
    except OSError as exc:
        assert exc.errno == errno.ENOSPC  # noqa: PT017 - it ends the loop
    try:
        yield
    finally:
        shutil.rmtree(many)


def test_34_a_database_without_room(rig: Rig) -> None:
    """Orders and uploads are refused, never accepted and lost; all goes on when there is room."""
    held = rig.order(hold="train")
    rig.begin_container(held, "train")
    before = len(rig.ledger.orders)
    with no_room(rig):
        refused = [until_refused(rig.order), until_refused(lambda: rig.upload(ArtifactKind.DATA, b"one more"))]
    assert [error.status for error in refused] == [503, 503]
    for spec in rig.ledger.orders[before:]:
        rig.compute.cancel(spec.id)  # there may be many
    rig.wait_done(held)
    rig.wait_done(rig.order())


def until_refused(ask: Callable[[], object]) -> ApiError:
    """Ask until an API refuses."""
    for _ in range(1000):
        try:
            ask()
        except ApiError as exc:
            return exc
    raise AssertionError("it was never refused")


@contextlib.contextmanager
def no_room(rig: Rig) -> Iterator[None]:
    """Put the tables that grow on a disk of their own, which is full, during the block."""
    folder = rig.folder / "small"
    tables = ("jobs", "artifacts", "nodes")
    with small_disk(folder, "size=64m", "mode=0700"), rig.postgres.connect() as connection:
        shutil.chown(folder, rig.folder.joinpath("postgres").owner())
        connection.execute(f"CREATE TABLESPACE small LOCATION '{folder}'".encode())
        try:
            for table in tables:
                connection.execute(f"ALTER TABLE {table} SET TABLESPACE small".encode())
                connection.execute(f"VACUUM FULL {table}".encode())
            filler = fill(folder)
            yield
            filler.unlink()
        finally:
            (folder / "filler").unlink(missing_ok=True)
            for table in tables:
                connection.execute(f"ALTER TABLE {table} SET TABLESPACE pg_default".encode())
            connection.execute("DROP TABLESPACE small")
