"""The audit trail, on SQLite and on PostgreSQL: complete, in order, and closed to changes."""

from __future__ import annotations

import io
import json
import os
import pwd
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import text

from morpheo import downloads
from morpheo.actors import acting_as
from morpheo.api.compute import create_compute_app
from morpheo.api.orchestrator import create_orchestrator_app
from morpheo.api.storage import create_storage_app
from morpheo.artifacts import ORPHAN_AGE, ArtifactService, Upload
from morpheo.audit import Action, list_digest
from morpheo.cli import morpheo
from morpheo.errors import Conflict, DatabaseUnavailable, MorpheoError
from morpheo.models import CANCELLED, ArtifactKind, AttemptOutcome, Blame, Cause, Failure, Scores
from morpheo.specs import spec_digest
from morpheo.storage.database import Database
from morpheo.testing import MemoryBlobStore, make_learn_spec
from tests.support.api import Service, form
from tests.support.trail import Told, actions, told, trail
from tests.support.workbench import Workbench, make_workbench

FAILURE = Failure(cause=Cause.EXIT_CODE, blame=Blame.SUBMITTER, message="the log's last line: a secret")
TEN = b"0123456789"
USER = "user:u"
#: Makes of an event another one that follows it.
COPIED = "seq + 1, at, actor, action, subject_kind, subject_id, detail, digest, digest"


def record(database: Database, count: int = 1, actor: str = "cli:a") -> None:
    for number in range(count):
        with acting_as(actor), database.begin() as work:
            work.events.record(Action.JOB_RETRIED, "job", f"{number}", by_job="x")


def execute(database: Database, statement: str) -> None:
    with database.connect() as connection:
        connection.execute(text(statement))
        connection.commit()


# How it is written.


def test_an_event_is_written_with_what_it_tells_of_or_not_at_all(database: Database) -> None:
    spec = make_learn_spec()
    with pytest.raises(KeyError), database.begin() as work:  # noqa: PT012 - the second line undoes the first
        work.jobs.add(spec, algo=None)
        raise KeyError
    assert trail(database) == []
    before = time.time()
    with database.begin() as work:
        work.jobs.add(spec, algo=None)
    (event,) = trail(database)
    assert (event.seq, event.action, event.subject_kind, event.subject_id) == (1, "job.ordered", "job", str(spec.id))
    assert abs(event.at - before) < 60


def test_who_lost_a_race_leaves_no_event(database: Database) -> None:
    spec = make_learn_spec()
    with database.begin() as work:
        work.jobs.add(spec, algo=None)
    with pytest.raises(Conflict), database.begin() as work:
        work.jobs.add(spec, algo=None)
    with database.begin() as work:
        assert not work.jobs.fail(spec.id, 1, FAILURE)
        assert not work.jobs.requeue(spec.id, 1, outcome=AttemptOutcome.LOST, message="", delay_s=0, strikes=0)
    assert [event.action for event in trail(database)] == ["job.ordered"]


def test_the_life_of_a_job_is_told_without_what_its_containers_wrote(database: Database) -> None:
    spec = make_learn_spec()
    with database.begin() as work:
        work.jobs.add(spec, algo=None)
        work.messages.mark_published([spec.id])
    with database.begin() as work:
        assert work.jobs.claim(spec.id, worker="w", lease_s=30, max_attempts=3)
    with database.begin() as work:
        assert work.jobs.renew(spec.id, 1, lease_s=30) is False
        assert work.jobs.requeue(spec.id, 1, outcome=AttemptOutcome.LOST, message="m", delay_s=0, strikes=1)
    with database.begin() as work:
        assert work.jobs.claim(spec.id, worker="w", lease_s=30, max_attempts=3)
    for _ in range(2):
        with database.begin() as work:
            work.jobs.request_cancel(spec.id)
    with database.begin() as work:
        assert work.jobs.fail(spec.id, 2, FAILURE)
    digest = spec_digest(spec)
    assert [(event.action, event.detail) for event in told(database)] == [
        ("job.ordered", {"kind": "learn", "state": "queued", "spec_sha256": digest}),
        ("job.claimed", {"attempt": 1, "worker": "w", "spec_sha256": digest}),
        ("job.requeued", {"attempt": 1, "outcome": "lost"}),
        ("job.claimed", {"attempt": 2, "worker": "w", "spec_sha256": digest}),
        ("job.cancel_requested", {}),
        ("job.failed", {"attempt": 2, "failure_cause": "EXIT_CODE", "failure_blame": "submitter"}),
    ]


def test_a_success_tells_of_result_and_scores(database: Database) -> None:
    spec = make_learn_spec()
    with database.begin() as work:
        work.jobs.add(spec, algo=None)
        work.jobs.claim(spec.id, worker="w", lease_s=30, max_attempts=3)
        assert work.jobs.succeed(spec.id, 1, Scores(perf=0.5, test_perf={"a": 0.5}), result=spec.model_end)
    detail = told(database)[-1].detail
    assert detail.pop("scores_sha256") != told(database)[0].detail["spec_sha256"]
    assert detail == {"attempt": 1, "perf": 0.5, "result_id": str(spec.model_end)}


def test_thousands_of_ranks_are_one_event_for_each_chain(database: Database) -> None:
    one, other = uuid4(), uuid4()
    specs = [make_learn_spec(algo=algo, rank=rank) for algo in (one, other) for rank in range(2, 200)]
    with database.begin() as work:
        work.jobs.add_ranks(specs, owners={})
    digests = {algo: list_digest(spec_digest(spec) for spec in specs if spec.algo == algo) for algo in (one, other)}
    assert [(event.subject, event.detail) for event in told(database)] == [
        (f"algo {algo}", {"first_rank": 2, "jobs": 198, "spec_sha256s": digests[algo]}) for algo in (one, other)
    ]


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE events SET actor = 'x'",
        "UPDATE events SET seq = seq + 100 WHERE seq = 2",
        "DELETE FROM events WHERE seq = 3",
        "DELETE FROM events",
    ],
)
def test_the_database_refuses_to_change_events(database: Database, statement: str) -> None:
    record(database, 3)
    before = trail(database)
    with pytest.raises(MorpheoError):
        execute(database, statement)
    assert trail(database) == before


@pytest.mark.database
def test_postgresql_refuses_to_empty_the_trail(postgres_url: str) -> None:
    database = Database(postgres_url)
    record(database)
    with pytest.raises(MorpheoError):
        execute(database, "TRUNCATE events")
    assert len(trail(database)) == 1
    database.close()


@pytest.mark.parametrize("damage", ["DELETE FROM event_head", "UPDATE event_head SET seq = 1"])
def test_nothing_is_committed_to_a_trail_without_its_head(database: Database, damage: str) -> None:
    record(database, 3)
    execute(database, damage)
    spec = make_learn_spec()
    with pytest.raises(MorpheoError, match="morpheo audit verify"), database.begin() as work:
        work.jobs.add(spec, algo=None)
    with database.read() as work:
        assert work.jobs.digest(spec.id) is None


def test_events_of_many_threads_are_one_chain(database: Database) -> None:
    """Each thread has its jobs and all share one: locks of rows are held while the head's is waited for."""
    shared = make_learn_spec()
    with database.begin() as work:
        work.jobs.add(shared, algo=None)

    def live(number: int) -> None:
        with acting_as(f"worker:{number}"):
            for _ in range(10):
                spec = make_learn_spec()
                with database.begin() as work:
                    work.jobs.add(spec, algo=None)
                with database.begin() as work:
                    work.jobs.request_cancel(shared.id)
                    assert work.jobs.claim(spec.id, worker=f"{number}", lease_s=30, max_attempts=3)
                with database.begin() as work:
                    assert work.jobs.fail(spec.id, 1, FAILURE)
                    work.jobs.request_cancel(shared.id)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(live, range(8)))
    found = Counter(actions(database))
    expected = Counter(
        {(f"worker:{n}", action): 10 for n in range(8) for action in ("job.ordered", "job.claimed", "job.failed")}
    )
    assert sum(found.values()) == 242  # and the order and the cancel of the shared job
    assert expected <= found


@pytest.mark.database
def test_a_host_that_freezes_with_the_lock_does_not_hold_up_the_others_for_long(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = Database(postgres_url)
    with pytest.raises(DatabaseUnavailable), database.begin() as frozen:  # noqa: PT012 - the end of the block commits
        frozen.events.record(Action.JOB_RETRIED, "job", "frozen")
        with monkeypatch.context() as patch:
            patch.setattr("morpheo.storage.events.HOLD_S", 1)
            frozen.events.write()
        record(database)  # waits for the lock, less than the 10 s after which it would give up
    assert [event.subject for event in told(database)] == ["job 0"]
    database.close()


@pytest.mark.database
def test_a_database_that_only_reads_is_one_that_is_not_there(postgres_url: str) -> None:
    name = postgres_url.partition("@/")[2].partition("?")[0]
    execute(database := Database(postgres_url), f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    database.close()
    with pytest.raises(DatabaseUnavailable):
        record(database)
    assert trail(database) == []
    database.close()


# Who and what, through the services.


@pytest.fixture
def storage(sqlite: Database) -> Service:
    return Service(create_storage_app, sqlite)


def upload(storage: Service, kind: str = "data", **words: str) -> str:
    answer = storage.post(f"/{kind}", query_string=words, data=TEN, content_type="application/octet-stream")
    assert answer.status_code == 201, answer.text
    return str(answer.json["uuid"])


def test_uploads_and_downloads(storage: Service) -> None:
    path = f"/data/{upload(storage)}/blob"
    stored = storage.get(path.removesuffix("/blob")).json
    assert storage.get(path).data == TEN
    assert storage.get(path).data == TEN
    subject = f"data {stored['uuid']}"
    what = {"sha256": stored["sha256"], "size_bytes": 10}
    got = Told(USER, "artifact.downloaded", subject, {**what, "partial": False})
    assert told(storage.database) == [Told(USER, "artifact.uploaded", subject, what), got, got]


def test_what_sends_no_bytes_is_no_download(storage: Service) -> None:
    path = f"/data/{upload(storage)}/blob"
    etag = storage.client.head(path).headers["ETag"]
    for headers, status in (
        ({"If-None-Match": etag}, 304),
        ({"If-Match": '"x"'}, 412),
        ({"Range": "bytes=99-"}, 416),
        ({"Authorization": "Basic eDp5"}, 401),
    ):
        assert storage.get(path, headers=headers).status_code == status
    assert storage.get(f"/data/{uuid4()}/blob").status_code == 404
    assert actions(storage.database) == [(USER, "artifact.uploaded")]


def test_a_client_that_reads_in_ranges_is_one_event_for_a_while(
    storage: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, other = (f"/data/{upload(storage)}/blob" for _ in range(2))

    def read(path: str, wanted: str, client: str = "10.0.0.1") -> int:
        headers, environ = {"Range": wanted}, {"REMOTE_ADDR": client}
        assert storage.get(path, headers=headers, environ_base=environ).status_code == 206
        return len(trail(storage.database)) - 2

    assert [read(path, f"bytes={n}-{n + 1}") for n in range(0, 10, 2)] == [1] * 5
    assert read(path, "bytes=0-1", client="10.0.0.2") == 2
    assert read(other, "bytes=0-1") == 3
    assert read(path, "bytes=0-") == 4  # all of it is not a part
    assert [event.detail["partial"] for event in told(storage.database, after=2)] == [True, True, True, False]
    monkeypatch.setattr(downloads, "RANGES_S", 0)
    assert read(path, "bytes=0-1") == 5


def test_many_readers_are_forgotten_rather_than_kept(storage: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "MAX_READERS", 2)
    path = f"/data/{upload(storage)}/blob"
    for number in (1, 2, 3, 1):
        storage.get(path, headers={"Range": "bytes=0-1"}, environ_base={"REMOTE_ADDR": f"10.0.0.{number}"})
    assert len(trail(storage.database)) == 5


@pytest.mark.parametrize("headers", [{}, {"Range": "bytes=0-1"}], ids=["whole", "range"])
def test_what_cannot_be_recorded_is_not_sent(
    storage: Service, sqlite_url: str, headers: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = f"/data/{upload(storage)}/blob"
    down = DatabaseUnavailable("the database does not answer; try again")
    with monkeypatch.context() as patch:
        patch.setattr(storage.database, "begin", lambda: (_ for _ in ()).throw(down))
        for _ in range(2):
            answer = storage.get(path, headers=headers)
            assert answer.status_code == 503
            assert TEN[:2] not in answer.data
    assert storage.get(path, headers=headers).status_code < 300
    assert len(trail(storage.database)) == 2


def test_a_problem_that_is_changed(storage: Service) -> None:
    answer = storage.post("/problem", **form({"name": "n", "description": "d", "size": 3, "blob": b"old"}))
    old, new, (key,) = answer.json, str(uuid4()), list(storage.blobs._blobs)
    changed = storage.patch(f"/problem/{old['uuid']}", **form({"uuid": new, "size": 4, "blob": b"new!"}))
    assert changed.status_code == 200, changed.text
    was = {"old_id": old["uuid"], "old_sha256": old["sha256"]}
    assert told(storage.database, after=1) == [
        Told(
            USER,
            "artifact.changed",
            f"problem {new}",
            {"sha256": changed.json["sha256"], "size_bytes": 4, **was},
        ),
        Told(USER, "blob.deleted", f"blob {key}", {}),
    ]


def test_blobs_that_are_swept(sqlite: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("morpheo.artifacts.ORPHAN_AGE", -ORPHAN_AGE)
    bench = make_workbench(sqlite.url, tmp_path)
    bench.blobs.put("data/x/y", io.BytesIO(b"x"))
    kept = bench.store(ArtifactKind.DATA, b"x")
    bench.resources.sweeper.sweep_blobs()
    assert bench.read(ArtifactKind.DATA, kept) == b"x"
    assert told(sqlite, after=1) == [Told(f"sweeper:{socket.gethostname()}", "blob.deleted", "blob data/x/y", {})]
    bench.database.close()


def test_a_blob_whose_deletion_cannot_be_recorded_stays(sqlite: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("morpheo.artifacts.ORPHAN_AGE", -ORPHAN_AGE)
    blobs = MemoryBlobStore()
    blobs.put("data/x/y", io.BytesIO(b"x"))
    execute(sqlite, "DELETE FROM event_head")
    with pytest.raises(MorpheoError):
        ArtifactService(sqlite, blobs, max_blob_bytes=10).sweep()
    assert [blob.key for blob in blobs.list()] == ["data/x/y"]


def test_an_artifact_that_is_removed(database: Database) -> None:
    artifacts = ArtifactService(database, MemoryBlobStore(), max_blob_bytes=10)
    stored = artifacts.upload(Upload(kind=ArtifactKind.DATA, id=uuid4()), io.BytesIO(b"x"))
    for _ in range(2):
        with database.begin() as work:
            work.artifacts.remove(stored.kind, stored.id)
    assert [(event.action, event.detail["sha256"]) for event in told(database)] == [
        ("artifact.uploaded", stored.sha256),
        ("artifact.deleted", stored.sha256),
    ]


@pytest.fixture
def bench(sqlite_url: str, tmp_path: Path) -> Iterator[Workbench]:
    made = make_workbench(sqlite_url, tmp_path / "node")
    yield made
    made.database.close()


def test_a_job_from_its_order_to_its_end(bench: Workbench) -> None:
    compute = Service(create_compute_app, bench.database)
    spec = bench.learn_spec()
    before = len(trail(bench.database))
    for _ in range(2):
        assert compute.order(spec).status_code == 202
    job = bench.resources.runner.run(spec.id)
    assert job is not None
    worker = f"worker:{job.worker}"
    compute.replace(blobs=bench.blobs)
    assert compute.get(f"/jobs/{spec.id}/logs").status_code == 200
    assert compute.get(f"/jobs/{spec.id}").status_code == 200
    assert compute.post(f"/jobs/{spec.id}/cancel").status_code == 200
    events = told(bench.database, after=before)
    subject = f"job {spec.id}"
    assert [(event.actor, event.action, event.subject) for event in events] == [
        (USER, "job.ordered", subject),
        (worker, "job.claimed", subject),
        (worker, "job.succeeded", subject),
        (worker, "artifact.uploaded", f"model {spec.model_end}"),
        (USER, "job.logs_read", subject),
    ]
    # The claim tells which inputs the worker read: by the digest of an order that names them.
    assert events[1].detail["spec_sha256"] == spec_digest(bench.resources.jobs.get(spec.id).spec) == spec_digest(spec)


def test_a_job_that_is_cancelled_and_retried(bench: Workbench) -> None:
    compute = Service(create_compute_app, bench.database)
    spec = bench.learn_spec()
    before = len(trail(bench.database))
    compute.order(spec)
    assert compute.post(f"/jobs/{spec.id}/cancel").status_code == 200
    again = compute.post(f"/jobs/{spec.id}/retry").json["id"]
    assert [(event.action, event.subject) for event in told(bench.database, after=before)] == [
        ("job.ordered", f"job {spec.id}"),
        ("job.cancelled", f"job {spec.id}"),
        ("job.retried", f"job {spec.id}"),
        ("job.ordered", f"job {again}"),
    ]
    cancelled, retried = told(bench.database, after=before)[1:3]
    assert cancelled.detail["failure_cause"] == CANCELLED.cause
    assert retried.detail == {"by_job": again}


def test_a_job_whose_worker_is_lost(bench: Workbench) -> None:
    spec = bench.learn_spec()
    bench.resources.jobs.submit(spec)
    with bench.database.begin() as work:
        work.jobs.claim(spec.id, worker="w", lease_s=-1, max_attempts=3)
    bench.resources.sweeper.sweep_jobs()
    last = told(bench.database)[-1]
    assert (last.actor, last.action) == (f"sweeper:{socket.gethostname()}", "job.requeued")
    assert last.detail == {"attempt": 1, "outcome": "lost"}


def test_a_challenge_with_a_worker_that_is_not_ours(sqlite: Database) -> None:
    service = Service(create_orchestrator_app, sqlite)
    problem = str(uuid4())

    def stored(kind: ArtifactKind, artifact_id: str | None = None) -> str:
        return str(service.add_artifact(kind, UUID(artifact_id) if artifact_id else None).id)

    def post(path: str, **body: Any) -> Any:
        answer = service.post(path, json=body)
        assert answer.status_code in (200, 201), answer.text
        return answer.json

    test, train = stored(ArtifactKind.DATA), [stored(ArtifactKind.DATA) for _ in range(2)]
    workflow, algo = stored(ArtifactKind.PROBLEM), stored(ArtifactKind.ALGO)
    before = len(trail(sqlite))
    post("/problem", uuid=problem, workflow=workflow, test_dataset=[test], size_train_dataset=1)
    post("/algo", uuid=algo, name="a", problem=problem)
    for _ in range(2):
        post("/data", uuid=train, problems=[problem])
    first, second = sorted(service.get("/learnuplet").json["learnuplets"], key=lambda uplet: uplet["rank"])
    post(f"/worker/learnuplet/{first['uuid']}", worker="site-3")
    stored(ArtifactKind.MODEL, first["model_end"])
    scores = {"train_perf": {train[0]: 0.5}, "test_perf": {test: 0.5}}
    post(f"/learndone/{first['uuid']}", status="done", perf=0.5, **scores)
    post("/prediction", data=train[0], problem=problem)
    one, other = (f"job {uplet['uuid']}" for uplet in (first, second))
    outside = "outside:site-3"
    events = told(sqlite, after=before)
    assert [(event.actor, event.action, event.subject) for event in events if event.actor != "unknown"] == [
        (USER, "problem.registered", f"problem {problem}"),
        (USER, "algo.registered", f"algo {algo}"),
        (USER, "data.registered", f"problem {problem}"),
        (USER, "chain.extended", f"algo {algo}"),
        (USER, "job.released", one),
        (outside, "job.claimed", one),
        (outside, "job.succeeded", one),
        (outside, "job.released", other),
        (USER, "job.ordered", events[-1].subject),
    ]
    details = {event.action: event.detail for event in events}
    test_data = {"test_files": 1, "test_data": list_digest([test])}
    assert details["problem.registered"] == {"workflow": workflow, **test_data}
    assert details["algo.registered"] == {"problem": problem}
    assert details["data.registered"] == {"first_position": 0, "files": 2, "data": list_digest(train)}
    assert details["chain.extended"]["jobs"] == 2


# The commands.


@pytest.fixture
def run(database: Database, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Runs `morpheo audit` on the database."""
    monkeypatch.setenv("MORPHEO_DATABASE_URL", database.url)
    return lambda *arguments: CliRunner().invoke(morpheo, ["audit", *arguments])


def test_verify_says_that_the_trail_is_intact_and_where_it_ends(database: Database, run: Callable[..., Result]) -> None:
    result = run("verify")
    assert (result.exit_code, result.output) == (0, f"intact: 0 events\nhead 0:{'0' * 64}\n")
    record(database, 2)
    noted = run("verify").output.split()[-1]
    assert noted == f"2:{trail(database)[-1].digest}"
    record(database, 2500)
    assert run("verify", "--head", noted).exit_code == 0
    found = json.loads(run("verify", "--head", noted, "--json").output)
    assert found["intact"] is True
    assert found["events"] == 2502
    result = run("verify", "--head", "2:" + "f" * 64)
    assert result.exit_code == 1
    assert "event 2: not the head that was noted" in result.output


def without_triggers(database: Database, *statements: str) -> None:
    """Do what only somebody can do who administers the database."""
    with database.connect() as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(text("ALTER TABLE events DISABLE TRIGGER USER"))
        else:
            for action in ("update", "delete"):
                connection.execute(text(f"DROP TRIGGER events_no_{action}"))
        for statement in statements:
            connection.execute(text(statement))
        connection.commit()


@pytest.mark.parametrize(
    ("statements", "first", "last", "problem"),
    [
        (["UPDATE events SET actor = 'cli:b' WHERE seq = 3"], 3, 3, "changed"),
        (["UPDATE events SET at = at + 1 WHERE seq = 1"], 1, 1, "changed"),
        (["DELETE FROM events WHERE seq BETWEEN 2 AND 4"], 2, 4, "missing"),
        (["DELETE FROM events WHERE seq > 3"], 4, 5, "missing, at the end"),
        (["DELETE FROM events"], 1, 5, "missing, at the end"),
        (["DELETE FROM event_head"], 5, 5, "the head"),
        (["DELETE FROM events WHERE seq = 5", "UPDATE event_head SET seq = 4"], 4, 4, "the head"),
        (["UPDATE events SET seq = 9 WHERE seq = 2", "UPDATE events SET seq = 2 WHERE seq = 3"], 2, 2, "changed"),
        ([f"INSERT INTO events SELECT {COPIED} FROM events WHERE seq = 5"], 6, 6, "changed"),
    ],
)
def test_verify_finds_what_somebody_changed_who_administers_the_database(
    database: Database, run: Callable[..., Result], statements: list[str], first: int, last: int, problem: str
) -> None:
    record(database, 5)
    without_triggers(database, *statements)
    result = run("verify")
    assert result.exit_code == 1
    numbers = f"event {first}" if first == last else f"events {first} to {last}"
    assert result.output.startswith(f"{numbers}: {problem}")
    assert "not intact" in result.output
    flaw = json.loads(run("verify", "--json").output)["flaws"][0]
    assert (flaw["first"], flaw["last"], flaw["problem"].startswith(problem)) == (first, last, True)
    assert run("list").exit_code == 0


def test_list_shows_the_latest_and_what_was_asked_for(database: Database, run: Callable[..., Result]) -> None:
    record(database, 3, actor="worker:one")
    record(database, 2, actor="user:x")

    def numbers(*arguments: str) -> list[int]:
        result = run("list", "--json", *arguments)
        assert result.exit_code == 0, result.output
        return [event["seq"] for event in json.loads(result.output)]

    assert numbers() == [5, 4, 3, 2, 1]
    assert numbers("--limit", "2") == [5, 4]
    assert numbers("--actor", "worker:") == [3, 2, 1]
    assert numbers("--actor", "worker:o%") == []
    assert numbers("--subject", "1") == [5, 2]
    assert numbers("--subject", "1", "--actor", "user:x") == [5]
    assert numbers("--since", "2026-01-02") == [5, 4, 3, 2, 1]
    assert numbers("--since", "2999-01-02T03:04") == []
    assert json.loads(run("list", "--json", "--limit", "1").output) == [trail(database)[-1]._asdict()]
    shown = run("list", "--limit", "1").output
    assert "user:x" in shown
    assert "worker" not in shown


def test_a_head_must_be_one(run: Callable[..., Result]) -> None:
    assert run("verify", "--head", "abc").exit_code == 2


def test_backups_are_told_with_who_made_them(database: Database, tmp_path: Path, run: Callable[..., Result]) -> None:
    assert CliRunner().invoke(morpheo, ["backup", str(tmp_path / "b")]).exit_code == 0
    me = f"cli:{pwd.getpwuid(os.getuid()).pw_name}"
    assert told(database) == [Told(me, "backup.started", f"backup {tmp_path}/b", {})]
    assert run("verify").exit_code == 0
