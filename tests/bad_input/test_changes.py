"""Changes of a problem that cannot be made: all of it stays as it was."""

from __future__ import annotations

from uuid import UUID

import pytest

from morpheo.api.storage import create_storage_app
from morpheo.models import NIL_UUID, ArtifactKind
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
def test_47_a_refused_change_changes_nothing(
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


def test_47_the_old_blob_is_served_when_the_new_one_breaks_off(storage: Service, problem: UUID) -> None:
    before = storage.stored()
    cut = form({"size": 1, "blob": b"new"}, end=b"")
    assert storage.patch(f"/problem/{problem}", **cut).status_code == 400
    assert storage.stored() == before
    assert storage.get(f"/problem/{problem}/blob").data == b"old"


def test_47_a_change_of_nothing_is_fine(storage: Service, problem: UUID) -> None:
    assert storage.patch(f"/problem/{problem}", **form({})).status_code == 200
    assert storage.get(f"/problem/{problem}/blob").data == b"old"
