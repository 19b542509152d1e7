"""The doctor and brokers, databases, blob stores and machines, broken for real."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from datetime import timedelta
from pathlib import Path
from shutil import copytree
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from sqlalchemy import make_url, update

from morpheo.config import Settings
from morpheo.doctor import blobs, broker, database, node
from morpheo.doctor.findings import Finding, Status
from morpheo.storage import migrate
from morpheo.storage.database import Database
from morpheo.storage.reports import Report
from morpheo.storage.tables import ReportRow
from morpheo.testing import make_learn_spec
from tests.conftest import missing
from tests.support.doctor import GOOD_REDIS, diagnose, doctor_command, failed
from tests.support.proxies import shifted_clock
from tests.support.services import S3Server, child, free_port, redis_binary, redis_server, wait_until

Redis = Callable[..., str]
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
def start_redis(tmp_path: Path) -> Iterator[Redis]:
    """Starts a Redis server with options; gives its URL with the password."""
    binary = redis_binary()
    if binary is None:
        missing("Redis")
    with ExitStack() as stack:

        def start(*options: str, password: str = "secret") -> str:
            folder = tmp_path / f"redis-{uuid4().hex}"
            folder.mkdir()
            url = stack.enter_context(redis_server(folder, binary, *options))
            return url.replace("://", f"://:{password}@") if password else url

        yield start


def broker_findings(url: str, **settings: Any) -> dict[str, Finding]:
    return diagnose(broker.checks(Settings(broker_url=url, **settings)))


def database_findings(url: str) -> dict[str, Finding]:
    return diagnose(database.checks(Settings(database_url=url)))


def blob_findings(server: S3Server, **changes: Any) -> dict[str, Finding]:
    values = {
        "s3_endpoint": server.endpoint,
        "s3_access_key": server.access_key,
        "s3_secret_key": server.secret_key,
        "s3_secure": False,
        "s3_bucket": f"doctor-{uuid4().hex[:12]}",
    }
    return diagnose(blobs.checks(Settings(**{**values, **changes})))


def statuses(findings: dict[str, Finding]) -> set[Status]:
    return {found.status for found in findings.values()}


# ------------------------------------------------------------------------------------------------ broker


@pytest.mark.redis
def test_no_broker() -> None:
    found = failed(broker_findings(f"redis://:hunter2@127.0.0.1:{free_port()}/0"), "broker.answers")
    assert "Connection refused" in found.cause
    assert "hunter2" not in found.cause + found.fix


def test_a_broker_on_a_host_that_is_none() -> None:
    failed(broker_findings("redis://nowhere.invalid:6379/0"), "broker.answers")


@pytest.mark.redis
@pytest.mark.parametrize("password", ["wrong", ""], ids=["wrong", "none"])
def test_a_wrong_password_of_redis(start_redis: Redis, password: str) -> None:
    found = failed(broker_findings(start_redis(*GOOD_REDIS, password=password)), "broker.answers")
    assert "refuses user and password" in found.cause
    assert "MORPHEO_BROKER_URL=redis://:PASSWORD@" in found.fix


@pytest.mark.redis
def test_redis_without_a_password(start_redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    url = start_redis("--appendonly", "yes", password="")
    found = broker_findings(url)["broker.password"]
    assert found.status is Status.WARN  # on this machine only
    assert "requirepass" in found.fix
    monkeypatch.setattr(broker, "is_local", lambda host: False)
    assert "lets everybody in" in failed(broker_findings(url), "broker.password").cause


@pytest.mark.redis
def test_redis_that_forgets(start_redis: Redis) -> None:
    found = broker_findings(start_redis("--requirepass", "secret"))["broker.persistence"]
    assert found.status is Status.WARN  # jobs are in the database: none is lost
    assert "AOF is off" in found.cause
    assert "CONFIG SET appendonly yes" in found.fix


@pytest.mark.redis
def test_redis_that_throws_messages_away(start_redis: Redis) -> None:
    url = start_redis("--requirepass", "secret", "--appendonly", "yes", "--maxmemory-policy", "allkeys-lru")
    found = failed(broker_findings(url), "broker.eviction")
    assert "allkeys-lru" in found.cause
    assert "CONFIG SET maxmemory-policy noeviction" in found.fix


@pytest.mark.redis
def test_messages_that_come_back_too_soon(start_redis: Redis, tmp_path: Path) -> None:
    """A deployment's own celeryconfig.py, in the folder where its worker is started."""
    (tmp_path / "celeryconfig.py").write_text('broker_transport_options = {"visibility_timeout": 600}\n')
    environment = {**os.environ, "MORPHEO_BROKER_URL": start_redis(*GOOD_REDIS)}
    done = subprocess.run(
        doctor_command("redis"), env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stderr
    (found,) = [finding for finding in json.loads(done.stdout) if finding["status"] == "fail"]
    assert found["check"] == "broker.visibility"
    assert "after 600 s, while the longest job takes 5400 s" in found["cause"]
    assert f"in {tmp_path}/celeryconfig.py" in found["fix"]


# ------------------------------------------------------------------------------------------------ database


@pytest.fixture
def execute(postgres_url: str) -> Callable[[str], None]:
    """Runs a statement as the server's administrator; %s is the database's name."""
    url = make_url(postgres_url)

    def run(statement: str) -> None:
        with psycopg.connect(host=str(url.query["host"]), user="postgres", dbname="postgres", autocommit=True) as admin:
            admin.execute(statement.replace("%s", str(url.database)))

    return run


@pytest.mark.database
def test_a_healthy_postgresql(postgres_url: str) -> None:
    assert statuses(database_findings(postgres_url)) == {Status.OK}


@pytest.mark.database
def test_postgresql_without_tables(empty_postgres_url: str) -> None:
    found = failed(database_findings(empty_postgres_url), "database.migrations")
    assert found.cause == "the database has no tables"
    assert found.fix == "`morpheo migrate`"


@pytest.fixture
def newer_morpheo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[], None]:
    """Makes this Morpheo one with a further migration."""
    folder = tmp_path / "migrations"
    copytree(migrate.FOLDER, folder)
    with closing(Database(f"sqlite:///{tmp_path}/any.db")) as any_database:
        head = migrate.revisions(any_database)[1][-1]
    (folder / "versions" / "9999_later.py").write_text(
        f'revision = "9999"\ndown_revision = "{head}"\n\ndef upgrade():\n    pass\n'
    )
    return lambda: monkeypatch.setattr(migrate, "FOLDER", str(folder))


@pytest.mark.database
def test_postgresql_that_is_behind(postgres_url: str, newer_morpheo: Callable[[], None]) -> None:
    newer_morpheo()
    found = failed(database_findings(postgres_url), "database.migrations")
    assert "this Morpheo needs 9999" in found.cause
    assert found.fix == "`morpheo migrate`"


@pytest.mark.database
def test_postgresql_of_a_newer_morpheo(
    postgres_url: str, newer_morpheo: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    newer_morpheo()
    with closing(Database(postgres_url)) as opened:
        migrate.upgrade(opened)
    monkeypatch.undo()
    found = failed(database_findings(postgres_url), "database.migrations")
    assert "revision 9999, unknown to this Morpheo" in found.cause
    assert "upgrade Morpheo" in found.fix


@pytest.mark.database
def test_postgresql_that_only_reads(postgres_url: str, execute: Callable[[str], None]) -> None:
    execute("ALTER DATABASE %s SET default_transaction_read_only = on")
    found = failed(database_findings(postgres_url), "database.writable")
    assert "default_transaction_read_only = off" in found.fix


@pytest.mark.database
def test_postgresql_with_another_isolation(postgres_url: str, execute: Callable[[str], None]) -> None:
    execute("ALTER DATABASE %s SET default_transaction_isolation = 'serializable'")
    found = failed(database_findings(postgres_url), "database.isolation")
    assert "transactions are serializable" in found.cause


@pytest.mark.database
@pytest.mark.parametrize(
    ("change", "cause", "fix"),
    [
        ({"database": "nothing"}, 'database "nothing" does not exist', "createdb"),
        ({"username": "nobody"}, 'role "nobody" does not exist', "createuser"),
        ({"query": {"host": "/nowhere"}}, "No such file", "start it"),
    ],
)
def test_postgresql_that_lets_nobody_in(postgres_url: str, change: dict[str, Any], cause: str, fix: str) -> None:
    url = make_url(postgres_url).set(password="hunter2")
    found = failed(database_findings(url.set(**change).render_as_string(hide_password=False)), "database.answers")
    assert cause in found.cause
    assert fix in found.fix
    assert "hunter2" not in found.cause + found.fix


def test_sqlite_without_a_file(tmp_path: Path) -> None:
    found = failed(database_findings(f"sqlite:///{tmp_path}/none.db"), "database.answers")
    assert found.fix == "`morpheo migrate`"
    assert not (tmp_path / "none.db").exists()


def test_a_healthy_sqlite(sqlite_url: str) -> None:
    assert statuses(database_findings(sqlite_url)) == {Status.OK}


def test_sqlite_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "bad.db").write_bytes(b"not a database, but long enough to be one" * 100)
    assert "not a database" in failed(database_findings(f"sqlite:///{tmp_path}/bad.db"), "database.answers").cause


@pytest.mark.parametrize(("age_s", "status"), [(60, Status.OK), (1000, Status.WARN)])
def test_reports_that_wait_for_an_outside_orchestrator_are_counted(sqlite_url: str, age_s: int, status: Status) -> None:
    settings = Settings(database_url=sqlite_url, orchestrator_url="http://127.0.0.1:1")
    assert diagnose(database.checks(settings))["database.reports"].cause == "no report waits for the orchestrator"
    assert "database.reports" not in database_findings(sqlite_url)
    spec = make_learn_spec()
    with closing(Database(sqlite_url)) as opened:
        with opened.begin() as work:
            work.jobs.add(spec, algo=None)
            work.reports.add(Report(job=spec.id, number=1, path="/learndone/x", body={}))
        with opened.connect() as connection:
            connection.execute(update(ReportRow).values(created_at=ReportRow.created_at - age_s))
            connection.commit()
    found = diagnose(database.checks(settings))["database.reports"]
    assert found.status is status
    assert found.cause.startswith(f"1 reports wait for the orchestrator, the oldest for {age_s // 10}")


# ------------------------------------------------------------------------------------------------ blobs


@pytest.mark.s3
def test_a_healthy_s3(s3: S3Server) -> None:
    assert statuses(blob_findings(s3)) == {Status.OK}


@pytest.mark.s3
@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"s3_access_key": "nobody"}, "does not know the access key"),
        ({"s3_secret_key": "hunter2"}, "the secret key is wrong"),
    ],
)
def test_wrong_keys_of_s3(s3: S3Server, change: dict[str, str], cause: str) -> None:
    findings = blob_findings(s3, **change)
    assert cause in failed(findings, "blobs.credentials").cause
    assert "MORPHEO_S3_SECRET_KEY" in findings["blobs.credentials"].fix
    assert findings["blobs.bucket"].status is Status.SKIPPED
    assert "hunter2" not in str(findings)


@pytest.mark.s3
def test_a_bucket_that_may_not_be_made(s3: S3Server) -> None:
    findings = blob_findings(s3, s3_access_key=s3.reader_key, s3_secret_key=s3.reader_secret)
    assert "cannot be used, nor made: AccessDenied" in failed(findings, "blobs.bucket").cause
    assert "mc mb" in findings["blobs.bucket"].fix


@pytest.mark.s3
def test_a_bucket_that_may_only_be_read(s3: S3Server) -> None:
    bucket = f"doctor-{uuid4().hex[:12]}"
    blob_findings(s3, s3_bucket=bucket)
    findings = blob_findings(s3, s3_bucket=bucket, s3_access_key=s3.reader_key, s3_secret_key=s3.reader_secret)
    assert "AccessDenied" in findings["blobs.objects"].cause
    assert findings["blobs.multipart"].status is Status.FAIL


@pytest.mark.s3
@pytest.mark.parametrize(("seconds", "status"), [(5, Status.WARN), (3600, Status.FAIL)])
def test_a_server_with_another_time(s3: S3Server, seconds: int, status: Status) -> None:
    with shifted_clock(s3.endpoint, timedelta(seconds=seconds)) as endpoint:
        found = diagnose(blobs.checks(Settings(s3_endpoint=endpoint, s3_secure=False)))["blobs.clock"]
    assert found.status is status
    assert "ahead of this machine's" in found.cause
    assert "timedatectl set-ntp true" in found.fix


@pytest.mark.s3
def test_a_server_without_tls(s3: S3Server) -> None:
    assert "MORPHEO_S3_SECURE=false" in failed(blob_findings(s3, s3_secure=True), "blobs.answers").fix


def test_no_s3() -> None:
    found = failed(blob_findings(S3Server(f"127.0.0.1:{free_port()}", pid=0)), "blobs.answers")
    assert "no S3 server answers" in found.cause
    assert "Connection refused" in found.cause


@pytest.mark.s3
def test_keys_that_everybody_knows(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {"s3_access_key": "minioadmin", "s3_secret_key": "minioadmin"}
    found = blob_findings(s3, **keys)["blobs.password"]
    assert found.status is Status.WARN
    assert "MINIO_ROOT_PASSWORD" in found.fix
    monkeypatch.setattr(blobs, "is_local", lambda host: False)
    assert blob_findings(s3, **keys)["blobs.password"].status is Status.FAIL


# ------------------------------------------------------------------------------------------------ node


def node_findings(**settings: Any) -> dict[str, Finding]:
    return diagnose(node.checks(Settings(**settings), ports={}))


@needs_root
def test_a_full_disk(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir(mode=0o700)
    done = subprocess.run(
        [
            "unshare",
            "--mount",
            "sh",
            "-c",
            'mount -t tmpfs -o size=1m,mode=700 none "$0" && exec "$@"',
            str(folder),
            *doctor_command("node"),
        ],
        env={**os.environ, "MORPHEO_DATA_DIR": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    found = {finding["check"]: finding for finding in json.loads(done.stdout)}["node.disk"]
    assert found["status"] == "fail"
    assert found["cause"].startswith("0 MiB are free")
    assert "make room" in found["fix"]


def test_a_disk_for_one_job_at_a_time(tmp_path: Path) -> None:
    found = node_findings(
        data_dir=tmp_path / "data", learn_parallelism=1_000_000, predict_parallelism=0, context_bytes=1 << 20
    )["node.disk"]
    assert found.status is Status.WARN
    assert "1000000 jobs" in found.cause


def test_a_data_folder_that_everybody_can_read(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    found = failed(node_findings(data_dir=tmp_path, predict_parallelism=0), "node.data")
    assert found.fix == f"`chmod 700 {tmp_path}`"


def test_a_data_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "cannot be written" in failed(node_findings(data_dir=tmp_path / "file"), "node.data").cause


def test_a_port_that_somebody_else_has(tmp_path: Path) -> None:
    port = free_port()
    with child(["python3", "-m", "http.server", "--bind", "127.0.0.1", str(port)], tmp_path / "log") as other:
        wait_for(port)
        findings = diagnose(node.checks(Settings(), ports={"compute-api": port}))
    found = failed(findings, f"node.port-{port}")
    assert f"taken by python3 (process {other.pid})" in found.cause
    assert "--compute-port" in found.fix


def wait_for(port: int) -> None:
    def answers() -> bool:
        with socket.socket() as peer:
            return peer.connect_ex(("127.0.0.1", port)) == 0

    wait_until(answers, what=f"port {port}")


def test_the_default_password(monkeypatch: pytest.MonkeyPatch) -> None:
    found = node_findings()["node.passwords"]
    assert found.status is Status.WARN  # all is on this machine
    assert "MORPHEO_PASSWORD=" in found.fix
    findings = node_findings(database_url="postgresql+psycopg://db.example/morpheo")
    assert "everybody knows" in failed(findings, "node.passwords").cause
    assert node_findings(password="another")["node.passwords"].status is Status.OK
