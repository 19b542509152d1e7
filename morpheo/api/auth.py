"""Who may call: HTTP Basic with one user, as in 2017."""

from __future__ import annotations

import hmac

from flask import Flask, Response, request

from morpheo.api.app import current_resources
from morpheo.api.errors import problem

_PUBLIC = frozenset({"/", "/health", "/metrics", "/openapi.json"})


def require_basic_auth(app: Flask) -> None:
    """Ask for the user and password of the settings on all but the public routes, before the body is read."""
    app.before_request(_check)


def _check() -> Response | None:
    if request.path in _PUBLIC or request.method == "OPTIONS":
        return None
    settings = current_resources().settings
    given = request.authorization
    user = (given.username if given and given.type == "basic" else None) or ""
    password = (given.password if given and given.type == "basic" else None) or ""
    # Both are compared whatever the first says, so that the time tells nothing.
    same_user = hmac.compare_digest(user.encode(), settings.user.encode())
    same_password = hmac.compare_digest(password.encode(), settings.password.get_secret_value().encode())
    if same_user and same_password:
        return None
    response = problem(401, "send the user and password of the storage API with HTTP Basic authentication")
    response.headers["WWW-Authenticate"] = 'Basic realm="Authorization Required"'
    return response
