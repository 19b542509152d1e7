"""The compute API: orders in, jobs out. Routes and texts of 2017 are ``wire-spec`` section 1."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import marshmallow as ma
from flask import Flask, Response, jsonify, request
from flask.views import MethodView
from flask_smorest import Blueprint

from morpheo.api.app import BodySource, create_app, current_resources, health
from morpheo.api.metrics import add_metrics
from morpheo.api.parser import StrictQueryParser
from morpheo.api.schemas import (
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
from morpheo.api.wire import parse_uuid, read_json
from morpheo.errors import InvalidInput
from morpheo.models import Job, JobSpec
from morpheo.resources import Resources
from morpheo.storage.jobs import JobFilter
from morpheo.tasks import process_resources

orders = Blueprint("orders", __name__, description="Orders for training and prediction")
jobs = Blueprint("jobs", __name__, url_prefix="/jobs", description="What became of orders")
jobs.ARGUMENTS_PARSER = StrictQueryParser()

INDEX = ["/", "/health", "/learn", "/pred", "/jobs"]


def create_compute_app(resources: Resources | None = None) -> Flask:
    """Return the compute API, for these resources or for those of the environment."""
    app, api = create_app("morpheo.compute", "Morpheo compute API", resources or process_resources())
    add_metrics(app)
    api.register_blueprint(orders)
    api.register_blueprint(jobs)
    app.add_url_rule("/", view_func=lambda: jsonify(INDEX), endpoint="index")
    app.add_url_rule("/health", view_func=_health, endpoint="health")
    return app


def _health() -> Response:
    # Not the broker: orders are accepted without it.
    return health({"database": current_resources().database.check})


@orders.route("/learn")
class Learn(MethodView):
    """Orders for training."""

    @orders.doc(requestBody={"content": {"application/json": {"schema": LearnupletSchema}}})
    @orders.response(202, MessageSchema)
    def post(self) -> dict[str, str]:
        """Accept a learnuplet; the same one twice is one job."""
        current_resources().jobs.submit(_order(LearnupletSchema(), "learn-uplet"))
        return {"message": "Learn-uplet ingested accordingly"}


@orders.route("/pred")
class Predict(MethodView):
    """Orders for prediction."""

    @orders.doc(requestBody={"content": {"application/json": {"schema": PredupletSchema}}})
    @orders.response(202, MessageSchema)
    def post(self) -> dict[str, str]:
        """Accept a preduplet; the same one twice is one job."""
        current_resources().jobs.submit(_order(PredupletSchema(), "pred-uplet"))
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
    @jobs.response(200, JobPageSchema)
    def get(self, query: dict[str, Any]) -> dict[str, Any]:
        """List jobs, newest first."""
        limit, after = query.pop("limit"), query.pop("after", None)
        items, mark = current_resources().jobs.page(JobFilter(**query), limit=limit, after=after)
        return {"items": items, "next": mark}


@jobs.route("/<job_id>")
class JobItem(MethodView):
    """One job."""

    @jobs.response(200, JobSchema)
    def get(self, job_id: str) -> Job:
        """Show a job with its attempts, steps, failure and scores."""
        return current_resources().jobs.get(_job_id(job_id))


@jobs.route("/<job_id>/cancel")
class Cancel(MethodView):
    """End a job."""

    @jobs.response(200, JobSchema)
    def post(self, job_id: str) -> Job:
        """Cancel a job: at once if no worker has it, else within a heartbeat. Harmless if it has ended."""
        return current_resources().jobs.cancel(_job_id(job_id))


@jobs.route("/<job_id>/retry")
class Retry(MethodView):
    """Another try."""

    @jobs.response(201, JobSchema)
    def post(self, job_id: str) -> Job:
        """Order a job again that failed or was cancelled, as a new job; a chain goes on from there."""
        return current_resources().orchestrator.retry(_job_id(job_id))


@jobs.route("/<job_id>/logs")
class Logs(MethodView):
    """What the containers of a job wrote."""

    @jobs.arguments(LogQuerySchema, location="query")
    @jobs.response(200, content_type="text/plain")
    def get(self, query: dict[str, int], job_id: str) -> Response:
        """Show the logs of the latest attempt, or of another."""
        parts = [
            f"==> {step} <==\n".encode() + log + (b"" if log.endswith(b"\n") else b"\n")
            for step, log in current_resources().jobs.logs(_job_id(job_id), attempt=query.get("attempt"))
        ]
        text = b"".join(parts).decode("utf-8", "replace")
        return Response(text, content_type="text/plain; charset=utf-8")


def _job_id(text: str) -> UUID:
    try:
        return parse_uuid(text)
    except ValueError as exc:
        raise InvalidInput(f"the job's id: {exc}", field="id") from exc
