"""The storage API when a problem is changed, and when what stands behind it fails: all or nothing."""

from __future__ import annotations

from uuid import UUID, uuid4

import pytest

from morpheo.api.storage import create_storage_app
from morpheo.errors import Conflict, DatabaseUnavailable
from morpheo.models import NIL_UUID, Artifact
from morpheo.storage.artifacts import ArtifactRepository
from morpheo.storage.database import Database
from tests.support.api import Service, form

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
