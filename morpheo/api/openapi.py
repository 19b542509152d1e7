"""
The OpenAPI document of a service: what its blueprints say of their operations, and what holds for all of them.

A route for several kinds of things (``/<any(problem, algo):kind>``) becomes a path for each kind; what an operation
says of single kinds it says under `EACH`.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from http import HTTPStatus
from typing import Any

from flask import Flask, Response
from flask_smorest import Api
from flask_smorest.utils import deepupdate

from morpheo.api import errors
from morpheo.api.docs import add_docs
from morpheo.api.examples import MESSAGES, REQUEST_ID
from morpheo.api.schemas import WireUUID

Document = dict[str, Any]

#: Key of an operation under which it says more, by the value of the path's parameter; it is not in the document.
EACH = "x-each"
#: Errors that every operation but the public ones can end in.
_COMMON = (401, 403, 429, 500, 503)
_METHODS = ("get", "post", "patch")
_PROBLEM_JSON = "application/problem+json"
_HEADERS = {
    429: ("RetryAfter",),
    503: ("RetryAfter",),
    401: ("Authenticate",),
    416: ("ContentRange",),
}

_ABOUT = """

**Who may call.** All but the routes tagged `service` ask for HTTP Basic authentication, or for a token
(`Authorization: Bearer …`). They are asked for before the body is read.

**Errors** are problem documents (RFC 9457, `application/problem+json`). The key `{error_key}` repeats `detail` or
says it in the words of 2017; `field` names what is wrong, if it is one thing.

**Ids** are UUIDs with hyphens, in either case, also in braces or as `urn:uuid:`. Answers have them in lower case.

Every GET route answers HEAD too, and every route OPTIONS. A method that a route does not have is answered 405 with
`Allow`, an unknown path 404. The name of a request is its `X-Request-ID`, which the client can choose.
"""


class MorpheoApi(Api):
    """flask-smorest, with the project's errors in place of its own, and a document that is complete."""

    DEFAULT_ERROR_RESPONSE_NAME = None  # every operation says which errors it has

    def __init__(self, app: Flask) -> None:
        self._text = ""
        super().__init__(app)
        self.register_field(WireUUID, "string", "uuid")

    def _register_error_handlers(self) -> None:
        errors.register(self._app)

    def _register_responses(self) -> None:
        components = self.spec.components
        key = self._app.config[errors.ERROR_KEY]
        components.schema("Problem", problem_schema(key))
        for name, header in _headers().items():
            components.header(name, header)
        for status in HTTPStatus:
            if status in MESSAGES:
                components.response(status.name, _problem_response(status, key))
        components.security_scheme("basic", {"type": "http", "scheme": "basic", "description": "User and password"})
        components.security_scheme(
            "bearer", {"type": "http", "scheme": "bearer", "description": "A token of `morpheo token create`"}
        )

    def _register_etag_headers(self) -> None:
        """Blobs have ETags of their own."""

    def _register_pagination_header(self) -> None:
        """Lists tell their pages in the body."""

    def describe(self, about: str, *, index: Sequence[str], checks: Sequence[str], secured: bool = True) -> None:
        """
        Complete the document when all blueprints are registered.

        Args:
            about: What the service is.
            index: What ``/`` answers.
            checks: What ``/health`` looks at.
            secured: Whether the other routes ask who calls.
        """
        document: Document = self.spec.to_dict()
        document["info"]["description"] = about + _ABOUT.format(error_key=self._app.config[errors.ERROR_KEY])
        document["servers"] = [{"url": "/", "description": "This service"}]
        document["paths"] = {
            path: operations for path, operations in sorted(_each_path(document["paths"])) if operations
        }
        for path, method, operation in operations_of(document):
            _complete(operation, f"{method}{path}", secured=secured)
        for schema in document["components"]["schemas"].values():
            for name in schema.get("required", ()):
                schema["properties"][name].pop("default", None)
        document["paths"] |= _service_paths(index, checks)
        document["tags"].append({"name": "service", "description": "What every service has, and asks no password for"})
        self._text = json.dumps(document, indent=1)
        add_docs(self._app)

    def _openapi_json(self) -> Response:
        return Response(self._text, content_type="application/json")


def failures(*statuses: int) -> Any:
    """Return a decorator that documents errors of an operation, besides those that all operations have."""
    responses = {str(status): reference("responses", HTTPStatus(status).name) for status in statuses}

    def decorator(function: Any) -> Any:
        function._apidoc = deepcopy(getattr(function, "_apidoc", {}))  # noqa: SLF001 - flask-smorest keeps it there
        manual = function._apidoc.setdefault("manual_doc", {})  # noqa: SLF001
        manual.setdefault("responses", {}).update(responses)
        return function

    return decorator


def json_body(schema: Any, example: Any) -> Document:
    """Return the description of a body of JSON."""
    return {"required": True, "content": {"application/json": {"schema": schema, "example": example}}}


def path_id(name: str, description: str) -> Document:
    """Return the description of a UUID in a path."""
    schema = {"type": "string", "format": "uuid"}
    return {"name": name, "in": "path", "required": True, "description": description, "schema": schema}


def reference(section: str, name: str) -> Document:
    """Return a reference to a component."""
    return {"$ref": f"#/components/{section}/{name}"}


def operations_of(document: Mapping[str, Any]) -> Iterator[tuple[str, str, Document]]:
    """Return path, method and content of each operation."""
    for path, operations in document["paths"].items():
        for method in _METHODS:
            if method in operations:
                yield path, method, operations[method]


def problem_schema(error_key: str) -> Document:
    """Return the JSON schema of an error."""
    text = {"type": "string"}
    return {
        "type": "object",
        "description": "An error, as RFC 9457 has it",
        "required": ["type", "title", "status", "detail", error_key],
        "properties": {
            "type": {**text, "description": "Nothing more than `status` says: about:blank"},
            "title": {**text, "description": "Name of the status"},
            "status": {"type": "integer", "minimum": 400, "maximum": 599},
            "detail": {**text, "description": "What is wrong, and what to do"},
            error_key: {**text, "description": "What clients of 2017 read"},
            "field": {**text, "description": "What is wrong, if it is one thing: a field, parameter or header"},
        },
        "additionalProperties": False,
    }


def _problem_response(status: HTTPStatus, error_key: str) -> Document:
    message = MESSAGES[status]
    example = {error_key: message, "type": "about:blank", "title": status.phrase, "status": status, "detail": message}
    names = ("RequestId", *_HEADERS.get(status, ()))
    wire_names = {"RequestId": "X-Request-ID", **_WIRE_NAMES}
    return {
        "description": status.phrase,
        "headers": {wire_names[name]: reference("headers", name) for name in names},
        "content": {_PROBLEM_JSON: {"schema": reference("schemas", "Problem"), "example": example}},
    }


_WIRE_NAMES = {"RetryAfter": "Retry-After", "Authenticate": "WWW-Authenticate", "ContentRange": "Content-Range"}


def _headers() -> Document:
    return {
        "RequestId": {
            "description": "Name of the request in the service's log",
            "schema": {"type": "string", "pattern": "^[A-Za-z0-9._:-]{1,128}$"},
            "example": REQUEST_ID,
        },
        "RetryAfter": {"description": "Seconds to wait", "schema": {"type": "integer", "minimum": 0}, "example": 5},
        "Authenticate": {
            "description": "What to send",
            "schema": {"type": "string"},
            "example": 'Basic realm="Authorization Required"',
        },
        "ContentRange": {
            "description": "Which bytes of how many",
            "schema": {"type": "string", "pattern": r"^bytes (\d+-\d+|\*)/\d+$"},
            "example": "bytes 0-1023/4096",
        },
    }


def _each_path(paths: Mapping[str, Document]) -> Iterator[tuple[str, Document]]:
    merged: dict[str, Document] = {}
    for path, content in paths.items():
        for found, operations in _spread(path, content):
            merged[found] = {**merged.get(found, {}), **operations}
    yield from merged.items()


def _spread(path: str, content: Document) -> Iterator[tuple[str, Document]]:
    """Return a path for each value of its parameter that has few, or the path as it is."""
    parameters = content.pop("parameters", [])
    choice = next((item for item in parameters if "enum" in item["schema"]), None)
    values: Iterable[str] = choice["schema"]["enum"] if choice else [""]
    others = [item for item in parameters if item is not choice]
    for value in values:
        operations: Document = {}
        for method, operation in deepcopy(content).items():
            each = operation.pop(EACH, None)
            if each is None or value in each:
                added = each[value] if each else {}
                own = operation.pop("parameters", []) + added.pop("parameters", [])
                operations[method] = deepupdate({**operation, "parameters": [*others, *own]}, added)
        yield (path.replace(f"{{{choice['name']}}}", value) if choice else path), operations


def _complete(operation: Document, name: str, *, secured: bool) -> None:
    operation["operationId"] = "-".join(re.findall(r"\w+", name))
    statuses = [status for status in _COMMON if secured or status not in (401, 403)]
    for status in statuses:
        operation["responses"].setdefault(str(status), reference("responses", HTTPStatus(status).name))
    operation["responses"] = dict(sorted(operation["responses"].items()))
    operation["security"] = [{"basic": []}, {"bearer": []}] if secured else []
    for response in operation["responses"].values():
        if "$ref" not in response:
            response.setdefault("headers", {})["X-Request-ID"] = reference("headers", "RequestId")


def _service_paths(index: Sequence[str], checks: Sequence[str]) -> dict[str, Document]:
    states = {"type": "object", "additionalProperties": {"type": "string"}}
    health = {
        "type": "object",
        "required": ["status", "checks"],
        "properties": {"status": {"enum": ["ok", "unavailable"]}, "checks": states},
        "additionalProperties": False,
    }
    healthy = {"status": "ok", "checks": dict.fromkeys(checks, "ok")}
    sick = {"status": "unavailable", "checks": {**healthy["checks"], checks[0]: MESSAGES[503]}}  # type: ignore[dict-item]
    listing = {"type": "array", "items": {"type": "string"}}
    return dict(
        itertools.starmap(
            _service_path,
            (
                ("/", "List the routes", {200: ("application/json", listing, list(index))}),
                (
                    "/health",
                    "Tell whether the service has what it needs; `/` tells whether it lives",
                    {200: ("application/json", health, healthy), 503: ("application/json", health, sick)},
                ),
                ("/metrics", "Tell numbers to Prometheus", {200: ("text/plain", {"type": "string"}, _METRICS)}),
                ("/docs", "Show this document as a page", {200: ("text/html", {"type": "string"}, None)}),
                ("/openapi.json", "Show this document", {200: ("application/json", {"type": "object"}, None)}),
            ),
        )
    )


_METRICS = (
    '# HELP morpheo_jobs Jobs in each state\n# TYPE morpheo_jobs gauge\nmorpheo_jobs{kind="learn",state="queued"} 1.0\n'
)


def _service_path(path: str, summary: str, answers: Mapping[int, tuple[str, Document, Any]]) -> tuple[str, Document]:
    responses = {
        str(status): {
            "description": HTTPStatus(status).phrase,
            "headers": {"X-Request-ID": reference("headers", "RequestId")},
            "content": {media: {"schema": schema, **({} if example is None else {"example": example})}},
        }
        for status, (media, schema, example) in answers.items()
    }
    operation_id = "-".join(["get", *re.findall(r"\w+", path or "index")])
    return path, {
        "get": {
            "summary": summary,
            "operationId": operation_id if path != "/" else "get-index",
            "tags": ["service"],
            "security": [],
            "responses": responses,
        }
    }
