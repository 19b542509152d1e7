"""Client of the storage API."""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, Self
from uuid import UUID

import requests

from morpheo.client.http import HttpClient
from morpheo.errors import ApiUnavailable, CorruptBlob
from morpheo.models import ArtifactKind

#: Called with the number of bytes moved since the last call.
Progress = Callable[[int], None]

CHUNK_SIZE = 1 << 20


@dataclass(frozen=True, kw_only=True)
class StoredArtifact:
    """What the storage API tells of an artifact."""

    id: UUID
    kind: ArtifactKind
    name: str
    description: str
    algo: UUID | None
    #: Size and digest are None for who may not have the blob.
    size_bytes: int | None
    sha256: str | None
    created_at: datetime

    @classmethod
    def from_json(cls, kind: ArtifactKind, document: dict[str, Any]) -> Self:
        """Return what an answer of the service says."""
        return cls(
            id=UUID(document["uuid"]),
            kind=kind,
            name=document.get("name", ""),
            description=document.get("description", ""),
            algo=UUID(document["algo"]) if document.get("algo") else None,
            size_bytes=document["size"],
            sha256=document["sha256"],
            created_at=datetime.fromtimestamp(document["timestamp_upload"], UTC),
        )


class StorageClient:
    """
    Uploads, lists and downloads artifacts.

    Args:
        url: Address of the storage API.
        user: For HTTP Basic.
        password: For HTTP Basic.
        token: In place of user and password.
    """

    def __init__(self, url: str, *, user: str = "", password: str = "", token: str = "") -> None:
        self._http = HttpClient(url, auth=token or (user, password))

    def upload(
        self,
        kind: ArtifactKind,
        content: Path | bytes,
        *,
        id: UUID | None = None,  # noqa: A002 - the domain's word
        name: str | None = None,
        description: str | None = None,
        algo: UUID | None = None,
        progress: Progress | None = None,
    ) -> StoredArtifact:
        """
        Store a file as an artifact, without holding it in memory.

        Args:
            kind: What it is.
            content: A file, or bytes.
            id: The id it gets; None lets the service choose.
            name: Needed for problems and algos.
            description: Needed for problems.
            algo: Needed for models.
            progress: Told of the bytes sent.

        Raises:
            ApiError: the service refused it; ``status`` 409 if the id is taken.
            ApiUnavailable: the service cannot be reached.
        """
        given = {"uuid": id, "name": name, "description": description, "algo": algo}
        query = {key: str(value) for key, value in given.items() if value is not None}
        with io.BytesIO(content) if isinstance(content, bytes) else content.open("rb") as file:
            answer = self._http.request(
                "POST",
                f"/{kind}",
                params=query,
                data=_ProgressFile(file, progress),
                headers={"Content-Type": "application/octet-stream"},
            )
        return StoredArtifact.from_json(kind, answer.json())

    def get(self, kind: ArtifactKind, artifact_id: UUID) -> StoredArtifact:
        """
        Return what is known of an artifact.

        Raises:
            ApiError: ``status`` 404 if there is none.
        """
        return StoredArtifact.from_json(kind, self._http.request("GET", f"/{kind}/{artifact_id}").json())

    def list(self, kind: ArtifactKind, *, name: str | None = None, page_size: int = 100) -> Iterator[StoredArtifact]:
        """Return all artifacts of a kind, newest first; with `name`, those whose name holds it."""
        page = 0
        while True:
            query: dict[str, Any] = {"page": page, "page_size": page_size, **({"name": name} if name else {})}
            answer = self._http.request("GET", f"/{kind}", params=query).json()
            yield from (StoredArtifact.from_json(kind, item) for item in answer["items"])
            page += 1
            if page * page_size >= answer["total"]:
                return

    def read(self, kind: ArtifactKind, artifact_id: UUID) -> bytes:
        """
        Return the blob of an artifact, whole: for small ones.

        Raises:
            ApiError, ApiUnavailable, CorruptBlob: as `download`.
        """
        answer = self._http.request("GET", f"/{kind}/{artifact_id}/blob")
        _check(answer, hashlib.sha256(answer.content).hexdigest())
        return answer.content

    def download(
        self, kind: ArtifactKind, artifact_id: UUID, target: Path, *, progress: Progress | None = None
    ) -> None:
        """
        Write the blob of an artifact to a file, which appears when it is complete and its sha256 is right.

        Raises:
            ApiError: ``status`` 404 if there is none.
            ApiUnavailable: the transfer broke.
            CorruptBlob: what came is not what the service says it is.
        """
        descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        try:
            with open(descriptor, "wb") as file:
                answer = self._http.request(
                    "GET", f"/{kind}/{artifact_id}/blob", stream=True, headers={"Want-Repr-Digest": "sha-256=10"}
                )
                _save(answer, file, progress)
            Path(temporary).replace(target)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


def _save(answer: requests.Response, file: BinaryIO, progress: Progress | None) -> None:
    digest = hashlib.sha256()
    try:
        for piece in answer.iter_content(CHUNK_SIZE):
            digest.update(piece)
            file.write(piece)
            if progress is not None:
                progress(len(piece))
    except requests.RequestException as exc:
        raise ApiUnavailable("the transfer broke; try again") from exc
    finally:
        answer.close()
    _check(answer, digest.hexdigest())


def _check(answer: requests.Response, sha256: str) -> None:
    expected = answer.headers.get("ETag", "").removeprefix("W/").strip('"')  # a proxy that compresses weakens it
    if expected and expected != sha256:
        raise CorruptBlob("what was received is not what was stored; try again")


class _ProgressFile:
    """A file of known length for `requests`, which reads it piece by piece."""

    def __init__(self, file: BinaryIO, progress: Progress | None) -> None:
        self._file = file
        self._progress = progress
        self._size = file.seek(0, os.SEEK_END)
        file.seek(0)

    def __len__(self) -> int:
        return self._size

    def read(self, size: int = -1) -> bytes:
        # http.client asks for 8 KiB at a time, which costs more than it moves.
        piece = self._file.read(max(size, CHUNK_SIZE) if size >= 0 else size)
        if self._progress is not None:
            self._progress(len(piece))
        return piece
