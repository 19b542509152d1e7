"""The orchestrator API: the routes, statuses and words that clients of 2017 know, and what they lead to."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from flask.testing import FlaskClient
from sqlalchemy import update

from morpheo.api.orchestrator import create_orchestrator_app
from morpheo.models import NIL_UUID, ArtifactKind, JobKind
from morpheo.storage.database import Database
from morpheo.storage.tables import DatasetRow, JobRow
from tests.support.api import DownDatabase, Service, basic
from tests.support.workbench import ALGO, PROBLEM, make_workbench

COLLECTIONS = ("problem", "algo", "data", "learnuplet", "preduplet")
UNKNOWN = "5dd1d4a6-3e7c-4b0c-9a4f-5a2a3ec7d000"
NIL = str(NIL_UUID)
WRONG_KEY = "wrong key in posted data"


@pytest.fixture
def service(sqlite: Database) -> Service:
    return Service(create_orchestrator_app, sqlite)


@dataclass
class Challenge:
    """A problem with two test files, registered through the API."""

    service: Service
    batch: int = 1
    id: str = field(default_factory=lambda: str(uuid4()))
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.workflow = self.stored(ArtifactKind.PROBLEM, name="p")
        self.test = [self.stored(ArtifactKind.DATA) for _ in range(2)]
        self.answer = self.service.post("/problem", json=self.body)
        assert self.answer.status_code == 201, self.answer.text

    @property
    def body(self) -> dict[str, Any]:
        return {
            "uuid": self.id,
            "workflow": self.workflow,
            "test_dataset": self.test,
            "size_train_dataset": self.batch,
            **self.extra,
        }

    def stored(self, kind: ArtifactKind, artifact_id: str | None = None, **values: Any) -> str:
        return str(self.service.add_artifact(kind, UUID(artifact_id) if artifact_id else None, **values).id)

    def add_data(self, count: int = 1) -> list[str]:
        ids = [self.stored(ArtifactKind.DATA) for _ in range(count)]
        assert self.service.post("/data", json={"uuid": ids, "problems": [self.id]}).status_code == 201
        return ids

    def add_algo(self, name: str = "a") -> str:
        algo = self.stored(ArtifactKind.ALGO)
        answer = self.service.post("/algo", json={"uuid": algo, "name": name, "problem": self.id})
        assert answer.status_code == 201
        return algo

    def chain(self, algo: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.service.get(f"/learnuplet?algo={algo}").json["learnuplets"]
        return sorted(found, key=lambda uplet: uplet["rank"])

    def done(self, uplet: dict[str, Any], perf: float = 0.5) -> Any:
        """Do what a worker of 2017 does."""
        assert self.service.post(f"/worker/learnuplet/{uplet['uuid']}", json={"worker": NIL}).status_code == 200
        self.stored(ArtifactKind.MODEL, uplet["model_end"], algo=UUID(uplet["algo"]))
        return self.service.post(f"/learndone/{uplet['uuid']}", json=scores(uplet, perf))


def scores(uplet: dict[str, Any], perf: float = 0.5) -> dict[str, Any]:
    train, test = (dict.fromkeys(uplet[f"{name}_data"], perf) for name in ("train", "test"))
    return {"status": "done", "perf": perf, "train_perf": train, "test_perf": test}


@pytest.fixture
def challenge(service: Service) -> Challenge:
    return Challenge(service)


def error(answer: Any, status: int = 400) -> str:
    assert (answer.status_code, answer.content_type) == (status, "application/problem+json"), answer.text
    assert answer.json["status"] == status
    assert "error" not in answer.json
    return str(answer.json["Error"])


# What the service is.


def test_the_index_lists_the_routes(service: Service) -> None:
    documents = [f"/{name}{rest}" for name in COLLECTIONS for rest in ("", "/:uuid")]
    assert service.get("/").json == ["/", "/health", *documents, "/prediction"]


def test_health_is_that_of_the_database_and_not_of_the_broker(service: Service) -> None:
    service.publisher.down = True
    answer = service.get("/health")
    assert (answer.status_code, answer.json) == (200, {"status": "ok", "checks": {"database": "ok"}})
    service.replace(database=DownDatabase("sqlite://"))
    assert service.get("/health").status_code == 503


def test_a_database_that_is_down_is_said_to_be(service: Service) -> None:
    service.replace(database=DownDatabase("sqlite://"))
    answer = service.get("/problem")
    assert error(answer, 503) == "the database does not answer; try again"
    assert answer.headers["Retry-After"] == "5"


@pytest.mark.parametrize("path", ["/", "/health", "/metrics", "/openapi.json"])
def test_some_routes_are_public(service: Service, path: str) -> None:
    assert FlaskClient(service.app).get(path).status_code == 200


@pytest.mark.parametrize(
    ("method", "path"),
    [
        *(("GET", f"/{name}") for name in COLLECTIONS),
        ("GET", f"/learnuplet/{UNKNOWN}"),
        *(("POST", f"/{name}") for name in ("problem", "algo", "data", "prediction")),
        *(("POST", f"/{name}/{UNKNOWN}") for name in ("worker/learnuplet", "learndone", "preddone")),
        ("POST", f"/learnuplet/{UNKNOWN}/retry"),
        ("GET", "/unknown"),
    ],
)
def test_all_others_ask_for_user_and_password(service: Service, method: str, path: str) -> None:
    for authorization in (None, basic("u", "x"), basic("x", "p"), "Bearer dTpw", "Basic x"):
        headers = {} if authorization is None else {"Authorization": authorization}
        answer = FlaskClient(service.app).open(path, method=method, headers=headers)
        assert answer.status == "401 Unauthorized"
        assert answer.text == "Unauthorized Access"
        assert answer.headers["WWW-Authenticate"] == 'Basic realm="Authentication Required"'


@pytest.mark.parametrize("path", ["/unknown", f"/unknown/{UNKNOWN}", f"/problem/{UNKNOWN}/x", "/problemx"])
def test_an_unknown_page_does_not_exist(service: Service, path: str) -> None:
    assert error(service.get(path), 404) == "Page does not exist"


@pytest.mark.parametrize("path", ["worker/problem", "worker/x", "learndone/x", "retry"])
def test_an_unknown_page_cannot_be_posted_to(service: Service, path: str) -> None:
    assert error(service.post(f"/{path}/{UNKNOWN}", json={"worker": "w"}), 404) == "Page does not exist"


@pytest.mark.parametrize(("method", "path"), [("DELETE", "/problem"), ("POST", "/learnuplet"), ("GET", "/prediction")])
def test_a_wrong_method_is_not_allowed(service: Service, method: str, path: str) -> None:
    answer = service.open(path, method=method)
    assert error(answer, 405)
    assert "Allow" in answer.headers


PREFLIGHT = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}


@pytest.mark.parametrize("path", ["/problem", "/algo", "/learnuplet", "/prediction"])
def test_an_origin_may_ask_without_a_password_whether_it_may_call(sqlite: Database, path: str) -> None:
    service = Service(create_orchestrator_app, sqlite, cors_origins=("http://analytics",))
    answer = FlaskClient(service.app).options(path, headers={"Origin": "http://analytics", **PREFLIGHT})
    assert answer.status_code == 200
    assert answer.headers["Access-Control-Allow-Origin"] == "http://analytics"
    assert answer.headers["Access-Control-Allow-Credentials"] == "true"
    assert answer.headers["Access-Control-Allow-Headers"] == "authorization, content-type"
    assert {"GET", "POST"} <= set(answer.headers["Access-Control-Allow-Methods"].split(", "))


def test_pages_of_an_origin_may_read_answers_and_errors(sqlite: Database) -> None:
    service = Service(create_orchestrator_app, sqlite, cors_origins=("http://analytics",))
    for path, status in (("/problem", 200), ("/unknown", 404)):
        answer = service.get(path, headers={"Origin": "http://analytics"})
        assert answer.status_code == status
        assert answer.headers["Access-Control-Allow-Origin"] == "http://analytics"


def test_only_the_origins_of_the_settings_may_call(sqlite: Database) -> None:
    service = Service(create_orchestrator_app, sqlite, cors_origins=("http://mine",))
    allowed = [
        service.get("/problem", headers={"Origin": origin}).headers.get("Access-Control-Allow-Origin")
        for origin in ("http://mine", "http://other")
    ]
    assert allowed == ["http://mine", None]


# Bodies, of all routes.

POSTS = {
    "/problem": ("uuid", "workflow", "test_dataset", "size_train_dataset"),
    "/algo": ("uuid", "name", "problem"),
    "/data": ("uuid", "problems"),
    "/prediction": ("data", "problem"),
    f"/worker/learnuplet/{UNKNOWN}": ("worker",),
    f"/worker/preduplet/{UNKNOWN}": ("worker",),
    f"/learndone/{UNKNOWN}": ("status", "perf", "train_perf", "test_perf"),
    f"/preddone/{UNKNOWN}": ("status", "prediction_storage_uuid"),
}
RIGHT: dict[str, Any] = {
    "uuid": UNKNOWN,
    "workflow": UNKNOWN,
    "test_dataset": [UNKNOWN],
    "size_train_dataset": 1,
    "name": "n",
    "problem": UNKNOWN,
    "problems": [UNKNOWN],
    "data": UNKNOWN,
    "worker": "w",
    "status": "done",
    "perf": 0.5,
    "train_perf": {},
    "test_perf": {},
    "prediction_storage_uuid": UNKNOWN,
}


@pytest.mark.parametrize("path", POSTS)
def test_what_is_no_json_object_is_refused(service: Service, path: str) -> None:
    before = service.stored()
    for body in (b"", b"{", b"[]", b"null", b'"x"', b"\xff", b'{"perf": NaN}', b'{"perf": 1e999}'):
        answer = service.post(path, data=body, content_type="application/json")
        assert error(answer).startswith("Error decoding body to JSON: ")
    assert service.stored() == before


@pytest.mark.parametrize("path", POSTS)
def test_a_missing_key_is_told_in_the_words_of_2017(service: Service, path: str) -> None:
    right = {name: RIGHT[name] for name in POSTS[path]}
    for key in right:
        bodies = [{name: value for name, value in right.items() if name != key}]
        if key not in ("train_perf", "test_perf"):  # null is what Go makes of none: see below
            bodies.append({**right, key: None})
        for body in bodies:
            answer = service.post(path, json=body)
            assert error(answer) == WRONG_KEY
            assert (answer.json["field"], answer.json["detail"]) == (key, f"{WRONG_KEY}: {key} is missing")


@pytest.mark.parametrize("content_type", [None, "text/plain", "application/json"], ids=["none", "text", "json"])
def test_a_body_is_read_whatever_its_content_type(service: Service, content_type: str | None) -> None:
    challenge = Challenge(service)
    answer = service.post("/problem", data=json.dumps(challenge.body), content_type=content_type)
    assert (answer.status_code, answer.json) == (201, challenge.answer.json)


def test_a_body_is_not_read_without_end(sqlite: Database) -> None:
    service = Service(create_orchestrator_app, sqlite, max_order_bytes=100)
    assert error(service.post("/problem", data=b" " * 101), 413) == "the body is larger than 100 bytes"


# POST /problem.


def test_a_problem_is_registered_and_answered_with_its_document(service: Service) -> None:
    challenge = Challenge(service, batch=3)
    document = challenge.answer.json["new_problem"]
    assert challenge.answer.json == {"new_problem": document}
    assert isinstance(document["timestamp_upload"], int)
    assert document == {
        **challenge.body,
        "name": "p",
        "timestamp_upload": document["timestamp_upload"],
        "higher_is_better": True,
        "parallel_ranks": 1,
        "logs": "cause",
        "model_download": False,
        "score_digits": 6,
        "submissions_per_day": 10,
        "time_step_s": 60,
    }
    assert service.get(f"/problem/{challenge.id}").json == document
    assert service.get("/problem").json == {"problems": [document]}


def test_a_problem_may_say_what_is_better_and_how_many_ranks_run_at_once(service: Service) -> None:
    challenge = Challenge(service, extra={"higher_is_better": False, "parallel_ranks": 2, "colour": "red"})
    document = challenge.answer.json["new_problem"]
    assert (document["higher_is_better"], document["parallel_ranks"]) == (False, 2)
    assert "colour" not in document
    challenge.add_data(4)
    first, second, *_ = challenge.chain(challenge.add_algo())
    challenge.done(first, 0.9)
    challenge.done(second, 0.1)
    starts = [uplet["model_start"] for uplet in challenge.chain(first["algo"])]
    assert starts == [first["algo"], None, first["model_end"], second["model_end"]]


def test_the_same_problem_twice_is_one_and_another_with_its_id_is_a_conflict(challenge: Challenge) -> None:
    again = challenge.service.post("/problem", json=challenge.body)
    assert (again.status_code, again.json) == (201, challenge.answer.json)
    answer = challenge.service.post("/problem", json={**challenge.body, "size_train_dataset": 9})
    assert answer.status == "409 Conflict"
    assert error(answer, 409) == f"another problem has the id {challenge.id}"
    assert len(challenge.service.get("/problem").json["problems"]) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"uuid": "x"}, "uuid: 'x' is not a UUID"),
        ({"uuid": 5}, "uuid: must be a UUID in a string"),
        ({"uuid": NIL}, "uuid: must not be the nil UUID"),
        ({"workflow": UNKNOWN}, f"workflow: problem {UNKNOWN} not found in storage"),
        ({"workflow": ["x"]}, "workflow: must be a UUID in a string"),
        ({"test_dataset": UNKNOWN}, "test_dataset: Not a valid list"),
        ({"test_dataset": []}, "test_dataset: must have at least one UUID"),
        ({"test_dataset": [UNKNOWN]}, f"test_dataset: data {UNKNOWN} not found in storage"),
        ({"test_dataset": [UNKNOWN, UNKNOWN]}, f"test_dataset: {UNKNOWN} stands twice"),
        ({"test_dataset": [None]}, "test_dataset: Field may not be null"),
        ({"size_train_dataset": 0}, "size_train_dataset: must be a whole number from 1 to 2147483647"),
        ({"size_train_dataset": 1 << 31}, "size_train_dataset: must be a whole number from 1"),
        ({"size_train_dataset": "2"}, "size_train_dataset: must be a whole number from 1"),
        ({"size_train_dataset": 2.5}, "size_train_dataset: must be a whole number from 1"),
        ({"size_train_dataset": True}, "size_train_dataset: must be a whole number from 1"),
        ({"higher_is_better": "yes"}, "higher_is_better: must be true or false"),
        ({"higher_is_better": 1}, "higher_is_better: must be true or false"),
        ({"parallel_ranks": 0}, "parallel_ranks: must be a whole number from 1"),
    ],
)
def test_a_problem_that_cannot_be_is_refused(challenge: Challenge, changes: dict[str, Any], message: str) -> None:
    answer = challenge.service.post("/problem", json={**challenge.body, "uuid": str(uuid4()), **changes})
    assert error(answer).startswith(message)
    assert answer.json["field"] == next(iter(changes))
    assert len(challenge.service.get("/problem").json["problems"]) == 1


# POST /algo.


def test_an_algo_is_registered_and_its_chain_planned(challenge: Challenge) -> None:
    data = challenge.add_data(2)
    algo = challenge.stored(ArtifactKind.ALGO)
    body = {"uuid": algo, "name": "é", "problem": challenge.id}
    answer = challenge.service.post("/algo", json=body)
    document = answer.json["new_algo"]
    assert (answer.status_code, answer.json) == (201, {"new_algo": document, "new_learnuplets": 2})
    assert document == {**body, "timestamp_upload": document["timestamp_upload"], "stalled": False, "stalled_by": None}
    assert challenge.service.get(f"/algo/{algo}").json == document
    assert [uplet["train_data"] for uplet in challenge.chain(algo)] == [[item] for item in data]
    again = challenge.service.post("/algo", json=body)
    assert (again.status_code, again.json) == (201, {"new_algo": document, "new_learnuplets": 0})


def test_an_algo_takes_part_in_one_challenge(challenge: Challenge) -> None:
    algo = challenge.add_algo()
    other = Challenge(challenge.service)
    answer = challenge.service.post("/algo", json={"uuid": algo, "name": "a", "problem": other.id})
    assert error(answer, 409).startswith(f"algo {algo} takes part in problem {challenge.id}")


@pytest.mark.parametrize(
    ("changes", "message", "detail"),
    [
        ({"problem": UNKNOWN}, "non-existing related problem", f"problem {UNKNOWN} not found"),
        ({"problem": "x"}, "non-existing related problem", "problem: 'x' is not a UUID"),
        ({"problem": [UNKNOWN]}, "non-existing related problem", "problem: must be a UUID in a string"),
        ({"uuid": UNKNOWN}, f"uuid: algo {UNKNOWN} not found in storage", "uuid: algo"),
        ({"uuid": "x"}, "uuid: 'x' is not a UUID", "uuid: 'x' is not"),
        ({"name": ""}, "name: must have 1 to 255 bytes", "name:"),
        ({"name": "é" * 128}, "name: must have 1 to 255 bytes", "name:"),
        ({"name": "a\nb"}, "name: holds a control character", "name:"),
        ({"name": 5}, "name: Not a valid string", "name:"),
    ],
)
def test_an_algo_that_cannot_be_is_refused(
    challenge: Challenge, changes: dict[str, Any], message: str, detail: str
) -> None:
    body = {"uuid": challenge.stored(ArtifactKind.ALGO), "name": "a", "problem": challenge.id, **changes}
    answer = challenge.service.post("/algo", json=body)
    assert error(answer).startswith(message)
    assert answer.json["detail"].startswith(detail)
    assert answer.json["field"] == next(iter(changes))
    assert challenge.service.get("/algo").json == {"algos": []}


# POST /data.


@pytest.mark.parametrize("as_list", [True, False], ids=["list", "string"])
def test_data_is_one_uuid_or_a_list_and_so_are_problems(challenge: Challenge, as_list: bool) -> None:
    algo = challenge.add_algo()
    item = challenge.stored(ArtifactKind.DATA)
    wrapped: dict[str, Any] = {"uuid": item, "problems": challenge.id}
    if as_list:
        wrapped = {"uuid": [item], "problems": [challenge.id]}
    answer = challenge.service.post("/data", json=wrapped)
    document = {
        "uuid": item,
        "problems": [challenge.id],
        "timestamp_upload": answer.json["new_datas"][0]["timestamp_upload"],
    }
    assert (answer.status_code, answer.json) == (201, {"new_datas": [document], "new_learnuplets": 1, "held_out": {}})
    assert challenge.service.get(f"/data/{item}").json == document
    assert [uplet["train_data"] for uplet in challenge.chain(algo)] == [[item]]
    again = challenge.service.post("/data", json=wrapped)
    assert (again.status_code, again.json) == (201, {"new_datas": [document], "new_learnuplets": 0, "held_out": {}})


def test_test_data_is_registered_and_never_trained_on(challenge: Challenge) -> None:
    algo = challenge.add_algo()
    answer = challenge.service.post("/data", json={"uuid": challenge.test, "problems": [challenge.id]})
    assert ([item["uuid"] for item in answer.json["new_datas"]], answer.json["new_learnuplets"]) == (challenge.test, 0)
    assert answer.json["held_out"] == {challenge.id: challenge.test}
    assert challenge.chain(algo) == []


def test_a_copy_of_test_data_is_test_data_where_that_is(challenge: Challenge) -> None:
    other = Challenge(challenge.service)
    algos = challenge.add_algo(), other.add_algo()
    digest = f"{UUID(challenge.test[1]).int:064x}"
    fresh, copy = challenge.stored(ArtifactKind.DATA), challenge.stored(ArtifactKind.DATA, sha256=digest)
    answer = challenge.service.post("/data", json={"uuid": [fresh, copy], "problems": [challenge.id, other.id]})
    assert (answer.json["new_learnuplets"], answer.json["held_out"]) == (3, {challenge.id: [copy]})
    here, there = (challenge.chain(algo) for algo in algos)
    assert [uplet["train_data"] for uplet in here] == [[fresh]]
    assert [uplet["train_data"] for uplet in there] == [[fresh], [copy]]
    answer = challenge.service.post("/prediction", json={"data": copy, "problem": challenge.id})
    assert error(answer) == f"data: {copy} is test data, whose targets are hidden"


@pytest.mark.parametrize(
    ("changes", "message", "detail"),
    [
        ({"problems": [UNKNOWN]}, "non-existing related problem", f"problem {UNKNOWN} not found"),
        ({"problems": "x"}, "non-existing related problem", "problems: 'x' is not a UUID"),
        ({"problems": []}, "non-existing related problem", "problems: must have at least one UUID"),
        ({"problems": 5}, "non-existing related problem", "problems: Not a valid list"),
        ({"uuid": UNKNOWN}, f"uuid: data {UNKNOWN} not found in storage", "uuid: data"),
        ({"uuid": []}, "uuid: must have at least one UUID", "uuid:"),
        ({"uuid": ["x"]}, "uuid: 'x' is not a UUID", "uuid:"),
        ({"uuid": {"a": 1}}, "uuid: Not a valid list", "uuid:"),
    ],
)
def test_data_that_cannot_be_is_refused_whole(
    challenge: Challenge, changes: dict[str, Any], message: str, detail: str
) -> None:
    known = challenge.stored(ArtifactKind.DATA)
    body = {"uuid": [known], "problems": [challenge.id], **changes}
    if changes.get("uuid") == UNKNOWN:
        body["uuid"] = [known, UNKNOWN]
    elif changes.get("problems") == [UNKNOWN]:
        body["problems"] = [challenge.id, UNKNOWN]
    answer = challenge.service.post("/data", json=body)
    assert error(answer).startswith(message)
    assert answer.json["detail"].startswith(detail)
    assert answer.json["field"] == next(iter(changes))
    assert challenge.service.get("/data").json == {"datas": []}


# Documents.


def test_a_learnuplet_looks_as_it_did_in_2017(challenge: Challenge) -> None:
    data = challenge.add_data(2)
    algo = challenge.add_algo()
    first, second = challenge.chain(algo)
    assert isinstance(first["timestamp_creation"], int)
    assert first == {
        "uuid": first["uuid"],
        "problem": challenge.id,
        "workflow": challenge.workflow,
        "algo": algo,
        "model_start": algo,
        "model_end": str(UUID(first["model_end"])),
        "train_data": data[:1],
        "test_data": challenge.test,
        "worker": None,
        "perf": None,
        "train_perf": None,
        "test_perf": None,
        "status": "todo",
        "state": "queued",
        "rank": 0,
        "timestamp_creation": first["timestamp_creation"],
        "timestamp_done": None,
        "failure": None,
    }
    assert (second["rank"], second["status"], second["model_start"]) == (1, "todo", None)
    assert challenge.service.get(f"/learnuplet/{second['uuid']}").json == second


def test_a_rank_whose_order_is_damaged_is_listed_with_what_is_left_of_it(challenge: Challenge) -> None:
    challenge.add_data(2)
    algo = challenge.add_algo()
    good, bad = challenge.chain(algo)
    with challenge.service.database.begin() as work:
        work.jobs._session.execute(update(JobRow).where(JobRow.id == UUID(bad["uuid"])).values(spec=None))
    assert challenge.chain(algo)[0] == good
    left = challenge.service.get(f"/learnuplet/{bad['uuid']}").json
    assert challenge.chain(algo)[1] == left
    lost = {"workflow": NIL, "model_end": NIL, "train_data": [], "test_data": []}
    assert left == {**bad, **lost}


@pytest.mark.parametrize("collection", COLLECTIONS)
def test_an_empty_collection_is_an_empty_list(service: Service, collection: str) -> None:
    answer = service.get(f"/{collection}")
    assert (answer.status_code, answer.json) == (200, {f"{collection}s": []})


@pytest.mark.parametrize("collection", COLLECTIONS)
def test_an_unknown_document_is_not_found(challenge: Challenge, collection: str) -> None:
    challenge.add_data()
    challenge.add_algo()
    for name in (UNKNOWN, "x", "5", "$where"):
        assert error(challenge.service.get(f"/{collection}/{name}"), 404) == f"{collection} {name} not found"


def test_a_document_is_found_in_its_own_collection_only(challenge: Challenge) -> None:
    challenge.add_data()
    uplet = challenge.chain(challenge.add_algo())[0]["uuid"]
    found = [challenge.service.get(f"/{collection}/{uplet}").status_code for collection in COLLECTIONS]
    assert found == [404, 404, 404, 200, 404]


def test_documents_come_oldest_first(challenge: Challenge) -> None:
    data = challenge.add_data(3)
    with challenge.service.database.engine.begin() as connection:
        for age, item in enumerate(data):
            connection.execute(update(DatasetRow).where(DatasetRow.id == UUID(item)).values(created_at=1000.0 - age))
    assert uuids(challenge.service, "/data") == data[::-1]


def uuids(service: Service, path: str) -> list[str]:
    answer = service.get(path)
    assert answer.status_code == 200
    (documents,) = answer.json.values()
    return [document["uuid"] for document in documents]


def test_filters_compare_texts_and_look_into_lists(challenge: Challenge) -> None:
    service = challenge.service
    other = Challenge(service, batch=2)
    (data,), (elsewhere,) = challenge.add_data(), other.add_data()
    algo, foreign = challenge.add_algo("mine"), other.add_algo("theirs")
    first = challenge.chain(algo)[0]["uuid"]
    second = other.chain(foreign)[0]["uuid"]
    expected = {
        f"/problem?workflow={other.workflow}": [other.id],
        f"/problem?test_dataset={challenge.test[1]}": [challenge.id],
        f"/problem?test_dataset={challenge.test[1]}&workflow={other.workflow}": [],
        f"/problem?test_dataset={challenge.test[0]}&test_dataset={challenge.test[1]}": [challenge.id],
        f"/problem?uuid={challenge.id.upper()}": [challenge.id],
        f"/algo?problem={challenge.id}": [algo],
        "/algo?name=theirs": [foreign],
        f"/algo?problem={challenge.id}&name=theirs": [],
        f"/data?problems={challenge.id}": [data],
        f"/data?problems={other.id}": [elsewhere],
        f"/learnuplet?algo={algo}": [first],
        f"/learnuplet?problem={other.id}": [second],
        f"/learnuplet?model_start={algo}": [first],
        f"/learnuplet?train_data={elsewhere}": [second],
        f"/learnuplet?test_data={other.test[0]}": [second],
        "/learnuplet?status=todo&status=done": [],
        "/learnuplet?status=done": [],
        f"/learnuplet?status=todo&algo={foreign}": [second],
    }
    assert {path: uuids(service, path) for path in expected} == expected


@pytest.mark.parametrize("collection", COLLECTIONS)
def test_a_filter_on_anything_else_gives_an_empty_list(challenge: Challenge, collection: str) -> None:
    challenge.add_data()
    uplet = challenge.chain(challenge.add_algo())[0]
    challenge.done(uplet)
    challenge.service.post("/prediction", json={"data": challenge.stored(ArtifactKind.DATA), "problem": challenge.id})
    assert challenge.service.get(f"/{collection}").json[f"{collection}s"] != []
    unknown = ("$where=1", "colour=red", "_id=1", "uuid[$ne]=x", "=", "__class__=x")
    no_text = ("rank=0", "perf=", "worker=null", "failure=", "stalled=false", "size_train_dataset=1")
    for query in (*unknown, *no_text, "uuid=x", "problem=x", "status=", "status=queued"):
        answer = challenge.service.get(f"/{collection}?{query}")
        assert (answer.status_code, answer.json) == (200, {f"{collection}s": []})


# Reports of workers that are not ours.


def test_a_worker_takes_a_learnuplet_once(challenge: Challenge) -> None:
    challenge.add_data(2)
    first, second = challenge.chain(challenge.add_algo())
    path = f"/worker/learnuplet/{first['uuid']}"
    answer = challenge.service.post(path, json={"worker": "a worker of 2017"})
    assert (answer.status_code, answer.json) == (200, {"learnuplet_worker_set": first["uuid"]})
    now = challenge.service.get(f"/learnuplet/{first['uuid']}").json
    assert now == {**first, "status": "pending", "state": "running", "worker": "a worker of 2017"}
    assert uuids(challenge.service, "/learnuplet?status=pending&worker=a+worker+of+2017") == [first["uuid"]]
    for name in (first["uuid"], second["uuid"], UNKNOWN, "x"):
        refused = challenge.service.post(f"/worker/learnuplet/{name}", json={"worker": "w"})
        assert error(refused) == f"worker not set for learnuplet {name}. Might be already pending"
    refused = challenge.service.post(f"/worker/preduplet/{first['uuid']}", json={"worker": "w"})
    assert error(refused) == f"worker not set for preduplet {first['uuid']}. Might be already pending"
    assert challenge.service.get(f"/learnuplet/{first['uuid']}").json == now


@pytest.mark.parametrize("worker", [5, ["w"], True, "w" * 256])
def test_a_worker_is_a_short_text(challenge: Challenge, worker: object) -> None:
    challenge.add_data()
    (uplet,) = challenge.chain(challenge.add_algo())
    answer = challenge.service.post(f"/worker/learnuplet/{uplet['uuid']}", json={"worker": worker})
    assert error(answer).startswith("worker: ")
    assert challenge.chain(uplet["algo"]) == [uplet]


def test_a_learnuplet_that_is_done_releases_the_next_with_the_best_model(challenge: Challenge) -> None:
    challenge.add_data(3)
    algo = challenge.add_algo()
    for rank, perf in enumerate((0.75, 0.5)):
        uplet = challenge.chain(algo)[rank]
        answer = challenge.done(uplet, perf)
        assert (answer.status_code, answer.json) == (200, {"updated_learnuplet": uplet["uuid"]})
    first, second, third = challenge.chain(algo)
    assert (first["status"], first["perf"]) == ("done", 0.75)
    assert first["train_perf"] == dict.fromkeys(first["train_data"], 0.75)
    assert first["test_perf"] == dict.fromkeys(challenge.test, 0.75)
    assert first["timestamp_done"] >= first["timestamp_creation"]
    assert second["model_start"] == third["model_start"] == first["model_end"]
    assert [str(job) for job in challenge.service.publisher.published] == [
        uplet["uuid"] for uplet in (first, second, third)
    ]


def test_a_report_counts_once(challenge: Challenge) -> None:
    challenge.add_data(2)
    first, second = challenge.chain(challenge.add_algo())
    challenge.done(first, 0.5)
    now = challenge.chain(first["algo"])
    for body in (scores(first, 0.9), {"status": "failed"}):
        again = challenge.service.post(f"/learndone/{first['uuid']}", json=body)
        assert error(again) == f"no update of learnuplet {first['uuid']}"
    waits = challenge.service.post(f"/preddone/{second['uuid']}", json={"status": "failed"})
    assert error(waits) == f"no update of preduplet {second['uuid']}"
    assert challenge.chain(first["algo"]) == now


def test_a_failure_stalls_the_chain_and_shows_until_a_retry(challenge: Challenge) -> None:
    challenge.add_data(2)
    algo = challenge.add_algo()
    first, second = challenge.chain(algo)
    assert challenge.service.post(f"/worker/learnuplet/{first['uuid']}", json={"worker": NIL}).status_code == 200
    answer = challenge.service.post(f"/learndone/{first['uuid']}", json={"status": "failed"})
    assert (answer.status_code, answer.json) == (200, {"updated_learnuplet": first["uuid"]})
    failed = challenge.service.get(f"/learnuplet/{first['uuid']}").json
    assert (failed["status"], failed["perf"]) == ("failed", None)
    assert failed["timestamp_done"] >= first["timestamp_creation"]
    assert (failed["failure"]["cause"], failed["failure"]["blame"]) == ("INTERNAL_ERROR", "infrastructure")
    assert "reported that it failed" in failed["failure"]["message"]
    assert challenge.service.get(f"/algo/{algo}").json["stalled"] is True
    assert challenge.service.get(f"/learnuplet/{second['uuid']}").json == second

    retried = challenge.service.post(f"/learnuplet/{first['uuid']}/retry")
    assert retried.status_code == 201
    again = retried.json
    assert again == {
        **first,
        "uuid": again["uuid"],
        "model_end": again["model_end"],
        "timestamp_creation": again["timestamp_creation"],
    }
    assert again["uuid"] != first["uuid"]
    assert again["model_end"] != first["model_end"]
    assert challenge.service.get(f"/algo/{algo}").json["stalled"] is False
    assert "has job" in error(challenge.service.post(f"/learnuplet/{first['uuid']}/retry"), 409)
    assert challenge.done(again).status_code == 200
    assert challenge.chain(algo)[-1]["model_start"] == again["model_end"]


@pytest.mark.parametrize("collection", ["learnuplet", "preduplet"])
def test_only_what_failed_can_be_retried(challenge: Challenge, collection: str) -> None:
    challenge.add_data()
    (uplet,) = challenge.chain(challenge.add_algo())
    for name in (UNKNOWN, "x"):
        answer = challenge.service.post(f"/{collection}/{name}/retry")
        assert error(answer, 404) == f"{collection} {name} not found"
    answer = challenge.service.post(f"/{collection}/{uplet['uuid']}/retry")
    if collection == "preduplet":
        assert error(answer, 404) == f"preduplet {uplet['uuid']} not found"
    else:
        assert "only one that failed or was cancelled can be retried" in error(answer, 409)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"perf": "0.5"}, "perf"),
        ({"perf": True}, "perf"),
        ({"perf": []}, "perf"),
        ({"train_perf": [0.5]}, "train_perf"),
        ({"test_perf": {UNKNOWN: 0.5}}, "test_perf"),
        ({"train_perf": {UNKNOWN: 0.5}}, "train_perf"),
        ({"test_perf": {"x": 0.5}}, "test_perf"),
        ({"test_perf": {UNKNOWN: None}}, "test_perf"),
        ({"test_perf": {UNKNOWN: "1"}}, "test_perf"),
        ({"status": "pending"}, "status"),
        ({"status": 5}, "status"),
    ],
)
def test_a_report_that_cannot_be_changes_nothing(challenge: Challenge, changes: dict[str, Any], field: str) -> None:
    challenge.add_data()
    (uplet,) = challenge.chain(challenge.add_algo())
    challenge.service.post(f"/worker/learnuplet/{uplet['uuid']}", json={"worker": "w"})
    challenge.stored(ArtifactKind.MODEL, uplet["model_end"], algo=UUID(uplet["algo"]))
    before = challenge.service.stored()
    answer = challenge.service.post(f"/learndone/{uplet['uuid']}", json={**scores(uplet), **changes})
    assert error(answer).startswith(f"{field}: ")
    assert answer.json["field"] == field
    assert challenge.service.stored() == before
    assert challenge.service.post(f"/learndone/{uplet['uuid']}", json=scores(uplet)).status_code == 200


def test_a_model_must_be_stored_before_its_report(challenge: Challenge) -> None:
    challenge.add_data()
    (uplet,) = challenge.chain(challenge.add_algo())
    answer = challenge.service.post(f"/learndone/{uplet['uuid']}", json=scores(uplet))
    assert error(answer) == f"model_end: model {uplet['model_end']} not found in storage"
    assert challenge.chain(uplet["algo"]) == [uplet]


def test_scores_of_files_may_be_null_as_go_writes_none(challenge: Challenge) -> None:
    challenge.add_data()
    (uplet,) = challenge.chain(challenge.add_algo())
    challenge.stored(ArtifactKind.MODEL, uplet["model_end"], algo=UUID(uplet["algo"]))
    body = {"status": "done", "perf": 1, "train_perf": None, "test_perf": None}
    assert challenge.service.post(f"/learndone/{uplet['uuid']}", json=body).status_code == 200
    (done,) = challenge.chain(uplet["algo"])
    assert (done["perf"], done["train_perf"], done["test_perf"]) == (1.0, {}, {})


# Predictions.


@pytest.fixture
def trained(challenge: Challenge) -> Challenge:
    """A challenge with a chain of two, the first rank of which is better."""
    challenge.add_data(2)
    algo = challenge.add_algo()
    for rank, perf in enumerate((0.75, 0.5)):
        challenge.done(challenge.chain(algo)[rank], perf)
    return challenge


def ranks(challenge: Challenge) -> list[dict[str, Any]]:
    return list(challenge.service.get("/learnuplet").json["learnuplets"])


def test_a_prediction_is_answered_with_its_preduplet(trained: Challenge) -> None:
    best, worse = (uplet["model_end"] for uplet in ranks(trained))
    data = trained.stored(ArtifactKind.DATA)
    answer = trained.service.post("/prediction", json={"data": data, "problem": trained.id})
    document = answer.json
    assert isinstance(document["timestamp_request"], int)
    assert (answer.status_code, document) == (
        201,
        {
            "uuid": str(UUID(document["uuid"])),
            "problem": trained.id,
            "workflow": trained.workflow,
            "model": best,
            "data": data,
            "status": "todo",
            "state": "queued",
            "worker": None,
            "timestamp_request": document["timestamp_request"],
            "timestamp_done": None,
            "prediction_storage_uuid": None,
            "failure": None,
        },
    )
    assert trained.service.get(f"/preduplet/{document['uuid']}").json == document
    assert trained.service.get("/preduplet").json == {"preduplets": [document]}
    named = trained.service.post("/prediction", json={"data": data, "problem": trained.id, "model": worse})
    assert (named.status_code, named.json["model"]) == (201, worse)
    assert uuids(trained.service, f"/preduplet?model={worse}") == [named.json["uuid"]]


def test_a_model_of_another_problem_is_refused(trained: Challenge) -> None:
    other = Challenge(trained.service)
    algo = other.add_algo()
    model, data = trained.stored(ArtifactKind.MODEL, algo=UUID(algo)), trained.stored(ArtifactKind.DATA)
    answer = trained.service.post("/prediction", json={"data": data, "problem": trained.id, "model": model})
    assert error(answer) == f"model: {model} is of an algo that takes no part in this problem"
    assert answer.json["field"] == "model"
    assert trained.service.get("/preduplet").json == {"preduplets": []}


def test_a_worker_of_2017_does_a_prediction(trained: Challenge) -> None:
    ordered = trained.service.post(
        "/prediction", json={"data": trained.stored(ArtifactKind.DATA), "problem": trained.id}
    ).json
    name = ordered["uuid"]
    answer = trained.service.post(f"/worker/preduplet/{name}", json={"worker": NIL})
    assert (answer.status_code, answer.json) == (200, {"preduplet_worker_set": name})
    running = {"status": "pending", "state": "running", "worker": NIL}
    assert trained.service.get(f"/preduplet/{name}").json == {**ordered, **running}
    body = {"status": "done", "prediction_storage_uuid": UNKNOWN}
    refused = trained.service.post(f"/preddone/{name}", json=body)
    assert error(refused) == f"prediction_storage_uuid: prediction {UNKNOWN} not found in storage"
    trained.stored(ArtifactKind.PREDICTION, UNKNOWN)
    answer = trained.service.post(f"/preddone/{name}", json=body)
    assert (answer.status_code, answer.json) == (200, {"updated_preduplet": name})
    done = trained.service.get(f"/preduplet/{name}").json
    assert (done["status"], done["prediction_storage_uuid"], done["worker"]) == ("done", UNKNOWN, NIL)
    assert done["timestamp_done"] >= done["timestamp_request"]
    for uplet in (name, str(uuid4()), "x"):
        assert error(trained.service.post(f"/preddone/{uplet}", json=body)) == f"no update of preduplet {uplet}"


def test_a_prediction_that_failed_can_be_retried(trained: Challenge) -> None:
    ordered = trained.service.post(
        "/prediction", json={"data": trained.stored(ArtifactKind.DATA), "problem": trained.id}
    ).json
    answer = trained.service.post(f"/preddone/{ordered['uuid']}", json={"status": "failed"})
    assert (answer.status_code, answer.json) == (200, {"updated_preduplet": ordered["uuid"]})
    assert trained.service.get(f"/preduplet/{ordered['uuid']}").json["failure"]["cause"] == "INTERNAL_ERROR"
    retried = trained.service.post(f"/preduplet/{ordered['uuid']}/retry")
    assert retried.status_code == 201
    same = {key: retried.json[key] for key in ("model", "data", "problem", "status")}
    assert same == {key: ordered[key] for key in same}
    assert retried.json["uuid"] != ordered["uuid"]


@pytest.mark.parametrize("data", ["x", "", 5, [UNKNOWN], {"uuid": UNKNOWN}, True])
def test_a_prediction_is_of_one_uuid(trained: Challenge, data: object) -> None:
    answer = trained.service.post("/prediction", json={"data": data, "problem": trained.id})
    assert error(answer) == "data field should be an UUID"
    assert answer.json["detail"].startswith("data: ")
    assert trained.service.get("/preduplet").json == {"preduplets": []}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"problem": UNKNOWN}, "no problem or trained model"),
        ({"problem": "x"}, "no problem or trained model"),
        ({"data": UNKNOWN}, f"data: data {UNKNOWN} not found in storage"),
        ({"model": UNKNOWN}, f"model: model {UNKNOWN} not found in storage"),
        ({"model": "x"}, "model: 'x' is not a UUID"),
    ],
)
def test_a_prediction_that_cannot_be_is_refused(trained: Challenge, changes: dict[str, Any], message: str) -> None:
    answer = trained.service.post(
        "/prediction", json={"data": trained.stored(ArtifactKind.DATA), "problem": trained.id, **changes}
    )
    assert error(answer).startswith(message)
    assert trained.service.get("/preduplet").json == {"preduplets": []}


def test_a_prediction_needs_a_trained_model(challenge: Challenge) -> None:
    challenge.add_data()
    challenge.add_algo()
    answer = challenge.service.post(
        "/prediction", json={"data": challenge.stored(ArtifactKind.DATA), "problem": challenge.id}
    )
    assert error(answer) == "no problem or trained model"
    assert answer.json["detail"] == f"problem {challenge.id} has no trained model yet"


def test_our_own_workers_do_what_is_registered_here(sqlite_url: str, tmp_path: Path) -> None:
    bench = make_workbench(sqlite_url, tmp_path / "node")
    client = FlaskClient(create_orchestrator_app(bench.resources))
    client.environ_base["HTTP_AUTHORIZATION"] = basic("u", "p")

    def store(kind: ArtifactKind, content: bytes, **words: str) -> str:
        return str(bench.store(kind, content, **words))

    def work() -> None:
        while bench.publisher.published:
            bench.resources.runner.run(bench.publisher.published.pop(0))

    problem = {
        "uuid": str(uuid4()),
        "workflow": store(ArtifactKind.PROBLEM, PROBLEM, name="p", description="p"),
        "test_dataset": [store(ArtifactKind.DATA, b"a:1\n"), store(ArtifactKind.DATA, b"c:3\n")],
        "size_train_dataset": 1,
    }
    assert client.post("/problem", json=problem).status_code == 201
    data = [store(ArtifactKind.DATA, b"a:1"), store(ArtifactKind.DATA, b"c:3")]
    assert client.post("/data", json={"uuid": data, "problems": problem["uuid"]}).status_code == 201
    algo = {"uuid": store(ArtifactKind.ALGO, ALGO, name="a"), "name": "a", "problem": problem["uuid"]}
    assert client.post("/algo", json=algo).status_code == 201
    work()
    uplets = client.get(f"/learnuplet?algo={algo['uuid']}").json["learnuplets"]  # type: ignore[index]  # it is JSON
    assert [(uplet["status"], uplet["perf"]) for uplet in uplets] == [("done", 0.5), ("done", 1.0)]
    body = {"data": store(ArtifactKind.DATA, b"c"), "problem": problem["uuid"]}
    ordered = client.post("/prediction", json=body).json
    work()
    done = client.get(f"/preduplet/{ordered['uuid']}").json  # type: ignore[index]
    assert done is not None
    assert done["status"] == "done"
    assert bench.read(ArtifactKind.PREDICTION, UUID(done["prediction_storage_uuid"])) == b"3"
    assert len(bench.resources.orchestrator.jobs(JobKind.LEARN)) == 2
