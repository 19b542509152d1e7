"""``/metrics`` of an API, for Prometheus. It tells numbers and no names, so it asks for no password."""

from __future__ import annotations

import re
import time

from flask import Flask, Response, g, request
from prometheus_client import make_wsgi_app

from morpheo.api.app import current_resources
from morpheo.metrics import request_seconds

_CONVERTER = re.compile(r"<[^<>]*:(\w+)>")


def add_metrics(app: Flask) -> None:
    """Serve the metrics, and time the requests."""
    app.add_url_rule("/metrics", view_func=_metrics, endpoint="metrics")
    app.before_request(_begin)
    app.after_request(_observe)


def _metrics() -> Response:
    environ = {**request.environ, "REQUEST_METHOD": "GET"}  # HEAD is Flask's business
    app = make_wsgi_app(current_resources().metrics)
    return Response.from_app(app, environ)  # type: ignore[return-value]  # it is of this class


def _begin() -> None:
    g.began = time.monotonic()


def _observe(response: Response) -> Response:
    # Only what the application's routes name: a client must not be able to make up series.
    rule = request.url_rule
    route, method = (_CONVERTER.sub(r"<\1>", rule.rule), request.method) if rule is not None else ("", "")
    request_seconds.labels(method, route, str(response.status_code)).observe(time.monotonic() - g.began)
    return response
