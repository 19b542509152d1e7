"""
Who may do what: one rule for each route of the three services, in one table.

`admit` is asked before each request, after `morpheo.api.auth` has found out who calls. A role that a rule does not name
gets 403, whatever the request names. Of an object that somebody does not see, the answer is everywhere the 404 of one
that does not exist. Lists, and what the body of a request names, are narrowed by the services to what `caller` sees.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from flask import Response, g, request

from morpheo.access import Principal, Role, Scope
from morpheo.api.app import current_resources
from morpheo.api.errors import problem
from morpheo.api.wire import parse_uuid
from morpheo.errors import NotFound
from morpheo.models import ArtifactKind
from morpheo.storage.database import UnitOfWork

#: What a route's path and query string name.
Words = Mapping[str, Any]
Roles = frozenset[Role]
#: Returns a refusal, None if somebody may.
Check = Callable[[UnitOfWork, Principal, Words], Response | None]

ADMIN, CUSTODIAN, SUBMITTER, WORKER, READER = Role
#: Everybody who has a role.
ANYBODY = frozenset(Role)
#: Seconds after which somebody with too many orders may try again.
ORDERS_RETRY_S = 60


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Who may use a route; an admin always may."""

    #: By artifact kind or collection, where the path has one of these; under the empty text otherwise.
    roles: Mapping[str, Roles]
    #: What else must be so.
    checks: tuple[Check, ...] = ()
    #: Whether an orchestrator of 2017, which has no role, may (`MORPHEO_ANONYMOUS_ORDERS`).
    from_2017: bool = False

    def roles_for(self, words: Words) -> Roles:
        """Return the roles that may, for what a path names."""
        word = words.get("kind") or words.get("collection") or ""
        return self.roles.get(word, self.roles.get("", frozenset()))


def _sees_artifact(work: UnitOfWork, by: Principal, words: Words) -> None:
    kind, artifact_id = ArtifactKind(words["kind"]), _parsed(words["artifact_id"])
    if artifact_id is not None and not work.visibility.artifact(by, kind, artifact_id):
        raise NotFound(f"Error retrieving {kind} {artifact_id}: {kind} {artifact_id} not found")


def _sees_job(work: UnitOfWork, by: Principal, words: Words) -> None:
    job_id = _parsed(words["job_id"])
    if job_id is not None and not work.visibility.job(by, job_id):
        raise NotFound(f"job {job_id} not found")


def _stores_result(work: UnitOfWork, by: Principal, words: Words) -> Response | None:
    if by.is_admin or not by.has(WORKER):
        return None
    if words["kind"] == ArtifactKind.MODEL:
        ids = [_parsed(request.args.get(name, "")) for name in ("uuid", "algo")]
        may = work.visibility.may_store_model(by, *ids)
    else:
        may = words["kind"] != ArtifactKind.PREDICTION or work.visibility.may_store_prediction(by)
    return None if may else problem(403, f"a worker may store the {words['kind']} of a job that it has, and no other")


def _may_upload(work: UnitOfWork, by: Principal, words: Words) -> Response | None:
    allowed = current_resources().settings.max_uploads_per_day
    if by.is_admin or not allowed:
        return None
    count, wait_s = work.accounts.uploads_today(by.name, ArtifactKind(words["kind"]))
    if count < allowed:
        return None
    return too_many(f"{by.name} has stored {count} of this kind within a day, which is all that are allowed", wait_s)


def _may_order(work: UnitOfWork, by: Principal, _words: Words) -> Response | None:
    allowed = current_resources().settings.max_orders_waiting
    if by.is_admin or by.orders_anything or not allowed or work.accounts.orders_waiting(by.name) < allowed:
        return None
    return too_many(
        f"{by.name} has {allowed} orders that wait for a worker, which is all that are allowed", ORDERS_RETRY_S
    )


def _parsed(text: str) -> UUID | None:
    try:
        return parse_uuid(text)
    except ValueError:
        return None  # the route says what is wrong with it


def _rule(*roles: Role, checks: tuple[Check, ...] = (), from_2017: bool = False) -> Rule:
    return Rule(roles={"": frozenset(roles)}, checks=checks, from_2017=from_2017)


def _by_word(roles: Mapping[str, tuple[Role, ...]], *checks: Check) -> Rule:
    return Rule(roles={word: frozenset(some) for word, some in roles.items()}, checks=checks)


#: Routes that ask for nothing, by endpoint: what is alive, numbers without names, and the descriptions of the services.
PUBLIC = frozenset({"index", "health", "metrics", "docs", "docs_start", "docs_asset"})
#: How the endpoints of the descriptions begin.
PUBLIC_PREFIX = "api-docs."

_LISTS = {
    "problem": (CUSTODIAN,),
    "algo": (CUSTODIAN, SUBMITTER),
    "data": (CUSTODIAN,),
    "model": (CUSTODIAN, SUBMITTER),
    "prediction": (CUSTODIAN, SUBMITTER),
}
_ITEMS = {kind: roles if kind == "prediction" else (*roles, WORKER) for kind, roles in _LISTS.items()}
_UPLOADS = {
    "problem": (CUSTODIAN,),
    "algo": (SUBMITTER,),
    "data": (CUSTODIAN,),
    "model": (WORKER,),
    "prediction": (WORKER,),
}
_JOBS = (CUSTODIAN, SUBMITTER)
_DOCUMENTS = {
    "problem": (CUSTODIAN, SUBMITTER, WORKER, READER),
    "algo": (CUSTODIAN, SUBMITTER),
    "data": (CUSTODIAN,),
    "learnuplet": (CUSTODIAN, SUBMITTER, WORKER),
    "preduplet": (CUSTODIAN, SUBMITTER, WORKER),
}

#: By endpoint and method; HEAD is as GET.
RIGHTS: Mapping[tuple[str, str], Rule] = {
    # The compute API.
    ("orders.Learn", "POST"): _rule(CUSTODIAN, checks=(_may_order,), from_2017=True),
    ("orders.Predict", "POST"): _rule(CUSTODIAN, checks=(_may_order,), from_2017=True),
    ("jobs.Jobs", "GET"): _rule(*_JOBS),
    ("jobs.JobItem", "GET"): _rule(*_JOBS, checks=(_sees_job,)),
    ("jobs.Cancel", "POST"): _rule(*_JOBS, checks=(_sees_job,)),
    ("jobs.Retry", "POST"): _rule(*_JOBS, checks=(_sees_job, _may_order)),
    ("jobs.Logs", "GET"): _rule(*_JOBS, checks=(_sees_job,)),
    # The storage API.
    ("artifacts.Artifacts", "GET"): _by_word(_LISTS),
    ("artifacts.Artifacts", "POST"): _by_word(_UPLOADS, _stores_result, _may_upload),
    ("artifacts.ArtifactItem", "GET"): _by_word(_ITEMS, _sees_artifact),
    ("artifacts.ArtifactItem", "PATCH"): _by_word(_LISTS, _sees_artifact),
    ("artifacts.Blob", "GET"): _by_word(_ITEMS, _sees_artifact),
    # The orchestrator API. Documents are narrowed by what lists them, reports by `OutsideWorkers`.
    ("documents.Documents", "GET"): _by_word(_DOCUMENTS),
    ("documents.DocumentItem", "GET"): _by_word(_DOCUMENTS),
    ("documents.Retry", "POST"): _rule(*_JOBS, checks=(_may_order,)),
    ("registrations.Problems", "POST"): _rule(CUSTODIAN),
    ("registrations.ProblemChange", "PATCH"): _rule(CUSTODIAN),
    ("registrations.Algos", "POST"): _rule(SUBMITTER),
    ("registrations.Data", "POST"): _rule(CUSTODIAN),
    ("registrations.Predictions", "POST"): _rule(CUSTODIAN, checks=(_may_order,)),
    ("reports.Worker", "POST"): _rule(WORKER),
    ("reports.LearnDone", "POST"): _rule(WORKER),
    ("reports.PredDone", "POST"): _rule(WORKER),
    ("leaderboards.Leaderboards", "GET"): _rule(CUSTODIAN, SUBMITTER, READER),
}


def is_public(endpoint: str | None) -> bool:
    """Return whether a route asks for nothing."""
    return endpoint is not None and (endpoint in PUBLIC or endpoint.startswith(PUBLIC_PREFIX))


def rule_of(endpoint: str | None, method: str) -> Rule | None:
    """Return the rule of a route, None if there is no such route."""
    return None if endpoint is None else RIGHTS.get((endpoint, "GET" if method == "HEAD" else method))


def admit(principal: Principal) -> Response | None:
    """
    Return why somebody may not make this request, None if they may; `caller` is then who makes it.

    Raises:
        NotFound: it is about something that they do not see.
    """
    if request.endpoint is None:
        return None  # no such route, or not with this method: Flask says so
    rule = rule_of(request.endpoint, request.method)
    words = request.view_args or {}
    roles = frozenset[Role]() if rule is None else rule.roles_for(words)
    if rule is None or not (principal.has(*roles) or (rule.from_2017 and principal.orders_anything)):
        return _refused(roles)
    scope = Scope.READ if request.method in ("GET", "HEAD") else Scope.WRITE
    if scope not in principal.scopes:
        return problem(403, f"this takes a token with the scope {scope}; see `morpheo token create --help`")
    g.caller = by = principal.only(roles)
    if by.is_admin or not rule.checks:
        return None
    with current_resources().database.read() as work:
        return next((refusal for check in rule.checks if (refusal := check(work, by, words)) is not None), None)


def _refused(roles: Roles) -> Response:
    needed = " or ".join(sorted(roles)) or "admin"
    return problem(403, f"this takes the role {needed}; an administrator gives it with `morpheo user roles`")


def too_many(message: str, wait_s: float) -> Response:
    """Return the answer to somebody who must wait."""
    seconds = max(1, math.ceil(wait_s))
    refusal = problem(429, f"{message}; try again in {seconds} s")
    refusal.headers["Retry-After"] = str(seconds)
    return refusal
