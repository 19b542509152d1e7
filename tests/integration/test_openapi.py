"""The OpenAPI documents: whole, valid, and with examples that are what they are examples of."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import cache
from itertools import product
from typing import Any

import pytest
import schemathesis
from flask import Flask
from jsonschema import Draft202012Validator

from morpheo.api.compute import create_compute_app
from morpheo.api.openapi import operations_of
from morpheo.api.orchestrator import create_orchestrator_app
from morpheo.api.storage import create_storage_app
from morpheo.config import Settings
from morpheo.resources import Resources
from morpheo.testing import RecordingPublisher

APPS: dict[str, Callable[[Resources], Flask]] = {
    "storage": create_storage_app,
    "compute": create_compute_app,
    "orchestrator": create_orchestrator_app,
}


@cache
def app(service: str) -> Flask:
    return APPS[service](Resources(Settings(), RecordingPublisher()))


@cache
def document(service: str) -> dict[str, Any]:
    answer = app(service).test_client().get("/openapi.json")
    assert (answer.status_code, answer.content_type) == (200, "application/json")
    found: dict[str, Any] = answer.get_json()
    return found


@pytest.fixture(params=APPS)
def service(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def spread(rule: str) -> list[str]:
    """Return the paths of a route, one for each word that it may have."""
    pieces = re.split(r"<(?:(\w+)\(([^)]*)\):)?(\w+)>", rule)
    choices: list[list[str]] = [[pieces[0]]]
    for converter, words, name, text in zip(*[iter(pieces[1:])] * 4, strict=True):
        choices += [re.split(r", *", words) if converter == "any" else [f"{{{name}}}"], [text]]
    return list(map("".join, product(*choices)))


def routes(service: str) -> set[tuple[str, str]]:
    return {
        (path, method.lower())
        for rule in app(service).url_map.iter_rules()
        if rule.endpoint != "static" and not rule.rule.startswith("/docs/")
        for path in spread(rule.rule)
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }


#: Routes that have a method for the sake of one kind, and say so when they are asked for another.
REFUSED = {(f"/{kind}/{{artifact_id}}", "patch") for kind in ("algo", "data", "model", "prediction")}


def test_every_route_is_in_the_document_and_nothing_else(service: str) -> None:
    described = {(path, method) for path, method, _ in operations_of(document(service))}
    assert described == routes(service) - REFUSED


def test_the_document_is_valid(service: str) -> None:
    schemathesis.openapi.from_dict(document(service)).validate()
    assert document(service)["openapi"] == "3.1.0"


def test_operations_are_described(service: str) -> None:
    found = document(service)
    tags = {tag["name"] for tag in found["tags"]}
    names = [operation["operationId"] for _, _, operation in operations_of(found)]
    assert len(set(names)) == len(names)
    assert found["servers"]
    assert found["info"]["description"]
    for _, _, operation in operations_of(found):
        assert operation["summary"]
        assert set(operation["tags"]) <= tags
        for scheme in operation["security"]:
            assert set(scheme) <= set(found["components"]["securitySchemes"])


def test_errors_are_problem_documents(service: str) -> None:
    found = document(service)
    for path, _, operation in operations_of(found):
        for status, response in operation["responses"].items():
            if status >= "400" and path != "/health":
                name = response["$ref"].removeprefix("#/components/responses/")
                assert "application/problem+json" in found["components"]["responses"][name]["content"]


def with_examples(node: Any, where: str = "#") -> Iterator[tuple[str, dict[str, Any], Any]]:
    """Return place, schema and example of everything below a node that has an example."""
    if isinstance(node, list):
        for index, item in enumerate(node):
            yield from with_examples(item, f"{where}/{index}")
    elif isinstance(node, dict):
        if "schema" in node and "example" in node:
            yield where, node["schema"], node["example"]
        for name, item in node.items():
            if name != "example":
                yield from with_examples(item, f"{where}/{name}")


def test_examples_are_valid(service: str) -> None:
    found = document(service)
    examples = list(with_examples(found))
    assert len(examples) > 20
    for where, schema, example in examples:
        whole = {**schema, "components": found["components"]}
        errors = list(
            Draft202012Validator(whole, format_checker=Draft202012Validator.FORMAT_CHECKER).iter_errors(example)
        )
        assert errors == [], where


def test_every_json_body_has_an_example(service: str) -> None:
    for path, method, operation in operations_of(document(service)):
        bodies = [operation.get("requestBody", {}), *operation["responses"].values()]
        for body in bodies:
            for media, content in body.get("content", {}).items():
                if media.endswith("json") and path != "/openapi.json":
                    assert "example" in content, (method, path)


def test_the_page_has_all_its_files_from_the_service_and_asks_for_no_password(service: str) -> None:
    client = app(service).test_client()
    page = client.get("/docs")
    assert (page.status_code, page.content_type) == (200, "text/html; charset=utf-8")
    assert document(service)["info"]["title"] in page.text
    assert "//" not in page.text.replace("<!doctype", "")
    assert page.headers["Content-Security-Policy"].startswith("default-src 'none'; script-src 'self'; ")
    files = re.findall(r'(?:src|href)="([^"]*)"', page.text)
    assert len(files) == 4
    for name in files:
        with client.get(f"/{name}") as answer:
            assert answer.status_code == 200
    assert client.get("/docs/..%2fflask_swagger_ui.py").status_code == 401  # as any path that is none
