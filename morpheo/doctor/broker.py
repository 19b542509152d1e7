"""The broker: Redis, or RabbitMQ."""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from amqp.exceptions import AccessRefused, AMQPError, NotAllowed, NotFound, PreconditionFailed
from kombu import Connection
from kombu.exceptions import KombuError
from redis.exceptions import AuthenticationError, RedisError

from morpheo.celery import app
from morpheo.config import Settings
from morpheo.doctor.findings import Check, Finding, clock, fail, is_local, ok, shown_url, warn

#: Oldest Redis that Celery supports.
MIN_VERSION = (6, 2)
#: How long the broker may take for one answer, in seconds.
TIMEOUT_S = 5

_SETTING = "MORPHEO_BROKER_URL"


def checks(settings: Settings) -> list[Check]:
    """Return the checks of the broker."""
    broker = _Broker(settings)
    needs = ("broker.answers",)
    answers = Check(name="broker.answers", run=broker.check_answers)
    if urlsplit(settings.broker).scheme.startswith("amqp"):
        return [
            answers,
            Check(name="broker.password", run=broker.check_guest, needs=needs),
            Check(name="broker.queue", run=broker.check_queue, needs=needs),
        ]
    return [
        answers,
        Check(name="broker.version", run=broker.check_version, needs=needs),
        Check(name="broker.password", run=broker.check_password, needs=needs),
        Check(name="broker.persistence", run=broker.check_persistence, needs=needs),
        Check(name="broker.eviction", run=broker.check_eviction, needs=needs),
        Check(name="broker.visibility", run=broker.check_visibility),
        Check(name="broker.clock", run=broker.check_clock, needs=needs),
    ]


class _Broker:
    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._url = settings.broker
        self._parts = urlsplit(settings.broker)

    def check_answers(self) -> Finding:
        try:
            with _channel(self._url):
                return ok(shown_url(self._url))
        except (AuthenticationError, AccessRefused) as exc:
            return fail(
                f"the broker refuses user and password: {_line(exc)}",
                f"put the right ones into {_SETTING}=redis://:PASSWORD@HOST:PORT/0 "
                "(`requirepass` in redis.conf) or amqp://USER:PASSWORD@HOST:PORT// (`rabbitmqctl change_password`)",
            )
        except NotAllowed as exc:
            return fail(
                f"no way into the virtual host: {_line(exc)}",
                "`rabbitmqctl add_vhost NAME`, `rabbitmqctl set_permissions -p NAME USER '.*' '.*' '.*'`",
            )
        except (RedisError, AMQPError, KombuError, OSError) as exc:
            server = "rabbitmq-server" if self._parts.scheme.startswith("amqp") else "redis-server"
            return fail(
                f"no broker answers at {shown_url(self._url)}: {_line(exc)}",
                f"start it (`systemctl start {server}`), or set {_SETTING} to the right URL",
            )

    def check_version(self) -> Finding:
        version = str(self._info()["redis_version"])
        if tuple(int(part) for part in version.split(".")[:2]) < MIN_VERSION:
            return fail(
                f"Redis is {version}, older than {MIN_VERSION[0]}.{MIN_VERSION[1]}",
                "upgrade it: `apt-get install redis-server`, or the image redis:7",
            )
        return ok(version)

    def check_password(self) -> Finding:
        if not self._parts.hostname:
            return ok("a Unix socket, guarded by the permissions of its file")
        netloc = self._parts.netloc.rpartition("@")[2]
        try:
            with _channel(self._parts._replace(netloc=netloc).geturl()) as channel:
                channel.client.ping()
        except RedisError:
            return ok("nobody gets in without a password")
        fix = f"`requirepass PASSWORD` in redis.conf, restart it, and {_SETTING}=redis://:PASSWORD@{netloc}/0"
        if is_local(self._parts.hostname):
            return warn("Redis lets every user of this machine in without a password", fix)
        return fail("Redis lets everybody in without a password, and messages decide what workers run", fix)

    def check_persistence(self) -> Finding:
        info = self._info()
        if not info["aof_enabled"]:
            return warn(
                "Redis keeps messages in memory only (AOF is off): after a restart jobs wait until they are swept up",
                "`redis-cli CONFIG SET appendonly yes`, and `appendonly yes` in redis.conf",
            )
        if info.get("aof_last_write_status") != "ok":
            return fail("Redis cannot write its append-only file", "make room on its disk: `redis-cli CONFIG GET dir`")
        return ok("the append-only file is on")

    def check_eviction(self) -> Finding:
        policy = str(self._info().get("maxmemory_policy", "noeviction"))
        if policy != "noeviction":
            return fail(
                f"Redis throws messages away when its memory is full (maxmemory-policy {policy})",
                "`redis-cli CONFIG SET maxmemory-policy noeviction`, and the same in redis.conf",
            )
        return ok(policy)

    def check_visibility(self) -> Finding:
        # Celery finds its settings from the folder that it is started in.
        sys.path.insert(0, str(Path.cwd()))
        options = app.conf.broker_transport_options or {}
        visible_s = float(options.get("visibility_timeout", 3600))
        longest_s = self._settings.longest_job_s
        source = getattr(sys.modules.get("celeryconfig"), "__file__", None) or "celeryconfig.py"
        if visible_s <= longest_s:
            return fail(
                f"messages come back after {visible_s:g} s, while the longest job takes {longest_s:g} s ({source})",
                f'broker_transport_options["visibility_timeout"] = {longest_s + 900:g} in {source}',
            )
        return ok(f"{visible_s:g} s, the longest job takes {longest_s:g} s")

    def check_clock(self) -> Finding:
        with _channel(self._url) as channel:
            before = time.time()
            seconds, microseconds = channel.client.time()
            middle = (before + time.time()) / 2
        return clock("Redis", seconds + microseconds / 1e6 - middle, lease_s=self._settings.lease_s)

    def check_guest(self) -> Finding:
        if (self._parts.username, self._parts.password) != ("guest", "guest"):
            return ok("not the ones that RabbitMQ is delivered with")
        cause = "RabbitMQ has the user and password that it was delivered with"
        fix = f"`rabbitmqctl change_password guest PASSWORD`, and {_SETTING}=amqp://guest:PASSWORD@HOST:PORT//"
        return warn(cause, fix) if is_local(self._parts.hostname) else fail(cause, fix)

    def check_queue(self) -> Finding:
        names = [queue.name for queue in app.conf.task_queues]
        for name in names:
            try:
                with _channel(self._url) as channel:  # a new one, because an error ends it
                    channel.queue_declare(queue=name, passive=True)
                    channel.queue_declare(queue=name, durable=True, auto_delete=False)
            except NotFound:
                continue  # the first worker makes it
            except PreconditionFailed:
                return fail(
                    f"queue {name} is not durable: a restart of RabbitMQ loses it",
                    f"stop the workers, `rabbitmqctl delete_queue {name}`, and start them: they make it anew",
                )
        return ok(f"no queue of {', '.join(names)} can be lost in a restart")

    def _info(self) -> dict[str, Any]:
        # INFO, not CONFIG: hosted servers forbid the latter.
        with _channel(self._url) as channel:
            return dict(channel.client.info("everything"))


@contextmanager
def _channel(url: str) -> Iterator[Any]:
    options = {"socket_connect_timeout": TIMEOUT_S, "socket_timeout": TIMEOUT_S}
    if urlsplit(url).scheme.startswith("amqp"):
        options = {"read_timeout": TIMEOUT_S, "write_timeout": TIMEOUT_S}
    with Connection(url, connect_timeout=TIMEOUT_S, transport_options=options) as connection:
        yield connection.channel()


def _line(exc: BaseException) -> str:
    if isinstance(exc, socket.gaierror):
        return "there is no such host"
    return " ".join(str(exc).split())[:200]
