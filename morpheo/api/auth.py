"""Who may call: HTTP Basic with one user, as in 2017."""

from __future__ import annotations

import hmac
from collections.abc import Callable

from flask import Flask, Response, request

from morpheo.api.app import current_resources

_PUBLIC = frozenset({"/", "/health", "/metrics", "/openapi.json"})


def require_basic_auth(app: Flask, refusal: Callable[[], Response]) -> None:
    """Answer `refusal` on all but the public routes, before the body is read, to whoever is not the settings' user."""
    app.before_request(lambda: None if _may_call() else refusal())


def _may_call() -> bool:
    if request.path in _PUBLIC or request.method == "OPTIONS":
        return True
    settings = current_resources().settings
    given = request.authorization
    user = (given.username if given and given.type == "basic" else None) or ""
    password = (given.password if given and given.type == "basic" else None) or ""
    # Both are compared whatever the first says, so that the time tells nothing.
    same_user = hmac.compare_digest(user.encode(), settings.user.encode())
    same_password = hmac.compare_digest(password.encode(), settings.password.get_secret_value().encode())
    return same_user and same_password
