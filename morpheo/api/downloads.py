"""Downloads from the storage API: whole blobs and ranges, checked as they go out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack
from http import HTTPStatus

from flask import Request, Response
from werkzeug.datastructures import Range

from morpheo.api.errors import problem
from morpheo.artifacts import ArtifactService
from morpheo.errors import CorruptBlob, NotFound
from morpheo.models import Artifact


def send(request: Request, artifact: Artifact, artifacts: ArtifactService) -> Response:
    """
    Return the blob of an artifact, or the range that a request asks for.

    The ETag is the blob's sha256. A whole blob that turns out to be another one is cut off before its end: the client
    then sees a broken transfer, never a wrong file.
    """
    total = artifact.size_bytes
    etag = artifact.sha256
    if request.if_match and not request.if_match.contains(etag):
        return problem(412, "the blob has another ETag than If-Match names")
    if request.if_none_match and request.if_none_match.contains(etag):
        return _with_headers(Response(status=304), artifact)
    span = _span(request, etag, total)
    if span is None:
        refusal = problem(416, f"the range lies outside the blob's {total} bytes", field="Range")
        refusal.headers["Content-Range"] = f"bytes */{total}"
        return refusal
    start, stop = span
    whole = (start, stop) == (0, total)
    partial = not whole or bool(request.range)
    response = Response(status=HTTPStatus.PARTIAL_CONTENT if partial else HTTPStatus.OK)
    if request.method != "HEAD":
        response.response = _body(artifact, artifacts, start=start, stop=stop)
    response.headers["Content-Length"] = str(stop - start)
    response.content_type = "application/octet-stream"
    if partial:
        response.headers["Content-Range"] = f"bytes {start}-{stop - 1}/{total}"
    return _with_headers(response, artifact)


def _span(request: Request, etag: str, total: int) -> tuple[int, int] | None:
    wanted: Range | None = request.range
    if_range = request.if_range
    if wanted is None or wanted.units != "bytes" or len(wanted.ranges) != 1:
        return 0, total
    if (if_range.etag or if_range.date) and if_range.etag != etag:
        return 0, total
    span = wanted.range_for_length(total)
    return (span[0], span[1]) if span is not None and span[0] < span[1] else None


def _with_headers(response: Response, artifact: Artifact) -> Response:
    response.set_etag(artifact.sha256)
    response.headers["Accept-Ranges"] = "bytes"
    response.last_modified = artifact.created_at
    return response


def _body(artifact: Artifact, artifacts: ArtifactService, *, start: int, stop: int) -> Iterator[bytes]:
    # Opened here, so that a blob that is missing is an answer and not a broken transfer.
    stack = ExitStack()
    try:
        pieces = stack.enter_context(artifacts.open(artifact, offset=start, length=stop - start))
    except NotFound as exc:
        raise CorruptBlob(f"Error retrieving {artifact.kind} {artifact.id}: {exc}") from exc
    whole = (start, stop) == (0, artifact.size_bytes)
    return _checked(pieces, artifact, stack) if whole else _closing(pieces, stack)


def _checked(pieces: Iterator[bytes], artifact: Artifact, stack: ExitStack) -> Iterator[bytes]:
    with stack:
        digest = hashlib.sha256()
        held = b""
        for piece in pieces:
            digest.update(piece)
            if held:
                yield held
            held = piece
        if digest.hexdigest() != artifact.sha256:
            raise CorruptBlob(f"the blob of {artifact.kind} {artifact.id} has changed since it was stored")
        yield held


def _closing(pieces: Iterator[bytes], stack: ExitStack) -> Iterator[bytes]:
    with stack:
        yield from pieces
