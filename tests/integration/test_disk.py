"""A node whose disk is full, on a real file system of 50 MB: what does not start, what goes, and what is left."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from morpheo.disk import PROMISE
from morpheo.errors import DiskFull, EngineFull
from morpheo.execution import Execution
from morpheo.images import ImageShelf
from morpheo.models import ArtifactKind, AttemptOutcome, Blame, Cause, Job, JobState, LearnSpec
from morpheo.runtime.contract import BuildResult, BuildSpec, Interrupt
from morpheo.runtime.log import BoundedLog
from morpheo.testing import FakeContainer, FakeRuntime, make_archive
from tests.support.filesystems import fill, remount, small_disk
from tests.support.workbench import Workbench, algo, make_workbench

pytestmark = pytest.mark.timeout(60)

MIB = 1 << 20
#: Of a node whose disk has 50 MB.
SMALL: dict[str, Any] = {
    "disk_high": 2 * MIB, "disk_low": 30 * MIB, "model_bytes": MIB, "prediction_bytes": MIB, "model_files": 20,
    "heartbeat_s": 1.0,
}  # fmt: skip


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", "size=50m") as folder:
        yield folder


@pytest.fixture
def bench(disk: Path, sqlite_url: str) -> Workbench:
    return make_node(sqlite_url, disk)


def make_node(sqlite_url: str, disk: Path, **settings: Any) -> Workbench:
    bench = make_workbench(sqlite_url, disk, **SMALL, **settings)
    assert bench.resources.runner.worker  # a worker that starts writes its node's id; the disk fills up later
    return bench


def run(bench: Workbench, spec: LearnSpec) -> Job:
    """Run a job once."""
    with bench.database.read() as work:
        known = work.jobs.digest(spec.id)
    if known is None:
        bench.resources.jobs.submit(spec)
    job = bench.resources.runner.run(spec.id)
    assert job is not None
    return job


def check_put_off(bench: Workbench, job: Job, words: str = "") -> None:
    """The attempt ended because of the disk, cost the job nothing, and left nothing."""
    assert (job.state, job.strikes) == (JobState.QUEUED, 0)
    assert job.attempts[-1].outcome is AttemptOutcome.RETRIED
    assert words in job.attempts[-1].message
    assert list(bench.work_dir.glob("*")) == []
    cached = bench.work_dir.parent / "cache" / "blobs" / "sha256"
    assert not list(cached.glob("fetch-*"))


def only_data(bench: Workbench, content: bytes = b"only:here") -> LearnSpec:
    return bench.learn_spec(train_data=(bench.store(ArtifactKind.DATA, content),))


def test_nothing_starts_that_would_cross_the_high_mark_and_it_runs_when_there_is_room(
    bench: Workbench, disk: Path
) -> None:
    spec = only_data(bench)
    filler = fill(disk, leave=4 * MIB)  # the model and the prediction may take 3, and 2 must stay free
    check_put_off(bench, run(bench, spec), "2 MiB must stay free (MORPHEO_DISK_HIGH)")
    assert bench.runtime.history == []
    filler.unlink()
    assert run(bench, spec).state is JobState.SUCCEEDED


def test_what_running_jobs_were_promised_is_not_promised_twice(bench: Workbench, disk: Path) -> None:
    first, second = only_data(bench), only_data(bench)
    fill(disk, leave=7 * MIB)
    seen: list[Job] = []

    def meanwhile(container: FakeContainer) -> int:
        if not seen:
            seen.append(run(bench, second))
        return algo(container)

    bench.programs["algo"] = meanwhile
    assert run(bench, first).state is JobState.SUCCEEDED
    assert "no room" in seen[0].attempts[-1].message
    assert run(bench, second).state is JobState.SUCCEEDED


@pytest.mark.parametrize("idle", ["blobs", "detarget"])
def test_caches_go_down_to_the_low_mark_the_oldest_first(bench: Workbench, disk: Path, idle: str) -> None:
    cache = disk / "cache" / ("blobs/sha256" if idle == "blobs" else "detarget")
    for number in range(8):
        path = cache / f"{number:064}" / ("" if idle == "blobs" else "file")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * 5 * MIB)
        os.utime(path if idle == "blobs" else path.parent, (number, number))
    fill(disk, leave=4 * MIB)
    assert run(bench, only_data(bench)).state is JobState.SUCCEEDED
    kept = [number for number in range(8) if (cache / f"{number:064}").exists()]
    # At the start 30 MiB were free, and the 4 that the job might need.
    assert kept == [6, 7]


def test_images_go_after_the_caches_and_never_those_of_running_jobs(bench: Workbench, disk: Path) -> None:
    old = bench.learn_spec()
    assert run(bench, old).state is JobState.SUCCEEDED
    tags = dict(bench.runtime._tags)
    assert len(tags) == 2
    bench.runtime._tags["morpheo/algo:of-somebody-else"] = bench.runtime._tags["morpheo/unchecked:dead"] = "sha256:x"
    filler = fill(disk, leave=4 * MIB)
    seen: list[set[str]] = []

    def meanwhile(container: FakeContainer) -> int:
        bench.resources.images.evict(lambda: False)
        seen.append(set(bench.runtime._tags))
        return algo(container)

    bench.programs["algo"] = meanwhile
    check_put_off(bench, run(bench, only_data(bench)))
    assert set(bench.runtime._tags) == {"morpheo/algo:of-somebody-else"}
    filler.unlink()
    again = bench.learn_spec(algo=old.algo, workflow=old.workflow)
    assert run(bench, again).state is JobState.SUCCEEDED
    assert seen == [{*tags, "morpheo/algo:of-somebody-else"}]
    bench.resources.images.evict(lambda: False)
    assert set(bench.runtime._tags) == {"morpheo/algo:of-somebody-else"}


def full_at_download(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    content = bench.resources.cache._open_blob

    def opened(key: str) -> Any:
        if key.startswith("data/"):
            fill(bench.work_dir.parent)
        return content(key)

    monkeypatch.setattr(bench.resources.cache, "_open_blob", opened)


def full_at_build(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    repack = ImageShelf._repack

    def filled(*args: Any) -> None:
        fill(bench.work_dir.parent)
        repack(*args)

    monkeypatch.setattr(ImageShelf, "_repack", filled)


def full_at_harvest(bench: Workbench, _monkeypatch: pytest.MonkeyPatch) -> None:
    def program(container: FakeContainer) -> int:
        algo(container)
        fill(bench.work_dir.parent)
        return 0

    bench.programs["algo"] = program


def full_at_pack(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    store_model = Execution._store_model

    def filled(*args: Any) -> Any:
        fill(bench.work_dir.parent)
        return store_model(*args)

    monkeypatch.setattr(Execution, "_store_model", filled)


def full_in_a_container(bench: Workbench, _monkeypatch: pytest.MonkeyPatch) -> None:
    def program(container: FakeContainer) -> int:
        fill(bench.work_dir.parent)  # by another program
        container.write("/data/model/model_trained.json", b"x" * 10_000)
        return 0

    bench.programs["algo"] = program


@pytest.mark.parametrize(
    "fault",
    [full_at_download, full_at_build, full_at_harvest, full_at_pack, full_in_a_container],
    ids=lambda f: f.__name__,
)
def test_a_disk_that_fills_up_in_the_middle_is_the_nodes_fault_and_the_job_runs_later(
    bench: Workbench, disk: Path, fault: Callable[[Workbench, pytest.MonkeyPatch], None]
) -> None:
    spec = only_data(bench)
    with pytest.MonkeyPatch.context() as monkeypatch:
        fault(bench, monkeypatch)
        check_put_off(bench, run(bench, spec))
    bench.programs["algo"] = algo
    (disk / "filler").unlink()
    assert list(bench.blobs.list("model/")) == []
    assert run(bench, spec).state is JobState.SUCCEEDED


def test_a_disk_that_stays_full_ends_the_job_in_words(disk: Path, sqlite_url: str) -> None:
    bench = make_node(sqlite_url, disk, outage_s=0)
    spec = only_data(bench)
    fill(disk)
    jobs = [run(bench, spec) for _ in range(3)]
    failure = jobs[-1].failure
    assert failure is not None
    assert (jobs[-1].state, failure.cause, failure.blame) == (JobState.FAILED, Cause.DISK_FULL, Blame.INFRASTRUCTURE)


def test_an_algo_that_fills_the_disk_by_itself_is_to_blame(bench: Workbench, disk: Path) -> None:
    def program(container: FakeContainer) -> int:
        for number in range(100):
            container.write(f"/data/model/{number}", b"x" * MIB)
        return 0

    bench.programs["algo"] = program
    job = run(bench, only_data(bench))
    assert job.failure is not None
    assert (job.failure.cause, job.failure.blame) == (Cause.OUTPUT_LIMIT, Blame.SUBMITTER)
    assert list(bench.work_dir.glob("*")) == []


def test_an_algo_that_only_says_so_is_to_blame(bench: Workbench) -> None:
    def program(container: FakeContainer) -> int:
        container.print("OSError: [Errno 28] No space left on device")
        return 1

    bench.programs["algo"] = program
    job = run(bench, only_data(bench))
    assert job.failure is not None
    assert (job.failure.cause, job.failure.blame) == (Cause.EXIT_CODE, Blame.SUBMITTER)


def test_a_disk_without_inodes(tmp_path: Path, sqlite_url: str) -> None:
    with small_disk(tmp_path / "disk", "size=50m", "nr_inodes=300") as disk:
        bench = make_workbench(sqlite_url, disk, **SMALL)
        spec = only_data(bench)
        many = disk / "many"
        many.mkdir()
        for number in range(os.statvfs(disk).f_favail - 25):
            (many / str(number)).touch()
        check_put_off(bench, run(bench, spec), "no room")
        for number in range(os.statvfs(disk).f_favail):
            (many / f"rest-{number}").touch()
        check_put_off(bench, run(bench, spec), "no workspace could be made")
        for path in many.iterdir():
            path.unlink()
        assert run(bench, spec).state is JobState.SUCCEEDED


def test_a_disk_that_becomes_read_only(bench: Workbench, disk: Path) -> None:
    spec = only_data(bench)
    bench.resources.jobs.submit(spec)
    remount(disk, "ro")
    try:
        check_put_off(bench, run(bench, spec), "ead-only file system")
    finally:
        remount(disk, "rw")
    assert run(bench, spec).state is JobState.SUCCEEDED


def test_a_worker_that_first_starts_on_a_full_disk(disk: Path, sqlite_url: str) -> None:
    bench = make_workbench(sqlite_url, disk, **SMALL)
    filler = fill(disk)
    with pytest.raises(DiskFull, match="make room there"):
        assert bench.resources.node
    filler.unlink()
    assert bench.resources.node == (disk / "node-id").read_text()
    assert [path.name for path in disk.glob("node-id*")] == ["node-id"]


class FullEngine(FakeRuntime):
    """An engine whose disk is full as long as it has more than one image."""

    def build(
        self, context: BinaryIO, spec: BuildSpec, *, interrupt: Interrupt, log: BoundedLog | None = None
    ) -> BuildResult:
        if len(self._images) > 1:
            raise EngineFull("the disk of the container engine is full; make room there")
        return super().build(context, spec, interrupt=interrupt, log=log)


def test_an_engine_that_is_full_of_other_jobs_images_is_pruned_and_asked_again(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = bench.learn_spec()
    assert run(bench, first).state is JobState.SUCCEEDED
    monkeypatch.setattr(bench.runtime, "__class__", FullEngine)
    other = bench.store(
        ArtifactKind.ALGO,
        make_archive({"Dockerfile": 'FROM morpheo/base:1\nENTRYPOINT ["algo"]\n', "other": "x"}),
        name="b",
    )
    job = run(bench, bench.learn_spec(algo=other, workflow=first.workflow))
    assert job.state is JobState.SUCCEEDED
    assert len(bench.runtime._images) == 2  # the problem's, which the job held, and the new algo's


class OverflowingEngine(FakeRuntime):
    """An engine whose disk each build fills."""

    def build(
        self, context: BinaryIO, spec: BuildSpec, *, interrupt: Interrupt, log: BoundedLog | None = None
    ) -> BuildResult:
        raise EngineFull("the disk of the container engine is full; make room there")


@pytest.mark.parametrize("room", ["again", "none", "unknown"])
def test_a_build_that_fills_the_disk_of_its_engine(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch, room: str
) -> None:
    """If there is room when it has gone, it is to blame; else it waits, for ever only where somebody else filled it."""
    monkeypatch.setattr(bench.runtime, "__class__", OverflowingEngine)
    seen = {"again": True, "none": False, "unknown": None}[room]
    monkeypatch.setattr("morpheo.disk.Disk.has_engine_room", lambda _self: seen)
    spec = bench.learn_spec()
    job = run(bench, spec)
    if room == "again":
        assert job.failure is not None
        assert (job.failure.cause, job.failure.blame) == (Cause.BUILD_FAILED, Blame.PROBLEM)
        assert "install less" in job.failure.message
    else:
        assert (job.state, job.strikes) == (JobState.QUEUED, 1 if room == "unknown" else 0)


def test_promises_of_removed_workspaces_do_not_count(bench: Workbench, disk: Path) -> None:
    dead = bench.work_dir / "dead-1"
    dead.mkdir(parents=True)
    (dead / PROMISE).write_text(str(45 * MIB))
    spec = only_data(bench)
    bench.resources.jobs.submit(spec)
    first = bench.resources.runner.run(spec.id)
    assert first is not None
    assert "no room" in first.attempts[-1].message
    (dead / PROMISE).unlink()
    dead.rmdir()
    assert run(bench, spec).state is JobState.SUCCEEDED
