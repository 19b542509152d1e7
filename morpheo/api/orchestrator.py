"""The orchestrator API: what is registered, and the jobs that follow. Routes and texts of 2017: ``wire-spec`` 3."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from functools import partial
from typing import Any
from uuid import UUID

import marshmallow as ma
from flask import Flask, Response, jsonify, request
from flask.views import MethodView
from flask_smorest import Blueprint

from morpheo.api import document_schemas as described
from morpheo.api import examples
from morpheo.api.app import AT_START, allow_origins, create_app, current_resources, health
from morpheo.api.auth import caller, require_login
from morpheo.api.documents import (
    KINDS,
    Collection,
    added_document,
    algo_document,
    find_document,
    job_document,
    list_documents,
    problem_document,
)
from morpheo.api.errors import problem
from morpheo.api.leaderboard import leaderboards
from morpheo.api.metrics import add_metrics
from morpheo.api.openapi import failures, json_body, path_id
from morpheo.api.posted import (
    AlgoPostSchema,
    DataPostSchema,
    LearnDonePostSchema,
    PredDonePostSchema,
    PredictionPostSchema,
    ProblemPatchSchema,
    ProblemPostSchema,
    Refused,
    ReportPostSchema,
    ScoreField,
    WorkerPostSchema,
    load_posted,
    read_posted,
)
from morpheo.api.viewing import check_insider
from morpheo.api.wire import parse_uuid
from morpheo.challenges import Problem
from morpheo.disclosure import Disclosure
from morpheo.errors import InvalidInput, MorpheoError, NotFound
from morpheo.models import NIL_UUID, Scores
from morpheo.orchestrator import Orchestrator
from morpheo.outside import OutsideWorkers
from morpheo.resources import Resources
from morpheo.tasks import process_resources

logger = logging.getLogger(__name__)

documents = Blueprint("documents", __name__, description="What is registered, and the jobs that follow")
registrations = Blueprint("registrations", __name__, description="New problems, algos and data, and predictions")
reports = Blueprint("reports", __name__, description="What workers that are not ours say of jobs")

_ABOUT = "Keeps challenges: problems, algos and data, the trainings that follow, leaderboards and predictions."

INDEX = ["/", "/health", *(f"/{name}{rest}" for name in Collection for rest in ("", "/:uuid")), "/prediction"]
_COLLECTIONS = f"<any({', '.join(Collection)}):collection>"
_JOBS = f"<any({', '.join(KINDS)}):collection>"
_NAME = path_id("name", "Id of the document")
_NO_PROBLEM = "non-existing related problem"


def create_orchestrator_app(resources: Resources | None = None) -> Flask:
    """Return the orchestrator API, for these resources or for those of the environment."""
    resources = resources or process_resources()
    app, api = create_app("morpheo.orchestrator_api", "Morpheo orchestrator API", resources, error_key="Error")
    add_metrics(app)
    require_login(app, _unauthorized)
    allow_origins(app, resources.settings, methods=["GET", "POST", "PATCH"])
    api.register_field(ScoreField, "number", None)
    for name, schema in described.COMPONENTS.items():
        api.spec.components.schema(name, schema=schema)
    for blueprint in (documents, registrations, reports, leaderboards):
        api.register_blueprint(blueprint)
    api.describe(_ABOUT, index=INDEX, checks=("database",))
    app.add_url_rule("/", view_func=lambda: jsonify(INDEX), endpoint="index")
    app.add_url_rule("/health", view_func=_health, endpoint="health")
    app.register_error_handler(404, lambda _error: problem(404, "Page does not exist"))
    app.extensions[AT_START] = partial(_prepare, resources)
    return app


def _prepare(resources: Resources) -> None:
    try:
        resources.orchestrator.make_leaderboards()
    except MorpheoError as exc:
        logger.warning("leaderboards are not made before somebody asks for them", extra={"reason": str(exc)})


def _unauthorized() -> Response:
    # Letter for letter what Flask-HTTPAuth answered in 2017.
    challenge = {"WWW-Authenticate": 'Basic realm="Authentication Required"'}
    return Response("Unauthorized Access", 401, challenge)


def _health() -> Response:
    # Not the broker: jobs are planned without it.
    return health({"database": current_resources().database.check})


def _orchestrator() -> Orchestrator:
    return current_resources().orchestrator


def _outside_workers() -> OutsideWorkers:
    return current_resources().outside_workers


def _created(document: dict[str, Any]) -> Response:
    response = jsonify(document)
    response.status_code = 201
    return response


@documents.route(f"/{_COLLECTIONS}")
class Documents(MethodView):
    """All documents of a collection."""

    @documents.doc(**described.LISTED)
    def get(self, collection: str) -> Response:
        """List documents, oldest first; each word of the query string must match a field of theirs."""
        filters = list(request.args.items(multi=True))
        return jsonify(
            {f"{collection}s": list_documents(_orchestrator(), Collection(collection), filters, by=caller())}
        )


@documents.route(f"/{_COLLECTIONS}/<name>", parameters=[_NAME])
class DocumentItem(MethodView):
    """One document."""

    @documents.doc(**described.SHOWN)
    @failures(404)
    def get(self, collection: str, name: str) -> Response:
        """Show a document."""
        return jsonify(find_document(_orchestrator(), Collection(collection), name, by=caller()))


@documents.route(f"/{_JOBS}/<name>/retry", parameters=[_NAME])
class Retry(MethodView):
    """Another try."""

    @documents.doc(**described.RETRIED)
    @failures(404, 409)
    def post(self, collection: str, name: str) -> Response:
        """Order a job again that failed or was cancelled, as a new job; its chain goes on from there."""
        document = find_document(_orchestrator(), Collection(collection), name, by=caller())
        return _created(job_document(_orchestrator().retry(UUID(document["uuid"]))))


@registrations.route("/problem")
class Problems(MethodView):
    """New challenges."""

    @registrations.doc(requestBody=json_body(ProblemPostSchema, examples.PROBLEM_POST), **described.NEW_PROBLEM)
    @failures(400, 409, 410, 413, 415)
    def post(self) -> Response:
        """Register a challenge; the same one twice is one."""
        posted = load_posted(ProblemPostSchema(), read_posted())
        registered = _orchestrator().register_problem(
            Problem(
                id=posted["uuid"],
                workflow=posted["workflow"],
                test_data=tuple(posted["test_dataset"]),
                batch_size=posted["size_train_dataset"],
                higher_is_better=posted["higher_is_better"],
                parallel_ranks=posted["parallel_ranks"],
                disclosure=Disclosure(**{name: posted[name] for name in ProblemPatchSchema().fields if name in posted}),
                created_at=datetime.now(UTC),
            ),
            by=caller(),
        )
        return _created({"new_problem": problem_document(registered)})


@registrations.route("/problem/<name>", parameters=[_NAME])
class ProblemChange(MethodView):
    """What goes out of a challenge."""

    @registrations.doc(requestBody=json_body(ProblemPatchSchema, examples.PROBLEM_PATCH), **described.CHANGED_PROBLEM)
    @failures(400, 404, 413, 415)
    def patch(self, name: str) -> Response:
        """Change what submitters see of a challenge, also of what became of it before; only its custodian may."""
        known = _orchestrator().problem(_id(name) or NIL_UUID)
        check_insider(known)
        changes = load_posted(ProblemPatchSchema(unknown=ma.RAISE), read_posted())
        return jsonify(problem_document(_orchestrator().disclose(known.id, **changes)))


@registrations.route("/algo")
class Algos(MethodView):
    """New algos."""

    @registrations.doc(requestBody=json_body(AlgoPostSchema, examples.ALGO_POST), **described.NEW_ALGO)
    @failures(400, 409, 410, 413, 415)
    def post(self) -> Response:
        """Let an algo take part in a challenge: it is trained on the data that is there, and that comes."""
        posted = load_posted(AlgoPostSchema(), read_posted())
        try:
            submission, added = _orchestrator().register_algo(
                posted["uuid"], name=posted["name"], problem_id=posted["problem"], by=caller()
            )
        except NotFound as exc:
            raise Refused(_NO_PROBLEM, detail=str(exc), field="problem") from exc
        return _created({"new_algo": algo_document(submission), "new_learnuplets": added})


@registrations.route("/data")
class Data(MethodView):
    """New data."""

    @registrations.doc(requestBody=json_body(DataPostSchema, examples.DATA_POST), **described.NEW_DATA)
    @failures(400, 410, 413, 415)
    def post(self) -> Response:
        """Add data to challenges: every algo in them is trained on it, unless it is test data (`held_out`)."""
        posted = load_posted(DataPostSchema(), read_posted())
        try:
            added = _orchestrator().register_data(posted["uuid"], problem_ids=posted["problems"], by=caller())
        except NotFound as exc:
            raise Refused(_NO_PROBLEM, detail=str(exc), field="problems") from exc
        return _created(added_document(added))


@registrations.route("/prediction")
class Predictions(MethodView):
    """New orders for predictions."""

    @registrations.doc(
        requestBody=json_body(PredictionPostSchema, examples.PREDICTION_POST), **described.NEW_PREDICTION
    )
    @failures(400, 410, 413, 415)
    def post(self) -> Response:
        """Order the prediction of one data file, with the best model of a problem or with the one that is named."""
        posted = load_posted(PredictionPostSchema(), read_posted())
        try:
            job = _orchestrator().order_prediction(
                data=posted["data"], problem_id=posted["problem"], model=posted["model"], by=caller()
            )
        except NotFound as exc:
            raise Refused("no problem or trained model", detail=str(exc), field="problem") from exc
        return _created(job_document(job))


@reports.route(f"/worker/{_JOBS}/<name>", parameters=[_NAME])
class Worker(MethodView):
    """Who has a job."""

    @reports.doc(requestBody=json_body(WorkerPostSchema, {"worker": "node-1"}), **described.WORKER_SET)
    @failures(400, 413, 415)
    def post(self, collection: str, name: str) -> Response:
        """Give a job to a worker, if it waits for one."""
        worker = load_posted(WorkerPostSchema(), read_posted())["worker"]
        job_id = _id(name)
        if job_id is None or not _outside_workers().start(KINDS[Collection(collection)], job_id, worker, by=caller()):
            raise InvalidInput(f"worker not set for {collection} {name[:50]}. Might be already pending")
        return jsonify({f"{collection}_worker_set": name})


@reports.route("/learndone/<name>", parameters=[_NAME])
class LearnDone(MethodView):
    """How training jobs ended."""

    @reports.doc(requestBody=described.LEARN_REPORT, **described.LEARN_RECORDED)
    @failures(400, 410, 413, 415)
    def post(self, name: str) -> Response:
        """Record the scores of a training job, or that it failed; its chain goes on, or stalls."""
        done = _done(LearnDonePostSchema())
        scores = None
        if done is not None:
            train, test = done["train_perf"] or {}, done["test_perf"] or {}
            scores = Scores(perf=done["perf"], train_perf=train, test_perf=test)
        job_id = _id(name)
        if job_id is None or not _outside_workers().end_learn(job_id, scores, by=caller()):
            raise InvalidInput(f"no update of learnuplet {name[:50]}")
        return jsonify({"updated_learnuplet": name})


@reports.route("/preddone/<name>", parameters=[_NAME])
class PredDone(MethodView):
    """How prediction jobs ended."""

    @reports.doc(requestBody=described.PREDICT_REPORT, **described.PREDICT_RECORDED)
    @failures(400, 410, 413, 415)
    def post(self, name: str) -> Response:
        """Record the prediction that a job led to, or that it failed."""
        done = _done(PredDonePostSchema())
        job_id = _id(name)
        prediction = None if done is None else done["prediction_storage_uuid"]
        if job_id is None or not _outside_workers().end_predict(job_id, prediction, by=caller()):
            raise InvalidInput(f"no update of preduplet {name[:50]}")
        return jsonify({"updated_preduplet": name})


def _done(schema: ReportPostSchema) -> dict[str, Any] | None:
    """Return the result that was posted, None if the job failed; nothing is recorded before all of it is checked."""
    posted = read_posted()
    status = load_posted(ReportPostSchema(), posted)["status"]
    return load_posted(schema, posted) if status == "done" else None


def _id(text: str) -> UUID | None:
    try:
        return parse_uuid(text)
    except ValueError:
        return None
