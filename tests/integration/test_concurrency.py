"""What comes at the same time, on both databases."""

from __future__ import annotations

import io
import os
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

import pytest

from morpheo.artifacts import ArtifactService, Upload
from morpheo.errors import Conflict, InvalidInput, TooLarge
from morpheo.jobs import JobService
from morpheo.models import ArtifactKind, Job, JobSpec
from morpheo.storage.database import Database
from morpheo.storage.local import LocalBlobStore
from morpheo.testing import MemoryBlobStore, make_learn_spec

T = TypeVar("T")


def at_once(action: Callable[[], T], times: int) -> list[T | Exception]:
    """Call an action from many threads at the same time; gives results and exceptions."""
    barrier = threading.Barrier(times)
    results: list[T | Exception] = []

    def call() -> None:
        barrier.wait()
        try:
            results.append(action())
        except Exception as exc:  # noqa: BLE001 - looked at by the test
            results.append(exc)

    threads = [threading.Thread(target=call) for _ in range(times)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_the_same_order_at_the_same_time_is_one_job(database: Database) -> None:
    blobs = MemoryBlobStore()
    artifacts = ArtifactService(database, blobs, max_blob_bytes=100)
    spec = make_learn_spec()
    for kind, ids in spec.needs().values():
        for artifact_id in ids:
            artifacts.upload(Upload(kind=kind, id=artifact_id), io.BytesIO(b"x"))
    published: list[JobSpec] = []
    database.attach(publish=published.extend)
    service = JobService(database, blobs)
    results = at_once(lambda: service.submit(spec), 8)
    assert all(isinstance(result, Job) for result in results), results
    assert published == [spec]


def test_one_of_many_uploads_with_the_same_id_wins(database: Database) -> None:
    blobs = MemoryBlobStore()
    artifacts = ArtifactService(database, blobs, max_blob_bytes=100)
    spec = make_learn_spec()
    upload = Upload(kind=ArtifactKind.DATA, id=spec.id)
    results = at_once(lambda: artifacts.upload(upload, io.BytesIO(os.urandom(8))), 8)
    assert sum(isinstance(result, Conflict) for result in results) == 7
    assert [blob.key for blob in blobs.list()] == [artifacts.get(ArtifactKind.DATA, spec.id).blob_key]


@pytest.mark.parametrize("announce", [True, False], ids=["announced", "unannounced"])
def test_a_blob_over_the_limit_is_refused(sqlite: Database, announce: bool) -> None:
    blobs = MemoryBlobStore()
    artifacts = ArtifactService(sqlite, blobs, max_blob_bytes=100)
    source = io.BytesIO(b"x" * 101)
    with pytest.raises(TooLarge, match="larger than 100"):
        artifacts.upload(
            Upload(kind=ArtifactKind.DATA, id=make_learn_spec().id), source, length=101 if announce else None
        )
    assert list(blobs.list()) == []
    assert (source.tell() == 0) == announce


def test_an_empty_blob_is_refused(sqlite: Database) -> None:
    blobs = MemoryBlobStore()
    artifacts = ArtifactService(sqlite, blobs, max_blob_bytes=100)
    with pytest.raises(InvalidInput, match="empty"):
        artifacts.upload(Upload(kind=ArtifactKind.DATA, id=make_learn_spec().id), io.BytesIO())
    assert list(blobs.list()) == []


def test_temporary_files_of_dead_processes_are_removed_and_those_of_living_ones_are_not(tmp_path: Path) -> None:
    incoming = tmp_path / "incoming"
    incoming.mkdir()
    for name, age_s in (("dead", 2 * 24 * 3600), ("alive", 60)):
        (incoming / name).touch()
        os.utime(incoming / name, (time.time() - age_s,) * 2)
    assert LocalBlobStore(tmp_path).sweep(datetime.now(UTC) - timedelta(days=1)) == 1
    assert [path.name for path in incoming.iterdir()] == ["alive"]
