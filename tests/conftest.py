"""
Fixtures for all tests.

Services are real and started once for the whole run, or once for each process of a run with pytest-xdist. Where one is
missing its tests are skipped, unless the variable CI is set: then they fail.
"""

from __future__ import annotations

import contextlib
import functools
import os
import tempfile
import uuid
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any, NoReturn, Protocol, runtime_checkable

import psycopg
import pytest
from docker import APIClient
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadFileScheduling

from morpheo.storage import migrate
from morpheo.storage.blobs import BlobStore
from morpheo.storage.database import Database
from morpheo.storage.local import LocalBlobStore
from morpheo.storage.s3 import S3BlobStore
from morpheo.testing import MemoryBlobStore
from tests.support.engine import Engine
from tests.support.services import (
    S3Server,
    engine_listens,
    engine_url,
    postgres_bin,
    postgres_server,
    rabbitmq_binary,
    rabbitmq_server,
    redis_binary,
    redis_server,
    s3_server,
    weed_binary,
)

# How long an example takes says nothing of the code on a busy machine.
settings.register_profile("patient", settings.default, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

BASE_IMAGE = "morpheo/base:1"
BASE_IMAGES = (BASE_IMAGE, f"{BASE_IMAGE}-hdf5")


class LongestFirst(LoadFileScheduling):
    """
    Gives each file to one process: first those that use the engine, then those of few tests, which are long ones.

    Many that use the engine look at all that it has, before and after; and of two workers that make the same image at
    once, one leaves its image without a name. So each process has an engine of its own, or one process has them all.
    Faults do not share one: each process has an installation of its own.
    """

    def _split_scope(self, nodeid: str) -> str:
        if nodeid.startswith("tests/faults/"):
            return nodeid
        file: str = super()._split_scope(nodeid)
        return "the engine" if not Engine.can_be_made() and _uses_engine(file) else file

    def _assign_work_unit(self, node: Any) -> None:
        first = min(self.workqueue, key=lambda scope: (not _uses_engine(scope), len(self.workqueue[scope])))
        self.workqueue.move_to_end(first, last=False)
        super()._assign_work_unit(node)


@functools.cache
def _uses_engine(file: str) -> bool:
    # The process that distributes collects no tests: it knows their names, but not their marks.
    path = Path(__file__).parent.parent / file.partition("::")[0]
    return file == "the engine" or "pytest.mark.docker" in path.read_text()


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadFileScheduling:
    """Distribute the tests of a run with pytest-xdist."""
    return LongestFirst(config, log)


@runtime_checkable
class Described(Protocol):
    """A fixture that can tell of processes of its own."""

    def described(self) -> list[tuple[str, str]]:
        """Return what helps to understand a failed test: titles and texts."""
        ...


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show with a test that failed what its fixtures have to tell."""
    report = yield
    if report.failed:
        for fixture in getattr(item, "funcargs", {}).values():
            if isinstance(fixture, Described):
                report.sections.extend(fixture.described())
    return report


def missing(what: str) -> NoReturn:
    """Skip a test, or fail it in CI, because a service is not there."""
    if os.environ.get("CI"):
        pytest.fail(f"{what} is missing, and CI is set")
    pytest.skip(f"{what} is missing; `make test` installs it")


@pytest.fixture(autouse=True, scope="session")
def clean_environment_of_all() -> Iterator[None]:
    """Keep a developer's own settings out of the fixtures that many tests share."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        for name in _own_settings():
            monkeypatch.delenv(name)
        set_login(monkeypatch)
        yield


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keep what another test left out of a test, and give it a folder."""
    for name in _own_settings():
        monkeypatch.delenv(name)
    monkeypatch.setenv("MORPHEO_DATA_DIR", str(tmp_path / "data"))
    set_login(monkeypatch)


def set_login(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let services have the user and the password of 2017's defaults."""
    monkeypatch.setenv("MORPHEO_USER", "u")
    monkeypatch.setenv("MORPHEO_PASSWORD", "p")


def _own_settings() -> list[str]:
    return [name for name in os.environ if name.startswith("MORPHEO_") and name != "MORPHEO_ENGINE_DIR"]


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """A PostgreSQL server whose database ``template`` has all tables; gives its socket folder."""
    binaries = postgres_bin()
    if binaries is None:
        missing("PostgreSQL")
    # Not below pytest's own folder: the server's user must reach it, and a socket's path must be short.
    with tempfile.TemporaryDirectory(prefix="morpheo-pg-") as folder, postgres_server(Path(folder), binaries) as host:
        _execute(host, "CREATE DATABASE template_morpheo")
        database = Database(_postgres_url(host, "template_morpheo"))
        migrate.upgrade(database)
        database.close()
        yield host


def _postgres_url(host: str, name: str) -> str:
    return f"postgresql+psycopg://postgres@/{name}?host={host}"


def _execute(host: str, statement: str) -> None:
    with psycopg.connect(host=host, user="postgres", dbname="postgres", autocommit=True) as connection:
        connection.execute(statement)


@pytest.fixture
def postgres_url(postgres: str) -> Iterator[str]:
    """URL of a fresh PostgreSQL database with all tables."""
    name = f"test_{uuid.uuid4().hex}"
    _execute(postgres, f"CREATE DATABASE {name} TEMPLATE template_morpheo")
    yield _postgres_url(postgres, name)
    _execute(postgres, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def empty_postgres_url(postgres: str) -> Iterator[str]:
    """URL of a fresh PostgreSQL database without tables."""
    name = f"test_{uuid.uuid4().hex}"
    _execute(postgres, f"CREATE DATABASE {name}")
    yield _postgres_url(postgres, name)
    _execute(postgres, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A SQLite file with all tables: a copy is made faster than the tables are."""
    path = tmp_path_factory.mktemp("sqlite") / "template.db"
    database = Database(f"sqlite:///{path}")
    migrate.upgrade(database)
    database.close()
    return path.read_bytes()


@pytest.fixture
def sqlite_url(tmp_path: Path, sqlite_template: bytes) -> str:
    """URL of a fresh SQLite database with all tables."""
    path = tmp_path / "test.db"
    path.write_bytes(sqlite_template)
    return f"sqlite:///{path}"


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.database)])
def database(request: pytest.FixtureRequest) -> Iterator[Database]:
    """A database with all tables, of each kind."""
    opened = Database(request.getfixturevalue("sqlite_url" if request.param == "sqlite" else "postgres_url"))
    yield opened
    opened.close()


@pytest.fixture
def sqlite(sqlite_url: str) -> Iterator[Database]:
    """A SQLite database with all tables."""
    opened = Database(sqlite_url)
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """An S3 server."""
    binary = weed_binary()
    if binary is None:
        missing("SeaweedFS")
    with s3_server(tmp_path_factory.mktemp("s3"), binary) as server:
        yield server


@pytest.fixture
def s3_blobs(s3: S3Server) -> S3BlobStore:
    """A blob store in a fresh bucket."""
    return S3BlobStore(
        s3.endpoint,
        bucket=f"test-{uuid.uuid4().hex[:12]}",
        access_key=s3.access_key,
        secret_key=s3.secret_key,
        region="us-east-1",
        secure=False,
    )


@pytest.fixture(params=["memory", "local", pytest.param("s3", marks=pytest.mark.s3)])
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> BlobStore:
    """An empty blob store of each kind."""
    makers: dict[str, Callable[[], BlobStore]] = {
        "memory": MemoryBlobStore,
        "local": lambda: LocalBlobStore(tmp_path / "store"),
        "s3": lambda: request.getfixturevalue("s3_blobs"),
    }
    return makers[request.param]()


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a Redis server."""
    binary = redis_binary()
    if binary is None:
        missing("Redis")
    with redis_server(tmp_path_factory.mktemp("redis"), binary) as url:
        yield url


@pytest.fixture(scope="session")
def rabbitmq_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a RabbitMQ server."""
    binary = rabbitmq_binary()
    if binary is None:
        missing("RabbitMQ")
    with rabbitmq_server(tmp_path_factory.mktemp("rabbitmq"), binary) as url:
        yield url


@pytest.fixture(scope="session")
def shared_engine() -> Iterator[APIClient]:
    """The container engine of the whole run, which has the base image."""
    if not engine_listens():
        missing("a container engine")
    client = APIClient(base_url=engine_url(), version="auto", timeout=60)
    if not client.images(BASE_IMAGE):
        client.close()
        missing(f"the image {BASE_IMAGE}")
    yield client
    client.close()


@pytest.fixture(scope="session")
def engine(shared_engine: APIClient) -> Iterator[APIClient]:
    """A container engine that has the base images; each process of a run with pytest-xdist has its own if it may."""
    if "PYTEST_XDIST_WORKER" not in os.environ or not Engine.can_be_made():
        yield shared_engine
        return
    with tempfile.TemporaryDirectory(prefix="morpheo-e-") as folder, pytest.MonkeyPatch.context() as monkeypatch:
        own = Engine(Path(folder) / "engine")
        try:
            own.start()
            for tag in BASE_IMAGES:
                if shared_engine.images(tag):
                    own.load(shared_engine, tag)
            monkeypatch.setenv("DOCKER_HOST", own.url)
            with contextlib.closing(own.client()) as client:
                yield client
        finally:
            own.remove()
