"""The processes of Morpheo in a rig: workers and APIs, the links to the servers, and failpoints."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import requests

import morpheo
from morpheo.cli.worker import node_commands
from morpheo.config import PREFIX, Settings
from morpheo.failpoints import ACTIONS, FAILPOINTS
from tests.faults.links import Link
from tests.support.servers import PATIENCE_S, Server, lasting_port, wait_until
from tests.support.services import S3Server

#: User and password of both APIs.
LOGIN = ("u", "p")
#: Short times, so that faults are repaired soon; in seconds.
LEASE_S, HEARTBEAT_S, SWEEP_S, RETRY_DELAY_S, STOP_GRACE_S = 6.0, 1.0, 1.0, 0.2, 8.0
VISIBILITY_S, REPUBLISH_S, REPUBLISH_BUSY_S = 5.0, 4.0, 10.0
#: How long an S3 server may take for anything.
S3_GRACE_S = 6.0
#: How long a result waits for an S3 server.
STORE_FOR_S = 20.0
#: How long a statement may wait for a lock, and its answer for a server that hangs.
LOCK_TIMEOUT_S, ANSWER_S = 2, 10.0
MAX_ATTEMPTS = 3
SETTINGS = {
    "LEASE_S": LEASE_S,
    "HEARTBEAT_S": HEARTBEAT_S,
    "SWEEP_S": SWEEP_S,
    "RETRY_DELAY_S": RETRY_DELAY_S,
    "STOP_GRACE_S": STOP_GRACE_S,
    "MAX_ATTEMPTS": MAX_ATTEMPTS,
    "ENGINE_TIMEOUT_S": 12,
    "ENGINE_RETURN_S": 30,
    "BUILD_TIMEOUT_S": 60,
    "LEARN_TIMEOUT_S": 60,
    "PREDICT_TIMEOUT_S": 60,
    "MEMORY_BYTES": 64 << 20,
    "TMP_BYTES": 8 << 20,
    "API_PROCESSES": 1,
}
#: Where a worker finds what Celery is told; the times that are no settings are shortened here.
CELERY_CONFIG = f"""
import runpy
import morpheo.results
import morpheo.storage.database
import morpheo.storage.postgres
import morpheo.storage.s3
import morpheo.sweeper
globals().update(runpy.run_path({str(Path(morpheo.__file__).parents[1] / "celeryconfig.py")!r}))
broker_transport_options = {{
    **broker_transport_options,
    "visibility_timeout": {VISIBILITY_S},
    "unacked_restore_interval": 1,
    "unacked_restore_throttle": 1,
    "unacked_mutex_expire": 3,
}}
morpheo.results.STORE_FOR_S = {STORE_FOR_S}
morpheo.results.STORE_AGAIN_S = 0.5
morpheo.sweeper.REPUBLISH_S = {REPUBLISH_S}
morpheo.sweeper.REPUBLISH_BUSY_S = {REPUBLISH_BUSY_S}
morpheo.storage.database.LOCK_TIMEOUT_S = {LOCK_TIMEOUT_S}
morpheo.storage.postgres.ANSWER_S = {ANSWER_S}
morpheo.storage.s3.S3BlobStore.__init__.__kwdefaults__["grace_s"] = {S3_GRACE_S}
"""


class Worker:
    """
    A node: a worker with a data folder of its own, and its links.

    Args:
        name: Of the worker.
        data_dir: Its data folder.
        nodes: Its Celery nodes, by name.
        links: What it reaches the servers by.
    """

    def __init__(self, name: str, data_dir: Path, nodes: dict[str, Server], links: dict[str, Link]) -> None:
        self.name = name
        self.data_dir = data_dir
        self.nodes = nodes
        self.links = links
        self.failpoints = data_dir.parent / f"{name}-failpoints"
        self.failpoints.mkdir(exist_ok=True)

    @property
    def learn(self) -> Server:
        """The node that runs learn jobs."""
        return self.nodes[f"learn@{self.name}"]

    @property
    def work_dir(self) -> Path:
        """Where its workspaces are."""
        return self.data_dir / "work"

    @property
    def node_id(self) -> str:
        """What its containers are labelled with."""
        path = self.data_dir / "node-id"
        return path.read_text() if path.exists() else ""

    def workspaces(self) -> list[Path]:
        """Return its workspaces, of running attempts and of others."""
        return sorted(self.work_dir.iterdir()) if self.work_dir.is_dir() else []

    def start(self, *, wait: bool = True) -> None:
        """Start what of it does not run."""
        for node in self.nodes.values():
            node.start(wait=False)
        if wait:
            for node in self.nodes.values():
                node.wait_ready()

    def kill(self) -> None:
        """Kill all its processes, as a power cut does; its containers go on."""
        for node in self.nodes.values():
            node.kill()

    def pause(self) -> None:
        """Stop all its processes for a while."""
        for node in self.nodes.values():
            node.pause()

    def resume(self) -> None:
        """Let its processes go on."""
        for node in self.nodes.values():
            node.resume()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Stop all its processes during a block."""
        self.pause()
        try:
            yield
        finally:
            self.resume()

    def stop(self, *, timeout_s: float = PATIENCE_S) -> list[int]:
        """End it in order, and return the exit statuses."""
        for node in self.nodes.values():
            node.send(signal.SIGTERM)
        # Not told again: who is told twice does not finish anything.
        return [node.wait_ended(timeout_s=timeout_s) for node in self.nodes.values()]

    def heal(self) -> None:
        """Make it whole, without waiting until it is."""
        for link in self.links.values():
            link.heal()
        for node in self.nodes.values():
            node.heal()

    def arm(self, name: str, action: str, *, always: bool = False) -> None:
        """Let something happen at a failpoint: once, or each time until `disarm`."""
        arm(self.failpoints, name, action, always=always)

    def was_hit(self, name: str) -> bool:
        """Return whether the failpoint was reached since it was armed."""
        return (self.failpoints / f"{name}.hit").exists()

    def wait_hit(self, name: str) -> None:
        """Wait until an armed failpoint is reached."""
        wait_until(lambda: self.was_hit(name), timeout_s=PATIENCE_S, what=f"failpoint {name} of {self.name}")

    def go_on(self, name: str) -> None:
        """Let go who is held at a failpoint."""
        (self.failpoints / f"{name}.go").touch()

    def disarm(self) -> None:
        """Let nothing happen at failpoints any more; who is held goes on."""
        disarm(self.failpoints)


def arm(folder: Path, name: str, action: str, *, always: bool = False) -> None:
    """Let something happen at a failpoint of the processes that look into a folder."""
    assert name in FAILPOINTS
    assert action in ACTIONS
    for old in (f"{name}.hit", f"{name}.go"):
        (folder / old).unlink(missing_ok=True)
    new = folder / f"{name}.new"
    new.write_text(action)
    new.rename(folder / (f"{name}.always" if always else name))  # at once: half a word is no action


def disarm(folder: Path) -> None:
    """Let nothing happen at failpoints any more; who is held there goes on."""
    for path in list(folder.iterdir()):
        if path.suffix == ".hit":
            path.with_suffix(".go").touch()
        elif path.suffix != ".go":
            path.unlink(missing_ok=True)


class Api(Server):
    """An API and what it reaches the servers by."""

    links: dict[str, Link]
    failpoints: Path
    #: What clients reach it by.
    front: Link


def environment(name: str, links: dict[str, Link], folder: Path, **settings: str) -> dict[str, str]:
    """Return the environment of a process that reaches the servers by these links."""
    (folder / f"{name}-failpoints").mkdir(exist_ok=True)
    values: dict[str, object] = {
        **SETTINGS,
        "DATA_DIR": folder / name,
        "USER": LOGIN[0],
        "PASSWORD": LOGIN[1],
        "DATABASE_URL": f"postgresql+psycopg://postgres@{links['postgres'].address}/postgres",
        "BROKER_URL": f"redis://{links['redis'].address}/0",
        "S3_ENDPOINT": links["s3"].address,
        "S3_ACCESS_KEY": S3Server.access_key,
        "S3_SECRET_KEY": S3Server.secret_key,
        "S3_SECURE": "false",
        "DOCKER_HOST": f"unix://{links['engine'].address}",
        "FAILPOINTS": folder / f"{name}-failpoints",
        **settings,
    }
    # Without compiled files, the start of a process takes half as long again.
    left_out = {"PYTHONDONTWRITEBYTECODE"}
    kept = {key: value for key, value in os.environ.items() if not key.startswith(PREFIX) and key not in left_out}
    return {
        **kept,
        **{PREFIX + key: str(value) for key, value in values.items()},
        "REMAP_SIGTERM": "SIGQUIT",  # as `morpheo worker` does
        "PYTHONUNBUFFERED": "1",
    }


def make_api(name: str, folder: Path, links: dict[str, Link], front: Callable[[str], Link]) -> Api:
    """Return an API that is not started yet."""
    port = lasting_port()
    command = [sys.executable, "-m", "morpheo", f"{name}-api", "--port", str(port)]
    api = Api(name, command, folder, lambda: is_well(port), environment=environment(name, links, folder))
    api.links, api.front, api.failpoints = links, front(f"127.0.0.1:{port}"), folder / f"{name}-failpoints"
    return api


def is_well(port: int) -> bool:
    """Return whether an API listens and says that it is well."""
    with contextlib.suppress(requests.RequestException):
        return requests.get(f"http://127.0.0.1:{port}/health", timeout=2).ok
    return False


def make_worker(name: str, folder: Path, links: dict[str, Link], *, kinds: Iterable[str], slots: int) -> Worker:
    """Return a worker that is not started yet."""
    kinds = tuple(kinds)
    words = {f"{kind.upper()}_PARALLELISM": str(slots) for kind in kinds}
    # The nodes themselves, as `morpheo worker` would start them: that takes twice as long.
    settings = Settings(queues=kinds, learn_parallelism=slots, predict_parallelism=slots, data_dir=folder)
    surroundings = environment(name, links, folder, QUEUES=",".join(kinds), **words)
    nodes: dict[str, Server] = {
        node: Node(node, command, folder, surroundings) for node, command in node_commands(settings, name).items()
    }
    return Worker(name, folder / name, nodes, links)


class Node(Server):
    """A Celery node."""

    def __init__(self, name: str, command: list[str], folder: Path, environment: dict[str, str]) -> None:
        super().__init__(name, command, folder, lambda: " ready." in self.new_log(), environment=environment)
