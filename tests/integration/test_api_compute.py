"""The compute API: orders in the words of 2017, and the jobs that they become."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import update

from morpheo.api.compute import create_compute_app
from morpheo.models import (
    NIL_UUID,
    ArtifactKind,
    AttemptOutcome,
    Blame,
    Cause,
    Failure,
    JobSpec,
    PredictSpec,
    Scores,
    StepName,
    StepRecord,
)
from morpheo.specs import spec_to_dict
from morpheo.storage.clock import database_now
from morpheo.storage.database import Database
from morpheo.storage.jobs import JobRepository
from morpheo.storage.tables import JobRow
from morpheo.testing import make_learn_spec, make_predict_spec
from tests.support.api import DownDatabase, Service, order, route

MAKERS = pytest.mark.parametrize("make", [make_learn_spec, make_predict_spec], ids=["learn", "predict"])
Maker = Callable[..., JobSpec]
NIL = str(NIL_UUID)


@pytest.fixture
def compute(sqlite: Database) -> Service:
    return Service(create_compute_app, sqlite)


def accepted(compute: Service, spec: JobSpec | None = None) -> JobSpec:
    spec = spec or make_learn_spec()
    compute.add_needs(spec)
    assert compute.order(spec).status_code == 202
    return spec


def test_the_index_begins_as_it_did_in_2017(compute: Service) -> None:
    assert compute.get("/").json == ["/", "/health", "/learn", "/pred", "/jobs"]


def test_health_does_not_ask_the_broker(compute: Service) -> None:
    compute.publisher.down = True
    answer = compute.get("/health")
    assert (answer.status_code, answer.json) == (200, {"status": "ok", "checks": {"database": "ok"}})


def test_health_says_that_the_database_is_down(compute: Service) -> None:
    compute.replace(database=DownDatabase("sqlite://"))
    answer = compute.get("/health")
    assert answer.status_code == 503
    assert answer.json["checks"] == {"database": "the database does not answer; try again"}


@pytest.mark.parametrize(
    ("make", "message"),
    [(make_learn_spec, "Learn-uplet ingested accordingly"), (make_predict_spec, "Pred-uplet ingested")],
    ids=["learn", "predict"],
)
@pytest.mark.parametrize("content_type", [None, "text/plain", "application/json"], ids=["no-type", "text", "json"])
def test_an_order_is_accepted_whatever_its_content_type(
    compute: Service, make: Maker, message: str, content_type: str | None
) -> None:
    spec = make()
    compute.add_needs(spec)
    answer = compute.post(route(spec), data=json.dumps(order(spec)), content_type=content_type)
    assert (answer.status_code, answer.json) == (202, {"message": message})
    assert compute.publisher.published == [spec.id]
    assert compute.resources.jobs.get(spec.id).spec == spec


def test_what_the_orchestrator_of_2017_sends_is_accepted(compute: Service) -> None:
    spec = make_learn_spec()
    compute.add_needs(spec)
    nulls: dict[str, Any] = dict.fromkeys(
        ("worker", "perf", "train_perf", "test_perf", "timestamp_done", "model_start")
    )
    assert compute.order(spec, **nulls, timestamp_request=None, timestamp_creation=1511950000).status_code == 202


@MAKERS
def test_the_same_order_twice_is_one_job(compute: Service, make: Maker) -> None:
    spec = accepted(compute, make())
    before = compute.stored()
    assert compute.order(spec).status_code == 202
    assert compute.order(spec, status="pending", worker=str(uuid4())).status_code == 202
    assert compute.stored() == before


@MAKERS
def test_another_order_with_the_same_id_is_a_conflict(compute: Service, make: Maker) -> None:
    spec = accepted(compute, make())
    before = compute.stored()
    other = make(id=spec.id)
    compute.add_needs(other)
    before["artifacts"] = compute.stored()["artifacts"]
    answer = compute.order(other)
    assert answer.status == "409 Conflict"
    assert str(spec.id) in answer.json["error"]
    assert compute.stored() == before


@MAKERS
def test_tags_are_accepted_sorted_and_shown_with_the_queue(compute: Service, make: Maker) -> None:
    spec = make()
    compute.add_needs(spec)
    assert compute.order(spec, tags=["gpu", "big-memory", "gpu"]).status_code == 202
    shown = compute.get(f"/jobs/{spec.id}").json
    assert (shown["tags"], shown["queue"]) == (["big-memory", "gpu"], f"{spec.kind}.big-memory+gpu")
    assert compute.order(spec, tags=["big-memory", "gpu"]).status_code == 202
    assert compute.order(spec, tags=["gpu"]).status_code == 409
    assert compute.order(spec).status_code == 409


def test_a_job_without_tags_is_what_it_was_before_there_were_tags(compute: Service) -> None:
    spec = accepted(compute)
    assert compute.order(spec, tags=None).status_code == 202
    assert compute.order(spec, tags=[]).status_code == 202
    shown = compute.get(f"/jobs/{spec.id}").json
    assert (shown["tags"], shown["queue"]) == ([], "learn")
    assert "tags" not in spec_to_dict(spec)


@MAKERS
def test_an_order_may_limit_the_time_of_its_containers(compute: Service, make: Maker) -> None:
    spec = make()
    compute.add_needs(spec)
    for bad in (0, -1, 1.5, "60", True, 10**9):
        answer = compute.order(spec, time_limit_s=bad)
        assert answer.status_code == 400
        assert "time_limit_s" in answer.json["error"]
    assert compute.order(spec, time_limit_s=60).status_code == 202
    assert compute.get(f"/jobs/{spec.id}").json["spec"]["time_limit_s"] == 60
    assert compute.order(spec).status_code == 409


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        (["GPU"], "tags: 'GPU' is not a tag"),
        ([""], "tags: '' is not a tag"),
        (["learn"], "tags: learn is no tag but a kind of job"),
        (list("abcde"), "tags: at most 4 tags"),
        ("gpu", "tags: Not a valid list"),
        ([1], "tags: Not a valid string"),
        ([None], "tags: Field may not be null"),
    ],
    ids=["case", "empty", "reserved", "many", "no-list", "number", "null"],
)
@MAKERS
def test_bad_tags_are_refused(compute: Service, make: Maker, tags: object, words: str) -> None:
    spec = make()
    compute.add_needs(spec)
    answer = compute.order(spec, tags=tags)
    assert answer.status_code == 400
    assert words in answer.json["error"]
    assert compute.publisher.published == []


def test_jobs_are_listed_by_tag(compute: Service) -> None:
    accepted(compute)
    wanted = accepted(compute, make_learn_spec(tags=("gpu",)))
    accepted(compute, make_predict_spec(tags=("gpu-a100",)))
    assert [job["id"] for job in compute.get("/jobs?tag=gpu").json["items"]] == [str(wanted.id)]
    assert compute.get("/jobs?tag=nothing").json["items"] == []


def test_the_description_of_the_api_has_the_orders(compute: Service) -> None:
    document = compute.get("/openapi.json").json
    for path, schema in (("/learn", "Learnuplet"), ("/pred", "Preduplet")):
        content = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]
        assert content["schema"] == {"$ref": f"#/components/schemas/{schema}"}
        assert document["components"]["schemas"][schema]["properties"]["tags"]["type"] == ["array", "null"]


LEARN_CHECKS: dict[str, tuple[dict[str, Any], str]] = {
    "id": ({"uuid": NIL, "problem": NIL, "status": "x"}, "id field is required"),
    "problem": ({"problem": None, "workflow": NIL}, "problem field is required"),
    "workflow": ({"workflow": NIL, "algo": NIL}, "workflow field is required"),
    "algo": ({"algo": NIL, "train_data": []}, "algo field is required"),
    "no-train": ({"train_data": [], "test_data": []}, "train_data field is empty or unset"),
    "null-train": ({"train_data": None}, "train_data field is empty or unset"),
    "nil-train": ({"train_data": [str(uuid4()), NIL], "test_data": []}, "Nil UUID in train_data field at pos 1"),
    "null-in-train": ({"train_data": [None]}, "Nil UUID in train_data field at pos 0"),
    "no-test": ({"test_data": [], "status": "x"}, "test_data field is empty or unset"),
    "nil-test": ({"test_data": [NIL], "status": "x"}, "Nil UUID in test_data field at pos 0"),
    "status": ({"status": "xxx", "rank": 1}, "status field ain't valid (provided: xxx, possible choices: map["),
    "no-status": ({"status": None}, "status field ain't valid (provided: , possible choices: map["),
    "done": ({"status": "done"}, "status field ain't valid (provided: done, possible choices: map["),
    "rank": ({"rank": 1}, "rank 1 and empty ModelStart"),
    "model-end": ({"model_end": None}, "model_end field is required"),
}
PREDICT_CHECKS: dict[str, tuple[dict[str, Any], str]] = {
    "id": ({"uuid": None, "problem": NIL}, "id field is unset"),
    "problem": ({"problem": NIL, "workflow": NIL}, "problem field is unset"),
    "workflow": ({"workflow": NIL, "model": NIL}, "workflow field is unset"),
    "model": ({"model": NIL, "data": NIL}, "model field is required"),
    "data": ({"data": NIL, "status": "x"}, "Nil UUID in data field"),
    "status": ({"status": "x"}, "status field ain't valid (provided: x, possible choices: map["),
}
CHECKS = [pytest.param(make_learn_spec, *check, id=f"learn-{name}") for name, check in LEARN_CHECKS.items()]
CHECKS += [pytest.param(make_predict_spec, *check, id=f"predict-{name}") for name, check in PREDICT_CHECKS.items()]


@pytest.mark.parametrize(("make", "changes", "message"), CHECKS)
def test_an_order_is_checked_in_the_order_of_2017(
    compute: Service, make: Maker, changes: dict[str, Any], message: str
) -> None:
    spec = make()
    compute.add_needs(spec)
    before = compute.stored()
    answer = compute.order(spec, **changes)
    assert answer.status_code == 400
    name = "pred-uplet" if isinstance(spec, PredictSpec) else "learn-uplet"
    assert answer.json["error"].startswith(f"Invalid {name}: {message}")
    assert compute.stored() == before


@pytest.mark.parametrize("field", ["workflow", "algo", "train_data", "test_data", "model_start", "model", "data"])
def test_an_order_that_names_an_unknown_artifact_is_refused_with_its_name(compute: Service, field: str) -> None:
    spec = make_predict_spec() if field in ("model", "data") else make_learn_spec(rank=1, model_start=uuid4())
    compute.add_needs(spec)
    missing = str(uuid4())
    before = compute.stored()
    answer = compute.order(spec, **{field: [missing] if field.endswith("_data") else missing})
    assert (answer.status_code, answer.json["field"]) == (400, field)
    assert missing in answer.json["error"]
    assert compute.stored() == before


def test_an_order_must_not_end_in_a_model_that_is_there(compute: Service) -> None:
    spec = make_learn_spec()
    compute.add_needs(spec)
    compute.add_artifact(ArtifactKind.MODEL, spec.model_end)
    answer = compute.order(spec)
    assert (answer.status_code, answer.json["field"]) == (400, "model_end")


def test_an_order_is_accepted_while_the_broker_is_down(compute: Service) -> None:
    compute.publisher.down = True
    spec = accepted(compute)
    assert compute.publisher.published == []
    assert compute.resources.jobs.get(spec.id).state == "queued"


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/learn"), ("GET", "/jobs"), ("GET", f"/jobs/{NIL}"), ("POST", f"/jobs/{NIL}/cancel")],
    ids=["order", "list", "item", "cancel"],
)
def test_a_database_that_is_down_is_said_to_be(compute: Service, method: str, path: str) -> None:
    compute.replace(database=DownDatabase("sqlite://"))
    answer = compute.open(path, method=method, json=order(make_learn_spec()))
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
    assert answer.json["error"] == "the database does not answer; try again"


def test_an_unexpected_error_has_a_number_and_no_traceback(
    compute: Service, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_args: object, **_kwargs: object) -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr(JobRepository, "page", fail)
    answer = compute.get("/jobs")
    assert answer.status_code == 500
    assert answer.json["error"].rpartition(" ")[2] in caplog.text
    assert "secret" not in answer.text
    assert "Traceback" not in answer.text


def listed(compute: Service, **query: object) -> list[str]:
    ids: list[str] = []
    while True:
        page = compute.get("/jobs", query_string=query).json
        ids += [item["id"] for item in page["items"]]
        if page["next"] is None:
            return ids
        query["after"] = page["next"]


@pytest.mark.parametrize("same_instant", [False, True], ids=["one-by-one", "same-instant"])
@pytest.mark.parametrize("limit", [1, 3, 7, 500])
def test_pages_of_jobs_hold_every_job_exactly_once(compute: Service, limit: int, same_instant: bool) -> None:
    specs = [accepted(compute, make_predict_spec()) for _ in range(7)]
    if same_instant:
        with compute.database.begin() as work:
            work.jobs._session.execute(update(JobRow).values(created_at=database_now()))
    ids = listed(compute, limit=limit)
    assert sorted(ids) == sorted(str(spec.id) for spec in specs)
    times = [compute.get(f"/jobs/{job_id}").json["created_at"] for job_id in ids]
    assert times == sorted(times, reverse=True)


def test_jobs_that_come_while_one_pages_do_not_shift_the_pages(compute: Service) -> None:
    specs = [accepted(compute, make_predict_spec()) for _ in range(3)]
    first = compute.get("/jobs?limit=2").json
    accepted(compute, make_predict_spec())
    rest = compute.get("/jobs", query_string={"limit": 2, "after": first["next"]}).json
    assert {item["id"] for item in first["items"] + rest["items"]} == {str(spec.id) for spec in specs}


@pytest.mark.parametrize("make", [make_learn_spec, make_predict_spec])
def test_a_job_whose_order_is_damaged_is_shown_with_what_is_left_of_it(compute: Service, make: Maker) -> None:
    """Also one that has ended, or waits for its turn, which no sweeper looks at."""
    good, bad = accepted(compute), accepted(compute, make(tags=("gpu",)))
    compute.post(f"/jobs/{bad.id}/cancel")
    with compute.database.begin() as work:
        work.jobs._session.execute(update(JobRow).where(JobRow.id == bad.id).values(spec={"algo": 5}))
    assert sorted(listed(compute)) == sorted([str(good.id), str(bad.id)])
    shown = compute.get(f"/jobs/{bad.id}").json
    assert (shown["state"], shown["kind"], shown["spec"]["problem"]) == ("cancelled", bad.kind, str(bad.problem))
    assert (shown["tags"], shown["spec"]["workflow"]) == (["gpu"], str(NIL_UUID))
    assert compute.get(f"/jobs/{bad.id}/logs").status_code == 200
    again = compute.post(f"/jobs/{bad.id}/retry")
    assert (again.status_code, "damaged" in again.json["detail"]) == (409, True)


def test_jobs_can_be_filtered(compute: Service) -> None:
    learn, other = accepted(compute), accepted(compute)
    predict = accepted(compute, make_predict_spec())
    compute.post(f"/jobs/{other.id}/cancel")
    algo_of_model = compute.resources.jobs.get(predict.id).algo
    for query, expected in (
        ({"kind": "learn"}, {learn, other}),
        ({"kind": "predict"}, {predict}),
        ({"state": "queued"}, {learn, predict}),
        ({"state": "cancelled"}, {other}),
        ({"state": "running"}, set()),
        ({"problem": learn.problem}, {learn}),
        ({"algo": getattr(learn, "algo", None)}, {learn}),
        ({"algo": algo_of_model}, {predict}),
        ({"kind": "learn", "state": "queued", "problem": other.problem}, set()),
    ):
        assert set(listed(compute, **query)) == {str(spec.id) for spec in expected}, query


def test_a_job_is_shown_with_its_attempts_steps_scores_and_logs(compute: Service) -> None:
    spec = accepted(compute)
    with compute.database.begin() as work:
        assert work.jobs.claim(spec.id, worker="w1", lease_s=30, max_attempts=3) is not None
        work.jobs.requeue(spec.id, 1, outcome=AttemptOutcome.RETRIED, message="no disk", delay_s=0, strikes=1)
        job = work.jobs.claim(spec.id, worker="w2", lease_s=30, max_attempts=3)
        assert job is not None
        for position, name in enumerate((StepName.DETARGET, StepName.TRAIN)):
            work.steps.begin(spec.id, 2, name, position=position)
            key = f"log/{spec.id}/2/{name}"
            compute.blobs._blobs[key] = (f"from {name} \xff".encode("latin-1"), job.created_at)
            record = StepRecord(name=name, started_at=job.created_at, seconds=1.5, exit_code=0, log_key=key)
            work.steps.end(spec.id, 2, record)
        work.jobs.succeed(spec.id, 2, Scores(perf=0.5, train_perf={"a": 0.75}, test_perf={"b": 0.25}))
    shown = compute.get(f"/jobs/{spec.id}").json
    assert (shown["state"], shown["status"], shown["attempt"], shown["strikes"]) == ("succeeded", "done", 2, 1)
    assert shown["scores"] == {"perf": 0.5, "train_perf": {"a": 0.75}, "test_perf": {"b": 0.25}}
    assert [(item["number"], item["outcome"]) for item in shown["attempts"]] == [(1, "retried"), (2, "succeeded")]
    assert [step["name"] for step in shown["attempts"][1]["steps"]] == ["detarget", "train"]
    assert "log_key" not in json.dumps(shown)
    logs = compute.get(f"/jobs/{spec.id}/logs")
    assert logs.content_type == "text/plain; charset=utf-8"
    assert logs.text == "==> detarget <==\nfrom detarget \ufffd\n==> train <==\nfrom train \ufffd\n"
    assert compute.get(f"/jobs/{spec.id}/logs?attempt=1").text == ""
    assert compute.get(f"/jobs/{spec.id}/logs?attempt=3").status_code == 404


def test_a_failed_job_says_whose_fault_it_is(compute: Service) -> None:
    spec = accepted(compute)
    failure = Failure(cause=Cause.EXIT_CODE, blame=Blame.SUBMITTER, message="exit code 1", step=StepName.TRAIN)
    with compute.database.begin() as work:
        work.jobs.claim(spec.id, worker="w", lease_s=30, max_attempts=3)
        work.jobs.fail(spec.id, 1, failure)
    shown = compute.get(f"/jobs/{spec.id}").json
    expected = {"cause": "EXIT_CODE", "blame": "submitter", "step": "train", "message": "exit code 1"}
    assert (shown["status"], shown["failure"]) == ("failed", expected)


def test_the_id_of_a_prediction_is_known_before_it_is_there(compute: Service) -> None:
    spec = accepted(compute, make_predict_spec())
    assert isinstance(spec, PredictSpec)
    assert UUID(compute.get(f"/jobs/{spec.id}").json["prediction"]) == spec.prediction


def test_a_queued_job_is_cancelled_at_once_and_a_second_time_is_harmless(compute: Service) -> None:
    spec, said = accepted(compute), []
    for _ in range(2):
        answer = compute.post(f"/jobs/{spec.id}/cancel")
        assert (answer.status_code, answer.json["state"]) == (200, "cancelled")
        said.append(answer.json["message"])
    assert said == ["the job is cancelled", "the job had ended already, it is cancelled; nothing was changed"]
    assert answer.json["failure"]["cause"] == "CANCELLED"


def test_the_worker_of_a_running_job_is_asked_to_cancel_it(compute: Service) -> None:
    spec = accepted(compute)
    with compute.database.begin() as work:
        work.jobs.claim(spec.id, worker="w", lease_s=30, max_attempts=3)
    answer = compute.post(f"/jobs/{spec.id}/cancel")
    assert (answer.json["state"], answer.json["cancel_requested"]) == ("running", True)
    assert answer.json["message"] == "cancel requested; the job's worker stops it within a few seconds"
    again = compute.post(f"/jobs/{spec.id}/cancel")
    assert again.json["message"] == "cancel was requested before; the job's worker stops it within a few seconds"
    with compute.database.begin() as work:
        work.jobs.succeed(spec.id, 1, None)
    ended = compute.post(f"/jobs/{spec.id}/cancel")
    assert (ended.status_code, ended.json["state"]) == (200, "succeeded")
    assert ended.json["message"] == "the job had ended already, it is succeeded; nothing was changed"


@MAKERS
def test_a_job_that_ended_without_a_result_can_be_ordered_again(compute: Service, make: Maker) -> None:
    spec = accepted(compute, make())
    refused = compute.post(f"/jobs/{spec.id}/retry")
    assert (refused.status_code, refused.json["error"]) == (
        409,
        f"job {spec.id} is queued; only one that failed or was cancelled can be retried",
    )
    compute.post(f"/jobs/{spec.id}/cancel")
    answer = compute.post(f"/jobs/{spec.id}/retry")
    assert (answer.status_code, answer.json["state"], answer.json["attempts"]) == (201, "queued", [])
    again = UUID(answer.json["id"])
    assert compute.resources.jobs.get(again).spec == replace(spec, id=again)
    assert compute.publisher.published == [spec.id, again]
    assert compute.get(f"/jobs/{spec.id}").json["state"] == "cancelled"


def test_a_job_whose_model_exists_cannot_be_ordered_again(compute: Service) -> None:
    spec = make_learn_spec()
    accepted(compute, spec)
    compute.post(f"/jobs/{spec.id}/cancel")
    compute.add_artifact(ArtifactKind.MODEL, spec.model_end, algo=spec.algo)
    before = compute.stored()
    answer = compute.post(f"/jobs/{spec.id}/retry")
    assert (answer.status_code, answer.json["error"]) == (
        409,
        f"model {spec.model_end} exists already; order the job with another model_end",
    )
    assert compute.stored() == before


@pytest.mark.parametrize(
    ("rest", "method"), [("", "GET"), ("/cancel", "POST"), ("/retry", "POST"), ("/logs", "GET")], ids=str
)
def test_a_job_that_is_not_there_is_a_404_and_a_bad_id_a_400(compute: Service, rest: str, method: str) -> None:
    assert compute.open(f"/jobs/{uuid4()}{rest}", method=method).status_code == 404
    answer = compute.open(f"/jobs/123{rest}", method=method)
    assert (answer.status_code, answer.json["field"]) == (400, "id")
