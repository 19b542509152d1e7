"""The orchestrator API: what is registered, and the jobs that follow. Routes and texts of 2017: ``wire-spec`` 3."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from flask import Flask, Response, jsonify, request
from flask.views import MethodView
from flask_cors import CORS
from flask_smorest import Blueprint

from morpheo.api.app import create_app, current_resources, health
from morpheo.api.auth import require_basic_auth
from morpheo.api.documents import (
    KINDS,
    Collection,
    algo_document,
    data_document,
    find_document,
    job_document,
    list_documents,
    problem_document,
)
from morpheo.api.errors import problem
from morpheo.api.leaderboard import leaderboards
from morpheo.api.metrics import add_metrics
from morpheo.api.posted import (
    AlgoPostSchema,
    DataPostSchema,
    LearnDonePostSchema,
    PostedSchema,
    PredDonePostSchema,
    PredictionPostSchema,
    ProblemPostSchema,
    Refused,
    ReportPostSchema,
    WorkerPostSchema,
    load_posted,
    read_posted,
)
from morpheo.api.wire import parse_uuid
from morpheo.challenges import Problem
from morpheo.errors import InvalidInput, NotFound
from morpheo.models import Scores
from morpheo.orchestrator import Orchestrator
from morpheo.resources import Resources
from morpheo.tasks import process_resources

documents = Blueprint("documents", __name__, description="What is registered, and the jobs that follow")
registrations = Blueprint("registrations", __name__, description="New problems, algos and data, and predictions")
reports = Blueprint("reports", __name__, description="What workers that are not ours say of jobs")

INDEX = ["/", "/health", *(f"/{name}{rest}" for name in Collection for rest in ("", "/:uuid")), "/prediction"]
_COLLECTIONS = f"<any({', '.join(Collection)}):collection>"
_JOBS = f"<any({', '.join(KINDS)}):collection>"
_NO_PROBLEM = "non-existing related problem"


def create_orchestrator_app(resources: Resources | None = None) -> Flask:
    """Return the orchestrator API, for these resources or for those of the environment."""
    resources = resources or process_resources()
    app, api = create_app("morpheo.orchestrator_api", "Morpheo orchestrator API", resources, error_key="Error")
    add_metrics(app)
    require_basic_auth(app, _unauthorized)
    # Before authentication: a browser sends no password with its preflight.
    CORS(app, origins=list(resources.settings.cors_origins), supports_credentials=True, methods=["GET", "POST"])
    for blueprint in (documents, registrations, reports, leaderboards):
        api.register_blueprint(blueprint)
    app.add_url_rule("/", view_func=lambda: jsonify(INDEX), endpoint="index")
    app.add_url_rule("/health", view_func=_health, endpoint="health")
    app.register_error_handler(404, lambda _error: problem(404, "Page does not exist"))
    return app


def _unauthorized() -> Response:
    # Letter for letter what Flask-HTTPAuth answered in 2017.
    challenge = {"WWW-Authenticate": 'Basic realm="Authentication Required"'}
    return Response("Unauthorized Access", 401, challenge)


def _health() -> Response:
    # Not the broker: jobs are planned without it.
    return health({"database": current_resources().database.check})


def _orchestrator() -> Orchestrator:
    return current_resources().orchestrator


def _created(document: dict[str, Any]) -> Response:
    response = jsonify(document)
    response.status_code = 201
    return response


def _body(schema: type[PostedSchema]) -> dict[str, Any]:
    return {"requestBody": {"content": {"application/json": {"schema": schema}}}}


@documents.route(f"/{_COLLECTIONS}")
class Documents(MethodView):
    """All documents of a collection."""

    @documents.response(200)
    def get(self, collection: str) -> Response:
        """List documents, oldest first; each word of the query string must match a field of theirs."""
        filters = list(request.args.items(multi=True))
        return jsonify({f"{collection}s": list_documents(_orchestrator(), Collection(collection), filters)})


@documents.route(f"/{_COLLECTIONS}/<name>")
class DocumentItem(MethodView):
    """One document."""

    @documents.response(200)
    def get(self, collection: str, name: str) -> Response:
        """Show a document."""
        return jsonify(find_document(_orchestrator(), Collection(collection), name))


@documents.route(f"/{_JOBS}/<name>/retry")
class Retry(MethodView):
    """Another try."""

    @documents.response(201)
    def post(self, collection: str, name: str) -> Response:
        """Order a job again that failed or was cancelled, as a new job; its chain goes on from there."""
        document = find_document(_orchestrator(), Collection(collection), name)
        return _created(job_document(_orchestrator().retry(UUID(document["uuid"]))))


@registrations.route("/problem")
class Problems(MethodView):
    """New challenges."""

    @registrations.doc(**_body(ProblemPostSchema))
    @registrations.response(201)
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
                created_at=datetime.now(UTC),
            )
        )
        return _created({"new_problem": problem_document(registered)})


@registrations.route("/algo")
class Algos(MethodView):
    """New algos."""

    @registrations.doc(**_body(AlgoPostSchema))
    @registrations.response(201)
    def post(self) -> Response:
        """Let an algo take part in a challenge: it is trained on the data that is there, and that comes."""
        posted = load_posted(AlgoPostSchema(), read_posted())
        try:
            submission, added = _orchestrator().register_algo(
                posted["uuid"], name=posted["name"], problem_id=posted["problem"]
            )
        except NotFound as exc:
            raise Refused(_NO_PROBLEM, detail=str(exc), field="problem") from exc
        return _created({"new_algo": algo_document(submission), "new_learnuplets": added})


@registrations.route("/data")
class Data(MethodView):
    """New data."""

    @registrations.doc(**_body(DataPostSchema))
    @registrations.response(201)
    def post(self) -> Response:
        """Add data to challenges: every algo in them is trained on it."""
        posted = load_posted(DataPostSchema(), read_posted())
        try:
            datasets, added = _orchestrator().register_data(posted["uuid"], problem_ids=posted["problems"])
        except NotFound as exc:
            raise Refused(_NO_PROBLEM, detail=str(exc), field="problems") from exc
        return _created({"new_datas": [data_document(item) for item in datasets], "new_learnuplets": added})


@registrations.route("/prediction")
class Predictions(MethodView):
    """New orders for predictions."""

    @registrations.doc(**_body(PredictionPostSchema))
    @registrations.response(201)
    def post(self) -> Response:
        """Order the prediction of one data file, with the best model of a problem or with the one that is named."""
        posted = load_posted(PredictionPostSchema(), read_posted())
        try:
            job = _orchestrator().order_prediction(
                data=posted["data"], problem_id=posted["problem"], model=posted["model"]
            )
        except NotFound as exc:
            raise Refused("no problem or trained model", detail=str(exc), field="problem") from exc
        return _created(job_document(job))


@reports.route(f"/worker/{_JOBS}/<name>")
class Worker(MethodView):
    """Who has a job."""

    @reports.doc(**_body(WorkerPostSchema))
    @reports.response(200)
    def post(self, collection: str, name: str) -> Response:
        """Give a job to a worker, if it waits for one."""
        worker = load_posted(WorkerPostSchema(), read_posted())["worker"]
        job_id = _job_id(name)
        if job_id is None or not _orchestrator().start_outside(KINDS[Collection(collection)], job_id, worker):
            raise InvalidInput(f"worker not set for {collection} {name[:50]}. Might be already pending")
        return jsonify({f"{collection}_worker_set": name})


@reports.route("/learndone/<name>")
class LearnDone(MethodView):
    """How training jobs ended."""

    @reports.doc(**_body(LearnDonePostSchema))
    @reports.response(200)
    def post(self, name: str) -> Response:
        """Record the scores of a training job, or that it failed; its chain goes on, or stalls."""
        done = _done(LearnDonePostSchema())
        scores = None
        if done is not None:
            train, test = done["train_perf"] or {}, done["test_perf"] or {}
            scores = Scores(perf=done["perf"], train_perf=train, test_perf=test)
        job_id = _job_id(name)
        if job_id is None or not _orchestrator().end_learn_outside(job_id, scores):
            raise InvalidInput(f"no update of learnuplet {name[:50]}")
        return jsonify({"updated_learnuplet": name})


@reports.route("/preddone/<name>")
class PredDone(MethodView):
    """How prediction jobs ended."""

    @reports.doc(**_body(PredDonePostSchema))
    @reports.response(200)
    def post(self, name: str) -> Response:
        """Record the prediction that a job led to, or that it failed."""
        done = _done(PredDonePostSchema())
        job_id = _job_id(name)
        prediction = None if done is None else done["prediction_storage_uuid"]
        if job_id is None or not _orchestrator().end_predict_outside(job_id, prediction):
            raise InvalidInput(f"no update of preduplet {name[:50]}")
        return jsonify({"updated_preduplet": name})


def _done(schema: ReportPostSchema) -> dict[str, Any] | None:
    """Return the result that was posted, None if the job failed; nothing is recorded before all of it is checked."""
    posted = read_posted()
    status = load_posted(ReportPostSchema(), posted)["status"]
    return load_posted(schema, posted) if status == "done" else None


def _job_id(text: str) -> UUID | None:
    try:
        return parse_uuid(text)
    except ValueError:
        return None
