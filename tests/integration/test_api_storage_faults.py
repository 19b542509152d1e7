"""The storage API when a problem is changed, and when what stands behind it fails: all or nothing."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

import pytest

from morpheo.api.storage import create_storage_app
from morpheo.errors import Conflict, DatabaseUnavailable, StorageUnavailable
from morpheo.models import NIL_UUID, Artifact, ArtifactKind
from morpheo.storage.artifacts import ArtifactRepository
from morpheo.storage.blobs import Source
from morpheo.storage.database import Database
from morpheo.testing import MemoryBlobStore
from tests.support.api import DownDatabase, Service, form

PREFIX = "[Error patching problem] "


@pytest.fixture
def storage(sqlite: Database) -> Service:
    return Service(create_storage_app, sqlite)


@pytest.fixture
def problem(storage: Service) -> UUID:
    answer = storage.post("/problem", **form({"name": "n", "description": "d", "size": 1, "blob": b"old"}))
    return UUID(answer.json["uuid"])


def blobs(storage: Service) -> list[bytes]:
    return [content for content, _ in storage.blobs._blobs.values()]


@pytest.mark.parametrize(
    ("fields", "changed"),
    [
        ({}, {}),
        ({"name": "new"}, {"name": "new"}),
        ({"description": "new"}, {"description": "new"}),
        ({"name": "a", "description": "b", "size": 0}, {"name": "a", "description": "b"}),
    ],
    ids=["nothing", "name", "description", "both"],
)
def test_the_words_of_a_problem_can_be_changed(
    storage: Service, problem: UUID, fields: dict[str, object], changed: dict[str, str]
) -> None:
    before = storage.get(f"/problem/{problem}").json
    answer = storage.patch(f"/problem/{problem}", **form(fields))
    assert answer.status_code == 200
    assert answer.json == {**before, **changed, "timestamp_upload": answer.json["timestamp_upload"]}
    assert answer.json["timestamp_upload"] >= before["timestamp_upload"]
    assert storage.get(f"/problem/{problem}").json == answer.json
    assert blobs(storage) == [b"old"]


def test_a_problem_can_get_another_id(storage: Service, problem: UUID) -> None:
    new = uuid4()
    answer = storage.patch(f"/problem/{problem}", **form({"uuid": new}))
    assert (answer.status_code, answer.json["uuid"]) == (200, str(new))
    assert storage.get(f"/problem/{problem}").status_code == 404
    assert storage.get(f"/problem/{new}/blob").data == b"old"


@pytest.mark.parametrize("uuid", [None, uuid4()], ids=["same-id", "new-id"])
def test_a_problem_can_get_another_blob_and_the_old_one_goes(
    storage: Service, problem: UUID, uuid: UUID | None
) -> None:
    fields = {**({"uuid": uuid} if uuid else {}), "size": 666, "blob": b"newer"}
    answer = storage.patch(f"/problem/{problem}", **form(fields))
    assert (answer.status_code, answer.json["size"], answer.json["name"]) == (200, 5, "n")
    assert storage.get(f"/problem/{uuid or problem}/blob").data == b"newer"
    assert blobs(storage) == [b"newer"]


@pytest.mark.parametrize(
    ("fields", "status", "message"),
    [
        ({"uuid": "{id}"}, 409, "[model] UUID {id} already exist in table 'problem'"),
        ({"uuid": "{other}", "size": 1, "blob": b"new"}, 409, "[model] UUID {other} already exist in table 'problem'"),
        ({"uuid": NIL_UUID}, 400, "Invalid form: 'UUID' unset. "),
        ({"uuid": "x"}, 400, "Error parsing UUID uuid: "),
        ({"name": ""}, 400, "Invalid form: 'Name' unset. "),
        ({"description": ""}, 400, "Invalid form: 'Description' unset. "),
        ({"blob": b"new"}, 400, "Invalid form: 'Size' unset. "),
        ({"size": 0, "blob": b"new"}, 400, "Invalid form: 'Size' unset. "),
        ({"size": 1, "blob": b""}, 400, "the blob is empty"),
        ({"owner": "x"}, 400, 'Unknown field "owner"'),
    ],
    ids=["own-id", "taken", "nil", "bad-id", "name", "description", "no-size", "zero-size", "empty", "unknown"],
)
def test_a_refused_change_changes_nothing(
    storage: Service, problem: UUID, fields: dict[str, object], status: int, message: str
) -> None:
    other = storage.add_artifact(ArtifactKind.PROBLEM).id
    before = storage.stored()
    ready = {
        name: str(value).format(id=problem, other=other) if name == "uuid" else value for name, value in fields.items()
    }
    answer = storage.patch(f"/problem/{problem}", **form(ready))
    assert answer.status_code == status
    assert answer.json["error"].startswith(PREFIX + message.format(id=problem, other=other))
    assert storage.stored() == before


@pytest.mark.parametrize(
    ("path", "status", "message"),
    [
        ("/problem/123", 400, "Impossible to parse UUID"),
        (f"/problem/{NIL_UUID}", 404, f"Error retrieving problem {NIL_UUID}: "),
        (f"/algo/{NIL_UUID}", 400, "only a problem can be changed"),
    ],
    ids=["bad-id", "unknown", "other-kind"],
)
def test_only_a_problem_that_is_there_can_be_changed(storage: Service, path: str, status: int, message: str) -> None:
    answer = storage.patch(path, **form({"name": "n"}))
    assert answer.status_code == status
    assert answer.json["error"].startswith(message)


def test_the_old_blob_is_served_when_the_new_one_breaks_off(storage: Service, problem: UUID) -> None:
    before = storage.stored()
    cut = form({"size": 1, "blob": b"new"}, end=b"")
    assert storage.patch(f"/problem/{problem}", **cut).status_code == 400
    assert storage.stored() == before
    assert storage.get(f"/problem/{problem}/blob").data == b"old"


@pytest.mark.parametrize("method", ["add", "replace"])
@pytest.mark.parametrize(
    ("fault", "status", "message"),
    [
        (DatabaseUnavailable("the database does not answer"), 503, "the database does not answer"),
        (Conflict("a row with that id exists"), 409, "already exist in table 'problem'"),
        (RuntimeError("secret"), 500, "an unexpected error; tell the operator this number: "),
    ],
    ids=["unavailable", "taken-meanwhile", "unexpected"],
)
def test_a_row_that_cannot_be_written_leaves_no_blob_and_one_document(
    storage: Service, problem: UUID, monkeypatch: pytest.MonkeyPatch,
    method: str, fault: Exception, status: int, message: str,
) -> None:  # fmt: skip
    def fail(*_args: object) -> Artifact:
        raise fault

    before = storage.stored()
    monkeypatch.setattr(ArtifactRepository, method, fail)
    request = form({"name": "n", "description": "d", "size": 3, "blob": b"new"})
    path, verb = ("/problem", "POST") if method == "add" else (f"/problem/{problem}", "PATCH")
    answer = storage.open(path, method=verb, **request)
    assert answer.status_code == status
    assert message in answer.json["error"]  # parsed: so it is one document
    monkeypatch.undo()
    assert storage.stored() == before


def test_a_blob_store_that_fails_half_way_leaves_no_row(storage: Service) -> None:
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
def test_a_database_that_is_down_is_never_a_404(storage: Service, method: str, path: str) -> None:
    storage.replace(database=DownDatabase("sqlite://"))
    request: dict[str, Any] = form({"uuid": uuid4(), "name": "n", "size": 1, "blob": b"x"}) if method == "POST" else {}
    answer = storage.open(path, method=method, **request)
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
    assert answer.json["error"] == "the database does not answer; try again"
    assert storage.blobs._blobs == {}


def test_an_unexpected_error_has_a_number_that_is_in_the_log_and_no_traceback(
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
