"""What the services have in common: an application with one error shape, health, and a bounded body."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Mapping
from http import HTTPStatus

from flask import Flask, Request, Response, current_app, g, jsonify, request
from flask_cors import CORS
from gunicorn.http.errors import ParseException
from werkzeug.exceptions import ClientDisconnected
from werkzeug.middleware.proxy_fix import ProxyFix

from morpheo import __version__
from morpheo.actors import ANONYMOUS, UNKNOWN, act_as
from morpheo.api import errors
from morpheo.api.digests import AnnouncedDigests
from morpheo.api.openapi import MorpheoApi
from morpheo.config import Settings
from morpheo.errors import InvalidInput, Unavailable
from morpheo.logs import about_request
from morpheo.resources import Resources

HealthChecks = Mapping[str, Callable[[], None]]

#: What a process of the server does while it answers its first requests, among an application's extensions.
AT_START = "morpheo.at_start"
#: Header with the name of a request, in requests and answers.
REQUEST_ID = "X-Request-ID"
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


def create_app(name: str, title: str, resources: Resources, *, error_key: str = "error") -> tuple[Flask, MorpheoApi]:
    """Return an application that knows its resources and the key of its errors, and its OpenAPI registry."""
    app = Flask(name, static_folder=None)
    if proxies := resources.settings.trusted_proxies:
        # Of each header only what the nearest proxies wrote; a client can write what it likes before that.
        app.wsgi_app = ProxyFix(app.wsgi_app, x_for=proxies, x_proto=proxies)  # type: ignore[method-assign]
    app.url_map.strict_slashes = False
    app.json.compact = True  # type: ignore[attr-defined]  # of Flask's default provider
    app.config.update(
        API_TITLE=title,
        API_VERSION=__version__,
        OPENAPI_VERSION="3.1.0",
        OPENAPI_URL_PREFIX="/",
        OPENAPI_JSON_PATH="openapi.json",
    )
    app.config[errors.ERROR_KEY] = error_key
    app.extensions["morpheo"] = resources
    app.before_request(lambda: act_as(ANONYMOUS))
    app.teardown_request(lambda _error: act_as(UNKNOWN))
    app.before_request(_name_request)
    app.after_request(_harden)
    return app, MorpheoApi(app)


def current_resources() -> Resources:
    """Return the resources of the application that serves this request."""
    resources: Resources = current_app.extensions["morpheo"]
    return resources


def health(checks: HealthChecks) -> Response:
    """Answer 200 if every check passes, else 503 and which did not."""
    states = {}
    for name, check in checks.items():
        try:
            check()
            states[name] = "ok"
        except Unavailable as exc:
            states[name] = str(exc)
    healthy = all(state == "ok" for state in states.values())
    response = jsonify({"status": "ok" if healthy else "unavailable", "checks": states})
    response.status_code = 200 if healthy else 503
    return response


class BodySource:
    """
    The body of a request, exactly as announced: its length, and its digests if there are any.

    Raises `InvalidInput` on the read that shows that the client hung up; a server would only give fewer bytes.
    """

    def __init__(self, request: Request) -> None:
        self._stream = request.stream
        self._length = request.content_length
        self._digests = AnnouncedDigests(request.headers)
        self.count = 0

    def read(self, size: int = -1, /) -> bytes:
        """Return at most `size` bytes; none at the end."""
        try:
            piece = self._stream.read(size)
        except (OSError, ParseException, ClientDisconnected) as exc:
            raise InvalidInput("the body ended before its end; send it again") from exc
        self.count += len(piece)
        self._digests.update(piece)
        if not piece and size != 0:
            if self._length is not None and self.count < self._length:
                raise InvalidInput(f"the body has {self.count} bytes, but Content-Length says {self._length}")
            self._digests.check()
        return piece


def _name_request() -> None:
    # The client's own name for it, if that is one, so that its log and ours can be put side by side.
    given = request.headers.get(REQUEST_ID, "")
    g.request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
    about_request(g.request_id)


#: For all answers. Where an answer is opened in a browser, nothing in it may run, be framed or lead elsewhere.
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
}
#: For pages, whose scripts and styles are their service's own files.
_PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; font-src 'self'; "
    "connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
#: A year, as hstspreload.org asks for.
_HSTS = "max-age=31536000; includeSubDomains"


def allow_origins(app: Flask, settings: Settings, *, methods: list[str]) -> None:
    """Let web pages of the origins of the settings call an application; with * without their cookies and logins."""
    if not settings.cors_origins:
        return
    # Before authentication: a browser sends no password with its preflight.
    credentials = "*" not in settings.cors_origins
    CORS(app, origins=list(settings.cors_origins), supports_credentials=credentials, methods=methods)


def _harden(response: Response) -> Response:
    if response.mimetype == "text/html":
        response.headers.setdefault("Content-Security-Policy", _PAGE_POLICY)
    for name, value in _HEADERS.items():
        response.headers.setdefault(name, value)
    if g.get("logged_in"):
        response.headers.setdefault("Cache-Control", "no-store")
    if request.is_secure:
        response.headers.setdefault("Strict-Transport-Security", _HSTS)
    response.headers[REQUEST_ID] = g.request_id
    # As RFC 9110 writes it, not in capitals: a client of 2017 looks for "409 Conflict".
    response.status = f"{response.status_code} {HTTPStatus(response.status_code).phrase}"
    return response
