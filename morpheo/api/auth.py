"""
Who calls: HTTP Basic with a user's name and password, as in 2017, or ``Authorization: Bearer`` with a token.

All is decided before the body is read. Who they are is up to `morpheo.logins`, what they may do to
`morpheo.api.rights`.
"""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import urlsplit

from flask import Flask, Response, g, request

from morpheo.access import NOBODY, ORCHESTRATOR_OF_2017, Principal
from morpheo.actors import act_as
from morpheo.api.app import current_resources
from morpheo.api.rights import admit, is_public, rule_of, too_many
from morpheo.errors import Forbidden, Throttled


def require_login(app: Flask, refusal: Callable[[], Response]) -> None:
    """Answer `refusal` to who gives no right password or token, and 403 to who may not, on all but public routes."""
    app.before_request(lambda: _decide(refusal))


def caller() -> Principal:
    """Return who made this request, with those of their roles that allow it; `NOBODY` on public routes."""
    principal: Principal = g.get("caller") or NOBODY
    return principal


def _decide(refusal: Callable[[], Response]) -> Response | None:
    # A browser sends no password with its preflight.
    if is_public(request.endpoint) or request.method == "OPTIONS":
        return None
    _check_origin()
    try:
        principal = _who()
    except Throttled as exc:
        return too_many(str(exc), exc.retry_after_s)
    if principal is None:
        return _challenge(refusal())
    g.logged_in = True
    if not principal.is_admin and (wait_s := current_resources().rate_limit.take(principal.name)):
        return too_many("too many requests", wait_s)
    return admit(principal)


def _check_origin() -> None:
    """
    Do nothing unless a page of another site let a browser send this, with the login that it remembers for this one.

    A form needs no leave of ours to be sent (cross-site request forgery); of CORS only reading the answer does.

    Raises:
        Forbidden: such a page did, and its origin is not in the settings.
    """
    origin, site = request.headers.get("Origin"), request.headers.get("Sec-Fetch-Site")
    allowed = current_resources().settings.cors_origins
    if request.method in ("GET", "HEAD") or "*" in allowed or origin in allowed:
        return
    foreign = site == "cross-site" if site else origin is not None and urlsplit(origin).netloc != request.host
    if foreign:
        raise Forbidden("pages of this origin may not call this service; see MORPHEO_CORS_ORIGINS")


def _who() -> Principal | None:
    resources = current_resources()
    given = request.authorization
    principal: Principal | None = None
    if "Authorization" not in request.headers:
        rule = rule_of(request.endpoint, request.method)
        # Its orders stay those of "anonymous" in the audit trail: nobody has said who they are.
        if rule is not None and rule.from_2017 and resources.settings.anonymous_orders:
            return ORCHESTRATOR_OF_2017
    elif given is not None and given.type == "basic":
        name, password = given.username or "", given.password or ""
        principal = resources.logins.with_password(name, password, address=request.remote_addr or "")
    elif given is not None and given.type == "bearer":
        principal = resources.logins.with_token(given.token or "")
    if principal is not None:
        # A token is named too, after the user: who looks for what a user did finds both.
        act_as(f"user:{principal.name}" + (f"#{principal.token}" if principal.token else ""))
    return principal


def _challenge(refusal: Response) -> Response:
    if request.authorization is not None and request.authorization.type == "bearer":
        # RFC 6750, section 3. Others get the challenge of 2017 alone, letter for letter.
        refusal.headers.add("WWW-Authenticate", 'Bearer realm="morpheo", error="invalid_token"')
    return refusal
