"""
What the storage API takes and answers, for its OpenAPI document.

The schemas describe uploads and documents, but neither read nor make them: an upload is parsed while it comes.
"""

from __future__ import annotations

from typing import Any

import marshmallow as ma

from morpheo.api import examples
from morpheo.api.openapi import EACH, path_id, reference
from morpheo.api.schemas import PLAIN_TEXT
from morpheo.api.uploads import RAW_TYPES, WORDS
from morpheo.models import ArtifactKind

_EXAMPLE_IDS = {
    ArtifactKind.PROBLEM: examples.WORKFLOW,
    ArtifactKind.ALGO: examples.ALGO,
    ArtifactKind.DATA: examples.DATA,
    ArtifactKind.MODEL: examples.MODEL,
    ArtifactKind.PREDICTION: examples.PREDICTION,
}
_EXAMPLE_WORDS = {"name": "tumours", "description": "Benign or malignant", "algo": examples.ALGO}
_NAMES = {kind: f"{kind.capitalize()}Artifact" for kind in ArtifactKind}
_BINARY = {"type": "string", "format": "binary"}


class ArtifactSchema(ma.Schema):
    """What is known of a blob."""

    uuid = ma.fields.UUID(required=True)
    timestamp_upload = ma.fields.Integer(required=True, metadata={"description": "Seconds since the epoch"})
    size = ma.fields.Integer(required=True, metadata={"description": "Bytes of the blob", "minimum": 1})
    sha256 = ma.fields.String(required=True, metadata={"description": "Of the blob", "pattern": "^[0-9a-f]{64}$"})
    quarantine = ma.fields.String(
        metadata={"description": "Why the blob is not given out: it is lost or damaged. Upload the same bytes again"}
    )


class _AlgoSchema(ArtifactSchema):
    name = ma.fields.String(required=True)


class _ProblemSchema(_AlgoSchema):
    description = ma.fields.String(required=True)


class _ModelSchema(ArtifactSchema):
    algo = ma.fields.UUID(required=True, metadata={"description": "The algo that learned it"})


#: Schemas of documents, by the names that they have in the OpenAPI document.
COMPONENTS: dict[str, type[ma.Schema]] = {
    _NAMES[ArtifactKind.PROBLEM]: _ProblemSchema,
    _NAMES[ArtifactKind.ALGO]: _AlgoSchema,
    _NAMES[ArtifactKind.DATA]: type("_DataSchema", (ArtifactSchema,), {}),
    _NAMES[ArtifactKind.MODEL]: _ModelSchema,
    _NAMES[ArtifactKind.PREDICTION]: type("_PredictionSchema", (ArtifactSchema,), {}),
}


def _example(kind: ArtifactKind) -> dict[str, Any]:
    words = {name: _EXAMPLE_WORDS[name] for name in WORDS[kind]}
    known = {"timestamp_upload": examples.TIMESTAMP, "size": 4096, "sha256": examples.SHA256}
    return {"uuid": _EXAMPLE_IDS[kind], **words, **known}


def _answer(schema: dict[str, Any], example: Any, description: str) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema, "example": example}}}


def _document(kind: ArtifactKind, description: str) -> dict[str, Any]:
    return _answer(reference("schemas", _NAMES[kind]), _example(kind), description)


def _page(kind: ArtifactKind) -> dict[str, Any]:
    count = {"type": "integer", "minimum": 0}
    schema = {
        "type": "object",
        "required": ["page", "length", "items", "total"],
        "properties": {
            "page": {**count, "description": "The page that was asked for"},
            "length": {**count, "description": "How many items it has"},
            "items": {"type": "array", "items": reference("schemas", _NAMES[kind])},
            "total": {**count, "description": "How many there are on all pages"},
        },
        "additionalProperties": False,
    }
    return _answer(schema, {"page": 0, "length": 1, "items": [_example(kind)], "total": 1}, "Newest first")


def _text(name: str) -> dict[str, Any]:
    return {"type": "string", **({"format": "uuid"} if name in ("uuid", "algo") else PLAIN_TEXT)}


def _form(words: tuple[str, ...], *, required: tuple[str, ...], description: str) -> dict[str, Any]:
    size = {
        "type": "integer",
        "minimum": 1,
        "maximum": (1 << 63) - 1,
        "description": "Bytes of the blob. What is counted holds, unless the service is strict about sizes",
    }
    given = {"description": "Made up if it is not given", **_text("uuid")}
    return {
        "type": "object",
        "description": description,
        "required": list(required),
        "properties": {"uuid": given, **{name: _text(name) for name in words}, "size": size, "blob": _BINARY},
        "additionalProperties": False,
    }


def _upload(kind: ArtifactKind) -> dict[str, Any]:
    words = WORDS[kind]
    raw = {media: {"schema": _BINARY} for media in sorted(RAW_TYPES)}
    form = _form(words, required=(*words, "size", "blob"), description="The blob must be the last part")
    is_model = kind is ArtifactKind.MODEL
    content = {**raw} if is_model else {"multipart/form-data": {"schema": form}, **raw}
    return {
        "required": True,
        "description": "The blob, whatever the media type; its words are in the query string"
        if is_model
        else "A form, or the blob alone with its words in the query string",
        "content": content,
    }


def _words(kind: ArtifactKind) -> list[dict[str, Any]]:
    """Return the parameters of an upload whose body is the blob."""
    is_model = kind is ArtifactKind.MODEL
    where = "" if is_model else "In place of the form's field, where the body is the blob alone"
    return [
        {
            "name": name,
            "in": "query",
            "required": is_model and name == "algo",
            "schema": _text(name),
            **({"description": where} if where else {}),
        }
        for name in ("uuid", *WORDS[kind])
    ]


LISTED = {EACH: {kind.value: {"responses": {"200": _page(kind)}} for kind in ArtifactKind}}
STORED = {
    EACH: {
        kind.value: {
            "requestBody": _upload(kind),
            "parameters": _words(kind),
            "responses": {
                "201": _document(kind, "It is stored"),
                **({"404": reference("responses", "NOT_FOUND")} if kind is ArtifactKind.MODEL else {}),
            },
        }
        for kind in ArtifactKind
    }
}
SHOWN = {EACH: {kind.value: {"responses": {"200": _document(kind, "What is known of it")}} for kind in ArtifactKind}}
CHANGED = {
    EACH: {
        ArtifactKind.PROBLEM.value: {
            "requestBody": {
                "required": True,
                "content": {
                    "multipart/form-data": {
                        "schema": _form(
                            WORDS[ArtifactKind.PROBLEM],
                            required=(),
                            description="What changes. A blob must be the last part, and needs a size",
                        )
                    }
                },
            },
            "responses": {"200": _document(ArtifactKind.PROBLEM, "It is changed")},
        }
    }
}


def _header(description: str, example: str) -> dict[str, Any]:
    return {"description": description, "schema": {"type": "string"}, "example": example}


_ETAG = f'"{examples.SHA256}"'
_BLOB_HEADERS = {
    "ETag": _header("The blob's sha256", _ETAG),
    "Repr-Digest": _header(
        "The blob's sha256, as RFC 9530 writes it", "sha-256=:n4bQgYhMfWWaL+qgxVrQFaO/TxsrC4Is0V1sFbDwCgg=:"
    ),
    "Last-Modified": _header("When it was stored", "Mon, 21 Sep 2026 13:33:20 GMT"),
    "Accept-Ranges": {"schema": {"const": "bytes"}, "example": "bytes"},
}
_BYTES = {"application/octet-stream": {"schema": _BINARY}}
_CONDITIONS = (
    ("Range", "One range of bytes; several are answered with the whole blob", "bytes=0-1023"),
    ("If-Match", "Answer 412 unless the blob has this ETag", _ETAG),
    ("If-None-Match", "Answer 304 if the blob has this ETag", _ETAG),
    ("If-Range", "Answer the whole blob unless it has this ETag", _ETAG),
    ("Want-Repr-Digest", "`sha-256=10`: the client checks the digest, so the service need not", "sha-256=10"),
)
#: The parameter of the routes of one artifact.
ITEM = path_id("artifact_id", "Id of the artifact")
BLOB = {
    "parameters": [
        {"name": name, "in": "header", "description": text, "schema": {"type": "string"}, "example": example}
        for name, text, example in _CONDITIONS
    ],
    "responses": {
        "200": {"description": "The blob", "headers": _BLOB_HEADERS, "content": _BYTES},
        "206": {
            "description": "The range that was asked for",
            "headers": {**_BLOB_HEADERS, "Content-Range": reference("headers", "ContentRange")},
            "content": _BYTES,
        },
        "304": {"description": "The client has it already", "headers": _BLOB_HEADERS},
    },
}
