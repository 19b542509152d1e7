"""
One shape for every error: the key that clients of 2017 read, in a problem document of RFC 9457.

The key is ``error``, and ``Error`` at the orchestrator (`ERROR_KEY` of an application).
"""

from __future__ import annotations

import logging
import uuid
from http import HTTPStatus
from typing import Any

from flask import Flask, Response, current_app, json
from werkzeug.exceptions import HTTPException

from morpheo.api.wire import UnsupportedEncoding
from morpheo.errors import (
    Conflict,
    CorruptBlob,
    Forbidden,
    InvalidInput,
    MorpheoError,
    NotFound,
    Quarantined,
    TooLarge,
    TooMany,
    Unavailable,
)

logger = logging.getLogger(__name__)

#: How long a client waits before it asks an unavailable service again, in seconds.
RETRY_AFTER_S = 5

#: Name, in an application's configuration, of the key that has the message.
ERROR_KEY = "ERROR_KEY"

#: The first that fits decides.
STATUS: tuple[tuple[type[MorpheoError], HTTPStatus], ...] = (
    (UnsupportedEncoding, HTTPStatus.UNSUPPORTED_MEDIA_TYPE),
    (TooLarge, HTTPStatus.CONTENT_TOO_LARGE if hasattr(HTTPStatus, "CONTENT_TOO_LARGE") else HTTPStatus(413)),
    (InvalidInput, HTTPStatus.BAD_REQUEST),
    (NotFound, HTTPStatus.NOT_FOUND),
    (Conflict, HTTPStatus.CONFLICT),
    (Forbidden, HTTPStatus.FORBIDDEN),
    (TooMany, HTTPStatus.TOO_MANY_REQUESTS),
    (Unavailable, HTTPStatus.SERVICE_UNAVAILABLE),
    (Quarantined, HTTPStatus.GONE),
    (CorruptBlob, HTTPStatus.INTERNAL_SERVER_ERROR),
)


def problem(status: int, message: str, **members: Any) -> Response:
    """Return an error answer."""
    title = HTTPStatus(status).phrase
    shown = {"type": "about:blank", "title": title, "status": status, "detail": message, **members}
    body = {current_app.config[ERROR_KEY]: message, **shown}
    response = Response(json.dumps(body), status, content_type="application/problem+json")
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        response.headers["Retry-After"] = str(RETRY_AFTER_S)
    return response


def register(app: Flask) -> None:
    """Answer every exception with `problem`."""
    app.register_error_handler(MorpheoError, _morpheo_error)
    app.register_error_handler(HTTPException, _http_error)
    app.register_error_handler(Exception, _unexpected)


def _morpheo_error(error: MorpheoError) -> Response:
    status = next((status for kind, status in STATUS if isinstance(error, kind)), None)
    if status is None:
        return _unexpected(error)
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        logger.warning("%s", error, exc_info=error)
    members = {name: text for name in ("field", "detail") if (text := getattr(error, name, None))}
    response = problem(status, str(error), **members)
    if isinstance(error, TooMany):
        response.headers["Retry-After"] = str(error.retry_after_s)
    return response


def _http_error(error: HTTPException) -> Response:
    status = error.code or HTTPStatus.INTERNAL_SERVER_ERROR
    if status < HTTPStatus.BAD_REQUEST and error.response is not None:
        return error.response  # type: ignore[return-value]  # a redirect is an answer, not an error
    message = error.description or HTTPStatus(status).phrase
    messages: dict[str, Any] = getattr(error, "data", {}).get("messages", {})
    fields = {name: text for part in messages.values() for name, text in part.items()}
    if fields:
        message = "; ".join(f"{name}: {' '.join(map(str, text))}" for name, text in fields.items())
    response = problem(status, message, **({"field": next(iter(fields))} if fields else {}))
    for name, value in error.get_headers():
        if name in ("Allow", "WWW-Authenticate", "Content-Range"):
            response.headers[name] = value
    return response


def _unexpected(error: Exception) -> Response:
    # The log has everything, the answer has only the name to look for in the log.
    incident = uuid.uuid4().hex
    logger.error("unexpected error %s", incident, exc_info=error)
    message = f"an unexpected error; tell the operator this number: {incident}"
    return problem(HTTPStatus.INTERNAL_SERVER_ERROR, message)
