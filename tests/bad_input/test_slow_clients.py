"""Clients that are slow on purpose, many at once: they take nothing from the others, and are cut off."""

from __future__ import annotations

import contextlib
import itertools
import socket
import threading
import time
from collections.abc import Iterator

import psutil
import pytest
import requests

from morpheo.api.connections import HEAD_S, PATIENCE_S, TURN_S
from morpheo.models import ArtifactKind
from tests.support.api_server import Server, head, migrate, receive, serving
from tests.support.services import wait_until

MANY = 200
#: More than have a turn at once, and few enough that all have one in time.
FEW = 16
OCTETS = "Content-Type: application/octet-stream"
ORDINARY_S = 5.0
BLOB = 32 << 20


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("data")
    migrate(folder)
    with serving("storage-api", folder, api_processes="2", max_requests_per_minute="0") as server:
        yield server


@contextlib.contextmanager
def slow(
    server: Server, beginning: bytes, drop: bytes = b"", *, receives: int = 0, many: int = MANY
) -> Iterator[list[socket.socket]]:
    """Open many connections that send a beginning, and then a drop now and then."""
    over = threading.Event()
    with contextlib.ExitStack() as stack:
        peers = []
        for _ in range(many):
            peer = stack.enter_context(socket.socket())
            if receives:
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receives)
            peer.connect(("127.0.0.1", server.port))
            peer.sendall(beginning)
            peers.append(peer)

        def drip() -> None:
            while not over.wait(1):
                for peer in peers:
                    with contextlib.suppress(OSError):
                        peer.send(drop)

        thread = threading.Thread(target=drip)
        thread.start()
        try:
            yield peers
        finally:
            over.set()
            thread.join()


def seconds_of_ordinary_requests(server: Server, number: int = 50) -> list[float]:
    """Return how long requests take that others make meanwhile, sorted."""
    took = []
    for _ in range(number):
        began = time.monotonic()
        assert requests.get(f"{server.url}/data", auth=("u", "p"), timeout=20).status_code == 200
        took.append(time.monotonic() - began)
    return sorted(took)


def uploads(server: Server, content: bytes) -> bool:
    """Try to upload; False if it should be tried again."""
    answer = requests.post(
        f"{server.url}/data",
        data=content,
        headers={"Content-Type": "application/octet-stream"},
        auth=("u", "p"),
        timeout=90,
    )
    assert answer.status_code in (201, 503), answer.text
    return answer.status_code == 201


def ports_of_clients(server: Server) -> set[int]:
    """Return the ports of those whose connections a server has."""
    found = [psutil.Process(pid).net_connections("tcp") for pid in server.pids()]
    return {item.raddr.port for item in itertools.chain(*found) if item.raddr}


def ended(peers: list[socket.socket], within_s: float) -> list[int]:
    """Return the statuses (0 is none) of the connections that the server has ended when some time is over."""
    deadline = time.monotonic() + within_s
    statuses = []
    for peer in peers:
        peer.settimeout(max(deadline - time.monotonic(), 0.01))
        with contextlib.suppress(TimeoutError):
            statuses.append(receive(peer)[0])
    return statuses


#: What a connection begins with, and what then drips.
HEADS: dict[str, tuple[bytes, bytes]] = {
    "56-head-of-letters": (b"GET /data HTTP/1.1\r\nHost: x\r\nA: ", b"a"),
    "56-nothing": (b"", b""),
    "57-small-body": (head("/data", OCTETS, "Content-Length: 1000"), b"x"),
    "57-head-after-a-request": (
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\nGET /data HTTP/1.1\r\nHost: x\r\nA: ",
        b"a",
    ),
}


def test_56_to_57_requests_that_do_not_come_take_nothing_and_are_cut(storage: Server) -> None:
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(slow(storage, *each, many=MANY // 2)) for each in HEADS.values()]
        took = seconds_of_ordinary_requests(storage)
        assert took[int(len(took) * 0.99) - 1] < ORDINARY_S
        statuses = ended(list(itertools.chain(*peers)), HEAD_S + 60 - (time.monotonic() - began))
        assert len(statuses) == len(HEADS) * MANY // 2


def test_57_large_bodies_that_drip_leave_threads_for_the_rest_and_are_cut(storage: Server) -> None:
    stored = storage.blobs()
    body = head("/data", OCTETS, "Content-Length: 1000000")
    with slow(storage, body, b"x", many=FEW) as peers:
        took = seconds_of_ordinary_requests(storage)
        assert took[int(len(took) * 0.99) - 1] < ORDINARY_S
        # An upload of somebody else has its turn when those before it are cut, or is told when to come again.
        wait_until(lambda: uploads(storage, b"honest" * 50_000), timeout_s=90, what="an upload of somebody else")
        assert receive(peers[0])[0] == 400
    wait_until(lambda: len(storage.blobs()) == len(stored) + 1, what="the rest of the uploads to be gone")


def test_57_more_large_bodies_than_have_a_turn_are_told_to_come_again(storage: Server) -> None:
    stored = storage.blobs()
    body = head("/data", OCTETS, "Content-Length: 1000000")
    with slow(storage, body, b"x") as peers:
        took = seconds_of_ordinary_requests(storage)
        assert took[int(len(took) * 0.99) - 1] < ORDINARY_S
        peers[-1].settimeout(TURN_S + 60)
        status, answer = receive(peers[-1])
        assert status == 503
        assert b"Retry-After: 10" in answer
        # Who goes on dripping after the answer may lose it by that.
        statuses = ended(peers, PATIENCE_S + 60)
        assert len(statuses) == MANY
        assert {400, 503} <= set(statuses) <= {0, 400, 503}
    wait_until(lambda: storage.blobs() == stored, what="the rest of the uploads to be gone")


def test_57_readers_that_take_nothing_leave_threads_for_the_rest_and_are_cut(storage: Server) -> None:
    content = bytes(BLOB)
    given = storage.storage.upload(ArtifactKind.DATA, content).id
    with slow(storage, head(f"/data/{given}/blob", method="GET"), receives=4096, many=FEW) as peers:
        took = seconds_of_ordinary_requests(storage)
        assert took[int(len(took) * 0.99) - 1] < ORDINARY_S
        assert storage.storage.read(ArtifactKind.DATA, given) == content
        ports = {peer.getsockname()[1] for peer in peers}
        wait_until(
            lambda: not ports & ports_of_clients(storage), timeout_s=180, what="the server to cut off slow readers"
        )
