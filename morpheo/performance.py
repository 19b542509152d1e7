"""Reads ``performance.json``, which a problem image writes (``wire-spec`` 4.5) and nobody has to trust."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any
from uuid import UUID

from morpheo.errors import BadOutput
from morpheo.models import Scores

FILE_NAME = "performance.json"
MAX_BYTES = 1 << 20


def parse_performance(content: bytes, *, train_data: Iterable[UUID], test_data: Iterable[UUID]) -> Scores:
    """
    Return the scores in a performance file.

    Args:
        content: The file.
        train_data: Every one of these must have a score in ``train_perf``, and no other.
        test_data: The same for ``test_perf``.

    Raises:
        BadOutput: it is not strict JSON, has a value that is not a finite number, or lacks a score.
    """
    try:
        document = json.loads(content.decode("utf-8"), parse_constant=_refuse, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as exc:
        raise BadOutput(f"{FILE_NAME} is not JSON: {str(exc) or 'nested too deep'}") from exc
    if not isinstance(document, dict):
        raise BadOutput(f"{FILE_NAME} must be an object with perf, train_perf and test_perf")
    return Scores(
        perf=_number(document.get("perf"), "perf"),
        train_perf=_per_file(document.get("train_perf"), "train_perf", train_data),
        test_perf=_per_file(document.get("test_perf"), "test_perf", test_data),
    )


def _per_file(value: Any, name: str, ids: Iterable[UUID]) -> dict[str, float]:
    if not isinstance(value, dict):
        raise BadOutput(f"{FILE_NAME}: {name} must be an object of data id and number")
    expected = {str(data_id) for data_id in ids}
    if missing := sorted(expected - value.keys()):
        raise BadOutput(f"{FILE_NAME}: {name} has no score for {', '.join(missing[:5])}")
    if unknown := sorted(value.keys() - expected):
        raise BadOutput(f"{FILE_NAME}: {name} has a score for {unknown[0][:100]!r}, which is not in this job")
    return {data_id: _number(score, f"{name} of {data_id}") for data_id, score in value.items()}


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadOutput(f"{FILE_NAME}: {name} must be a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise BadOutput(f"{FILE_NAME}: {name} must be a finite number")
    return number


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        raise ValueError("a key stands twice")
    return document
