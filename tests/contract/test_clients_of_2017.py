"""
Transcripts: the three APIs over real sockets, and requests exactly as the clients of 2017 send them.

What is asserted is what those clients read: status lines, and the keys that the documents had then (``wire-spec`` 1, 2,
3, 5 and 8). No worker of ours runs, so the jobs are done by what a Go worker sends.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import pytest

from tests.support.api_server import Server, migrate, serving
from tests.support.clients_of_2017 import Answer, Browser, FlaskOrchestrator, GoClient

OK, CREATED, ACCEPTED = "HTTP/1.1 200 OK", "HTTP/1.1 201 Created", "HTTP/1.1 202 Accepted"
BAD_REQUEST, UNAUTHORIZED = "HTTP/1.1 400 Bad Request", "HTTP/1.1 401 Unauthorized"
NOT_FOUND, CONFLICT = "HTTP/1.1 404 Not Found", "HTTP/1.1 409 Conflict"
NIL = "00000000-0000-0000-0000-000000000000"
ARCHIVE = b"\x1f\x8b\x08" + bytes(range(256)) * 3
#: What the integration program of 2017 says of every file, whatever its length.
SIZE = ("size", "666")

PROBLEM_KEYS = {"uuid", "workflow", "test_dataset", "size_train_dataset", "timestamp_upload"}
ALGO_KEYS = {"uuid", "name", "problem", "timestamp_upload"}
DATA_KEYS = {"uuid", "problems", "timestamp_upload"}
LEARNUPLET_KEYS = {
    "uuid", "problem", "workflow", "algo", "model_start", "model_end", "train_data", "test_data", "worker", "perf",
    "train_perf", "test_perf", "status", "rank", "timestamp_creation", "timestamp_done",
}  # fmt: skip
PREDUPLET_KEYS = {
    "data", "problem", "timestamp_request", "uuid", "model", "status", "worker", "timestamp_done", "workflow",
    "prediction_storage_uuid",
}  # fmt: skip


@dataclass(frozen=True)
class Services:
    """The three APIs on one database."""

    compute: Server
    storage: Server
    orchestrator: Server


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    folder = tmp_path_factory.mktemp("services")
    migrate(folder)
    # Nothing listens on the broker's port: no worker of ours takes a job.
    settings = {
        "api_processes": "1",
        "broker_url": "redis://127.0.0.1:1/0",
        "anonymous_orders": "1",
        "cors_origins": "http://localhost:3000,file://",
    }
    with (
        serving("compute-api", folder, **settings) as compute,
        serving("storage-api", folder, **settings) as storage,
        serving("orchestrator-api", folder, **settings) as orchestrator,
    ):
        yield Services(compute, storage, orchestrator)


@pytest.fixture
def storage(services: Services) -> Iterator[GoClient]:
    with GoClient(services.storage.port) as client:
        yield client


@pytest.fixture
def orchestrator(services: Services) -> Iterator[GoClient]:
    with GoClient(services.orchestrator.port) as client:
        yield client


def only(document: dict[str, Any], keys: set[str]) -> dict[str, Any]:
    """Return what a client of 2017 sees of a document; it must have every key."""
    return {key: document[key] for key in keys}


def read(answer: Answer, status: str) -> Any:
    assert answer.status == status, answer
    return answer.json


def names(kind: str) -> dict[str, str]:
    words = {"problem": {"name": "n", "description": "d & <é>"}, "algo": {"name": "n"}}
    return words.get(kind, {})


def upload(storage: GoClient, kind: str, blob: bytes = ARCHIVE) -> str:
    """Upload as the integration program does; return the id."""
    given = str(uuid4())
    fields = [("uuid", given), *names(kind).items(), SIZE]
    document = read(storage.post_form(f"/{kind}", fields, blob, file_name=given), CREATED)
    assert only(document, {"uuid", *names(kind)}) == {"uuid": given, **names(kind)}
    assert isinstance(document["timestamp_upload"], int)
    return given


# Storage.


@pytest.mark.parametrize("kind", ["problem", "algo", "data", "prediction"])
def test_storage_takes_the_fields_of_a_go_map_in_any_order(storage: GoClient, kind: str) -> None:
    for order in itertools.permutations(["uuid", *names(kind), "size"]):
        given = str(uuid4())
        values = {"uuid": given, "size": "666", **names(kind)}
        fields = [(name, values[name]) for name in order]
        document = read(storage.post_form(f"/{kind}", fields, ARCHIVE, file_name=given), CREATED)
        assert document["uuid"] == given
        blob = storage.get(f"/{kind}/{given}/blob")
        assert (blob.status, blob.body) == (OK, ARCHIVE)
        assert only(read(storage.get(f"/{kind}/{given}"), OK), {"uuid", *names(kind)}) == {
            "uuid": given,
            **names(kind),
        }


def test_storage_takes_a_form_in_chunks(storage: GoClient) -> None:
    given = str(uuid4())
    answer = storage.post_form_chunked("/data", [("uuid", given), SIZE], ARCHIVE, file_name=given)
    assert read(answer, CREATED)["uuid"] == given
    assert storage.get(f"/data/{given}/blob").body == ARCHIVE


def test_storage_says_409_conflict_in_these_letters(storage: GoClient) -> None:
    given = upload(storage, "data")
    answer = storage.post_form("/data", [("uuid", given), SIZE], ARCHIVE, file_name=given)
    message = f"[Error uploading data] [model] UUID {given} already exist in table 'data'"
    assert read(answer, CONFLICT)["error"] == message


def test_storage_tells_go_what_is_wrong(storage: GoClient) -> None:
    make_sure = "Make sure that each form field is sent before blob in the multipart/form"
    for fields, message in (
        ([("name", "n"), SIZE], f"Invalid form: name is not a valid field for data. {make_sure}"),
        ([], f"Invalid form: 'Size' unset. {make_sure}"),
        ([("owner", NIL), SIZE], 'Unknown field "owner"'),
    ):
        answer = storage.post_form("/data", fields, ARCHIVE, file_name="f")
        assert read(answer, BAD_REQUEST)["error"].endswith(message)
    unknown = str(uuid4())
    message = read(storage.get(f"/data/{unknown}"), NOT_FOUND)["error"]
    assert message.startswith(f"Error retrieving data {unknown}")


def test_storage_lists_as_in_2017(storage: GoClient) -> None:
    given = upload(storage, "prediction")
    listed = read(storage.get("/prediction"), OK)
    assert (listed["page"], listed["length"]) == (0, len(listed["items"]))
    assert given in [item["uuid"] for item in listed["items"]]
    index = read(storage.get("/"), OK)
    assert index[:5] == ["/", "/health", "/problem", "/problem/:uuid", "/problem/:uuid/blob"]


def test_storage_keeps_a_model_that_is_a_raw_body(storage: GoClient) -> None:
    algo, model = upload(storage, "algo"), str(uuid4())
    document = read(storage.post_raw(f"/model?uuid={model}&algo={algo}", ARCHIVE), CREATED)
    assert only(document, {"uuid", "algo"}) == {"uuid": model, "algo": algo}
    assert storage.get(f"/model/{model}/blob").body == ARCHIVE
    unknown = str(uuid4())
    answer = storage.post_raw(f"/model?uuid={uuid4()}&algo={unknown}", ARCHIVE)
    message = read(answer, NOT_FOUND)["error"]
    assert message.startswith(f"Error uploading model: algorithm {unknown} not found")


def test_without_a_password_nothing_is_told(services: Services) -> None:
    for server, realm in (
        (services.storage, "Authorization Required"),
        (services.orchestrator, "Authentication Required"),
    ):
        with GoClient(server.port, auth=False) as client:
            answer = client.get("/problem")
            assert answer.status == UNAUTHORIZED
            assert answer.headers["WWW-Authenticate"] == f'Basic realm="{realm}"'
    assert answer.body == b"Unauthorized Access"


# Compute.


@pytest.fixture
def learnuplet(storage: GoClient) -> dict[str, Any]:
    """What the orchestrator of 2017 pushed: a document with nulls, and a time under a name that Go did not know."""
    algo = upload(storage, "algo")
    return {
        "uuid": str(uuid4()),
        "problem": str(uuid4()),
        "workflow": upload(storage, "problem"),
        "algo": algo,
        "model_start": algo,
        "model_end": str(uuid4()),
        "train_data": [upload(storage, "data")],
        "test_data": [upload(storage, "data")],
        "worker": None,
        "perf": None,
        "train_perf": None,
        "test_perf": None,
        "status": "todo",
        "rank": 0,
        "timestamp_creation": 1510311480,
        "timestamp_done": None,
    }


def test_compute_takes_orders_without_a_content_type(
    services: Services, storage: GoClient, learnuplet: dict[str, Any]
) -> None:
    model = str(uuid4())
    assert storage.post_raw(f"/model?uuid={model}&algo={learnuplet['algo']}", ARCHIVE).status == CREATED
    preduplet = {
        "data": learnuplet["test_data"][0],
        "problem": learnuplet["problem"],
        "timestamp_request": 1510311480,
        "uuid": str(uuid4()),
        "model": model,
        "status": "todo",
        "worker": None,
        "timestamp_done": None,
        "workflow": learnuplet["workflow"],
        "prediction_storage_uuid": None,
    }
    with FlaskOrchestrator(services.compute.port) as pushes:
        for _ in range(2):  # it pushes again when a report comes twice
            assert read(pushes.push("/learn", learnuplet), ACCEPTED) == {"message": "Learn-uplet ingested accordingly"}
            assert read(pushes.push("/pred", preduplet), ACCEPTED) == {"message": "Pred-uplet ingested"}


def test_compute_takes_orders_of_go_and_refuses_in_its_words(services: Services, learnuplet: dict[str, Any]) -> None:
    with GoClient(services.compute.port, auth=False) as compute:
        assert read(compute.post_json("/learn", learnuplet), ACCEPTED) == {
            "message": "Learn-uplet ingested accordingly"
        }
        index = read(compute.get("/"), OK)
        assert index[:4] == ["/", "/health", "/learn", "/pred"]
        assert read(compute.get("/health"), OK)["status"] == "ok"
        for changes, message in (
            ({"status": "xxx"}, "Invalid learn-uplet: status field ain't valid (provided: xxx"),
            ({"problem": ""}, "Error decoding body to JSON"),
            ({"train_data": []}, "Invalid learn-uplet: train_data field is empty or unset"),
            ({"test_data": [NIL]}, "Invalid learn-uplet: Nil UUID in test_data field at pos 0"),
            ({"workflow": None}, "Invalid learn-uplet: workflow field is required"),
        ):
            answer = compute.post_json("/learn", {**learnuplet, "uuid": str(uuid4()), **changes})
            assert read(answer, BAD_REQUEST)["error"].startswith(message)


# The integration program of 2017, and a Go worker.


class GoWorker:
    """What a worker of 2017 asks and tells, in its order (``wire-spec`` 4.2 and 4.3); the containers are left out."""

    def __init__(self, storage: GoClient, orchestrator: GoClient) -> None:
        self._storage = storage
        self._orchestrator = orchestrator

    def fetch(self, kind: str, artifact_id: str) -> None:
        answer = self._storage.get(f"/{kind}/{artifact_id}/blob")
        assert (answer.status, len(answer.body) > 0) == (OK, True)

    def start(self, kind: str, uplet: dict[str, Any]) -> None:
        answer = self._orchestrator.post_json(f"/worker/{kind}/{uplet['uuid']}", {"worker": NIL})
        assert read(answer, OK) == {f"{kind}_worker_set": uplet["uuid"]}

    def learn(self, uplet: dict[str, Any], perf: float) -> None:
        self.start("learnuplet", uplet)
        self.fetch("problem", uplet["workflow"])
        self.fetch("algo", uplet["algo"])
        if uplet["rank"] > 0:
            self.fetch("model", uplet["model_start"])
        for item in (*uplet["train_data"], *uplet["test_data"]):
            self.fetch("data", item)
        for _ in range(2):
            assert read(self._storage.get(f"/algo/{uplet['algo']}"), OK)["uuid"] == uplet["algo"]
        model = self._storage.post_raw(f"/model?uuid={uplet['model_end']}&algo={uplet['algo']}", ARCHIVE)
        assert model.status == CREATED
        body = {
            "status": "done",
            "perf": perf,
            "train_perf": dict.fromkeys(uplet["train_data"], perf),
            "test_perf": dict.fromkeys(uplet["test_data"], perf),
        }
        answer = self._orchestrator.post_json(f"/learndone/{uplet['uuid']}", body)
        assert read(answer, OK) == {"updated_learnuplet": uplet["uuid"]}

    def predict(self, uplet: dict[str, Any]) -> str:
        self.start("preduplet", uplet)
        self.fetch("data", uplet["data"])
        self.fetch("model", uplet["model"])
        algo = read(self._storage.get(f"/model/{uplet['model']}"), OK)["algo"]
        self.fetch("algo", algo)
        prediction = upload(self._storage, "prediction", b"0.5")
        body = {"status": "done", "prediction_storage_uuid": prediction}
        answer = self._orchestrator.post_json(f"/preddone/{uplet['uuid']}", body)
        assert read(answer, OK) == {"updated_preduplet": uplet["uuid"]}
        return prediction


@dataclass(frozen=True)
class Registered:
    """What the integration program has registered: its ids."""

    problem: str
    workflow: str
    test: list[str]
    train: list[str]
    algo: str


def register(storage: GoClient, orchestrator: GoClient) -> Registered:
    """Do the first half of the integration program: storage, then the orchestrator, data one by one, the algo last."""
    workflow, problem = upload(storage, "problem"), str(uuid4())
    data = [upload(storage, "data", blob) for blob in (b"a", b"b", b"c", b"d")]
    algo = upload(storage, "algo")
    test, train = data[:2], data[2:]
    posted = {"uuid": problem, "workflow": workflow, "test_dataset": test, "size_train_dataset": 1}
    answer = read(orchestrator.post_json("/problem", posted), CREATED)
    assert list(answer) == ["new_problem"]
    document = only(answer["new_problem"], PROBLEM_KEYS)
    assert {**posted, "timestamp_upload": document["timestamp_upload"]} == document
    for item in data:
        answer = read(orchestrator.post_json("/data", {"uuid": item, "problems": [problem]}), CREATED)
        (document,) = answer.pop("new_datas")
        assert answer == {"new_learnuplets": 0, "held_out": {problem: [item]} if item in test else {}}
        assert set(document) == DATA_KEYS
        assert (document["uuid"], document["problems"]) == (item, [problem])
    body = {"uuid": algo, "name": "fastest", "problem": problem}
    answer = read(orchestrator.post_json("/algo", body), CREATED)
    document = only(answer.pop("new_algo"), ALGO_KEYS)
    assert document == {**body, "timestamp_upload": document["timestamp_upload"]}
    assert answer == {"new_learnuplets": 2}
    return Registered(problem, workflow, test, train, algo)


def learnuplets(orchestrator: GoClient, algo: str) -> list[dict[str, Any]]:
    """Read the whole list, as the program does, and pick those of one algo."""
    listed = read(orchestrator.get("/learnuplet", json_type=True), OK)
    assert list(listed) == ["learnuplets"]
    found = [only(item, LEARNUPLET_KEYS) for item in listed["learnuplets"] if item["algo"] == algo]
    return sorted(found, key=lambda uplet: int(uplet["rank"]))


def test_the_integration_program_of_2017(storage: GoClient, orchestrator: GoClient) -> None:
    ids = register(storage, orchestrator)
    worker = GoWorker(storage, orchestrator)
    first, second = learnuplets(orchestrator, ids.algo)
    assert first == {
        "uuid": first["uuid"],
        "problem": ids.problem,
        "workflow": ids.workflow,
        "algo": ids.algo,
        "model_start": ids.algo,
        "model_end": first["model_end"],
        "train_data": ids.train[:1],
        "test_data": ids.test,
        "worker": None,
        "perf": None,
        "train_perf": None,
        "test_perf": None,
        "status": "todo",
        "rank": 0,
        "timestamp_creation": first["timestamp_creation"],
        "timestamp_done": None,
    }
    assert (second["train_data"], second["rank"], second["model_start"]) == (ids.train[1:], 1, None)

    refused = orchestrator.post_json("/prediction", {"data": ids.train[0], "problem": ids.problem})
    assert read(refused, BAD_REQUEST)["Error"] == "no problem or trained model"

    worker.learn(first, 0.25)
    first, second = learnuplets(orchestrator, ids.algo)
    assert (first["status"], first["perf"], first["worker"]) == ("done", 0.25, NIL)
    assert (first["train_perf"], first["test_perf"]) == ({ids.train[0]: 0.25}, dict.fromkeys(ids.test, 0.25))
    assert isinstance(first["timestamp_done"], int)
    assert (second["status"], second["model_start"]) == ("todo", first["model_end"])
    worker.learn(second, 0.5)
    assert [uplet["status"] for uplet in learnuplets(orchestrator, ids.algo)] == ["done", "done"]

    body = {"data": ids.train[0], "problem": ids.problem}
    ordered = read(orchestrator.post_json("/prediction", body), CREATED)
    assert only(ordered, PREDUPLET_KEYS) == {
        **body,
        "uuid": ordered["uuid"],
        "workflow": ids.workflow,
        "model": second["model_end"],
        "status": "todo",
        "worker": None,
        "timestamp_request": ordered["timestamp_request"],
        "timestamp_done": None,
        "prediction_storage_uuid": None,
    }
    prediction = worker.predict(ordered)
    listed = read(orchestrator.get("/preduplet", json_type=True), OK)
    (done,) = (item for item in listed["preduplets"] if item["uuid"] == ordered["uuid"])
    assert (done["status"], done["prediction_storage_uuid"]) == ("done", prediction)
    assert isinstance(done["timestamp_done"], int)
    assert storage.get(f"/prediction/{prediction}/blob").body == b"0.5"


def test_a_go_worker_that_fails_and_one_that_comes_late(storage: GoClient, orchestrator: GoClient) -> None:
    ids = register(storage, orchestrator)
    first, second = learnuplets(orchestrator, ids.algo)
    worker = GoWorker(storage, orchestrator)
    worker.start("learnuplet", first)
    late = orchestrator.post_json(f"/worker/learnuplet/{first['uuid']}", {"worker": NIL})
    message = f"worker not set for learnuplet {first['uuid']}. Might be already pending"
    assert read(late, BAD_REQUEST)["Error"] == message
    failed = orchestrator.post_json(f"/learndone/{first['uuid']}", {"status": "failed"})
    assert read(failed, OK) == {"updated_learnuplet": first["uuid"]}
    again = orchestrator.post_json(f"/learndone/{first['uuid']}", {"status": "failed"})
    assert read(again, BAD_REQUEST)["Error"] == f"no update of learnuplet {first['uuid']}"
    stalled = learnuplets(orchestrator, ids.algo)
    assert [(uplet["status"], uplet["model_start"]) for uplet in stalled] == [("failed", ids.algo), ("todo", None)]
    unknown = str(uuid4())
    for kind, path in (("learnuplet", "learndone"), ("preduplet", "preddone")):
        answer = orchestrator.post_json(f"/{path}/{unknown}", {"status": "failed"})
        assert read(answer, BAD_REQUEST)["Error"] == f"no update of {kind} {unknown}"
    assert [uplet["uuid"] for uplet in stalled] == [first["uuid"], second["uuid"]]


def test_the_orchestrator_refuses_in_the_words_of_2017(storage: GoClient, orchestrator: GoClient) -> None:
    ids = register(storage, orchestrator)
    unknown = str(uuid4())
    algo = {"uuid": upload(storage, "algo"), "name": "n"}
    for path, body, message in (
        ("/problem", {"uuid": unknown}, "wrong key in posted data"),
        ("/algo", algo, "wrong key in posted data"),
        ("/algo", {**algo, "problem": unknown}, "non-existing related problem"),
        ("/data", {"uuid": ids.train[0]}, "wrong key in posted data"),
        ("/data", {"uuid": ids.train, "problems": [unknown]}, "non-existing related problem"),
        ("/prediction", {"data": ids.train, "problem": ids.problem}, "data field should be an UUID"),
        ("/prediction", {"data": ids.train[0], "problem": unknown}, "no problem or trained model"),
        (f"/worker/learnuplet/{unknown}", {}, "wrong key in posted data"),
        (f"/learndone/{unknown}", {"status": "done"}, "wrong key in posted data"),
        (f"/preddone/{unknown}", {"status": "done"}, "wrong key in posted data"),
    ):
        assert read(orchestrator.post_json(path, body), BAD_REQUEST)["Error"] == message
    for answer in (
        orchestrator.get("/nothing", json_type=True),
        orchestrator.get(f"/nothing/{unknown}", json_type=True),
        orchestrator.post_json(f"/worker/nothing/{unknown}", {"worker": NIL}),
    ):
        assert read(answer, NOT_FOUND)["Error"] == "Page does not exist"


# Analytics.


@pytest.mark.parametrize("origin", ["http://localhost:3000", "file://"])
def test_analytics(services: Services, storage: GoClient, orchestrator: GoClient, origin: str) -> None:
    ids = register(storage, orchestrator)
    for uplet, perf in zip((0, 1), (0.75, 0.5), strict=True):
        GoWorker(storage, orchestrator).learn(learnuplets(orchestrator, ids.algo)[uplet], perf)
    with Browser(services.storage.port, origin) as blobs, Browser(services.orchestrator.port, origin) as page:

        def allowed(browser: Browser, path: str, method: str) -> None:
            answer = browser.preflight(path, method)
            assert answer.status == OK
            assert answer.headers["Access-Control-Allow-Origin"] == origin
            assert answer.headers["Access-Control-Allow-Credentials"] == "true"
            assert method in answer.headers["Access-Control-Allow-Methods"]
            assert answer.headers["Access-Control-Allow-Headers"] == "authorization, content-type"

        def shown(browser: Browser, path: str) -> Any:
            allowed(browser, path, "GET")
            answer = browser.get(path)
            assert answer.headers["Access-Control-Allow-Origin"] == origin
            return read(answer, OK)

        # The list of problems: the orchestrator's, with name and description from storage.
        listed = shown(page, "/problem")["problems"]
        (problem,) = (only(item, PROBLEM_KEYS) for item in listed if item["uuid"] == ids.problem)
        words = shown(blobs, f"/problem/{problem['workflow']}")
        assert only(words, {"name", "description"}) == names("problem")
        # The leaderboard: all algos of the problem, and the best of the learnuplets of each.
        (algo,) = shown(page, f"/algo?problem={ids.problem}")["algos"]
        assert only(algo, ALGO_KEYS)["name"] == "fastest"
        trained = shown(page, f"/learnuplet?algo={algo['uuid']}")["learnuplets"]
        assert [(uplet["rank"], uplet["perf"], len(uplet["train_data"])) for uplet in trained] == [
            (0, 0.75, 1),
            (1, 0.5, 1),
        ]
        # Participation: an archive with its true size, before the blob, and then its registration.
        allowed(blobs, "/algo", "POST")
        fields = [("name", "algo.tar.gz"), ("size", str(len(ARCHIVE)))]
        stored = blobs.post_form("/algo", fields, ARCHIVE, file_name="algo.tar.gz")
        assert stored.headers["Access-Control-Allow-Origin"] == origin
        document = read(stored, CREATED)
        assert document["name"] == "algo.tar.gz"
        allowed(page, "/algo", "POST")
        body = {"uuid": document["uuid"], "name": document["name"], "problem": ids.problem}
        answer = read(page.post_json("/algo", body), CREATED)
        assert (answer["new_algo"]["uuid"], answer["new_learnuplets"]) == (document["uuid"], 2)
        # An error is shown as it comes.
        refused = page.post_json("/algo", {**body, "problem": str(uuid4())})
        assert refused.headers["Access-Control-Allow-Origin"] == origin
        assert read(refused, BAD_REQUEST)["Error"] == "non-existing related problem"
