"""
Which worker takes which job: the names of queues, and nothing else.

A job goes to exactly one queue, that of its kind and tags: ``learn``, ``predict``, ``learn.big-memory+gpu``. A worker
that has the tags ``big-memory`` and ``gpu`` consumes the queue of every non-empty subset of them, so that it takes
the jobs that ask for no more than it has. Jobs without tags are for workers that name their kind.

Where each submitter has engines of their own, a job also has the tag ``@NAME`` of who owns its algo (`in_lane`), which
nobody can ask for. It goes to workers of that submitter only, and these take nothing else.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterable
from dataclasses import replace
from typing import TypeVar

from morpheo.models import LANE, JobKind, JobSpec

#: Most tags of a job, and of a worker: it consumes a queue for each of their subsets.
MAX_TAGS = 4
#: Longest name in a tag, in characters: all tags together are at most 160.
MAX_LANE = 26
#: Jobs that ask for this tag get the worker's GPUs in the containers of their algo.
GPU_TAG = "gpu"
TAG = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")
_Spec = TypeVar("_Spec", bound=JobSpec)
_KINDS = frozenset(kind.value for kind in JobKind)


def checked_tags(tags: Iterable[str]) -> tuple[str, ...]:
    """
    Return tags sorted, each once.

    Raises:
        ValueError: one is not a tag, or there are too many.
    """
    found = tuple(sorted(set(tags)))
    for tag in found:
        if not TAG.fullmatch(tag):
            raise ValueError(f"{tag[:50]!r} is not a tag: lower-case letters, digits and inner hyphens, at most 32")
        if tag in _KINDS:
            raise ValueError(f"{tag} is no tag but a kind of job")
    if len(found) > MAX_TAGS:
        raise ValueError(f"at most {MAX_TAGS} tags are allowed")
    return found


def queue_name(kind: JobKind, tags: Iterable[str] = ()) -> str:
    """Return the name of the queue of the jobs of one kind that ask for exactly these tags."""
    return ".".join([kind, *filter(None, ["+".join(sorted(tags))])])


def queue_of(spec: JobSpec) -> str:
    """Return the name of the queue that a job goes to."""
    return queue_name(spec.kind, spec.tags)


def in_lane(spec: _Spec, submitter: str) -> _Spec:
    """Return an order as one that only workers of a submitter take; empty is everybody's workers."""
    tags = {tag for tag in spec.tags if not tag.startswith(LANE)}
    return replace(spec, tags=tuple(sorted(tags.union(lane(submitter)))))


def lane(submitter: str) -> tuple[str, ...]:
    """Return the tag of a submitter's jobs, if they are kept apart: the name, or of a long one its digest."""
    if len(submitter) > MAX_LANE:
        submitter = "~" + hashlib.sha256(submitter.encode()).hexdigest()[: MAX_LANE - 1]
    return (LANE + submitter,) if submitter else ()


def consumed(names: Iterable[str], submitter: str = "") -> dict[JobKind, tuple[str, ...]]:
    """
    Return the queues that a worker consumes, by kind; none for a kind that it does not take.

    Args:
        names: Kinds, whose jobs without tags it takes, and tags that it has.
        submitter: Whose jobs alone it takes; empty is those that are not kept apart.

    Raises:
        ValueError: a name is neither, or there are too many tags, or no names.
    """
    given = set(names)
    tags = checked_tags(given - _KINDS)
    if not given:
        raise ValueError("name at least one of learn, predict, or a tag")
    subsets = [subset for size in range(1, len(tags) + 1) for subset in itertools.combinations(tags, size)]
    own = lane(submitter)
    return {
        kind: tuple(queue_name(kind, own + subset) for subset in ([(), *subsets] if kind in given else subsets))
        for kind in JobKind
    }
