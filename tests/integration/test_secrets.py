"""Where secrets must not be: logs, messages to workers, rows, and what a process's arguments show."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import pytest
import redis
import requests

from morpheo.access import Role
from morpheo.accounts import Accounts
from morpheo.client import ComputeClient, OrchestratorClient, StorageClient
from morpheo.config import Settings
from morpheo.errors import ApiError
from morpheo.models import ArtifactKind
from morpheo.storage.database import Database
from morpheo.testing import make_predict_spec
from tests.support.api_server import Server, migrate, serving
from tests.support.services import wait_until

#: Of the settings, of a user, and typed where the name belongs.
CANARIES = ("canaryOfTheSettings", "canaryOfCarolsPassword", "canaryInPlaceOfAName")


@pytest.mark.redis
def test_secrets_are_in_no_log_message_row_or_argument(tmp_path: Path, redis_url: str) -> None:
    migrate(tmp_path)
    database = Database(Settings(data_dir=tmp_path).database)
    accounts = Accounts(database)
    accounts.add("carol", [Role.CUSTODIAN, Role.SUBMITTER], CANARIES[1])
    token = accounts.create_token("carol", name="n", life=timedelta(days=1))[1]
    settings = {"password": CANARIES[0], "broker_url": redis_url, "log_level": "DEBUG", "api_processes": "1"}
    with contextlib.ExitStack() as stack:
        compute, storage, orchestrator = (
            stack.enter_context(serving(f"{name}-api", tmp_path, **settings))
            for name in ("compute", "storage", "orchestrator")
        )
        _use(compute, storage, orchestrator, token)
        arguments = "".join(_arguments(server) for server in (compute, storage, orchestrator))
        broker = redis.Redis.from_url(redis_url)
        wait_until(lambda: "morpheo.run_job" in _broker_content(broker), what="a message")
        kept = {
            "arguments": arguments,
            "broker": _broker_content(broker),
            "rows": _rows(database),
            "logs": "".join(path.read_text() for path in tmp_path.glob("*.log")),
        }
    assert "GET /algo" in kept["logs"]
    assert "carol" in kept["rows"]
    for place, content in kept.items():
        for secret in (*CANARIES, token, token.removeprefix("morpheo_")):
            for form in _forms(secret):
                assert form not in content, f"{form} in {place}"
    database.close()


def _use(compute: Server, storage: Server, orchestrator: Server, token: str) -> None:
    """Log in, rightly and wrongly, by all means, and order a job."""
    for server in (compute, storage, orchestrator):
        for auth in (("u", CANARIES[0]), ("carol", CANARIES[1]), ("carol", CANARIES[0]), (CANARIES[2], "x")):
            requests.get(server.url + "/algo", auth=auth, timeout=20)
        for sent in (token, token[:-1] + "_"):
            requests.get(server.url + "/algo", headers={"Authorization": f"Bearer {sent}"}, timeout=20)
    blobs = StorageClient(storage.url, token=token)
    data = blobs.upload(ArtifactKind.DATA, b"x").id
    algo = blobs.upload(ArtifactKind.ALGO, b"x", name="a").id
    model = uuid4()
    root = {"user": "u", "password": CANARIES[0]}
    address = f"{storage.url}/model?uuid={model}&algo={algo}"
    raw = {"Content-Type": "application/octet-stream"}
    auth = ("u", CANARIES[0])
    assert requests.post(address, data=b"m", auth=auth, headers=raw, timeout=20).status_code == 201
    ComputeClient(compute.url, **root).submit(make_predict_spec(model=model, data=data))
    with pytest.raises(ApiError):
        OrchestratorClient(orchestrator.url, token=token).problem(uuid4())


def _forms(secret: str) -> Iterator[str]:
    """Return a secret, and what it is sent as."""
    yield secret
    for name in ("u", "carol"):
        yield base64.b64encode(f"{name}:{secret}".encode()).decode()
    yield hashlib.sha256(secret.encode()).hexdigest() if "canary" in secret else secret


def _arguments(server: Server) -> str:
    return "".join(Path(f"/proc/{pid}/cmdline").read_text() for pid in server.pids())


def _broker_content(broker: redis.Redis) -> str:
    pieces = []
    for key in broker.scan_iter():
        match broker.type(key):
            case b"list":
                content = repr(broker.lrange(key, 0, -1))
            case b"hash":
                content = repr(broker.hgetall(key))
            case b"string":
                content = repr(broker.get(key))
            case _:
                content = ""
        encoded = re.findall(r'"body": "([^"]+)"', content)  # of messages, in base64
        pieces += [repr(key), content, *(base64.b64decode(body).decode("utf-8", "replace") for body in encoded)]
    return "\n".join(pieces)


def _rows(database: Database) -> str:
    with database.connect() as connection:
        tables = connection.exec_driver_sql("SELECT name FROM sqlite_master WHERE type = 'table'").scalars().all()
        return "".join(str(connection.exec_driver_sql(f'SELECT * FROM "{name}"').all()) for name in tables)
