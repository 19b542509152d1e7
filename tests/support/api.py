"""The HTTP services without a server: Flask's test client on SQLite, with stand-ins for blobs and broker."""

from __future__ import annotations

import base64
import functools
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from flask import Flask, g
from flask.testing import FlaskClient
from sqlalchemy import text

from morpheo.access import Principal
from morpheo.config import Settings
from morpheo.errors import DatabaseUnavailable
from morpheo.models import Artifact, ArtifactKind, JobSpec, LearnSpec, PredictSpec
from morpheo.resources import Resources
from morpheo.specs import spec_to_dict
from morpheo.storage.database import Database, UnitOfWork
from morpheo.testing import MemoryBlobStore, RecordingPublisher

BOUNDARY = "----boundary"


class DownDatabase(Database):
    """A database that does not answer."""

    @contextmanager
    def begin(self) -> Iterator[UnitOfWork]:
        raise DatabaseUnavailable("the database does not answer; try again")
        yield

    @contextmanager
    def read(self, *, one_moment: bool = False) -> Iterator[UnitOfWork]:
        with self.begin() as work:
            yield work


def calling(app: Flask, principal: Principal) -> Flask:
    """Let all further requests of an application be somebody's, whatever password they send; return the application."""
    app.before_request_funcs.setdefault(None, []).append(lambda: setattr(g, "caller", principal))
    return app


class Service:
    """An application, what stands behind it, and a client that sends the right user and password."""

    def __init__(self, create: Callable[[Resources], Flask], database: Database, **settings: Any) -> None:
        self.database = database
        self.blobs = MemoryBlobStore()
        self.publisher = RecordingPublisher()
        self.resources = Resources(Settings(**settings) if settings else _default_settings(), self.publisher)
        self.resources.attach(database)
        self.replace(database=database, blobs=self.blobs)
        self.app = create(self.resources) if settings else _shared_app(create)
        self.app.extensions["morpheo"] = self.resources
        self.client = FlaskClient(self.app)
        self.client.environ_base["HTTP_AUTHORIZATION"] = basic("u", "p")

    def replace(self, **parts: object) -> None:
        """Put something else in the place of a resource."""
        for name in ("logins", "artifacts", "downloads", "jobs", "orchestrator", "outside_workers"):
            vars(self.resources).pop(name, None)
        vars(self.resources).update(parts)

    def get(self, path: str, **kwargs: Any) -> Any:  # a TestResponse, whose `json` may be of any type
        return self.client.get(path, **kwargs)

    def post(self, path: str, **kwargs: Any) -> Any:
        return self.client.post(path, **kwargs)

    def patch(self, path: str, **kwargs: Any) -> Any:
        return self.client.patch(path, **kwargs)

    def open(self, path: str, **kwargs: Any) -> Any:
        return self.client.open(path, **kwargs)

    def stored(self) -> dict[str, Any]:
        """Return all that is kept: two of these are equal if nothing has changed between them."""
        with self.database.connect() as connection:
            rows = {
                table: sorted(map(repr, connection.execute(text(f"SELECT * FROM {table}"))))
                for table in ("artifacts", "jobs")
            }
        return {**rows, "blobs": dict(self.blobs._blobs), "published": list(self.publisher.published)}

    def add_artifact(self, kind: ArtifactKind, artifact_id: UUID | None = None, **values: Any) -> Artifact:
        """Store an artifact behind the back of the service."""
        with self.database.begin() as work:
            return work.artifacts.add(_artifact(kind, artifact_id or uuid.uuid4(), **values))

    def add_needs(self, spec: JobSpec) -> None:
        """Store all artifacts that an order names."""
        with self.database.begin() as work:
            for kind, ids in spec.needs().values():
                for artifact_id in ids:
                    algo = uuid.uuid4() if kind is ArtifactKind.MODEL else None
                    work.artifacts.add(_artifact(kind, artifact_id, algo=algo))

    def order(self, spec: JobSpec, **changes: Any) -> Any:
        """Order a job."""
        return self.post(route(spec), json=order(spec, **changes))


@functools.cache
def _shared_app(create: Callable[[Resources], Flask]) -> Flask:
    # Making an application takes longer than most tests.
    return create(Resources(_default_settings(), RecordingPublisher()))


@functools.cache
def _default_settings() -> Settings:
    return Settings()


def _artifact(kind: ArtifactKind, artifact_id: UUID, **values: Any) -> Artifact:
    # No two have the same content, which is how test data is known.
    digest = f"{artifact_id.int:064x}"
    defaults: dict[str, Any] = {"size_bytes": 1, "sha256": digest, "blob_key": f"{kind}/{artifact_id}/x"}
    return Artifact(kind=kind, id=artifact_id, created_at=datetime.now(UTC), **{**defaults, **values})


def route(spec: JobSpec) -> str:
    """Return where an order is sent to."""
    return "/learn" if isinstance(spec, LearnSpec) else "/pred"


def order(spec: LearnSpec | PredictSpec, **changes: Any) -> dict[str, Any]:
    """Return an order as clients send it."""
    body = {**spec_to_dict(spec), "uuid": str(spec.id), "status": "todo"}
    del body["id"]
    return {**body, **changes}


def basic(user: str, password: str) -> str:
    """Return the header of HTTP Basic."""
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


Fields = Mapping[str, object] | Iterable[tuple[str, object]]


def form(fields: Fields, *, boundary: str = BOUNDARY, end: bytes | None = None) -> dict[str, Any]:
    """Return the arguments of a request that is a multipart form with these fields, in this order."""
    items = fields.items() if isinstance(fields, Mapping) else fields
    body = b"".join(part(name, value, boundary=boundary) for name, value in items)
    end = f"--{boundary}--\r\n".encode() if end is None else end
    return {"data": body + end, "content_type": f'multipart/form-data; boundary="{boundary}"'}


def part(name: str, value: object, *, boundary: str = BOUNDARY) -> bytes:
    """Return one part of a multipart body."""
    content = value if isinstance(value, bytes) else str(value).encode()
    disposition = f'Content-Disposition: form-data; name="{name}"'.encode()
    return b"--" + boundary.encode() + b"\r\n" + disposition + b"\r\n\r\n" + content + b"\r\n"
