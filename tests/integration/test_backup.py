"""Backup and restore: of a stack in use, to an empty one, also of another kind."""

from __future__ import annotations

import gzip
import hashlib
import io
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from click.testing import CliRunner
from sqlalchemy import text

from morpheo import backup
from morpheo.artifacts import ArtifactService, Upload
from morpheo.audit import Action
from morpheo.backup import back_up, restore
from morpheo.challenges import Problem
from morpheo.cli import morpheo
from morpheo.errors import Conflict, InvalidInput, NotFound
from morpheo.models import ArtifactKind, AttemptOutcome, Job, JobKind, JobSpec, JobState, LearnSpec
from morpheo.storage.blobs import BlobStore
from morpheo.storage.database import Database
from morpheo.storage.dump import blob_refs, dump_rows
from morpheo.storage.local import LocalBlobStore
from morpheo.storage.reports import Report
from morpheo.storage.s3 import S3BlobStore
from morpheo.storage.tables import Base
from morpheo.testing import FakeContainer, MemoryBlobStore, make_learn_spec
from tests.support.services import S3Server, wait_until
from tests.support.trail import trail
from tests.support.workbench import ALGO, PROBLEM, Workbench, algo, make_workbench

LEASE_S = 0.5


def bucket(server: S3Server) -> S3BlobStore:
    return S3BlobStore(
        server.endpoint,
        bucket=f"test-{uuid4().hex[:12]}",
        access_key=server.access_key,
        secret_key=server.secret_key,
        region="us-east-1",
        secure=False,
    )


def silent(_count: int) -> None:
    pass


BenchOn = Callable[[str, Path, BlobStore], Workbench]


@pytest.fixture
def bench_on() -> Iterator[BenchOn]:
    """Makes a stack of a database, a data folder and a blob store."""
    made = []

    def make(url: str, folder: Path, blobs: BlobStore) -> Workbench:
        bench = make_workbench(url, folder, lease_s=LEASE_S)
        vars(bench.resources)["blobs"] = blobs
        made.append(bench)
        return bench

    yield make
    for bench in made:
        bench.database.close()


def rows(database: Database) -> dict[str, list[str]]:
    """Return all rows but those of the audit trail, which goes on with each backup and restore."""
    with database.connect() as connection:
        tables = {table.name for table in Base.metadata.sorted_tables} - {"events", "event_head"}
        return {table: sorted(map(repr, connection.execute(text(f"SELECT * FROM {table}")))) for table in tables}


def contents(bench: Workbench) -> dict[tuple[ArtifactKind, UUID], str]:
    """Return the digest of what each artifact's download gives."""
    found = {}
    for kind in ArtifactKind:
        items, _ = bench.resources.artifacts.page(kind, page_size=1000)
        for item in items:
            digest = hashlib.sha256(bench.read(kind, item.id)).hexdigest()
            assert digest == item.sha256
            found[kind, item.id] = digest
    return found


@contextmanager
def a_job_that_runs(bench: Workbench) -> Iterator[UUID]:
    """Hold a job in its train container as long as the block lasts."""
    started, go_on = threading.Event(), threading.Event()

    def slow(container: FakeContainer) -> int:
        started.set()
        go_on.wait(60)
        return algo(container)

    bench.programs["algo"] = slow
    spec = bench.learn_spec()
    bench.resources.jobs.submit(spec)
    thread = threading.Thread(target=bench.resources.runner.run, args=(spec.id,))
    thread.start()
    assert started.wait(30)
    try:
        yield spec.id
    finally:
        go_on.set()
        thread.join()
        bench.programs["algo"] = algo


@contextmanager
def people_at_work(bench: Workbench) -> Iterator[None]:
    """Order jobs and upload what they need, one after the other, as long as the block lasts."""
    ended, orders = threading.Event(), []

    def work() -> None:
        while not ended.is_set():
            spec = bench.learn_spec()
            bench.resources.jobs.submit(spec)
            orders.append(spec)

    thread = threading.Thread(target=work)
    thread.start()
    wait_until(lambda: len(orders) > 1, what="the first orders")
    before = len(orders)
    try:
        yield
    finally:
        ended.set()
        thread.join()
    assert len(orders) > before


def data_upload(artifact_id: UUID) -> Upload:
    return Upload(kind=ArtifactKind.DATA, id=artifact_id)


def run(bench: Workbench, spec: JobSpec) -> UUID:
    """Order a job and do it."""
    bench.resources.jobs.submit(spec)
    bench.resources.runner.run(spec.id)
    return spec.id


@pytest.mark.database
@pytest.mark.s3
def test_a_stack_in_use_comes_back_from_its_backup(
    postgres_url: str,
    empty_postgres_url: str,
    s3: S3Server,
    bench_on: BenchOn,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    old, folder = bench_on(postgres_url, tmp_path / "old", bucket(s3)), tmp_path / "backup"
    learnt, bad = old.learn_spec(), old.store(ArtifactKind.ALGO, b"no archive", name="bad")
    over = (
        run(old, learnt),
        run(old, old.predict_spec(learnt.model_end)),
        run(old, old.learn_spec(algo=bad)),
    )
    before = contents(old)
    with a_job_that_runs(old) as running, people_at_work(old):
        outcome = back_up(folder, old.database, old.resources.blobs, keep=7, progress=silent)
    assert outcome.lost == ()

    new = bench_on(empty_postgres_url, tmp_path / "new", bucket(s3))
    assert restore(folder, new.database, new.resources.blobs, progress=silent).lost == ()
    assert before.items() <= contents(new).items()
    for job_id in over:
        assert new.resources.jobs.get(job_id) == old.resources.jobs.get(job_id)
    assert list(new.resources.jobs.logs(learnt.id)) == list(old.resources.jobs.logs(learnt.id)) != []

    # What ran then is run again, what waited is run; each ends once, however often it is told of.
    assert new.resources.jobs.get(running).state is JobState.RUNNING
    wait_until(lambda: new.resources.sweeper.recover_lost() == 1, what="the lease's end")
    monkeypatch.setattr("morpheo.sweeper.REPUBLISH_S", 0)  # as if a minute had passed
    assert new.resources.sweeper.publish_waiting() > 1
    for job_id in 2 * new.publisher.published:
        new.resources.runner.run(job_id)
    for job_id in new.publisher.published:
        job = new.resources.jobs.get(job_id)
        assert job.state is JobState.SUCCEEDED
        lost = [AttemptOutcome.LOST] if job_id == running else []
        assert [attempt.outcome for attempt in job.attempts] == [*lost, AttemptOutcome.SUCCEEDED]
    assert running in new.publisher.published
    assert new.resources.sweeper.recover_lost() == new.resources.sweeper.publish_waiting() == 0


@pytest.fixture
def small(sqlite_url: str, bench_on: BenchOn, tmp_path: Path) -> Workbench:
    """A stack on SQLite with one job that is done."""
    bench = bench_on(sqlite_url, tmp_path / "old", LocalBlobStore(tmp_path / "old"))
    run(bench, bench.learn_spec())
    return bench


def save(bench: Workbench, folder: Path, keep: int = 7) -> backup.Outcome:
    return back_up(folder, bench.database, bench.resources.blobs, keep=keep, progress=silent)


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.database)])
def empty_database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """A database without tables, of each kind."""
    url = f"sqlite:///{tmp_path}/new.db" if request.param == "sqlite" else request.getfixturevalue("empty_postgres_url")
    database = Database(url)
    yield database
    database.close()


def test_any_database_takes_any_backup(
    small: Workbench, empty_database: Database, bench_on: BenchOn, tmp_path: Path
) -> None:
    save(small, tmp_path / "backup")
    blobs = MemoryBlobStore()
    restore(tmp_path / "backup", empty_database, blobs, progress=silent)
    new = bench_on(empty_database.url, tmp_path / "new", blobs)
    assert contents(new) == contents(small)
    job = small_job(small)
    assert new.resources.jobs.get(job.id) == job


def small_job(bench: Workbench) -> Job:
    with bench.database.connect() as connection:
        (found,) = connection.execute(text("SELECT id FROM jobs")).scalars()
    return bench.resources.jobs.get(UUID(str(found)))


def test_rows_are_the_same_to_the_last_bit_and_the_trail_goes_on(small: Workbench, tmp_path: Path) -> None:
    outcome = save(small, tmp_path / "backup")
    with_new = Database(f"sqlite:///{tmp_path}/new.db")
    restore(tmp_path / "backup", with_new, MemoryBlobStore(), progress=silent)
    assert rows(with_new) == rows(small.database)
    *before, last = trail(with_new)
    assert before == trail(small.database)
    assert before[-1].action == Action.BACKUP_STARTED
    assert (last.action, last.subject_id) == (Action.BACKUP_RESTORED, outcome.rows.name)
    with_new.close()


def test_chains_and_reports_go_on_where_they_were(
    small: Workbench, empty_database: Database, bench_on: BenchOn, tmp_path: Path
) -> None:
    test = small.store(ArtifactKind.DATA, b"c:3\n")
    workflow = small.store(ArtifactKind.PROBLEM, PROBLEM, name="p", description="p")
    problem = Problem(id=uuid4(), workflow=workflow, test_data=(test,), batch_size=1, created_at=datetime.now(UTC))
    small.resources.orchestrator.register_problem(problem)
    data = [small.store(ArtifactKind.DATA, content) for content in (b"a:1", b"c:3")]
    small.resources.orchestrator.register_data(data, problem_ids=[problem.id])
    algo_id = small.store(ArtifactKind.ALGO, ALGO, name="a")
    small.resources.orchestrator.register_algo(algo_id, name="a", problem_id=problem.id)
    small.resources.runner.run(small.publisher.published[-1])
    report = Report(job=small.publisher.published[0], number=1, path="/learndone/x", body={"status": "done", "perf": 1})
    with small.database.begin() as work:
        work.reports.add(report)

    save(small, tmp_path / "backup")
    blobs = MemoryBlobStore()
    restore(tmp_path / "backup", empty_database, blobs, progress=silent)
    new = bench_on(empty_database.url, tmp_path / "new", blobs)
    assert new.resources.orchestrator.problems() == small.resources.orchestrator.problems()
    assert new.resources.orchestrator.submissions() == small.resources.orchestrator.submissions()
    assert new.resources.orchestrator.datasets() == small.resources.orchestrator.datasets()
    with new.database.begin() as work:
        assert work.reports.take(for_s=1) == report
    new.resources.runner.run(small.publisher.published[-1])
    states = [job.state for job in new.resources.orchestrator.jobs(JobKind.LEARN, algo=algo_id)]
    assert states == [JobState.SUCCEEDED, JobState.SUCCEEDED]


def test_all_rows_are_of_one_moment(database: Database) -> None:
    class Busy(io.StringIO):
        """Somebody orders a job as soon as the first artifact is written."""

        def write(self, line: str) -> int:
            if '"artifacts"' in line and not orders:
                orders.append(make_learn_spec())
                with database.begin() as work:
                    work.jobs.add(orders[0], algo=None)
            return super().write(line)

    orders: list[LearnSpec] = []
    ArtifactService(database, MemoryBlobStore(), max_blob_bytes=9).upload(data_upload(uuid4()), io.BytesIO(b"x"))
    dump_rows(database, target := Busy())
    assert orders
    # The artifact, its event, and the head of the trail.
    assert target.getvalue().splitlines()[-1] == '{"rows": 3}'


def test_the_second_backup_copies_only_what_is_new(small: Workbench, tmp_path: Path) -> None:
    first = save(small, tmp_path / "backup")
    assert first.copied > 5
    small.store(ArtifactKind.DATA, b"new")
    assert save(small, tmp_path / "backup").copied == 1


def test_old_backups_go_with_what_only_they_name(small: Workbench, tmp_path: Path) -> None:
    folder = tmp_path / "backup"
    artifacts = small.resources.artifacts
    item = artifacts.get(ArtifactKind.DATA, small.store(ArtifactKind.DATA, b"erase me"))
    kept = [save(small, folder), save(small, folder)]
    artifacts.change(item, artifacts.put_blob(data_upload(item.id), io.BytesIO(b"nothing")))
    kept.append(save(small, folder, keep=2))
    assert LocalBlobStore(folder).stat(item.blob_key).size_bytes == 8
    assert sorted(folder.glob("rows-*")) == [outcome.rows for outcome in kept[1:]]
    save(small, folder, keep=1)
    with pytest.raises(NotFound):
        LocalBlobStore(folder).stat(item.blob_key)


def test_a_lost_blob_and_a_damaged_one_are_named(small: Workbench, tmp_path: Path) -> None:
    damaged, lost = (
        small.resources.artifacts.get(ArtifactKind.DATA, small.store(ArtifactKind.DATA, content))
        for content in (b"damaged", b"lost")
    )
    path = tmp_path / "old" / "blobs" / damaged.blob_key
    path.chmod(0o644)
    path.write_bytes(b"DAMAGED")
    small.resources.blobs.delete(lost.blob_key)
    assert save(small, tmp_path / "backup").lost == tuple(sorted((damaged.blob_key, lost.blob_key)))


def test_a_blob_that_is_replaced_meanwhile_is_not_lost(small: Workbench, tmp_path: Path) -> None:
    artifacts = small.resources.artifacts
    item = artifacts.get(ArtifactKind.DATA, small.store(ArtifactKind.DATA, b"before"))
    replace: list[Callable[[], object]] = [
        lambda: artifacts.change(item, artifacts.put_blob(data_upload(item.id), io.BytesIO(b"after")))
    ]

    class Changing(MemoryBlobStore):
        """Somebody replaces an artifact as soon as the first blob is looked at."""

        def stat(self, key: str) -> Any:
            while replace:
                replace.pop()()
            return small.resources.blobs.stat(key)

        def get(self, key: str, *, offset: int = 0, length: int | None = None) -> Any:
            return small.resources.blobs.get(key, offset=offset, length=length)

    outcome = back_up(tmp_path / "backup", small.database, Changing(), keep=7, progress=silent)
    assert outcome.lost == ()
    assert not replace
    with gzip.open(outcome.rows, "rt") as lines:
        assert item.blob_key not in {ref.key for ref in blob_refs(lines)}


def test_a_database_with_rows_is_left_alone(small: Workbench, tmp_path: Path) -> None:
    save(small, tmp_path / "backup")
    before = rows(small.database)
    with pytest.raises(Conflict, match="not empty"):
        restore(tmp_path / "backup", small.database, MemoryBlobStore(), progress=silent)
    assert rows(small.database) == before


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: gzip.compress(gzip.decompress(content)[:-20]), "cut off|cannot be read"),
        (lambda content: content[: len(content) // 2], "cannot be read"),
        (lambda content: gzip.compress(b"\n".join(gzip.decompress(content).splitlines()[:-2])), "cut off"),
        (lambda content: gzip.compress(b'{"revision": "0000"}\n' + gzip.decompress(content)), "of revision 0000"),
    ],
    ids=["no end", "half a file", "a row less", "another version"],
)
def test_damaged_rows_are_refused(
    small: Workbench, tmp_path: Path, damage: Callable[[bytes], bytes], message: str
) -> None:
    path = save(small, tmp_path / "backup").rows
    path.write_bytes(damage(path.read_bytes()))
    new = Database(f"sqlite:///{tmp_path}/new.db")
    with pytest.raises(InvalidInput, match=message):
        restore(tmp_path / "backup", new, MemoryBlobStore(), progress=silent)
    assert not any(rows(new).values())
    assert trail(new) == []
    new.close()


def test_a_folder_that_is_no_backup(tmp_path: Path, sqlite: Database) -> None:
    with pytest.raises(NotFound, match="is no backup"):
        restore(tmp_path, sqlite, MemoryBlobStore(), progress=silent)


def test_both_from_the_command_line(
    small: Workbench, bench_on: BenchOn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = str(tmp_path / "backup")
    monkeypatch.setenv("MORPHEO_DATA_DIR", str(tmp_path / "old"))
    monkeypatch.setenv("MORPHEO_DATABASE_URL", small.database.url)
    assert CliRunner().invoke(morpheo, ["backup", folder]).exit_code == 0
    assert (tmp_path / "backup").stat().st_mode & 0o777 == 0o700
    monkeypatch.setenv("MORPHEO_DATA_DIR", str(tmp_path / "new"))
    monkeypatch.delenv("MORPHEO_DATABASE_URL")
    result = CliRunner().invoke(morpheo, ["restore", folder])
    assert result.exit_code == 0, result.output
    new = bench_on(f"sqlite:///{tmp_path}/new/morpheo.db", tmp_path / "new", LocalBlobStore(tmp_path / "new"))
    assert contents(new) == contents(small)
    lost = small.resources.artifacts.get(ArtifactKind.DATA, small.store(ArtifactKind.DATA, b"lost"))
    small.resources.blobs.delete(lost.blob_key)
    monkeypatch.setenv("MORPHEO_DATA_DIR", str(tmp_path / "old"))
    monkeypatch.setenv("MORPHEO_DATABASE_URL", small.database.url)
    result = CliRunner().invoke(morpheo, ["backup", folder])
    assert result.exit_code == 1
    assert lost.blob_key in result.stderr
