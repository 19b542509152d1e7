"""Logins, limits, headers and workers that are not ours, as HTTP shows them."""

from __future__ import annotations

import io
import uuid
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from flask.testing import FlaskClient

from morpheo.access import Role
from morpheo.accounts import Accounts
from morpheo.api.compute import create_compute_app
from morpheo.api.orchestrator import create_orchestrator_app
from morpheo.api.storage import create_storage_app
from morpheo.logins import FREE_BY_NAME, Logins
from morpheo.models import ArtifactKind, LearnSpec, PredictSpec
from morpheo.storage.database import Database
from morpheo.testing import make_learn_spec, make_predict_spec
from tests.support.api import Service, basic, form, order
from tests.support.parties import Party, make_party
from tests.support.trail import told

DAY = timedelta(days=1)


def bearer(database: Database, name: str, *roles: Role) -> dict[str, str]:
    """Add a user, and return the header with a token of theirs."""
    accounts = Accounts(database)
    accounts.add(name, roles, None)
    return header(database, name)


def header(database: Database, name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {Accounts(database).create_token(name, name='', life=DAY)[1]}"}


def upload(service: Service, headers: dict[str, str]) -> Any:
    return service.post("/data", headers=headers, **form({"size": 1, "blob": b"x"}))


# Logins.


def test_a_user_is_known_by_password_and_by_token(sqlite: Database) -> None:
    accounts = Accounts(sqlite)
    accounts.add("carol", [Role.CUSTODIAN], "correct horse battery")
    storage = Service(create_storage_app, sqlite)
    stored = upload(storage, {"Authorization": basic("carol", "correct horse battery")})
    token, secret = accounts.create_token("carol", name="", life=DAY)
    again = upload(storage, {"Authorization": f"Bearer {secret}"})
    assert (stored.status_code, again.status_code) == (201, 201)
    uploads = [event.actor for event in told(sqlite) if event.action == "artifact.uploaded"]
    assert uploads == ["user:carol", f"user:carol#{token.id}"]
    with sqlite.read() as work:
        owners = {work.artifacts.get(ArtifactKind.DATA, uuid.UUID(item.json["uuid"])).owner for item in (stored, again)}
    assert owners == {"carol"}


def test_a_wrong_token_is_challenged_as_rfc_6750_says(sqlite: Database) -> None:
    answer = Service(create_storage_app, sqlite).get("/algo", headers={"Authorization": "Bearer morpheo_x"})
    assert answer.status_code == 401
    assert answer.headers.getlist("WWW-Authenticate") == [
        'Basic realm="Authorization Required"', 'Bearer realm="morpheo", error="invalid_token"',
    ]  # fmt: skip


@pytest.mark.parametrize("create", [create_compute_app, create_storage_app, create_orchestrator_app])
def test_too_many_wrong_passwords_are_429_with_the_time_to_wait(sqlite: Database, create: Callable[..., Any]) -> None:
    service = Service(create, sqlite)
    service.replace(logins=Logins(sqlite, ("u", "p"), clock=lambda: 1000.0))
    wrong = {"Authorization": basic("mallory", "wrong")}
    assert {service.get("/problem", headers=wrong).status_code for _ in range(FREE_BY_NAME + 1)} == {401}
    answer = service.get("/problem", headers=wrong)
    assert (answer.status_code, answer.headers["Retry-After"]) == (429, "1")
    assert "try again in 1 s" in answer.text
    assert service.get("/health", headers=wrong).status_code == 200


def test_a_refused_upload_is_not_read(sqlite: Database) -> None:
    storage = Service(create_storage_app, sqlite)
    reader = bearer(sqlite, "rita", Role.READER)
    for headers, status in (({"Authorization": "Basic x"}, 401), (reader, 403)):
        stream = _Unread()
        answer = storage.post(
            "/data", headers=headers, input_stream=stream, content_length=1000, content_type="application/octet-stream"
        )
        assert answer.status_code == status


class _Unread(io.BytesIO):
    def read(self, _size: int | None = -1) -> bytes:
        raise AssertionError("the body was read")

    readline = read


# Orchestrators of 2017.


def test_orders_without_a_password_are_let_in_by_a_setting_only(sqlite: Database) -> None:
    spec = make_learn_spec()
    closed = Service(create_compute_app, sqlite)
    closed.add_needs(spec)
    assert FlaskClient(closed.app).post("/learn", json=order(spec)).status_code == 401
    service = Service(create_compute_app, sqlite, anonymous_orders=True)
    stranger = FlaskClient(service.app)
    assert stranger.post("/learn", json=order(spec)).status_code == 202
    with sqlite.read() as work:
        assert work.jobs.owner(spec.id) == "orchestrator-of-2017"
    assert [event.actor for event in told(sqlite) if event.action == "job.ordered"] == ["anonymous"]
    for path, method in ((f"/jobs/{spec.id}", "GET"), ("/jobs", "GET"), (f"/jobs/{spec.id}/cancel", "POST")):
        assert stranger.open(path, method=method).status_code == 401
    wrong = {"Authorization": basic("u", "wrong")}
    assert stranger.post("/learn", json=order(spec), headers=wrong).status_code == 401


# Limits.


def test_a_user_has_so_many_requests_a_minute_and_an_admin_any(sqlite: Database) -> None:
    service = Service(create_orchestrator_app, sqlite, max_requests_per_minute=3)
    reader = bearer(sqlite, "rita", Role.READER)
    answers = [service.get("/problem", headers=reader) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    assert 1 <= int(answers[-1].headers["Retry-After"]) <= 20
    assert {service.get("/problem").status_code for _ in range(5)} == {200}


def test_a_user_stores_so_many_artifacts_of_a_kind_a_day(sqlite: Database) -> None:
    storage = Service(create_storage_app, sqlite, max_uploads_per_day=2)
    carol, carl = (bearer(sqlite, name, Role.CUSTODIAN) for name in ("carol", "carl"))
    answers = [upload(storage, carol) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [201, 201, 429]
    assert 24 * 3600 - 600 < int(answers[-1].headers["Retry-After"]) <= 24 * 3600
    problem = form({"name": "n", "description": "d", "size": 1, "blob": b"x"})
    assert storage.post("/problem", headers=carol, **problem).status_code == 201
    assert upload(storage, carl).status_code == 201
    assert {upload(storage, {}).status_code for _ in range(3)} == {201}


def test_a_user_has_so_many_orders_waiting(sqlite: Database) -> None:
    orchestrator = Service(create_orchestrator_app, sqlite, max_orders_waiting=2)
    party = make_party(orchestrator.resources, 1)  # its custodian has one prediction that waits
    carol = bearer(sqlite, party.names[Role.CUSTODIAN], Role.CUSTODIAN)
    body = {"data": str(party.spare), "problem": str(party.problem)}
    answers = [orchestrator.post("/prediction", json=body, headers=carol) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [201, 429]
    assert int(answers[-1].headers["Retry-After"]) > 0
    assert orchestrator.post("/prediction", json=body).status_code == 201  # an admin has no limit


# Workers that are not ours.


@pytest.fixture
def worlds(sqlite: Database) -> tuple[Service, Service, Party]:
    storage = Service(create_storage_app, sqlite)
    orchestrator = Service(create_orchestrator_app, sqlite)
    orchestrator.replace(blobs=storage.blobs, database=sqlite)
    return storage, orchestrator, make_party(storage.resources, 1)


def test_a_worker_does_a_job_with_a_token_and_sees_no_more_than_the_job(
    worlds: tuple[Service, Service, Party], sqlite: Database
) -> None:
    storage, orchestrator, party = worlds
    walt = bearer(sqlite, "walt", Role.WORKER)
    spec = party.queued.spec
    assert isinstance(spec, LearnSpec)
    needs = [f"/{kind}/{item}/blob" for kind, ids in spec.needs().values() for item in ids]
    stored = f"/model?uuid={spec.model_end}&algo={spec.algo}"
    raw = {"data": b"model", "content_type": "application/octet-stream", "headers": walt}

    def sees() -> set[int]:
        return {storage.get(path, headers=walt).status_code for path in needs}

    assert sees() == {404}
    assert storage.post(stored, **raw).status_code == 403
    taken = orchestrator.post(f"/worker/learnuplet/{spec.id}", json={"worker": "w"}, headers=walt)
    assert taken.status_code == 200
    assert sees() == {200}
    assert storage.post(f"/model?algo={spec.algo}", **raw).status_code == 403
    assert storage.post(stored, **raw).status_code == 201
    wendy = bearer(sqlite, "wendy", Role.WORKER)
    done = {"status": "done", "perf": 0.5, "train_perf": {}, "test_perf": {}}
    for other in (wendy, walt):
        answer = orchestrator.post(f"/learndone/{spec.id}", json=done, headers=other)
        assert answer.status_code == (200 if other is walt else 400)
    assert sees() == {404}
    with sqlite.read() as work:
        assert work.artifacts.get(ArtifactKind.MODEL, spec.model_end).owner == party.names[Role.SUBMITTER]


def test_the_id_of_a_prediction_of_our_own_workers_is_not_for_others(
    worlds: tuple[Service, Service, Party], sqlite: Database
) -> None:
    storage, _, party = worlds
    walt = bearer(sqlite, party.names[Role.WORKER], Role.WORKER)
    spec = party.queued_prediction.spec
    assert isinstance(spec, PredictSpec)
    given = {"uuid": str(spec.prediction), "size": 1, "blob": b"x"}
    raw = {"data": b"x", "content_type": "application/octet-stream", "headers": walt}
    answers = (
        storage.post("/prediction", headers=walt, **form(given)),
        storage.post(f"/prediction?uuid={spec.prediction}", **raw),
    )
    assert [(answer.status_code, answer.json["field"]) for answer in answers] == [(400, "uuid")] * 2
    assert storage.post(f"/prediction?uuid={uuid.uuid4()}", **raw).status_code == 201


def test_a_submitter_who_is_also_a_worker_sees_no_more_of_their_models(
    worlds: tuple[Service, Service, Party], sqlite: Database
) -> None:
    storage, _, party = worlds
    both = bearer(sqlite, party.names[Role.SUBMITTER], Role.SUBMITTER, Role.WORKER)
    model = party.artifacts[ArtifactKind.MODEL]
    assert storage.get(f"/model/{model}", headers=both).status_code == 200
    assert storage.get(f"/model/{model}/blob", headers=both).status_code == 403


@pytest.mark.parametrize("kind", ["learn", "pred"])
def test_a_custodian_cannot_order_with_what_their_algo_learnt_from_the_data_of_others(
    worlds: tuple[Service, Service, Party], sqlite: Database, kind: str
) -> None:
    """Their own programs would read out what is in it: a model is let out by the custodian of its problem."""
    storage, orchestrator, party = worlds
    compute = Service(create_compute_app, sqlite)
    compute.replace(blobs=storage.blobs, database=sqlite)
    both = bearer(sqlite, party.names[Role.SUBMITTER], Role.SUBMITTER, Role.CUSTODIAN)
    carol = bearer(sqlite, party.names[Role.CUSTODIAN], Role.CUSTODIAN)
    model, algo = party.artifacts[ArtifactKind.MODEL], party.artifacts[ArtifactKind.ALGO]
    raw = {"content_type": "application/octet-stream", "headers": both}
    data = [storage.post("/data", data=content, **raw).json["uuid"] for content in (b"1", b"2")]
    archive = storage.post("/problem", headers=both, **form({"name": "n", "description": "d", "size": 1, "blob": b"x"}))
    spec = make_learn_spec(workflow=uuid.UUID(archive.json["uuid"]), algo=algo, model_start=model, rank=1)
    learn = {**order(spec), "train_data": data[:1], "test_data": data[1:]}
    predict = {**order(make_predict_spec(workflow=spec.workflow, model=model)), "data": data[0]}
    body = learn if kind == "learn" else predict

    def ask(headers: dict[str, str]) -> Any:
        return compute.post(f"/{kind}", json={**body, "uuid": str(uuid.uuid4())}, headers=headers)

    refused = ask(both)
    assert (refused.status_code, "custodian of its problem" in refused.json["error"]) == (400, True)
    changed = orchestrator.patch(f"/problem/{party.problem}", json={"model_download": True}, headers=carol)
    assert changed.status_code == 200
    assert ask(both).status_code == 202


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 201),
        ({"Origin": "http://localhost"}, 201),
        ({"Origin": "https://app.example"}, 201),
        ({"Origin": "https://app.example", "Sec-Fetch-Site": "cross-site"}, 201),
        ({"Sec-Fetch-Site": "same-origin", "Origin": "https://proxied.example"}, 201),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
    ],
)
def test_pages_of_other_sites_change_nothing_with_the_login_of_a_browser(
    sqlite: Database, headers: dict[str, str], status: int
) -> None:
    service = Service(create_storage_app, sqlite, cors_origins=("https://app.example",))
    answer = service.post("/data", headers=headers, **form({"size": 1, "blob": b"x"}))
    assert answer.status_code == status
    assert service.get("/data", headers=headers).status_code == 200


def test_an_archive_that_a_problem_names_keeps_its_id(worlds: tuple[Service, Service, Party], sqlite: Database) -> None:
    storage, _, party = worlds
    carol = bearer(sqlite, party.names[Role.CUSTODIAN], Role.CUSTODIAN)
    with sqlite.read() as work:
        archive = work.challenges.problem(party.problem).workflow
    renamed = storage.patch(f"/problem/{archive}", headers=carol, **form({"uuid": str(uuid.uuid4())}))
    assert (renamed.status_code, "upload a new archive" in renamed.json["error"]) == (409, True)
    assert storage.patch(f"/problem/{archive}", headers=carol, **form({"name": "new"})).status_code == 200


def test_a_guess_at_test_data_of_somebody_else_is_not_told_right(
    worlds: tuple[Service, Service, Party], sqlite: Database
) -> None:
    storage, orchestrator, party = worlds
    other = make_party(storage.resources, 2)
    carol = bearer(sqlite, party.names[Role.CUSTODIAN], Role.CUSTODIAN)
    with sqlite.read() as work:
        (hidden, *_), (own, *_) = (work.challenges.problem(item.problem).test_data for item in (other, party))
    contents = [storage.get(f"/data/{item}/blob").data for item in (hidden, own)]
    guesses = [
        storage.post("/data", headers=carol, **form({"size": 1, "blob": content})).json["uuid"] for content in contents
    ]
    answers = [
        orchestrator.post("/prediction", headers=carol, json={"data": guess, "problem": str(party.problem)})
        for guess in guesses
    ]
    assert [answer.status_code for answer in answers] == [201, 400]


def test_a_worker_cannot_give_away_the_prediction_of_somebody_else(
    worlds: tuple[Service, Service, Party], sqlite: Database
) -> None:
    storage, orchestrator, party = worlds
    walt = bearer(sqlite, party.names[Role.WORKER], Role.WORKER)
    foreign = make_party(storage.resources, 2).artifacts[ArtifactKind.PREDICTION]
    path = f"/preddone/{party.held_prediction.id}"
    done = {"status": "done", "prediction_storage_uuid": str(foreign)}
    answer = orchestrator.post(path, json=done, headers=walt)
    assert (answer.status_code, "not found in storage" in answer.text) == (400, True)
    mine = storage.post("/prediction", headers=walt, **form({"size": 1, "blob": b"x"})).json["uuid"]
    assert orchestrator.post(path, json={**done, "prediction_storage_uuid": mine}, headers=walt).status_code == 200
    with sqlite.read() as work:
        assert work.artifacts.get(ArtifactKind.PREDICTION, uuid.UUID(mine)).owner == party.names[Role.CUSTODIAN]


def test_what_is_in_quarantine_is_repaired_by_its_owner_or_an_admin_only(sqlite: Database) -> None:
    storage = Service(create_storage_app, sqlite)
    carol, carl = (bearer(sqlite, name, Role.CUSTODIAN) for name in ("carol", "carl"))
    fields = {"uuid": upload(storage, carol).json["uuid"], "size": 1, "blob": b"x"}
    artifact = storage.resources.artifacts.get(ArtifactKind.DATA, uuid.UUID(fields["uuid"]))
    storage.resources.artifacts.quarantine(artifact, "lost")
    assert storage.post("/data", headers=carl, **form(fields)).status_code == 409
    assert storage.post("/data", headers=carol, **form(fields)).status_code == 201
    assert storage.get(f"/data/{fields['uuid']}/blob", headers=carol).data == b"x"


# Headers.


@pytest.mark.parametrize("create", [create_compute_app, create_storage_app, create_orchestrator_app])
def test_answers_cannot_be_framed_sniffed_or_kept(sqlite: Database, create: Callable[..., Any]) -> None:
    service = Service(create, sqlite)
    for answer in (service.get("/health"), service.get("/jobs"), service.get("/problem"), service.get("/nothing")):
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["X-Frame-Options"] == "DENY"
        assert answer.headers["Referrer-Policy"] == "no-referrer"
        assert "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"]
        assert "Strict-Transport-Security" not in answer.headers
        if answer.request.path != "/health":
            assert answer.headers["Cache-Control"] == "no-store"
    assert "Strict-Transport-Security" in service.get("/health", base_url="https://morpheo.example").headers


def test_forwarded_headers_are_believed_from_known_proxies_only(
    sqlite: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoofed = {"X-Forwarded-For": "10.1.1.1, 10.2.2.2", "X-Forwarded-Proto": "https"}
    plain = Service(create_storage_app, sqlite)
    behind = Service(create_storage_app, sqlite, trusted_proxies=1)
    assert "Strict-Transport-Security" not in plain.get("/health", headers=spoofed).headers
    assert "Strict-Transport-Security" in behind.get("/health", headers=spoofed).headers
    seen = []
    for service in (plain, behind):
        monkeypatch.setattr(
            service.resources.logins, "with_password", lambda _name, _password, *, address: seen.append(address)
        )
        service.get("/algo", headers=spoofed)
    assert seen == ["127.0.0.1", "10.2.2.2"]
