"""What happens to an artifact whose blob is lost or damaged, and how it is repaired."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from morpheo.api.compute import create_compute_app
from morpheo.api.storage import create_storage_app
from morpheo.artifacts import ArtifactService, Upload
from morpheo.audit import Action
from morpheo.errors import Conflict, CorruptBlob, Quarantined
from morpheo.models import Artifact, ArtifactKind, Cause, Job, JobState, LearnSpec
from morpheo.storage.blobs import BlobStore
from morpheo.storage.database import Database
from morpheo.testing import MemoryBlobStore, make_learn_spec
from tests.support.api import Service
from tests.support.trail import told
from tests.support.workbench import Workbench, make_workbench

TEN = b"0123456789"


def damage(blobs: MemoryBlobStore, artifact: Artifact) -> None:
    blobs._blobs[artifact.blob_key] = b"x" * artifact.size_bytes, datetime.now(UTC)


def cut(blobs: MemoryBlobStore, artifact: Artifact) -> None:
    blobs._blobs[artifact.blob_key] = TEN[:5], datetime.now(UTC)


def lose(blobs: MemoryBlobStore, artifact: Artifact) -> None:
    del blobs._blobs[artifact.blob_key]


@pytest.fixture
def storage(sqlite: Database) -> Service:
    return Service(create_storage_app, sqlite)


def upload(service: Service, content: bytes, artifact_id: UUID) -> int:
    query = {"uuid": str(artifact_id)}
    return int(
        service.post("/data", query_string=query, data=content, content_type="application/octet-stream").status_code
    )


def find(service: Service, artifact_id: UUID) -> Artifact:
    return service.resources.artifacts.get(ArtifactKind.DATA, artifact_id)


@pytest.mark.parametrize("headers", [{}, {"Want-Repr-Digest": "sha-256=1"}], ids=["plain", "digest"])
@pytest.mark.parametrize("fault", [damage, cut, lose])
def test_a_download_that_finds_it_out_is_cut_off_and_the_next_one_is_told(
    storage: Service, fault: Callable[[MemoryBlobStore, Artifact], None], headers: dict[str, str]
) -> None:
    artifact_id = uuid4()
    assert upload(storage, TEN, artifact_id) == 201
    fault(storage.blobs, find(storage, artifact_id))
    if fault is lose:
        assert storage.get(f"/data/{artifact_id}/blob", headers=headers).status_code == 500
    elif fault is damage and headers:
        assert storage.get(f"/data/{artifact_id}/blob", headers=headers).data == b"x" * 10  # its client compares
        return
    else:
        with pytest.raises(CorruptBlob):
            _ = storage.get(f"/data/{artifact_id}/blob", headers=headers).data
    again = storage.get(f"/data/{artifact_id}/blob", headers=headers)
    assert again.status_code == 410
    assert f"data {artifact_id} is in quarantine" in again.json["error"]
    assert f"upload it again under its id (sha256 {hashlib.sha256(TEN).hexdigest()})" in again.json["error"]
    shown = storage.get(f"/data/{artifact_id}").json
    assert shown["quarantine"] in again.json["error"]


@pytest.mark.parametrize("fault", [damage, lose])
def test_the_same_bytes_repair_it_and_no_others(
    storage: Service, fault: Callable[[MemoryBlobStore, Artifact], None]
) -> None:
    artifact_id = uuid4()
    upload(storage, TEN, artifact_id)
    before = find(storage, artifact_id)
    fault(storage.blobs, before)
    storage.resources.artifacts.quarantine(before, "a test")
    damaged = dict(storage.blobs._blobs)
    assert upload(storage, b"other", artifact_id) == 409
    assert find(storage, artifact_id).quarantine == "a test"
    assert dict(storage.blobs._blobs) == damaged  # the damaged one is kept, what was refused is not
    assert upload(storage, TEN, artifact_id) == 201
    after = find(storage, artifact_id)
    assert (after.quarantine, after.sha256, after.created_at) == ("", before.sha256, before.created_at)
    assert storage.get(f"/data/{artifact_id}/blob").data == TEN
    assert list(storage.blobs._blobs) == [after.blob_key]
    assert upload(storage, TEN, artifact_id) == 409  # it is whole again: the id is taken, as ever


def test_what_a_repair_removes_is_in_the_audit_trail(sqlite: Database, blobs: BlobStore) -> None:
    artifacts = ArtifactService(sqlite, blobs, max_blob_bytes=100)
    wanted = Upload(kind=ArtifactKind.DATA, id=uuid4())
    old = artifacts.upload(wanted, io.BytesIO(TEN))
    artifacts.quarantine(old, "a test")
    artifacts.upload(wanted, io.BytesIO(TEN))
    assert [item.subject for item in told(sqlite) if item.action == Action.BLOB_DELETED] == [f"blob {old.blob_key}"]


def test_an_order_that_needs_it_is_refused(sqlite: Database) -> None:
    service = Service(create_compute_app, sqlite)
    spec = make_learn_spec()
    service.add_needs(spec)
    artifacts = ArtifactService(sqlite, service.blobs, max_blob_bytes=100)
    artifacts.quarantine(artifacts.get(ArtifactKind.DATA, spec.train_data[0]), "a test")
    answer = service.order(spec)
    assert answer.status_code == 410
    assert f"data {spec.train_data[0]} is in quarantine: a test" in answer.json["error"]
    assert service.publisher.published == []


@pytest.fixture
def bench(sqlite_url: str, tmp_path: Path) -> Workbench:
    return make_workbench(sqlite_url, tmp_path / "node")


def run(bench: Workbench, spec: LearnSpec) -> Job:
    bench.resources.jobs.submit(spec)
    job = bench.resources.runner.run(spec.id)
    assert job is not None
    return job


@pytest.mark.parametrize("fault", [damage, cut, lose])
@pytest.mark.parametrize("kind", [ArtifactKind.DATA, ArtifactKind.ALGO])
def test_a_job_that_finds_it_out_ends_at_once_and_the_next_one_is_refused(
    bench: Workbench, kind: ArtifactKind, fault: Callable[[MemoryBlobStore, Artifact], None]
) -> None:
    spec = bench.learn_spec(train_data=(bench.store(ArtifactKind.DATA, b"only:here"),))
    artifact = bench.resources.artifacts.get(kind, spec.algo if kind is ArtifactKind.ALGO else spec.train_data[0])
    fault(bench.blobs, artifact)
    kept = bench.blobs._blobs.get(artifact.blob_key)
    job = run(bench, spec)
    assert (job.state, job.attempt) == (JobState.FAILED, 1)
    assert job.failure is not None
    assert job.failure.cause is Cause.CORRUPT_ARTIFACT
    assert f"{kind} {artifact.id}" in job.failure.message
    assert bench.blobs._blobs.get(artifact.blob_key) == kept
    with pytest.raises(Quarantined, match=str(artifact.id)):
        bench.resources.jobs.submit(bench.learn_spec(algo=spec.algo, train_data=spec.train_data))


def test_a_job_that_was_ordered_before_ends_too_even_if_this_machine_has_the_bytes(bench: Workbench) -> None:
    spec = bench.learn_spec()
    assert run(bench, spec).state is JobState.SUCCEEDED
    again = bench.learn_spec(algo=spec.algo, train_data=spec.train_data)
    bench.resources.jobs.submit(again)
    artifact = bench.resources.artifacts.get(ArtifactKind.DATA, spec.train_data[0])
    bench.resources.artifacts.quarantine(artifact, "a test")
    job = bench.resources.runner.run(again.id)
    assert job is not None
    assert job.failure is not None
    assert (job.failure.cause, str(artifact.id) in job.failure.message) == (Cause.CORRUPT_ARTIFACT, True)


def test_what_was_replaced_meanwhile_is_not_put_into_quarantine(sqlite: Database, blobs: BlobStore) -> None:
    artifacts = ArtifactService(sqlite, blobs, max_blob_bytes=100)
    first = artifacts.upload(
        Upload(kind=ArtifactKind.PROBLEM, id=uuid4(), name="n", description="d"), io.BytesIO(b"old")
    )
    second = artifacts.put_blob(Upload(kind=first.kind, id=first.id, name="n", description="d"), io.BytesIO(b"new"))
    artifacts.change(first, second)
    artifacts.quarantine(first, "its blob is not in the store")  # by a reader who was late
    assert artifacts.get(first.kind, first.id).quarantine == ""


def test_two_who_repair_at_once_leave_one_blob(sqlite: Database, blobs: BlobStore) -> None:
    artifacts = ArtifactService(sqlite, blobs, max_blob_bytes=100)
    wanted = Upload(kind=ArtifactKind.DATA, id=uuid4())
    artifacts.quarantine(artifacts.upload(wanted, io.BytesIO(TEN)), "a test")

    class Meanwhile(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            piece = super().read(size)
            if not piece:
                artifacts.upload(wanted, io.BytesIO(TEN))
            return piece

    with pytest.raises(Conflict, match="already exist"):
        artifacts.upload(wanted, Meanwhile(TEN))
    assert [blob.key for blob in blobs.list()] == [artifacts.get(wanted.kind, wanted.id).blob_key]
