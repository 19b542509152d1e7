"""Specs of jobs as JSON values, and back."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import replace
from typing import Any
from uuid import UUID

from morpheo.models import LANE, JobKind, JobSpec, LearnSpec, PredictSpec

#: Fields that are left out where an order does not give them.
_OPTIONAL = frozenset({"tags", "time_limit_s"})


def spec_to_dict(spec: JobSpec) -> dict[str, Any]:
    """Return a spec as JSON values."""

    def plain(value: Any) -> Any:
        if isinstance(value, UUID):
            return str(value)
        return [str(item) for item in value] if isinstance(value, tuple) else value

    # Without the optional fields it is what it was before there were any: the digest of an order must not change.
    values = {item.name: getattr(spec, item.name) for item in dataclasses.fields(spec)}
    return {name: plain(value) for name, value in values.items() if name not in _OPTIONAL or value}


def spec_from_dict(kind: JobKind, values: dict[str, Any]) -> JobSpec:
    """
    Return the spec that `spec_to_dict` made into JSON values.

    Raises:
        ValueError, KeyError, TypeError: the values are not a spec of that kind.
    """
    cls = LearnSpec if kind is JobKind.LEARN else PredictSpec

    def rich(value: Any) -> Any:
        if isinstance(value, list):
            return tuple(UUID(item) for item in value)
        return UUID(value) if isinstance(value, str) else value

    names = {item.name for item in dataclasses.fields(cls)} - _OPTIONAL
    return cls(
        **{name: rich(values[name]) for name in names},
        tags=tuple(values.get("tags", ())),
        time_limit_s=values.get("time_limit_s"),
    )


def spec_digest(spec: JobSpec) -> str:
    """
    Return the sha256 of a spec, to tell a repeated order from a different one with the same id.

    Where it runs does not count: whether submitters are kept apart is not what was ordered.
    """
    ordered = replace(spec, tags=tuple(tag for tag in spec.tags if not tag.startswith(LANE)))
    return hashlib.sha256(json.dumps(spec_to_dict(ordered), sort_keys=True).encode()).hexdigest()
