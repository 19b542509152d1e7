"""Requests that schemathesis makes from an OpenAPI document, sent to the application in this process."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import schemathesis
from flask import Flask
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from schemathesis import APIOperation, Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

#: Requests to all services together, and what they are made from: another number gives others.
CASES = int(os.environ.get("FUZZ_CASES", "2100"))
SEED = int(os.environ.get("FUZZ_SEED", "1"))

#: Stands for the parameter of a path.
ID = "<id>"

_CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    negative_data_rejection,
]
_Operation = APIOperation[Any, Any, Any, Any]
_MODES = (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
_MULTIPART = "multipart/form-data"
#: How often as many right requests are sent to an operation until one is accepted: few of what is generated exists.
#: After the first time, all name what exists, and set no conditions.
_PATIENCE = 10


def send_generated(
    app: Flask, *, cases: int, known: Callable[[str], Mapping[str, Any]], headers: Mapping[str, str]
) -> dict[str, Counter[int]]:
    """
    Send requests to every operation of an application, right and wrong ones, and check each answer.

    An answer must have a documented status, media type, headers and body, and must not be a 5xx; what breaks the
    document must be refused.

    Args:
        app: The application.
        cases: How many requests to send at least.
        known: Gives, for a path, values that exist, by the names of its parameter, which is `ID`, of parameters of the
            query and of keys of the body. Half of the right requests have them.
        headers: Headers of every request.

    Returns:
        How often each operation answered with each status.
    """
    found = schemathesis.openapi.from_wsgi("/openapi.json", app)
    operations = [result.ok() for result in found.get_all_operations() if isinstance(result, Ok)]
    assert len(operations) == sum(1 for _ in found.get_all_operations())
    varied = [operation for operation in operations if _has_input(operation)]
    share = -(-cases // (len(varied) * len(_MODES)))
    answers: dict[str, Counter[int]] = {}
    for operation in operations:
        counter = answers[operation.label] = Counter()
        for mode in _MODES if operation in varied else _MODES[:1]:
            for again in range(_PATIENCE):
                send = _sender(mode, counter, known(operation.path), headers, plain=again > 0)
                _run(operation, mode, share, send, number=SEED + again)
                if mode is GenerationMode.NEGATIVE or any(status < 400 for status in counter):
                    break
    return answers


def _has_input(operation: _Operation) -> bool:
    sets = (operation.path_parameters, operation.query, operation.headers, operation.body)
    return any(len(parameters) for parameters in sets)


def _run(
    operation: _Operation,
    mode: GenerationMode,
    examples: int,
    send: Callable[[Case[Any], bool], None],
    *,
    number: int,
) -> None:
    test = given(operation.as_strategy(generation_mode=mode), st.booleans())(send)
    settings(
        max_examples=examples,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
    )(seed(number)(test))()


def _sender(
    mode: GenerationMode,
    counter: Counter[int],
    known: Mapping[str, Any],
    headers: Mapping[str, str],
    *,
    plain: bool,
) -> Callable[[Case[Any], bool], None]:
    def send(case: Case[Any], with_known: bool) -> None:
        if mode is GenerationMode.POSITIVE and (with_known or plain):
            _put_known(case, known)
        if plain:
            case.headers.clear()  # conditions and ranges, which are seldom met
        if case.media_type == _MULTIPART:
            case.query = {}  # words in the query string belong to the other form of an upload
        answer = case.call(headers=dict(headers))
        counter[answer.status_code] += 1
        # Parts of a form are text: a value of another type than the schema's is right as soon as it is sent.
        skipped = [negative_data_rejection] if case.media_type == _MULTIPART else []
        case.validate_response(answer, checks=[check for check in _CHECKS if check not in skipped])

    return send


def _put_known(case: Case[Any], known: Mapping[str, Any]) -> None:
    if ID in known:
        case.path_parameters = dict.fromkeys(case.path_parameters or {}, known[ID])
    for values in (case.query, case.body):
        if isinstance(values, dict):
            for name in values.keys() & known.keys():
                values[name] = known[name]
