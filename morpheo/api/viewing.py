"""
What the caller of a request sees: the one place where the APIs apply `morpheo.disclosure`.

Documents of jobs are made of `shown_job`, logs are asked for with `readable_logs`, blobs with `check_download`.
"""

from __future__ import annotations

from dataclasses import replace
from uuid import UUID

from flask import g

from morpheo.access import Principal, Role
from morpheo.api.app import current_resources
from morpheo.api.auth import caller
from morpheo.challenges import Problem, is_insider
from morpheo.disclosure import DEFAULT, Logs, View
from morpheo.errors import Forbidden, NotFound
from morpheo.models import Artifact, ArtifactKind, Job, LearnSpec

_ALL = View(disclosure=DEFAULT, insider=True)


def shown_job(job: Job) -> Job:
    """Return a job as the caller sees it."""
    return _view_of(job).job(job)


def readable_logs(job: Job) -> View:
    """
    Return how the caller sees the logs of a job.

    Raises:
        Forbidden: they see none of them.
    """
    view = _view_of(job)
    if view.steps:
        return view
    more = "" if view.disclosure.logs is Logs.NONE else f"; job {job.id} tells its cause, exit codes and times"
    raise Forbidden(f"the logs of this problem's jobs are for its custodian{more}")


def check_insider(problem: Problem) -> None:
    """
    Do nothing if the caller may change what goes out of a problem.

    Raises:
        Forbidden: they may not.
    """
    if not is_insider(caller(), problem):
        raise Forbidden(f"only the custodian of problem {problem.id} may change it")


def shown_artifact(artifact: Artifact) -> tuple[Artifact, bool]:
    """
    Return an artifact as the caller sees it, and whether they may know its size and digest, which a program chooses.
    """
    view, may_have = _view_of_output(artifact)
    return replace(artifact, created_at=view.time(artifact.created_at)), may_have


def check_download(artifact: Artifact) -> None:
    """
    Do nothing if the caller may have the blob of an artifact, as far as that is for the custodian of a problem to say.

    Raises:
        Forbidden: its custodian does not let it out.
    """
    if not _view_of_output(artifact)[1]:
        others = "" if artifact.kind is ArtifactKind.MODEL else " and for who ordered it"
        raise Forbidden(f"{artifact.kind} {artifact.id} is for the custodian of its problem{others}")


def _view_of_output(artifact: Artifact) -> tuple[View, bool]:
    """Return how the caller sees the problem that an artifact came of, and whether they may have its blob."""
    by = caller()
    is_output = artifact.kind in (ArtifactKind.MODEL, ArtifactKind.PREDICTION)
    if not is_output or is_insider(by, None) or _is_needed_by_a_held_job(by, artifact):
        return _ALL, True
    orchestrator = current_resources().orchestrator
    job = orchestrator.job_of_result(artifact.kind, artifact.id)
    if job is None or not job.planned:
        return _view(None), False
    view, owner, lets_out = _view_of(job), job.owner, True
    if isinstance(job.spec, LearnSpec):
        owner, lets_out = orchestrator.submission(job.spec.algo).owner, view.disclosure.model_download
    return view, view.insider or (lets_out and owner == caller().name != "")


def _is_needed_by_a_held_job(by: Principal, artifact: Artifact) -> bool:
    """Return whether a worker that is not ours has a job that begins with this model."""
    if not by.has(Role.WORKER):
        return False
    with current_resources().database.read() as work:
        return work.visibility.is_needed(by, artifact.kind, artifact.id)


def _view_of(job: Job) -> View:
    # An order from outside names any problem that it likes; only what was planned for one is surely of it.
    return _view(job.spec.problem if job.planned else None)


def _view(problem_id: UUID | None) -> View:
    if is_insider(caller(), None):  # of whatever problem
        return _ALL
    known: dict[UUID | None, View] = g.setdefault("views", {})
    if problem_id not in known:
        problem = _problem(problem_id)
        disclosure = DEFAULT if problem is None else problem.disclosure
        known[problem_id] = View(disclosure=disclosure, insider=is_insider(caller(), problem))
    return known[problem_id]


def _problem(problem_id: UUID | None) -> Problem | None:
    if problem_id is None:
        return None
    try:
        return current_resources().orchestrator.problem(problem_id)
    except NotFound:
        return None
