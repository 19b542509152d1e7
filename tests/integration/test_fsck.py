"""`morpheo fsck` on every database and blob store: what it finds, what it repairs, and what it leaves alone."""

from __future__ import annotations

import io
import json
import os
import time
from datetime import timedelta
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from click.testing import CliRunner

from morpheo import fsck as fsck_module
from morpheo.artifacts import CHANGED, LOST, ArtifactService, Upload
from morpheo.cli import morpheo
from morpheo.errors import Conflict
from morpheo.fsck import Damage, Finding, Fsck
from morpheo.models import Artifact, ArtifactKind
from morpheo.storage import migrate
from morpheo.storage.blobs import BlobStore
from morpheo.storage.database import Database
from morpheo.storage.local import LocalBlobStore
from tests.support.workbench import make_workbench

#: Everything is older.
ALL = timedelta(minutes=-1)


@pytest.fixture(autouse=True)
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fsck_module, "BATCH", 3)


@pytest.fixture
def artifacts(database: Database, blobs: BlobStore) -> ArtifactService:
    return ArtifactService(database, blobs, max_blob_bytes=1000)


def store(artifacts: ArtifactService, kind: ArtifactKind = ArtifactKind.DATA, content: bytes = b"some") -> Artifact:
    return artifacts.upload(Upload(kind=kind, id=uuid4(), name="n", description="d"), io.BytesIO(content))


def check(database: Database, blobs: BlobStore, *, grace: timedelta = ALL, **options: bool) -> list[Finding]:
    artifacts = ArtifactService(database, blobs, max_blob_bytes=1000)
    options = {"read": False, "repair": False, "force": False, **options}
    return list(
        Fsck(
            database,
            blobs,
            artifacts,
            grace=grace,
            read=options["read"],
            repair=options["repair"],
            force=options["force"],
        ).run()
    )


def found(findings: list[Finding]) -> set[tuple[Damage, str]]:
    assert len({item.key for item in findings}) == len(findings)
    return {(item.damage, item.key) for item in findings}


def put(blobs: BlobStore, key: str, content: bytes) -> str:
    blobs.delete(key)
    blobs.put(key, io.BytesIO(content))
    return key


@pytest.fixture
def many(artifacts: ArtifactService) -> dict[ArtifactKind, list[Artifact]]:
    """More than a page of each kind, all whole."""
    return {kind: [store(artifacts, kind) for _ in range(5)] for kind in ArtifactKind}


def test_what_is_whole_is_not_complained_of(
    database: Database, blobs: BlobStore, artifacts: ArtifactService, many: dict[ArtifactKind, list[Artifact]]
) -> None:
    old = many[ArtifactKind.PROBLEM][0]
    artifacts.change(old, Artifact(**{**vars(old), "id": uuid4()}))  # its blob keeps its key, with the old id
    everything = Fsck(database, blobs, artifacts, grace=ALL, read=True, repair=True)
    assert list(everything.run()) == []
    assert (everything.counts.artifacts, everything.counts.blobs) == (25, 25)
    assert everything.counts.bytes_read == 25 * 4


def test_all_that_is_wrong_is_found_and_what_is_safe_is_repaired(
    database: Database, blobs: BlobStore, artifacts: ArtifactService, many: dict[ArtifactKind, list[Artifact]]
) -> None:
    data, models = many[ArtifactKind.DATA], many[ArtifactKind.MODEL]
    lost, cut, altered, quarantined, healed = data[0], data[1], models[2], models[3], models[4]
    blobs.delete(lost.blob_key)
    put(blobs, cut.blob_key, b"som")
    put(blobs, altered.blob_key, b"same")
    put(blobs, quarantined.blob_key, b"xxxx")
    artifacts.quarantine(quarantined, "a test")
    artifacts.quarantine(healed, "a test")
    orphans = [put(blobs, f"data/{uuid4()}/x", b"x"), put(blobs, f"data/{data[3].id}/other", b"x")]
    log = put(blobs, f"logs/{uuid4()}/1/train", b"x")
    wrong = {
        (Damage.LOST, lost.blob_key),
        (Damage.CHANGED, cut.blob_key),
        (Damage.QUARANTINED, quarantined.blob_key),
        (Damage.WHOLE, healed.blob_key),
        *((Damage.ORPHAN, key) for key in [*orphans, log]),
    }
    before = sorted(blob.key for blob in blobs.list())
    assert found(check(database, blobs)) == wrong
    assert found(check(database, blobs, read=True)) == {*wrong, (Damage.CHANGED, altered.blob_key)}
    assert sorted(blob.key for blob in blobs.list()) == before
    assert artifacts.get(lost.kind, lost.id) == lost

    assert found(check(database, blobs, read=True, repair=True)) == {*wrong, (Damage.CHANGED, altered.blob_key)}
    assert sorted(blob.key for blob in blobs.list()) == sorted(set(before) - {*orphans, log})
    assert artifacts.get(lost.kind, lost.id).quarantine == LOST
    assert artifacts.get(cut.kind, cut.id).quarantine == artifacts.get(altered.kind, altered.id).quarantine == CHANGED
    assert artifacts.get(healed.kind, healed.id).quarantine == ""
    after = check(database, blobs)
    assert found(after) == {(Damage.QUARANTINED, item.blob_key) for item in (lost, cut, altered, quarantined)}
    assert not any(item.right for item in after)


def test_young_blobs_are_uploads_under_way(database: Database, blobs: BlobStore, artifacts: ArtifactService) -> None:
    store(artifacts)
    put(blobs, f"data/{uuid4()}/x", b"x")
    put(blobs, f"logs/{uuid4()}/1/train", b"x")
    assert check(database, blobs, grace=timedelta(hours=1), repair=True) == []
    assert len(list(blobs.list())) == 3


@pytest.mark.parametrize("rows", [True, False], ids=["other-rows", "no-rows"])
def test_a_database_of_another_store_removes_nothing(
    database: Database, blobs: BlobStore, artifacts: ArtifactService, rows: bool
) -> None:
    key = put(blobs, f"data/{uuid4()}/x", b"x")
    if rows:
        artifact = store(artifacts)
        blobs.delete(artifact.blob_key)
    with pytest.raises(Conflict, match="right database"):
        check(database, blobs, repair=True)
    assert [blob.key for blob in blobs.list()] == [key]
    assert len(check(database, blobs, repair=True, force=True)) == 1 + rows
    assert list(blobs.list()) == []


def test_what_changes_meanwhile_is_not_complained_of(
    database: Database, blobs: BlobStore, artifacts: ArtifactService, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = store(artifacts, ArtifactKind.PROBLEM)
    whole = artifacts.put_blob(Upload(kind=first.kind, id=first.id, name="n", description="d"), io.BytesIO(b"new"))
    rows = Fsck._rows

    def late(self: Fsck, kind: ArtifactKind, last: Artifact | None) -> list[Artifact]:
        page = rows(self, kind, last)
        if page and page[0] == first:
            artifacts.change(first, whole)  # the row is read, and then replaced
        return page

    monkeypatch.setattr(Fsck, "_rows", late)
    assert check(database, blobs, read=True, repair=True) == []
    assert artifacts.get(first.kind, first.id).quarantine == ""
    assert [blob.key for blob in blobs.list()] == [whole.blob_key]


def test_logs_that_are_lost_are_named_and_those_of_jobs_are_kept(sqlite_url: str, tmp_path: Path) -> None:
    bench = make_workbench(sqlite_url, tmp_path / "node")
    spec = bench.learn_spec()
    bench.resources.jobs.submit(spec)
    bench.resources.runner.run(spec.id)
    assert check(bench.database, bench.blobs, read=True, repair=True) == []
    logs = [blob.key for blob in bench.blobs.list("logs/")]
    assert len(logs) > 3
    put(bench.blobs, f"logs/{spec.id}/7/train", b"of an attempt whose worker died")
    bench.blobs.delete(logs[0])
    put(bench.blobs, logs[1] + "/0001", b"in pieces")
    bench.blobs.delete(logs[1])
    findings = check(bench.database, bench.blobs, repair=True)
    assert found(findings) == {(Damage.LOST_LOG, logs[0])}


@pytest.fixture
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MORPHEO_DATA_DIR", str(tmp_path / "data"))
    return tmp_path / "data"


def test_the_command_prints_all_that_it_does_and_its_status_tells(data_dir: Path) -> None:
    runner = CliRunner()
    database, blobs = Database(f"sqlite:///{data_dir / 'morpheo.db'}"), LocalBlobStore(data_dir)
    migrate.upgrade(database)
    artifacts = ArtifactService(database, blobs, max_blob_bytes=1000)
    kept, lost = store(artifacts), store(artifacts)
    blobs.delete(lost.blob_key)
    orphan = put(blobs, f"data/{UUID(int=1)}/x", b"x")
    (data_dir / "incoming" / "dead").touch()
    for path in (data_dir / "blobs" / orphan, data_dir / "incoming" / "dead"):
        os.utime(path, (time.time() - 2 * 86400,) * 2)
    cached = data_dir / "cache" / "blobs" / "sha256" / kept.sha256
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"damaged")

    result = runner.invoke(morpheo, ["fsck", "--cache"])
    assert result.exit_code == 1
    assert f"lost {lost.blob_key}: data {lost.id}: {LOST}" in result.stdout
    assert f"orphan {orphan}: " in result.stdout
    assert f"cache {kept.sha256}: " in result.stdout
    assert "(" not in result.stdout.partition("orphan")[0]

    result = runner.invoke(morpheo, ["fsck", "--repair", "--cache", "--read", "--json"])
    *lines, summary = [json.loads(line) for line in result.stdout.splitlines()]
    assert result.exit_code == 1
    assert {(line["damage"], line["key"], line.get("done", "")[:7]) for line in lines} == {
        ("lost", lost.blob_key, "put int"),
        ("orphan", orphan, "removed"),
        ("unfinished", "", "removed"),
        ("cache", kept.sha256, ""),
    }
    assert summary == {"wrong": 1, "artifacts": 2, "blobs": 2, "logs": 0, "bytes_read": 4}
    assert not cached.exists()
    assert list((data_dir / "incoming").iterdir()) == []

    artifacts.upload(Upload(kind=lost.kind, id=lost.id), io.BytesIO(b"some"))
    result = runner.invoke(morpheo, ["fsck", "--read", "--cache"])
    assert (result.exit_code, result.stdout) == (0, "")
    database.close()
