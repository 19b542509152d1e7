"""The compute API: orders in, jobs out. Routes and texts of 2017 are ``wire-spec`` section 1."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import marshmallow as ma
from flask import Flask, Response, jsonify, request
from flask.views import MethodView
from flask_smorest import Blueprint

from morpheo.api import examples
from morpheo.api.app import BodySource, create_app, current_resources, health
from morpheo.api.auth import caller, require_login
from morpheo.api.errors import problem
from morpheo.api.following import LOG, follow, limit_followers
from morpheo.api.metrics import add_metrics
from morpheo.api.openapi import failures, json_body, path_id
from morpheo.api.parser import StrictQueryParser
from morpheo.api.schemas import (
    REQUIRED,
    CancelledJobSchema,
    CheckFailed,
    JobPageSchema,
    JobQuerySchema,
    JobSchema,
    LearnupletSchema,
    LogQuerySchema,
    MessageSchema,
    PredupletSchema,
    first_message,
)
from morpheo.api.viewing import readable_logs, shown_job
from morpheo.api.wire import parse_uuid, read_json
from morpheo.disclosure import HEADING
from morpheo.errors import InvalidInput
from morpheo.models import Job, JobSpec, cancel_answer
from morpheo.resources import Resources
from morpheo.storage.job_filter import JobFilter
from morpheo.tasks import process_resources

orders = Blueprint("orders", __name__, description="Orders for training and prediction")
jobs = Blueprint("jobs", __name__, url_prefix="/jobs", description="What became of orders")
jobs.ARGUMENTS_PARSER = StrictQueryParser()

_ABOUT = "Takes orders for training and prediction, and tells what became of them."

_JOB = path_id("job_id", "Id of the job")

INDEX = ["/", "/health", "/learn", "/pred", "/jobs"]


def create_compute_app(resources: Resources | None = None) -> Flask:
    """Return the compute API, for these resources or for those of the environment."""
    current = resources or process_resources()
    app, api = create_app("morpheo.compute", "Morpheo compute API", current)
    add_metrics(app)
    require_login(app, _unauthorized)
    limit_followers(app, settings=current.settings)
    for schema, fields in REQUIRED.items():
        name = schema.__name__.removesuffix("Schema")
        api.spec.components.schema(name, {"required": list(fields)}, schema=schema)
    api.register_blueprint(orders)
    api.register_blueprint(jobs)
    api.describe(_ABOUT, index=INDEX, checks=("database",))
    app.add_url_rule("/", view_func=lambda: jsonify(INDEX), endpoint="index")
    app.add_url_rule("/health", view_func=_health, endpoint="health")
    return app


def _unauthorized() -> Response:
    response = problem(401, "send a user and password of the compute API with HTTP Basic authentication, or a token")
    response.headers["WWW-Authenticate"] = 'Basic realm="Authorization Required"'
    return response


def _health() -> Response:
    # Not the broker: orders are accepted without it.
    return health({"database": current_resources().database.check})


@orders.route("/learn")
class Learn(MethodView):
    """Orders for training."""

    @orders.doc(requestBody=json_body(LearnupletSchema, examples.LEARNUPLET))
    @orders.response(202, MessageSchema, example={"message": "Learn-uplet ingested accordingly"})
    @failures(400, 409, 410, 413, 415)
    def post(self) -> dict[str, str]:
        """Accept a learnuplet; the same one twice is one job."""
        current_resources().jobs.submit(_order(LearnupletSchema(), "learn-uplet"), by=caller())
        return {"message": "Learn-uplet ingested accordingly"}


@orders.route("/pred")
class Predict(MethodView):
    """Orders for prediction."""

    @orders.doc(requestBody=json_body(PredupletSchema, examples.PREDUPLET))
    @orders.response(202, MessageSchema, example={"message": "Pred-uplet ingested"})
    @failures(400, 409, 410, 413, 415)
    def post(self) -> dict[str, str]:
        """Accept a preduplet; the same one twice is one job."""
        current_resources().jobs.submit(_order(PredupletSchema(), "pred-uplet"), by=caller())
        return {"message": "Pred-uplet ingested"}


def _order(schema: ma.Schema, name: str) -> JobSpec:
    document = read_json(request, BodySource(request), max_bytes=current_resources().settings.max_order_bytes)
    try:
        spec: JobSpec = schema.load(document)
    except ma.ValidationError as exc:
        field, problem = next(iter(exc.messages_dict.items()))
        raise InvalidInput(f"Error decoding body to JSON: {field}: {first_message(problem)}", field=str(field)) from exc
    except CheckFailed as exc:
        raise InvalidInput(f"Invalid {name}: {exc}") from exc
    return spec


@jobs.route("")
class Jobs(MethodView):
    """All jobs."""

    @jobs.arguments(JobQuerySchema, location="query")
    @jobs.response(200, JobPageSchema, example={"items": [examples.JOB_SUMMARY], "next": None})
    @failures(400)
    def get(self, query: dict[str, Any]) -> dict[str, Any]:
        """List jobs, newest first."""
        limit, after = query.pop("limit"), query.pop("after", None)
        items, mark = current_resources().jobs.page(JobFilter(**query), limit=limit, after=after, by=caller())
        return {"items": list(map(shown_job, items)), "next": mark}


@jobs.route("/<job_id>", parameters=[_JOB])
class JobItem(MethodView):
    """One job."""

    @jobs.response(200, JobSchema, example=examples.JOB)
    @failures(400, 404)
    def get(self, job_id: str) -> Job:
        """Show a job with its attempts, steps, failure and scores."""
        return shown_job(current_resources().jobs.get(_job_id(job_id)))


@jobs.route("/<job_id>/cancel", parameters=[_JOB])
class Cancel(MethodView):
    """End a job."""

    @jobs.response(200, CancelledJobSchema, example={**examples.JOB, "message": examples.CANCELLED})
    @failures(400, 404)
    def post(self, job_id: str) -> Response:
        """
        Cancel a job: at once if no worker has it, else within a few seconds.

        Harmless if it was cancelled before or has ended; `message` says so, and `state` is the one that it is in.
        """
        service = current_resources().jobs
        before = service.get(_job_id(job_id))
        job = service.cancel(before.id)
        return jsonify({**JobSchema().dump(shown_job(job)), "message": cancel_answer(before, job)})


@jobs.route("/<job_id>/retry", parameters=[_JOB])
class Retry(MethodView):
    """Another try."""

    @jobs.response(201, JobSchema, example=examples.RETRIED_JOB)
    @failures(400, 404, 409)
    def post(self, job_id: str) -> Job:
        """Order a job again that failed or was cancelled, as a new job; a chain goes on from there."""
        return shown_job(current_resources().orchestrator.retry(_job_id(job_id)))


@jobs.route("/<job_id>/logs", parameters=[_JOB])
class Logs(MethodView):
    """What the containers of a job wrote."""

    @jobs.arguments(LogQuerySchema, location="query")
    @jobs.doc(**LOG)
    @failures(400, 404)
    def get(self, query: dict[str, Any], job_id: str) -> Response:
        """Show the logs of the latest attempt, or of another, as far as they are written; or follow them."""
        service, attempt = current_resources().jobs, query.get("attempt")
        job = service.get(_job_id(job_id))
        view = readable_logs(job)
        if query["follow"]:
            return follow(service, job.id, attempt=attempt, view=view)
        parts = []
        for step, log in service.logs(job.id, attempt=attempt, steps=view.steps):
            text = view.text(log.decode("utf-8", "replace"))
            parts.append(f"{HEADING}{step} <==\n{text}" + ("" if text.endswith("\n") else "\n"))
        return Response("".join(parts), content_type="text/plain; charset=utf-8")


def _job_id(text: str) -> UUID:
    try:
        return parse_uuid(text)
    except ValueError as exc:
        raise InvalidInput(f"the job's id: {exc}", field="id") from exc
