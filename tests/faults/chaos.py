"""What the soak test breaks: each is broken as long as a block lasts, or until `Rig.heal` repairs it."""

from __future__ import annotations

import contextlib
import logging
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psutil

from morpheo.failpoints import FAILPOINTS
from tests.faults.links import Link
from tests.faults.rig import Rig

logger = logging.getLogger(__name__)

Fault = Callable[[Rig, random.Random], contextlib.AbstractContextManager[None]]


@contextmanager
def _worker_killed(rig: Rig, rng: random.Random) -> Iterator[None]:
    worker = rng.choice(list(rig.workers.values()))
    logger.info("worker %s is killed", worker.name)
    worker.kill()
    yield


@contextmanager
def _pool_process_killed(rig: Rig, rng: random.Random) -> Iterator[None]:
    worker = rng.choice(list(rig.workers.values()))
    processes = [process for node in worker.nodes.values() for process in node.children()]
    if processes:
        logger.info("a pool process of worker %s is killed", worker.name)
        with contextlib.suppress(psutil.NoSuchProcess):
            rng.choice(processes).kill()
    yield


@contextmanager
def _worker_stopped(rig: Rig, rng: random.Random) -> Iterator[None]:
    worker = rng.choice(list(rig.workers.values()))
    logger.info("worker %s is stopped for a while", worker.name)
    with worker.paused():
        yield


@contextmanager
def _worker_told_to_stop(rig: Rig, rng: random.Random) -> Iterator[None]:
    worker = rng.choice(list(rig.workers.values()))
    logger.info("worker %s is told to stop", worker.name)
    for node in worker.nodes.values():
        if node.is_running:
            node.send(signal.SIGTERM)
    yield


@contextmanager
def _worker_dies_at_a_failpoint(rig: Rig, rng: random.Random) -> Iterator[None]:
    worker = rng.choice(list(rig.workers.values()))
    name, action = rng.choice(list(FAILPOINTS)), rng.choice(("kill", "die", "stop", "raise"))
    logger.info("worker %s: %s at %s", worker.name, action, name)
    worker.arm(name, action)
    yield


@contextmanager
def _api_killed(rig: Rig, rng: random.Random) -> Iterator[None]:
    api = rng.choice([rig.compute_api, rig.storage_api])
    logger.info("%s API is killed", api.name)
    api.kill()
    yield


@contextmanager
def _redis_killed(rig: Rig, rng: random.Random) -> Iterator[None]:
    logger.info("Redis is killed")
    rig.redis.kill()
    yield


@contextmanager
def _redis_loses_everything(rig: Rig, rng: random.Random) -> Iterator[None]:
    logger.info("Redis forgets everything")
    if rng.random() < 0.5:
        rig.redis.forget()
    else:
        with contextlib.suppress(OSError):
            rig.redis.ask("FLUSHALL")
    yield


@contextmanager
def _server_stopped(rig: Rig, rng: random.Random) -> Iterator[None]:
    name = rng.choice(list(rig.servers))
    logger.info("%s is stopped for a while", name)
    with rig.servers[name].paused():
        yield


@contextmanager
def _postgres_restarted(rig: Rig, rng: random.Random) -> Iterator[None]:
    how = rng.choice((signal.SIGQUIT, signal.SIGINT))
    logger.info("PostgreSQL is ended by %s", how.name)
    rig.postgres.stop(how)
    yield


@contextmanager
def _connections_ended(rig: Rig, rng: random.Random) -> Iterator[None]:
    logger.info("PostgreSQL ends all connections")
    with contextlib.suppress(Exception):
        rig.postgres.query(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"
        )
    yield


@contextmanager
def _s3_killed(rig: Rig, rng: random.Random) -> Iterator[None]:
    logger.info("S3 is killed")
    rig.s3.kill()
    yield


@contextmanager
def _s3_answers_503(rig: Rig, rng: random.Random) -> Iterator[None]:
    worker = rng.choice(list(rig.workers.values()))
    logger.info("S3 answers 503 to worker %s", worker.name)
    worker.links["s3"].answer = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    yield


@contextmanager
def _link_cut(rig: Rig, rng: random.Random) -> Iterator[None]:
    who, server, link = _a_link(rig, rng)
    logger.info("%s and %s: nothing goes through", who, server)
    with link.held():
        yield


@contextmanager
def _link_reset(rig: Rig, rng: random.Random) -> Iterator[None]:
    who, server, link = _a_link(rig, rng)
    logger.info("%s and %s: connections are reset", who, server)
    with link.down():
        yield


def _a_link(rig: Rig, rng: random.Random) -> tuple[str, str, Link]:
    links = [(name, server, link) for name, worker in rig.workers.items() for server, link in worker.links.items()]
    for api in (rig.compute_api, rig.storage_api):
        links += [(api.name, server, link) for server, link in api.links.items() if server != "engine"]
        links.append(("clients", api.name, api.front))
    return rng.choice(links)


@contextmanager
def _engine_killed(rig: Rig, rng: random.Random) -> Iterator[None]:
    logger.info("the engine is killed")
    rig.dockerd.kill()
    yield


@contextmanager
def _power_cut(rig: Rig, rng: random.Random) -> Iterator[None]:
    logger.info("power cut: both workers, the engine and its containers")
    for worker in rig.workers.values():
        worker.kill()
    rig.dockerd.power_off()
    yield


FAULTS: tuple[Fault, ...] = (
    _worker_killed,
    _worker_killed,
    _pool_process_killed,
    _worker_stopped,
    _worker_told_to_stop,
    _worker_dies_at_a_failpoint,
    _worker_dies_at_a_failpoint,
    _api_killed,
    _redis_killed,
    _redis_loses_everything,
    _server_stopped,
    _postgres_restarted,
    _connections_ended,
    _s3_killed,
    _s3_answers_503,
    _link_cut,
    _link_cut,
    _link_reset,
    _engine_killed,
    _power_cut,
)
