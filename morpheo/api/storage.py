"""The storage API: problems, algos, data, models, predictions. Routes and texts of 2017 are ``wire-spec`` section 2."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from flask import Flask, Response, jsonify, request
from flask.views import MethodView
from flask_smorest import Blueprint

from morpheo.api.app import allow_origins, create_app, current_resources, health
from morpheo.api.auth import caller, require_login
from morpheo.api.downloads import send
from morpheo.api.errors import problem
from morpheo.api.metrics import add_metrics
from morpheo.api.openapi import failures
from morpheo.api.parser import StrictQueryParser
from morpheo.api.schemas import ArtifactQuerySchema
from morpheo.api.storage_schemas import BLOB, CHANGED, COMPONENTS, ITEM, LISTED, SHOWN, STORED
from morpheo.api.uploads import receive, receive_change
from morpheo.api.viewing import check_download, shown_artifact
from morpheo.api.wire import parse_uuid
from morpheo.errors import InvalidInput, NotFound
from morpheo.models import Artifact, ArtifactKind
from morpheo.resources import Resources
from morpheo.tasks import process_resources

KINDS = f"<any({', '.join(kind.value for kind in ArtifactKind)}):kind>"
#: In the order of 2017.
_INDEXED = (ArtifactKind.PROBLEM, ArtifactKind.DATA, ArtifactKind.ALGO, ArtifactKind.MODEL, ArtifactKind.PREDICTION)
INDEX = ["/", "/health", *(f"/{kind}{rest}" for kind in _INDEXED for rest in ("", "/:uuid", "/:uuid/blob"))]

_ABOUT = "Keeps problems, algos, data, models and predictions: blobs, and what is known of them."

artifacts = Blueprint("artifacts", __name__, description="Blobs with a name")
artifacts.ARGUMENTS_PARSER = StrictQueryParser()


def create_storage_app(resources: Resources | None = None) -> Flask:
    """Return the storage API, for these resources or for those of the environment."""
    resources = resources or process_resources()
    app, api = create_app("morpheo.storage_api", "Morpheo storage API", resources)
    add_metrics(app)
    require_login(app, _unauthorized)
    allow_origins(app, resources.settings, methods=["GET", "POST", "PATCH"])
    for name, schema in COMPONENTS.items():
        api.spec.components.schema(name, schema=schema)
    api.register_blueprint(artifacts)
    api.describe(_ABOUT, index=INDEX, checks=("database", "blobs"))
    app.add_url_rule("/", view_func=lambda: jsonify(INDEX), endpoint="index")
    app.add_url_rule("/health", view_func=_health, endpoint="health")
    return app


def _unauthorized() -> Response:
    response = problem(401, "send the user and password of the storage API with HTTP Basic authentication")
    response.headers["WWW-Authenticate"] = 'Basic realm="Authorization Required"'
    return response


def _health() -> Response:
    resources = current_resources()
    return health({"database": resources.database.check, "blobs": resources.blobs.check})


@artifacts.route(f"/{KINDS}")
class Artifacts(MethodView):
    """All artifacts of a kind."""

    @artifacts.arguments(ArtifactQuerySchema, location="query")
    @artifacts.doc(**LISTED)
    @failures(400)
    def get(self, query: dict[str, Any], kind: str) -> Response:
        """List artifacts, newest first."""
        items, total = current_resources().artifacts.page(ArtifactKind(kind), by=caller(), **query)
        body = {"page": query["page"], "length": len(items), "items": [_metadata(item) for item in items]}
        return jsonify({**body, "total": total})

    @artifacts.doc(**STORED)
    @failures(400, 409, 413)
    def post(self, kind: str) -> Response:
        """Store an artifact: multipart with the blob last, or the blob alone with its words in the query string."""
        resources = current_resources()
        stored = receive(request, ArtifactKind(kind), resources.artifacts, strict_size=resources.settings.strict_size)
        response = jsonify(_metadata(stored))
        response.status_code = 201
        return response


@artifacts.route(f"/{KINDS}/<artifact_id>", parameters=[ITEM])
class ArtifactItem(MethodView):
    """One artifact."""

    @artifacts.doc(**SHOWN)
    @failures(400, 404)
    def get(self, kind: str, artifact_id: str) -> Response:
        """Show what is known of an artifact."""
        return jsonify(_metadata(_find(kind, artifact_id)))

    @artifacts.doc(**CHANGED)
    @failures(400, 404, 409, 413)
    def patch(self, kind: str, artifact_id: str) -> Response:
        """Change a problem: its id, words or blob."""
        if kind != ArtifactKind.PROBLEM:
            raise InvalidInput(f"only a problem can be changed; store a new {kind}", field="kind")
        resources = current_resources()
        changed = receive_change(
            request, _find(kind, artifact_id), resources.artifacts, strict_size=resources.settings.strict_size
        )
        return jsonify(_metadata(changed))


@artifacts.route(f"/{KINDS}/<artifact_id>/blob", parameters=[ITEM])
class Blob(MethodView):
    """The bytes of an artifact."""

    @artifacts.doc(**BLOB)
    @failures(400, 404, 410, 412, 416)
    def get(self, kind: str, artifact_id: str) -> Response:
        """Send the blob, or a range of it."""
        resources = current_resources()
        artifact = _find(kind, artifact_id)
        check_download(artifact)
        return send(request, artifact, resources.artifacts, resources.downloads)


def _find(kind: str, artifact_id: str) -> Artifact:
    try:
        parsed: UUID = parse_uuid(artifact_id)
    except ValueError as exc:
        raise InvalidInput(f"Impossible to parse UUID {artifact_id[:50]}: {exc}", field="uuid") from exc
    try:
        return current_resources().artifacts.get(ArtifactKind(kind), parsed)
    except NotFound as exc:
        raise NotFound(f"Error retrieving {kind} {parsed}: {exc}") from exc


def _metadata(artifact: Artifact) -> dict[str, Any]:
    artifact, may_have = shown_artifact(artifact)
    words: dict[str, Any] = {}
    if artifact.kind in (ArtifactKind.PROBLEM, ArtifactKind.ALGO):
        words["name"] = artifact.name
    if artifact.kind is ArtifactKind.PROBLEM:
        words["description"] = artifact.description
    if artifact.kind is ArtifactKind.MODEL:
        words["algo"] = str(artifact.algo)
    return {
        "uuid": str(artifact.id),
        "timestamp_upload": int(artifact.created_at.timestamp()),
        **words,
        "size": artifact.size_bytes if may_have else None,
        "sha256": artifact.sha256 if may_have else None,
        **({"quarantine": artifact.quarantine} if artifact.quarantine else {}),
    }
