"""What goes in and out of the APIs, as marshmallow schemas."""

from __future__ import annotations

import functools
from typing import Any
from uuid import UUID

import marshmallow as ma

from morpheo.api.wire import parse_uuid
from morpheo.models import NIL_UUID, JobKind, JobState, LearnSpec, PredictSpec
from morpheo.queues import MAX_TAGS, TAG, checked_tags, queue_of
from morpheo.specs import spec_to_dict

#: The states of jobs, as clients of 2017 see them.
STATUSES = ("done", "failed", "pending", "todo")
#: A job that has ended cannot be ordered.
_ORDERABLE = ("pending", "todo")
_MAX_RANK = 1 << 31
_MAX_ATTEMPT = (1 << 31) - 1
_MAX_TIME_LIMIT_S = 365 * 24 * 3600


#: What JSON schema can say of a name.
PLAIN_TEXT = {
    "minLength": 1,
    "maxLength": 255,
    "pattern": r"^[^\x00-\x1f\x7f-\x9f]*$",
    "description": "Plain text, at most 255 bytes of UTF-8",
}


class WireUUID(ma.fields.Field[UUID]):
    """A UUID; null and absent are the nil UUID, as in Go."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"load_default": NIL_UUID, "metadata": {"format": "uuid"}, **kwargs})

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> UUID:
        if not isinstance(value, str):
            raise ma.ValidationError("must be a UUID in a string")
        try:
            return parse_uuid(value)
        except ValueError as exc:
            raise ma.ValidationError(str(exc)) from exc

    def _serialize(self, value: UUID | None, attr: str | None, obj: Any, **kwargs: Any) -> str | None:
        return None if value is None else str(value)


#: A null among ids is refused in words of 2017.
_DataId = functools.partial(WireUUID, allow_none=True, metadata={"type": "string", "format": "uuid"})
_IDS = {"minItems": 1, "uniqueItems": True, "description": "No file is in both lists, and none stands twice"}


class _UpletSchema(ma.Schema):
    """What learnuplets and preduplets share; unknown keys are ignored, null is absent."""

    class Meta:
        unknown = ma.EXCLUDE

    uuid = WireUUID()
    problem = WireUUID()
    workflow = WireUUID()
    status = ma.fields.String(load_default="", metadata={"enum": list(_ORDERABLE)})
    tags = ma.fields.List(
        ma.fields.String(metadata={"pattern": f"^{TAG.pattern}$"}),
        load_default=list,
        allow_none=True,
        metadata={
            "maxItems": MAX_TAGS,
            "description": f"What the worker must have, such as gpu; at most {MAX_TAGS}, of lower-case letters, digits "
            "and inner hyphens. The job waits for a worker that has all of them",
        },
    )

    time_limit_s = ma.fields.Integer(
        strict=True,
        load_default=None,
        validate=ma.validate.Range(1, _MAX_TIME_LIMIT_S),
        metadata={
            "description": "How long each container of the job may run, in seconds; what the worker allows holds all "
            "the same"
        },
    )

    @ma.pre_load
    def _drop_nulls(self, data: dict[str, Any], **_kwargs: Any) -> dict[str, Any]:
        return {key: value for key, value in data.items() if value is not None}


class LearnupletSchema(_UpletSchema):
    """A learnuplet; loads to a `LearnSpec`."""

    algo = WireUUID()
    train_data = ma.fields.List(_DataId(), load_default=list, metadata=_IDS)
    test_data = ma.fields.List(_DataId(), load_default=list, metadata=_IDS)
    model_start = WireUUID(
        allow_none=True, metadata={"format": "uuid", "description": "The model to go on from; a rank above 0 needs one"}
    )
    model_end = WireUUID(metadata={"format": "uuid", "description": "The id that the new model gets"})
    rank = ma.fields.Integer(strict=True, load_default=0, allow_none=True, validate=ma.validate.Range(0, _MAX_RANK))

    @ma.post_load
    def _spec(self, data: dict[str, Any], **_kwargs: Any) -> LearnSpec:
        for field, text in (("uuid", "id"), ("problem", "problem"), ("workflow", "workflow"), ("algo", "algo")):
            _check(data[field] != NIL_UUID, f"{text} field is required")
        for field in ("train_data", "test_data"):
            _check_list(field, data[field])
        _check_status(data["status"])
        both = set(data["train_data"]) & set(data["test_data"])
        _check(not both, f"{next(iter(both), None)} is in train_data and in test_data")
        _check(data["rank"] == 0 or data["model_start"] != NIL_UUID, f"rank {data['rank']} and empty ModelStart")
        _check(data["model_end"] != NIL_UUID, "model_end field is required")
        start = data["model_start"]
        return LearnSpec(
            id=data["uuid"],
            problem=data["problem"],
            workflow=data["workflow"],
            algo=data["algo"],
            train_data=tuple(data["train_data"]),
            test_data=tuple(data["test_data"]),
            model_start=None if start == NIL_UUID else start,
            model_end=data["model_end"],
            rank=data["rank"],
            tags=_tags(data["tags"]),
            time_limit_s=data["time_limit_s"],
        )


class PredupletSchema(_UpletSchema):
    """A preduplet; loads to a `PredictSpec`."""

    model = WireUUID()
    data = WireUUID()

    @ma.post_load
    def _spec(self, data: dict[str, Any], **_kwargs: Any) -> PredictSpec:
        for field, text in (("uuid", "id"), ("problem", "problem"), ("workflow", "workflow")):
            _check(data[field] != NIL_UUID, f"{text} field is unset")
        _check(data["model"] != NIL_UUID, "model field is required")
        _check(data["data"] != NIL_UUID, "Nil UUID in data field")
        _check_status(data["status"])
        return PredictSpec(
            id=data["uuid"],
            problem=data["problem"],
            workflow=data["workflow"],
            model=data["model"],
            data=data["data"],
            tags=_tags(data["tags"]),
            time_limit_s=data["time_limit_s"],
        )


class CheckFailed(Exception):
    """An uplet was decoded, but its content cannot be accepted."""


def _check(holds: bool, text: str) -> None:
    if not holds:
        raise CheckFailed(text)


def _check_list(field: str, ids: list[UUID | None]) -> None:
    _check(bool(ids), f"{field} field is empty or unset")
    seen: set[UUID] = set()
    for position, data_id in enumerate(ids):
        if data_id is None or data_id == NIL_UUID:
            raise CheckFailed(f"Nil UUID in {field} field at pos {position}")
        _check(data_id not in seen, f"{data_id} is in {field} twice")
        seen.add(data_id)


def _check_status(status: str) -> None:
    choices = " ".join(f"{name}:{{}}" for name in STATUSES)
    text = f"status field ain't valid (provided: {status[:50]}, possible choices: map[{choices}]"
    _check(status in STATUSES, text)
    _check(status in _ORDERABLE, f"{text}; a job that is {status} cannot be ordered")


def _tags(given: list[str]) -> tuple[str, ...]:
    try:
        return checked_tags(given)
    except ValueError as exc:
        raise CheckFailed(f"tags: {exc}") from exc


def first_message(messages: Any) -> str:
    """Return the first text in what marshmallow says of a field."""
    while isinstance(messages, dict | list):
        messages = next(iter(messages.values() if isinstance(messages, dict) else messages))
    return str(messages)


class FailureSchema(ma.Schema):
    """Why a job ended without a result."""

    cause = ma.fields.String(metadata={"description": "From a closed list, such as OUT_OF_MEMORY"})
    blame = ma.fields.String(metadata={"description": "Who can do something about it"})
    step = ma.fields.String(allow_none=True)
    message = ma.fields.String(metadata={"description": "What happened and what to do"})


class ScoresSchema(ma.Schema):
    """What the problem image computed."""

    perf = ma.fields.Float()
    train_perf = ma.fields.Dict(keys=ma.fields.String(), values=ma.fields.Float())
    test_perf = ma.fields.Dict(keys=ma.fields.String(), values=ma.fields.Float())


class StepSchema(ma.Schema):
    """One step of an attempt."""

    name = ma.fields.String()
    started_at = ma.fields.AwareDateTime(format="iso")
    seconds = ma.fields.Float(allow_none=True)
    exit_code = ma.fields.Integer(allow_none=True)
    oom_killed = ma.fields.Boolean()
    peak_memory_bytes = ma.fields.Integer(allow_none=True)


class AttemptSchema(ma.Schema):
    """One try of one worker."""

    number = ma.fields.Integer()
    worker = ma.fields.String()
    outcome = ma.fields.String()
    started_at = ma.fields.AwareDateTime(format="iso")
    ended_at = ma.fields.AwareDateTime(format="iso", allow_none=True)
    message = ma.fields.String()
    steps = ma.fields.List(ma.fields.Nested(StepSchema))


class JobSummarySchema(ma.Schema):
    """A job in a list."""

    id = ma.fields.UUID()
    kind = ma.fields.Enum(JobKind, by_value=True)
    state = ma.fields.Enum(JobState, by_value=True)
    status = ma.fields.String(attribute="state.wire", metadata={"enum": list(STATUSES), "description": "As in 2017"})
    spec = ma.fields.Function(
        lambda job: spec_to_dict(job.spec), metadata={"type": "object", "description": "The order"}
    )
    tags = ma.fields.List(
        ma.fields.String(), attribute="spec.tags", metadata={"description": "What its worker must have"}
    )
    queue = ma.fields.Function(
        lambda job: queue_of(job.spec),
        metadata={"type": "string", "description": "Where it waits: `morpheo workers list` shows who takes from it"},
    )
    algo = ma.fields.UUID(allow_none=True)
    prediction = ma.fields.UUID(
        attribute="spec.prediction", metadata={"description": "Id that the prediction of a predict job gets"}
    )
    cancel_requested = ma.fields.Boolean()
    attempt = ma.fields.Integer(metadata={"description": "Number of the latest attempt"})
    strikes = ma.fields.Integer(metadata={"description": "Attempts that infrastructure has cost"})
    worker = ma.fields.String(allow_none=True)
    created_at = ma.fields.AwareDateTime(format="iso")
    started_at = ma.fields.AwareDateTime(format="iso", allow_none=True)
    ended_at = ma.fields.AwareDateTime(format="iso", allow_none=True)
    failure = ma.fields.Nested(FailureSchema, allow_none=True)
    scores = ma.fields.Nested(ScoresSchema, allow_none=True)


class JobSchema(JobSummarySchema):
    """A job with all that is known of it."""

    attempts = ma.fields.List(ma.fields.Nested(AttemptSchema))


class CancelledJobSchema(JobSchema):
    """A job, and what asking to cancel it has led to."""

    message = ma.fields.String()


class JobPageSchema(ma.Schema):
    """Some jobs, newest first."""

    items = ma.fields.List(ma.fields.Nested(JobSummarySchema))
    next = ma.fields.String(allow_none=True, metadata={"description": "Give it as `after` to get the next ones"})


class JobQuerySchema(ma.Schema):
    """Which jobs to list."""

    state = ma.fields.Enum(JobState, by_value=True)
    kind = ma.fields.Enum(JobKind, by_value=True)
    problem = WireUUID(load_default=None)
    algo = WireUUID(load_default=None)
    tag = ma.fields.String(metadata={"description": "One that the job asks for"})
    limit = ma.fields.Integer(load_default=50, validate=ma.validate.Range(1, 500))
    after = ma.fields.String()


class LogQuerySchema(ma.Schema):
    """Whose logs."""

    attempt = ma.fields.Integer(
        validate=ma.validate.Range(1, _MAX_ATTEMPT), metadata={"description": "The latest by default"}
    )
    follow = ma.fields.Boolean(
        load_default=False,
        metadata={"description": "Answer with server-sent events, until the job has ended, instead of what is there"},
    )


class ArtifactQuerySchema(ma.Schema):
    """Which artifacts to list."""

    page = ma.fields.Integer(load_default=0, validate=ma.validate.Range(0, 1 << 31))
    page_size = ma.fields.Integer(load_default=30, validate=ma.validate.Range(1, 1000))
    name = ma.fields.String(validate=ma.validate.Length(max=255), metadata={"description": "Part of the name"})


class MessageSchema(ma.Schema):
    """An order was accepted."""

    message = ma.fields.String(required=True)


#: What an order must have. Each lack has a text of 2017 of its own, so marshmallow does not know of it.
REQUIRED: dict[type[ma.Schema], tuple[str, ...]] = {
    LearnupletSchema: ("uuid", "problem", "workflow", "algo", "train_data", "test_data", "model_end", "status"),
    PredupletSchema: ("uuid", "problem", "workflow", "model", "data", "status"),
}
