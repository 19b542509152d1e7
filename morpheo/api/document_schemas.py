"""
What the orchestrator API takes and answers, for its OpenAPI document.

The schemas describe the documents of `morpheo.api.documents`, but do not make them.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import marshmallow as ma

from morpheo.api import examples
from morpheo.api.documents import Collection
from morpheo.api.openapi import EACH, json_body, reference
from morpheo.api.posted import LearnDonePostSchema, PredDonePostSchema
from morpheo.api.schemas import STATUSES, FailureSchema
from morpheo.disclosure import Logs
from morpheo.models import JobState

_Id = functools.partial(ma.fields.UUID, required=True)
_Ids = functools.partial(ma.fields.List, ma.fields.UUID(), required=True)
_Seconds = functools.partial(ma.fields.Integer, required=True, metadata={"description": "Seconds since the epoch"})
_Count = functools.partial(ma.fields.Integer, required=True)
_Scores = functools.partial(
    ma.fields.Dict,
    keys=ma.fields.String(),
    values=ma.fields.Float(),
    required=True,
    allow_none=True,
    metadata={"description": "Score of each file"},
)


class ProblemDocumentSchema(ma.Schema):
    """A challenge."""

    uuid = _Id()
    name = ma.fields.String(required=True)
    workflow = _Id()
    test_dataset = _Ids()
    size_train_dataset = _Count()
    timestamp_upload = _Seconds()
    higher_is_better = ma.fields.Boolean(required=True)
    parallel_ranks = _Count()
    logs = ma.fields.Enum(Logs, by_value=True, required=True)
    model_download = ma.fields.Boolean(required=True)
    score_digits = _Count()
    submissions_per_day = _Count(allow_none=True)
    time_step_s = _Count()


class AlgoDocumentSchema(ma.Schema):
    """An algo that takes part in a challenge."""

    uuid = _Id()
    name = ma.fields.String(required=True)
    problem = _Id()
    timestamp_upload = _Seconds()
    stalled = ma.fields.Boolean(required=True, metadata={"description": "Its chain waits for a retry, or for new data"})
    stalled_by = _Id(allow_none=True, metadata={"description": "The learnuplet that has failed"})


class DataDocumentSchema(ma.Schema):
    """A data file."""

    uuid = _Id()
    problems = _Ids()
    timestamp_upload = _Seconds()


class _JobDocumentSchema(ma.Schema):
    uuid = _Id()
    problem = _Id()
    workflow = _Id()
    worker = ma.fields.String(required=True, allow_none=True)
    status = ma.fields.String(required=True, validate=ma.validate.OneOf(STATUSES))
    state = ma.fields.Enum(JobState, by_value=True, required=True)
    timestamp_done = _Seconds(allow_none=True)
    failure = ma.fields.Nested(FailureSchema, required=True, allow_none=True)


class LearnupletDocumentSchema(_JobDocumentSchema):
    """A training job."""

    algo = _Id()
    model_start = _Id(allow_none=True)
    model_end = _Id()
    train_data = _Ids()
    test_data = _Ids()
    rank = _Count()
    perf = ma.fields.Float(required=True, allow_none=True)
    train_perf = _Scores()
    test_perf = _Scores()
    timestamp_creation = _Seconds()


class PredupletDocumentSchema(_JobDocumentSchema):
    """A prediction job."""

    data = _Id()
    model = _Id()
    prediction_storage_uuid = _Id(allow_none=True)
    timestamp_request = _Seconds()


_SCHEMAS: dict[Collection, tuple[type[ma.Schema], Mapping[str, Any]]] = {
    Collection.PROBLEM: (ProblemDocumentSchema, examples.PROBLEM_DOCUMENT),
    Collection.ALGO: (AlgoDocumentSchema, examples.ALGO_DOCUMENT),
    Collection.DATA: (DataDocumentSchema, examples.DATA_DOCUMENT),
    Collection.LEARNUPLET: (LearnupletDocumentSchema, examples.LEARNUPLET_DOCUMENT),
    Collection.PREDUPLET: (PredupletDocumentSchema, examples.PREDUPLET_DOCUMENT),
}
#: Schemas of documents, by the names that they have in the OpenAPI document.
COMPONENTS = {schema.__name__.removesuffix("Schema"): schema for schema, _ in _SCHEMAS.values()}


def _reference(collection: Collection) -> dict[str, Any]:
    return reference("schemas", _SCHEMAS[collection][0].__name__.removesuffix("Schema"))


def _object(**properties: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "required": list(properties),
        "properties": properties,
        "additionalProperties": False,
    }


def _answer(status: int, schema: Mapping[str, Any], example: Any, description: str) -> dict[str, Any]:
    content = {"application/json": {"schema": schema, "example": example}}
    return {"responses": {str(status): {"description": description, "content": content}}}


def _list(collection: Collection) -> dict[str, Any]:
    key = f"{collection}s"
    schema = _object(**{key: {"type": "array", "items": _reference(collection)}})
    return {
        "parameters": [
            _filter(name, field) for name, field in _SCHEMAS[collection][0]().fields.items() if _is_text(field)
        ],
        **_answer(200, schema, {key: [_SCHEMAS[collection][1]]}, "Oldest first"),
    }


def _is_text(field: ma.fields.Field[Any]) -> bool:
    return isinstance(field, ma.fields.String | ma.fields.UUID | ma.fields.List | ma.fields.Enum)


def _filter(name: str, field: ma.fields.Field[Any]) -> dict[str, Any]:
    kind = "Only those that have it in this list" if isinstance(field, ma.fields.List) else "Only those that have it"
    return {"name": name, "in": "query", "description": kind, "schema": {"type": "string"}}


def _document(collection: Collection, status: int = 200) -> dict[str, Any]:
    return _answer(status, _reference(collection), _SCHEMAS[collection][1], "The document")


_COUNT = {"type": "integer", "minimum": 0, "description": "How many trainings follow"}
_UUID = {"type": "string", "format": "uuid"}
_JOBS = (Collection.LEARNUPLET, Collection.PREDUPLET)

LISTED = {EACH: {collection.value: _list(collection) for collection in Collection}}
SHOWN = {EACH: {collection.value: _document(collection) for collection in Collection}}
RETRIED = {EACH: {collection.value: _document(collection, 201) for collection in _JOBS}}
NEW_PROBLEM = _answer(
    201, _object(new_problem=_reference(Collection.PROBLEM)), {"new_problem": examples.PROBLEM_DOCUMENT}, "It is there"
)
CHANGED_PROBLEM = _document(Collection.PROBLEM)
NEW_ALGO = _answer(
    201,
    _object(new_algo=_reference(Collection.ALGO), new_learnuplets=_COUNT),
    {"new_algo": examples.ALGO_DOCUMENT, "new_learnuplets": 1},
    "It takes part",
)
_HELD_OUT = {
    "type": "object",
    "description": "By problem, the test data among it: it is never trained on",
    "additionalProperties": {"type": "array", "items": _UUID},
}
NEW_DATA = _answer(
    201,
    _object(
        new_datas={"type": "array", "items": _reference(Collection.DATA)}, new_learnuplets=_COUNT, held_out=_HELD_OUT
    ),
    {"new_datas": [examples.DATA_DOCUMENT], "new_learnuplets": 1, "held_out": {}},
    "It is added",
)
NEW_PREDICTION = _document(Collection.PREDUPLET, 201)
WORKER_SET = {
    EACH: {
        collection.value: _answer(
            200,
            _object(**{f"{collection}_worker_set": _UUID}),
            {f"{collection}_worker_set": examples.LEARN_JOB},
            "The worker has the job",
        )
        for collection in _JOBS
    }
}


def _report(schema: type[ma.Schema], done: Mapping[str, Any]) -> dict[str, Any]:
    failed = {"type": "object", "required": ["status"], "properties": {"status": {"const": "failed"}}}
    is_done = {"type": "object", "properties": {"status": {"const": "done"}}}
    name = reference("schemas", schema.__name__.removesuffix("Schema"))
    return json_body({"anyOf": [{"allOf": [name, is_done]}, failed]}, {"status": "done", **done})


#: Bodies of reports, and the schemas that they refer to.
LEARN_REPORT = _report(LearnDonePostSchema, examples.SCORES)
PREDICT_REPORT = _report(PredDonePostSchema, {"prediction_storage_uuid": examples.PREDICTION})
COMPONENTS |= {"LearnDonePost": LearnDonePostSchema, "PredDonePost": PredDonePostSchema}
LEARN_RECORDED = _answer(
    200, _object(updated_learnuplet=_UUID), {"updated_learnuplet": examples.LEARN_JOB}, "It is recorded"
)
PREDICT_RECORDED = _answer(
    200, _object(updated_preduplet=_UUID), {"updated_preduplet": examples.PREDICT_JOB}, "It is recorded"
)
