"""The storage API: the routes, statuses and words that clients of 2017 know."""

from __future__ import annotations

import re
from typing import Any
from uuid import UUID, uuid4

import pytest
from werkzeug.datastructures import Headers

from morpheo.api.storage import create_storage_app
from morpheo.errors import StorageUnavailable
from morpheo.models import NIL_UUID, ArtifactKind
from morpheo.storage.database import Database
from morpheo.testing import MemoryBlobStore
from tests.support.api import DownDatabase, Service, basic, form

ABC_SHA256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
MAKE_SURE = "Make sure that each form field is sent before blob in the multipart/form"
#: A complete form of each kind but model, which has none.
FORMS: dict[ArtifactKind, dict[str, object]] = {
    ArtifactKind.PROBLEM: {"name": "n", "description": "d", "size": 666, "blob": b"abc"},
    ArtifactKind.ALGO: {"name": "n", "size": 666, "blob": b"abc"},
    ArtifactKind.DATA: {"size": 666, "blob": b"abc"},
    ArtifactKind.PREDICTION: {"size": 666, "blob": b"abc"},
}


@pytest.fixture
def storage(sqlite: Database) -> Service:
    return Service(create_storage_app, sqlite)


@pytest.fixture
def algo(storage: Service) -> UUID:
    return storage.add_artifact(ArtifactKind.ALGO).id


def error(answer: Any) -> str:
    assert answer.content_type == "application/problem+json"
    assert answer.json["status"] == answer.status_code
    assert answer.json["detail"] == answer.json["error"]
    return str(answer.json["error"])


def test_the_index_lists_the_routes_in_the_order_of_2017(storage: Service) -> None:
    kinds = ("problem", "data", "algo", "model", "prediction")
    templates = [f"/{kind}{rest}" for kind in kinds for rest in ("", "/:uuid", "/:uuid/blob")]
    assert storage.get("/").json == ["/", "/health", *templates]


def test_health_is_ok_when_database_and_blobs_are(storage: Service) -> None:
    answer = storage.get("/health")
    assert (answer.status_code, answer.json["status"]) == (200, "ok")


@pytest.mark.parametrize(
    ("down", "part"), [("database", DownDatabase("sqlite://")), ("blobs", None)], ids=["database", "blobs"]
)
def test_health_names_what_is_down(storage: Service, down: str, part: object) -> None:
    class DownBlobs(MemoryBlobStore):
        def check(self) -> None:
            raise StorageUnavailable("the blob store does not answer")

    storage.replace(**{down: part or DownBlobs()})
    answer = storage.get("/health")
    assert answer.status_code == 503
    assert answer.json["status"] == "unavailable"
    assert [name for name, state in answer.json["checks"].items() if state != "ok"] == [down]


@pytest.mark.parametrize("kind", FORMS, ids=str)
def test_a_form_is_stored_and_answered_with_its_metadata(storage: Service, kind: ArtifactKind) -> None:
    given = uuid4()
    answer = storage.post(f"/{kind}", **form({"uuid": given, **FORMS[kind]}))
    assert answer.status_code == 201
    words = {key: value for key, value in FORMS[kind].items() if key in ("name", "description")}
    assert answer.json == {
        "uuid": str(given),
        "timestamp_upload": answer.json["timestamp_upload"],
        **words,
        "size": 3,
        "sha256": ABC_SHA256,
    }
    assert isinstance(answer.json["timestamp_upload"], int)
    assert storage.get(f"/{kind}/{given}").json == answer.json
    assert storage.get(f"/{kind}/{given}/blob").data == b"abc"


def test_a_model_is_a_raw_body_with_its_algo_in_the_query(storage: Service, algo: UUID) -> None:
    given = uuid4()
    answer = storage.post(f"/model?algo={algo}&uuid={given}", data=b"abc")
    assert answer.status_code == 201
    expected = {"uuid": str(given), "algo": str(algo), "size": 3, "sha256": ABC_SHA256}
    assert {key: value for key, value in answer.json.items() if key != "timestamp_upload"} == expected


@pytest.mark.parametrize("kind", FORMS, ids=str)
def test_every_kind_can_be_a_raw_body_with_its_words_in_the_query(storage: Service, kind: ArtifactKind) -> None:
    words = {key: value for key, value in FORMS[kind].items() if key in ("name", "description")}
    answer = storage.post(f"/{kind}", query_string=words, data=b"abc", content_type="application/octet-stream")
    assert answer.status_code == 201
    assert (answer.json["sha256"], answer.json.get("name")) == (ABC_SHA256, words.get("name"))


@pytest.mark.parametrize("uuid", ["", f"&uuid={NIL_UUID}"], ids=["absent", "nil"])
def test_a_model_without_an_id_gets_one(storage: Service, algo: UUID, uuid: str) -> None:
    answer = storage.post(f"/model?algo={algo}{uuid}", data=b"abc")
    assert UUID(answer.json["uuid"]).version == 4


def test_a_form_without_an_id_gets_one(storage: Service) -> None:
    assert UUID(storage.post("/data", **form(FORMS[ArtifactKind.DATA])).json["uuid"]).version == 4


def test_fields_may_come_in_any_order_and_the_last_of_two_wins(storage: Service) -> None:
    fields = [("size", 1), ("description", "d"), ("name", "first"), ("name", "second"), ("blob", b"abc")]
    assert storage.post("/problem", **form(fields)).json["name"] == "second"


def test_what_follows_the_blob_is_ignored(storage: Service) -> None:
    answer = storage.post("/data", **form({"size": 1, "blob": b"abc", "name": "late", "other": "x"}))
    assert (answer.status_code, answer.json["size"]) == (201, 3)


@pytest.mark.parametrize("kind", FORMS, ids=str)
def test_a_taken_id_is_a_conflict_in_the_words_of_2017(storage: Service, kind: ArtifactKind) -> None:
    taken = storage.add_artifact(kind).id
    before = storage.stored()
    answer = storage.post(f"/{kind}", **form({"uuid": taken, **FORMS[kind]}))
    assert answer.status == "409 Conflict"  # not CONFLICT: a client looks for these letters
    assert error(answer) == f"[Error uploading {kind}] [model] UUID {taken} already exist in table '{kind}'"
    assert storage.stored() == before


def test_the_same_id_may_be_used_once_in_each_kind(storage: Service) -> None:
    taken = storage.add_artifact(ArtifactKind.ALGO).id
    assert storage.post("/data", **form({"uuid": taken, "size": 1, "blob": b"x"})).status_code == 201


def test_a_model_is_not_overwritten(storage: Service, algo: UUID) -> None:
    taken = storage.add_artifact(ArtifactKind.MODEL, algo=algo).id
    before = storage.stored()
    answer = storage.post(f"/model?algo={algo}&uuid={taken}", data=b"abc")
    assert answer.status == "409 Conflict"
    assert error(answer) == f"[Error uploading model] [model] UUID {taken} already exist in table 'model'"
    assert storage.stored() == before


UNKNOWN = uuid4()


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        ("data", {"name": "n"}, f"name is not a valid field for data. {MAKE_SURE}"),
        ("prediction", {"description": "d"}, f"description is not a valid field for prediction. {MAKE_SURE}"),
        ("algo", {"name": "n", "description": "d"}, f"description is not a valid field for algo. {MAKE_SURE}"),
        ("algo", {"description": "d"}, f"description is not a valid field for algo. {MAKE_SURE}"),
        ("data", {"uuid": NIL_UUID}, f"'UUID' unset. {MAKE_SURE}"),
        ("problem", {"uuid": NIL_UUID}, f"'UUID' unset. {MAKE_SURE}"),
        ("problem", {"description": "d"}, f"'Name' unset. {MAKE_SURE}"),
        ("problem", {"name": "", "description": ""}, f"'Name' unset. {MAKE_SURE}"),
        ("problem", {"name": "n"}, f"'Description' unset. {MAKE_SURE}"),
        ("algo", {"size": 0}, f"'Name' unset. {MAKE_SURE}"),
        ("algo", {"name": "n", "size": 0}, f"'Size' unset. {MAKE_SURE}"),
        ("data", {}, f"'Size' unset. {MAKE_SURE}"),
    ],
    ids=[
        "name-of-data", "description-of-prediction", "description-of-algo", "invalid-before-unset", "nil-uuid",
        "uuid-before-name", "name", "name-before-description", "description", "name-before-size", "zero-size",
        "no-size",
    ],
)  # fmt: skip
def test_a_form_is_checked_in_the_order_of_2017(
    storage: Service, kind: str, fields: dict[str, object], message: str
) -> None:
    before = storage.stored()
    answer = storage.post(f"/{kind}", **form({**fields, "blob": b"abc"}))
    assert answer.status_code == 400
    assert error(answer) == f"[Error uploading {kind}] Invalid form: {message}"
    assert storage.stored() == before


@pytest.mark.parametrize(
    ("fields", "status", "message"),
    [
        ([("uuid", "{taken}"), ("owner", "x")], 409, "[model] UUID {taken} already exist in table 'algo'"),
        ([("owner", "x"), ("uuid", "{taken}")], 400, 'Unknown field "owner"'),
        ([("uuid", "x"), ("name", "x" * 256)], 400, "Error parsing UUID uuid: "),
        (
            [("name", "x" * 256), ("uuid", "x")],
            400,
            "Error reading Name: Buffer overflow reading name (max length is 255",
        ),
        ([("size", "1.5"), ("uuid", "{taken}")], 400, "Error parsing size field to integer: "),
        ([("name", "n")], 400, "Premature EOF while parsing request"),
        ([("blob", b"x"), ("name", "n")], 400, "Invalid form: 'Name' unset. " + MAKE_SURE),
    ],
    ids=["taken-first", "unknown-first", "uuid-first", "name-first", "size-first", "no-blob", "blob-too-early"],
)
def test_parts_are_judged_as_they_come(
    storage: Service, algo: UUID, fields: list[tuple[str, object]], status: int, message: str
) -> None:
    ready = [(name, value.format(taken=algo) if isinstance(value, str) else value) for name, value in fields]
    answer = storage.post("/algo", **form(ready))
    assert answer.status_code == status
    assert error(answer).startswith("[Error uploading algo] " + message.format(taken=algo))


def test_an_empty_list_is_a_page_of_nothing(storage: Service) -> None:
    assert storage.get("/prediction").json == {"page": 0, "length": 0, "items": [], "total": 0}


def test_a_list_has_thirty_items_by_default_newest_first_and_pages_that_meet(storage: Service) -> None:
    ids = [str(storage.add_artifact(ArtifactKind.ALGO, name=f"algo {number}").id) for number in range(33)]
    first = storage.get("/algo").json
    assert (first["page"], first["length"], first["total"]) == (0, 30, 33)
    second = storage.get("/algo?page=1").json
    assert (second["page"], second["length"], second["total"]) == (1, 3, 33)
    assert sorted(item["uuid"] for item in first["items"] + second["items"]) == sorted(ids)
    times = [item["timestamp_upload"] for item in first["items"] + second["items"]]
    assert times == sorted(times, reverse=True)
    assert storage.get("/algo?page=2").json["items"] == []
    assert storage.get("/algo?page_size=7&page=4").json["length"] == 5


@pytest.mark.parametrize(
    ("asked", "found"),
    [("tree", {"Tree", "tree 100%"}), ("100%", {"tree 100%"}), ("%", {"tree 100%"}), ("_", set()), ("", None)],
    ids=["any-case", "percent", "percent-alone", "underscore", "empty-is-all"],
)
def test_a_list_can_be_searched_by_a_part_of_the_name(storage: Service, asked: str, found: set[str] | None) -> None:
    names = {"Tree", "tree 100%", "forest"}
    for name in names:
        storage.add_artifact(ArtifactKind.PROBLEM, name=name, description="d")
    answer = storage.get("/problem", query_string={"name": asked}).json
    assert {item["name"] for item in answer["items"]} == (names if found is None else found)
    assert answer["total"] == answer["length"]


@pytest.mark.parametrize("rest", ["", "/blob"], ids=["metadata", "blob"])
def test_a_bad_or_unknown_id_is_named(storage: Service, rest: str) -> None:
    bad = storage.get(f"/data/123{rest}")
    assert bad.status_code == 400
    assert re.match(r"Impossible to parse UUID 123: ", error(bad))
    unknown = storage.get(f"/data/{UNKNOWN}{rest}")
    assert unknown.status == "404 Not Found"
    assert error(unknown).startswith(f"Error retrieving data {UNKNOWN}: ")


def test_a_blob_that_the_store_has_lost_is_an_error_with_its_name(storage: Service, algo: UUID) -> None:
    answer = storage.get(f"/algo/{algo}/blob")
    assert answer.status_code == 500
    assert error(answer).startswith(f"Error retrieving algo {algo}: ")


def test_web_pages_of_other_origins_get_nothing(sqlite: Database) -> None:
    assert "Access-Control-Allow-Origin" not in _from_origins(Service(create_storage_app, sqlite))["good"]
    found = _from_origins(Service(create_storage_app, sqlite, cors_origins="http://good.example"))
    assert found["good"]["Access-Control-Allow-Origin"] == "http://good.example"
    assert found["good"]["Access-Control-Allow-Credentials"] == "true"
    assert "Access-Control-Allow-Origin" not in found["evil"]


def test_any_origin_goes_without_the_logins_of_a_browser(sqlite: Database) -> None:
    headers = _from_origins(Service(create_storage_app, sqlite, cors_origins="*"))["evil"]
    assert headers["Access-Control-Allow-Origin"] in ("*", "http://evil.example")
    assert "Access-Control-Allow-Credentials" not in headers


def _from_origins(storage: Service) -> dict[str, Headers]:
    return {
        name: storage.get("/algo", headers={"Origin": f"http://{name}.example"}).headers for name in ("good", "evil")
    }


@pytest.mark.parametrize("path", ["/algo", "/algo/x", "/model", "/nothing", "/problem/:uuid"])
def test_a_password_is_asked_for_before_anything_else(storage: Service, path: str) -> None:
    answer = storage.get(path, headers={"Authorization": basic("u", "wrong")})
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"] == 'Basic realm="Authorization Required"'


def test_user_and_password_are_those_of_the_settings(sqlite: Database) -> None:
    storage = Service(create_storage_app, sqlite, user="ü", password="s:e")
    assert storage.get("/algo").status_code == 401
    assert storage.get("/algo", headers={"Authorization": basic("ü", "s:e")}).status_code == 200
