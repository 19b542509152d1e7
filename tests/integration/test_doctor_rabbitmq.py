"""The doctor and RabbitMQ, where it is installed."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kombu
import pytest

from morpheo.config import Settings
from morpheo.doctor import broker
from morpheo.doctor.findings import Finding, Status
from tests.conftest import missing
from tests.support.doctor import diagnose, failed
from tests.support.services import child, free_port, wait_until

PROGRAMS = Path("/usr/lib/rabbitmq/bin")


@pytest.fixture(scope="session")
def rabbitmq(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """``host:port`` of a RabbitMQ server with its first user, guest."""
    if not (PROGRAMS / "rabbitmq-server").exists():
        missing("RabbitMQ")
    folder, port = tmp_path_factory.mktemp("rabbitmq"), free_port()
    (folder / "rabbitmq.conf").write_text(f"listeners.tcp.1 = 127.0.0.1:{port}\n")
    environment = {
        **os.environ,
        "HOME": str(folder),
        "ERL_EPMD_PORT": str(free_port()),
        "RABBITMQ_NODENAME": "doctor@localhost",
        "RABBITMQ_DIST_PORT": str(free_port()),
        "RABBITMQ_MNESIA_BASE": str(folder / "data"),
        "RABBITMQ_LOG_BASE": str(folder / "log"),
        "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
    }

    def listens() -> bool:
        with socket.socket() as peer:
            return peer.connect_ex(("127.0.0.1", port)) == 0

    with child([str(PROGRAMS / "rabbitmq-server")], folder / "output", env=environment):
        wait_until(listens, timeout_s=120, what="RabbitMQ")
        yield f"127.0.0.1:{port}"
    subprocess.run(["epmd", "-kill"], env=environment, check=False, capture_output=True)  # the port mapper it started


def findings(url: str) -> dict[str, Finding]:
    return diagnose(broker.checks(Settings(broker_url=url)))


def declare(url: str, *, durable: bool | None) -> None:
    """Make the queue anew, or only remove it."""
    with kombu.Connection(url) as connection:
        channel: Any = connection.channel()
        channel.queue_delete("learn")
        if durable is not None:
            channel.queue_declare(queue="learn", durable=durable, auto_delete=False)


def test_a_healthy_rabbitmq(rabbitmq: str) -> None:
    url = f"amqp://guest:guest@{rabbitmq}//"
    declare(url, durable=None)
    found = findings(url)
    assert found["broker.answers"].status is found["broker.queue"].status is Status.OK
    declare(url, durable=True)
    assert "learn, predict" in findings(url)["broker.queue"].cause


def test_a_password_that_everybody_knows(rabbitmq: str, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"amqp://guest:guest@{rabbitmq}//"
    declare(url, durable=True)
    assert findings(url)["broker.password"].status is Status.WARN
    monkeypatch.setattr(broker, "is_local", lambda host: False)
    assert "rabbitmqctl change_password" in failed(findings(url), "broker.password").fix


def test_a_queue_that_a_restart_loses(rabbitmq: str) -> None:
    url = f"amqp://guest:guest@{rabbitmq}//"
    declare(url, durable=False)
    assert "rabbitmqctl delete_queue learn" in failed(findings(url), "broker.queue").fix


def test_a_wrong_password_of_rabbitmq(rabbitmq: str) -> None:
    found = failed(findings(f"amqp://guest:hunter2@{rabbitmq}//"), "broker.answers")
    assert "refuses user and password" in found.cause
    assert "hunter2" not in found.cause + found.fix


def test_a_virtual_host_that_is_none(rabbitmq: str) -> None:
    assert "add_vhost" in failed(findings(f"amqp://guest:guest@{rabbitmq}/nothing"), "broker.answers").fix


def test_no_rabbitmq() -> None:
    found = failed(findings(f"amqp://guest:guest@127.0.0.1:{free_port()}//"), "broker.answers")
    assert "systemctl start rabbitmq-server" in found.fix
