"""What is posted to the orchestrator API, as marshmallow schemas, and how it is refused in the words of 2017."""

from __future__ import annotations

import functools
import math
import unicodedata
from typing import Any, ClassVar
from uuid import UUID

import marshmallow as ma
from flask import request

from morpheo.api.app import BodySource, current_resources
from morpheo.api.schemas import PLAIN_TEXT, WireUUID, first_message
from morpheo.api.wire import read_json
from morpheo.disclosure import MAX_DIGITS, MAX_TIME_STEP_S, Logs
from morpheo.errors import InvalidInput
from morpheo.models import NIL_UUID

_MAX_NUMBER = (1 << 31) - 1
_MAX_NAME = 255
_WRONG_KEY = "wrong key in posted data"


class Refused(InvalidInput):
    """
    What was posted is refused with a text of 2017, which clients know and which says little.

    Attributes:
        detail: What is wrong with it.
    """

    def __init__(self, message: str, *, detail: str, field: str | None = None) -> None:
        super().__init__(message, field=field)
        self.detail = detail


class PostedSchema(ma.Schema):
    """A posted object; unknown keys are ignored, null is absent."""

    class Meta:
        """Of marshmallow."""

        unknown = ma.EXCLUDE

    #: The text of 2017 for a field that has a wrong value, where there was one.
    refusals: ClassVar[dict[str, str]] = {}


def read_posted() -> dict[str, Any]:
    """
    Return the JSON object that the request's body is.

    Raises:
        InvalidInput: it is none.
    """
    return read_json(request, BodySource(request), max_bytes=current_resources().settings.max_order_bytes)


def load_posted(schema: PostedSchema, posted: dict[str, Any]) -> dict[str, Any]:
    """
    Return what was posted, checked and typed.

    Raises:
        InvalidInput: a field is missing, or has a wrong value; names the field.
    """
    nullable = {name for name, field in schema.fields.items() if field.allow_none}
    given = {name: value for name, value in posted.items() if value is not None or name in nullable}
    for name, field in schema.fields.items():
        if field.required and name not in given:
            raise Refused(_WRONG_KEY, detail=f"{_WRONG_KEY}: {name} is missing", field=name)
    try:
        loaded: dict[str, Any] = schema.load(given)
    except ma.ValidationError as exc:
        name, messages = next(iter(exc.messages_dict.items()))
        text = f"{name}: {first_message(messages)}"
        raise Refused(schema.refusals.get(name, text), detail=text, field=str(name)) from exc
    return loaded


def _not_nil(value: UUID) -> None:
    if value == NIL_UUID:
        raise ma.ValidationError("must not be the nil UUID")


def _unique(values: list[UUID]) -> None:
    if not values:
        raise ma.ValidationError("must have at least one UUID")
    if len(set(values)) < len(values):
        twice = next(value for value in values if values.count(value) > 1)
        raise ma.ValidationError(f"{twice} stands twice")


def _printable(text: str) -> None:
    if not text or len(text.encode()) > _MAX_NAME:
        raise ma.ValidationError(f"must have 1 to {_MAX_NAME} bytes")
    if any(unicodedata.category(character) == "Cc" for character in text):
        raise ma.ValidationError("holds a control character; use plain text")


class _OneOrMore(ma.fields.List[UUID]):
    """A list of UUIDs, or one of them without a list."""

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> list[Any]:
        return super()._deserialize([value] if isinstance(value, str) else value, attr, data, **kwargs)


class _Flag(ma.fields.Boolean):
    """True or false, and nothing that only looks like it."""

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> bool:
        if not isinstance(value, bool):
            raise ma.ValidationError("must be true or false")
        return value


class ScoreField(ma.fields.Field[float]):
    """A finite number."""

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ma.ValidationError("must be a finite number")
        return float(value)


class _Scores(ma.fields.Dict):
    """A score for each data file; null, which Go makes of none, is allowed."""

    def __init__(self) -> None:
        super().__init__(keys=WireUUID(), values=ScoreField(), required=True, allow_none=True)

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> dict[str, float]:
        scores = super()._deserialize(value, attr, data, **kwargs)  # type: ignore[no-untyped-call]
        return {str(data_id): score for data_id, score in scores.items()}


_Id = functools.partial(WireUUID, required=True, load_default=ma.missing)
_SET = {"minItems": 1, "uniqueItems": True}
_ONE_OR_MORE = {**_SET, "type": ["array", "string"], "format": "uuid", "description": "One UUID, or a list of them"}
_A_NUMBER = f"must be a whole number from 1 to {_MAX_NUMBER}"
_Number = functools.partial(
    ma.fields.Integer,
    strict=True,
    validate=ma.validate.Range(1, _MAX_NUMBER, error=_A_NUMBER),
    error_messages={"invalid": _A_NUMBER},
)


class ProblemPatchSchema(PostedSchema):
    """What goes out of a challenge; what is left out stays as it is."""

    logs = ma.fields.Enum(
        Logs,
        by_value=True,
        error_messages={"unknown": f"must be one of {', '.join(Logs)}"},
        metadata={"description": "What a submitter sees of runs: nothing, the cause, or also what their algo wrote"},
    )
    model_download = _Flag(metadata={"description": "Whether submitters may download the models of their algos"})
    score_digits = ma.fields.Integer(
        strict=True,
        validate=ma.validate.Range(0, MAX_DIGITS, error=f"must be a whole number from 0 to {MAX_DIGITS}"),
        metadata={"description": "Digits after the decimal point of published scores"},
    )
    submissions_per_day = _Number(
        allow_none=True, metadata={"description": "Algos of one submitter in 24 hours; null is without limit"}
    )
    time_step_s = ma.fields.Integer(
        strict=True,
        validate=ma.validate.Range(1, MAX_TIME_STEP_S, error=f"must be a whole number from 1 to {MAX_TIME_STEP_S}"),
        metadata={"description": "What submitters see of times is rounded up to a multiple of it, in seconds"},
    )


class ProblemPostSchema(ProblemPatchSchema):
    """A challenge."""

    uuid = _Id(validate=_not_nil)
    workflow = _Id(metadata={"description": "Storage id of the archive of the problem's image"})
    test_dataset = ma.fields.List(WireUUID(load_default=ma.missing), required=True, validate=_unique, metadata=_SET)
    size_train_dataset = _Number(required=True, metadata={"description": "Files in a mini-batch"})
    higher_is_better = _Flag(load_default=True, metadata={"type": ["boolean", "null"]})
    parallel_ranks = _Number(
        load_default=1, metadata={"type": ["integer", "null"], "description": "Ranks of one algo that may run at once"}
    )


class AlgoPostSchema(PostedSchema):
    """An algo for a challenge."""

    refusals: ClassVar[dict[str, str]] = {"problem": "non-existing related problem"}

    uuid = _Id()
    name = ma.fields.String(required=True, validate=_printable, metadata=PLAIN_TEXT)
    problem = _Id()


class DataPostSchema(PostedSchema):
    """Data for challenges."""

    refusals: ClassVar[dict[str, str]] = {"problems": "non-existing related problem"}

    uuid = _OneOrMore(WireUUID(load_default=ma.missing), required=True, validate=_unique, metadata=_ONE_OR_MORE)
    problems = _OneOrMore(WireUUID(load_default=ma.missing), required=True, validate=_unique, metadata=_ONE_OR_MORE)


class PredictionPostSchema(PostedSchema):
    """An order for a prediction."""

    refusals: ClassVar[dict[str, str]] = {
        "data": "data field should be an UUID",
        "problem": "no problem or trained model",
    }

    data = _Id()
    problem = _Id()
    model = WireUUID(load_default=None, metadata={"description": "The best model of the problem by default"})


class WorkerPostSchema(PostedSchema):
    """A worker has a job."""

    worker = ma.fields.String(required=True, validate=ma.validate.Length(max=_MAX_NAME))


class ReportPostSchema(PostedSchema):
    """How a job ended."""

    status = ma.fields.String(
        required=True, validate=ma.validate.OneOf(["done", "failed"], error="must be done or failed")
    )


class LearnDonePostSchema(ReportPostSchema):
    """What a training job that is done led to."""

    perf = ScoreField(required=True)
    train_perf = _Scores()
    test_perf = _Scores()


class PredDonePostSchema(ReportPostSchema):
    """What a prediction job that is done led to."""

    prediction_storage_uuid = _Id()
