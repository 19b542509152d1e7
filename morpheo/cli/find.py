"""Problems and algos as people name them: by id, by name, or by how the id begins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar
from uuid import UUID

import click

from morpheo.challenges import Problem, Submission
from morpheo.cli.common import orchestrator_client
from morpheo.errors import InvalidInput, NotFound

T = TypeVar("T")

#: Letters of an id that are enough, if no other id begins with them.
MIN_PREFIX = 6
_MAX_SHOWN = 5

problem_option = click.option(
    "--problem", "-p", required=True, metavar="PROBLEM", help="Its id, the beginning of its id, or its name."
)


@dataclass(frozen=True, kw_only=True)
class Candidate(Generic[T]):
    """Something that may be meant."""

    id: UUID
    name: str
    value: T


def exact_id(given: str) -> UUID | None:
    """Return the id that a text is, None if it is none; only the usual form counts, since files may have others."""
    try:
        found = UUID(given)
    except ValueError:
        return None
    return found if str(found) == given.lower() else None


def find_problem(given: str) -> Problem:
    """
    Return the problem that is meant.

    Raises:
        NotFound, ApiError: there is none.
        InvalidInput: it may be one of several.
    """
    orchestrator = orchestrator_client()
    if identifier := exact_id(given):
        return orchestrator.problem(identifier)
    found = orchestrator.problems()
    return pick(given, [Candidate(id=item.id, name=item.name, value=item) for item in found], "problem")


def find_submission(given: str) -> Submission:
    """
    Return the submission of the algo that is meant.

    Raises:
        NotFound, ApiError: there is none.
        InvalidInput: it may be one of several.
    """
    orchestrator = orchestrator_client()
    if identifier := exact_id(given):
        return orchestrator.submission(identifier)
    found = orchestrator.submissions()
    return pick(given, [Candidate(id=item.algo, name=item.name, value=item) for item in found], "algo")


def pick(given: str, candidates: Sequence[Candidate[T]], kind: str) -> T:
    """
    Return the only candidate that has this name, or whose id begins with it.

    Raises:
        NotFound: there is none.
        InvalidInput: there are several; the message lists them.
    """
    long_enough = len(given) >= MIN_PREFIX
    meant = [
        item for item in candidates if item.name == given or (long_enough and str(item.id).startswith(given.lower()))
    ]
    if not meant:
        hint = "" if long_enough else f" (of an id, give at least {MIN_PREFIX} letters)"
        raise NotFound(f"no {kind} is called {given!r}, or has an id that begins so{hint}; see `morpheo {kind} ls`")
    if len(meant) > 1:
        listed = ", ".join(f"{item.id} ({item.name})" for item in meant[:_MAX_SHOWN])
        more = f" and {len(meant) - _MAX_SHOWN} more" if len(meant) > _MAX_SHOWN else ""
        raise InvalidInput(f"{given!r} may be any of {len(meant)} {kind}s: {listed}{more}; give the id")
    return meant[0].value
