"""What stands behind the APIs fails: an answer that says so, and nothing half done."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest

from morpheo.api.compute import create_compute_app
from morpheo.api.orchestrator import create_orchestrator_app
from morpheo.api.storage import create_storage_app
from morpheo.errors import StorageUnavailable
from morpheo.models import NIL_UUID
from morpheo.storage.artifacts import ArtifactRepository
from morpheo.storage.blobs import Source
from morpheo.storage.database import Database
from morpheo.testing import MemoryBlobStore, make_learn_spec
from tests.support.api import DownDatabase, Service, form


@pytest.fixture
def storage(sqlite: Database) -> Service:
    return Service(create_storage_app, sqlite)


def test_65_a_blob_store_that_fails_half_way_leaves_no_row(storage: Service) -> None:
    class FullBlobs(MemoryBlobStore):
        def put(self, key: str, source: Source, *, length: int | None = None) -> int:
            source.read(1)
            raise StorageUnavailable("the blob folder cannot be used: No space left on device")

    before = storage.stored()
    storage.replace(blobs=FullBlobs())
    answer = storage.post("/data", **form({"size": 1, "blob": b"abc"}))
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
    assert storage.stored() == before


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/algo"), ("GET", f"/algo/{NIL_UUID}"), ("GET", f"/algo/{NIL_UUID}/blob"), ("POST", "/algo")],
    ids=["list", "item", "blob", "upload"],
)
def test_65_a_database_that_is_down_is_never_a_404(storage: Service, method: str, path: str) -> None:
    storage.replace(database=DownDatabase("sqlite://"))
    request: dict[str, Any] = form({"uuid": uuid4(), "name": "n", "size": 1, "blob": b"x"}) if method == "POST" else {}
    answer = storage.open(path, method=method, **request)
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
    assert answer.json["error"] == "the database does not answer; try again"
    assert storage.blobs._blobs == {}


def test_65_an_order_is_accepted_without_the_broker(sqlite: Database) -> None:
    compute, spec = Service(create_compute_app, sqlite), make_learn_spec()
    compute.add_needs(spec)
    compute.publisher.down = True
    assert compute.order(spec).status_code == 202


def test_65_an_order_is_not_accepted_without_the_database(sqlite: Database) -> None:
    compute = Service(create_compute_app, sqlite)
    compute.replace(database=DownDatabase("sqlite://"))
    answer = compute.order(make_learn_spec())
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
    assert answer.json["error"] == "the database does not answer; try again"


@pytest.mark.parametrize("create", [create_compute_app, create_orchestrator_app, create_storage_app])
def test_65_health_names_what_is_down_and_the_index_lives(sqlite: Database, create: Any) -> None:
    service = Service(create, sqlite)
    service.replace(database=DownDatabase("sqlite://"))
    answer = service.get("/health")
    assert (answer.status_code, answer.json["status"]) == (503, "unavailable")
    assert answer.json["checks"]["database"] == "the database does not answer; try again"
    assert service.get("/").status_code == 200


def test_66_an_unexpected_error_has_a_number_that_is_in_the_log_and_no_traceback(
    storage: Service, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_args: object, **_kwargs: object) -> None:
        raise RuntimeError("postgresql://user:secret@host/morpheo")

    monkeypatch.setattr(ArtifactRepository, "page", fail)
    answer = storage.get("/algo")
    assert answer.status_code == 500
    incident = answer.json["error"].rpartition(" ")[2]
    assert len(incident) == 32
    assert f"unexpected error {incident}" in caplog.text
    assert "Traceback" in caplog.text
    for secret in ("Traceback", "secret", "RuntimeError", ".py"):
        assert secret not in answer.text
