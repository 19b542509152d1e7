"""Uploads to the storage API: from a request to an `Upload` and the source of its bytes (``wire-spec`` 2.4, 2.5)."""

from __future__ import annotations

import re
import unicodedata
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

from flask import Request

from morpheo.api.app import BodySource
from morpheo.api.auth import caller
from morpheo.api.multipart import BLOB, MultipartReader
from morpheo.api.wire import parse_uuid
from morpheo.artifacts import ArtifactService, Upload
from morpheo.errors import Conflict, InvalidInput, NotFound
from morpheo.models import NIL_UUID, Artifact, ArtifactKind

#: Longest text of each field, in bytes.
LIMITS = {"uuid": 255, "name": 255, "description": 255, "size": 20}
#: What may accompany a blob, besides uuid and size; all of it is required.
WORDS: Mapping[ArtifactKind, tuple[str, ...]] = {
    ArtifactKind.PROBLEM: ("name", "description"),
    ArtifactKind.ALGO: ("name",),
    ArtifactKind.DATA: (),
    ArtifactKind.PREDICTION: (),
    ArtifactKind.MODEL: ("algo",),
}
#: Content types of an upload whose body is the blob and whose words are in the query string.
RAW_TYPES = frozenset({"application/octet-stream", "application/gzip", "application/x-gzip", "application/x-hdf5"})
_BEFORE = "Make sure that each form field is sent before blob in the multipart/form"
_SIZE = re.compile(r"[+-]?[0-9]{1,20}", re.ASCII)
_MAX_SIZE = (1 << 63) - 1
#: Version of ids that follow from others (`morpheo.models.DERIVED_IDS`).
DERIVED = 5


@dataclass(frozen=True, kw_only=True)
class Form:
    """The text fields of an upload; None is absent."""

    uuid: UUID | None = None
    name: str | None = None
    description: str | None = None
    size: int | None = None
    algo: UUID | None = None


def receive(request: Request, kind: ArtifactKind, artifacts: ArtifactService, *, strict_size: bool) -> Artifact:
    """
    Store the upload that a request is.

    Raises:
        InvalidInput, TooLarge, Conflict, NotFound, Unavailable: as `ArtifactService.upload`, and for what is wrong
            with the request itself.
    """
    body = BodySource(request)
    prefix = f"[Error uploading {kind}] "
    if kind is ArtifactKind.MODEL or request.mimetype in RAW_TYPES:
        return _receive_raw(request, kind, body, artifacts, prefix=prefix)
    with _prefixed(prefix):
        reader = MultipartReader(body, request.headers.get("Content-Type", ""))
        form = _read_form(reader, kind, artifacts)
        if not reader.has_blob:
            raise InvalidInput("Premature EOF while parsing request: send a blob part, last", field=BLOB)
        return artifacts.upload(_checked(form, kind), reader, length=form.size if strict_size else None)


def _receive_raw(
    request: Request, kind: ArtifactKind, body: BodySource, artifacts: ArtifactService, *, prefix: str
) -> Artifact:
    form = _query_form(request, kind, artifacts)
    with _prefixed(prefix):
        upload = _checked(replace(form, size=request.content_length or 1), kind)
        if request.content_length == 0:
            raise InvalidInput("the blob is empty", field="blob")
        artifacts.check_free(kind, upload.id)
        return artifacts.upload(upload, body, length=request.content_length)


def _query_form(request: Request, kind: ArtifactKind, artifacts: ArtifactService) -> Form:
    values = request.args
    if unknown := sorted(set(values) - {"uuid", *WORDS[kind]}):
        raise InvalidInput(f'[Error uploading {kind}] Unknown field "{unknown[0][:100]}"', field=unknown[0])
    form = Form()
    if kind is ArtifactKind.MODEL:  # its algo comes first, as it did in 2017
        form = replace(form, algo=_known_algo(values.get("algo", ""), artifacts))
    if "uuid" in values:
        given = _query_uuid("uuid", values["uuid"], shown=f"{kind} UUID")
        form = replace(form, uuid=None if given == NIL_UUID else given)
    for name in ("name", "description"):
        if name in values:
            form = _with_field(form, name, values[name].encode("utf-8", "surrogatepass"), kind)
    return form


def _query_uuid(name: str, text: str, *, shown: str) -> UUID:
    try:
        return parse_uuid(text)
    except ValueError as exc:
        raise InvalidInput(f"Impossible to parse {shown}: {exc}", field=name) from exc


def _known_algo(text: str, artifacts: ArtifactService) -> UUID:
    algo = _query_uuid("algo", text, shown="algo UUID <nil>")
    try:
        artifacts.get(ArtifactKind.ALGO, algo)
    except NotFound as exc:
        raise NotFound(f"Error uploading model: algorithm {algo} not found: {exc}") from exc
    return algo


def _read_form(reader: MultipartReader, kind: ArtifactKind, artifacts: ArtifactService) -> Form:
    form = Form()
    for name, content in reader.fields(LIMITS):
        form = _with_field(form, name, content, kind)
        if name == "uuid" and form.uuid is not None:
            artifacts.check_free(kind, form.uuid)  # before any byte of the blob is read
    return form


def _with_field(form: Form, name: str, content: bytes, kind: ArtifactKind) -> Form:
    if len(content) > LIMITS[name]:
        raise InvalidInput(f"[Error uploading {kind}] {name} is longer than {LIMITS[name]} bytes", field=name)
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as exc:
        raise InvalidInput(f"{name} is not UTF-8 text", field=name) from exc
    if name == "uuid":
        try:
            return replace(form, uuid=parse_uuid(text))
        except ValueError as exc:
            raise InvalidInput(f"Error parsing UUID uuid: {exc}", field=name) from exc
    if name == "size":
        if not _SIZE.fullmatch(text) or abs(int(text)) > _MAX_SIZE:
            raise InvalidInput("Error parsing size field to integer: use the digits 0 to 9", field=name)
        return replace(form, size=int(text))
    if any(unicodedata.category(char) == "Cc" for char in text):
        raise InvalidInput(f"{name} holds a control character; use plain text", field=name)
    words: dict[str, Any] = {name: text}
    return replace(form, **words)


def _checked(form: Form, kind: ArtifactKind) -> Upload:
    for name in ("name", "description"):
        if getattr(form, name) is not None and name not in WORDS[kind]:
            raise InvalidInput(f"Invalid form: {name} is not a valid field for {kind}. {_BEFORE}", field=name)
    if form.uuid == NIL_UUID:
        raise InvalidInput(f"Invalid form: 'UUID' unset. {_BEFORE}", field="uuid")
    for name in WORDS[kind]:
        if not getattr(form, name):
            raise InvalidInput(f"Invalid form: '{name.capitalize()}' unset. {_BEFORE}", field=name)
    if kind is ArtifactKind.PREDICTION and form.uuid and form.uuid.version == DERIVED and not caller().is_admin:
        # Who knows the id of a job could take that of its prediction, and the job would end without one.
        raise InvalidInput("ids of version 5 are for predictions of our own workers; give a random one", field="uuid")
    if not form.size:
        raise InvalidInput(f"Invalid form: 'Size' unset. {_BEFORE}", field="size")
    if form.size < 0:
        raise InvalidInput("Invalid form: size is negative", field="size")
    return Upload(
        kind=kind,
        id=form.uuid or uuid.uuid4(),
        name=form.name or "",
        description=form.description or "",
        algo=form.algo,
        by=caller(),
    )


def receive_change(request: Request, old: Artifact, artifacts: ArtifactService, *, strict_size: bool) -> Artifact:
    """
    Change a problem as a ``PATCH`` request says: any field, and the blob.

    Raises:
        InvalidInput, TooLarge, Conflict, NotFound, Unavailable: nothing was changed.
    """
    with _prefixed("[Error patching problem] "):
        reader = MultipartReader(BodySource(request), request.headers.get("Content-Type", ""))
        form = _read_form(reader, old.kind, artifacts)
        given = {name: getattr(form, name) for name in ("name", "description") if getattr(form, name) is not None}
        new = replace(old, id=form.uuid or old.id, **given)
        size = form.size if reader.has_blob else old.size_bytes
        upload = _checked(Form(uuid=new.id, name=new.name, description=new.description, size=size), old.kind)
        if not reader.has_blob:
            return artifacts.change(old, new)
        stored = artifacts.put_blob(upload, reader, length=form.size if strict_size else None)
        with artifacts.discarded_on_error(stored):
            return artifacts.change(old, stored)


@contextmanager
def _prefixed(prefix: str) -> Iterator[None]:
    try:
        yield
    except (InvalidInput, Conflict) as exc:
        exc.args = (prefix + str(exc),)
        raise
