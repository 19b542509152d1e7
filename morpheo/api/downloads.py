"""Downloads from the storage API: whole blobs and ranges, checked as they go out."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator
from contextlib import ExitStack
from http import HTTPStatus

from flask import Request, Response
from werkzeug.datastructures import Range

from morpheo.api.errors import problem
from morpheo.artifacts import CHANGED, LOST, ArtifactService, check_usable
from morpheo.downloads import DownloadLog
from morpheo.errors import CorruptBlob, NotFound
from morpheo.models import Artifact


def send(request: Request, artifact: Artifact, artifacts: ArtifactService, log: DownloadLog) -> Response:
    """
    Return the blob of an artifact, or the range that a request asks for; what is not recorded is not sent.

    The ETag is the blob's sha256. A whole blob that turns out to be another one is cut off before its end: the client
    then sees a broken transfer, never a wrong file. A client that asks for the digest (``Want-Repr-Digest`` of
    RFC 9530) checks it by itself: there is no need to do it twice.
    """
    check_usable(artifact)
    total = artifact.size_bytes
    etag = artifact.sha256
    if request.if_match and not request.if_match.contains(etag):
        return problem(412, "the blob has another ETag than If-Match names")
    if request.if_none_match and request.if_none_match.contains_weak(etag):
        return _with_headers(Response(status=304), artifact)
    partial = _honoured_range(request, etag)
    start, stop = (0, total) if partial is None else _span(partial, total)
    if start >= stop:
        refusal = problem(416, f"the range lies outside the blob's {total} bytes", field="Range")
        refusal.headers["Content-Range"] = f"bytes */{total}"
        return refusal
    response = Response(status=HTTPStatus.OK if partial is None else HTTPStatus.PARTIAL_CONTENT)
    if request.method != "HEAD":
        whole = (start, stop) == (0, total)
        log.record(artifact, client=request.remote_addr or "", partial=not whole)
        check = whole and not _wants_digest(request)
        response.response = _body(artifact, artifacts, start=start, stop=stop, check=check)
    response.headers["Content-Length"] = str(stop - start)
    response.content_type = "application/octet-stream"
    if partial is not None:
        response.headers["Content-Range"] = f"bytes {start}-{stop - 1}/{total}"
    return _with_headers(response, artifact)


def _honoured_range(request: Request, etag: str) -> Range | None:
    # A range that is not understood, or was asked of another blob, is as good as none.
    wanted: Range | None = request.range
    if_range = request.if_range
    if wanted is None or wanted.units != "bytes" or len(wanted.ranges) != 1:
        return None
    return None if (if_range.etag or if_range.date) and if_range.etag != etag else wanted


def _span(wanted: Range, total: int) -> tuple[int, int]:
    first, end = wanted.ranges[0]
    if first < 0:  # so many bytes from the end
        return max(0, total + first), total
    return first, total if end is None else min(end, total)


def _with_headers(response: Response, artifact: Artifact) -> Response:
    response.set_etag(artifact.sha256)
    digest = base64.b64encode(bytes.fromhex(artifact.sha256)).decode()
    response.headers["Repr-Digest"] = f"sha-256=:{digest}:"
    response.headers["Accept-Ranges"] = "bytes"
    response.last_modified = artifact.created_at
    return response


def _wants_digest(request: Request) -> bool:
    wanted = request.headers.get("Want-Repr-Digest", "")
    return any(re.fullmatch(r"\s*sha-256=([1-9]|10)\s*", member) for member in wanted.split(","))


def _body(artifact: Artifact, artifacts: ArtifactService, *, start: int, stop: int, check: bool) -> Iterator[bytes]:
    # Opened here, so that a blob that is missing is an answer and not a broken transfer.
    stack = ExitStack()
    try:
        pieces = stack.enter_context(artifacts.open(artifact, offset=start, length=stop - start))
    except NotFound as exc:
        artifacts.quarantine(artifact, LOST)
        raise CorruptBlob(f"Error retrieving {artifact.kind} {artifact.id}: {exc}") from exc
    return (
        _checked(pieces, artifact, artifacts, stack)
        if check
        else _counted(pieces, artifact, artifacts, stack, stop - start)
    )


def _checked(
    pieces: Iterator[bytes], artifact: Artifact, artifacts: ArtifactService, stack: ExitStack
) -> Iterator[bytes]:
    with stack:
        digest = hashlib.sha256()
        held = b""
        for piece in pieces:
            digest.update(piece)
            if held:
                yield held
            held = piece
        if digest.hexdigest() != artifact.sha256:
            artifacts.quarantine(artifact, CHANGED)
            raise CorruptBlob(f"the blob of {artifact.kind} {artifact.id} has changed since it was stored")
        yield held


def _counted(
    pieces: Iterator[bytes], artifact: Artifact, artifacts: ArtifactService, stack: ExitStack, left: int
) -> Iterator[bytes]:
    with stack:
        for piece in pieces:
            left -= len(piece)
            yield piece
        if left:
            artifacts.quarantine(artifact, CHANGED)
            raise CorruptBlob(f"the blob of {artifact.kind} {artifact.id} is shorter than it was")
