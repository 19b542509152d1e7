"""The APIs as they run: gunicorn, child processes, sockets that break."""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID, uuid4

import pytest
import requests

from morpheo.client import ComputeClient
from morpheo.errors import ApiError
from morpheo.models import ArtifactKind
from morpheo.testing import make_learn_spec
from tests.support.api import BOUNDARY, form, part
from tests.support.api_server import Server, chunk, head, migrate, receive, serving, talk
from tests.support.services import wait_until

MIB = 1 << 20
AUTH = ("u", "p")
OCTETS = "Content-Type: application/octet-stream"
MULTIPART = f"Content-Type: multipart/form-data; boundary={BOUNDARY}"


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    migrate(folder)
    return folder


@pytest.fixture(scope="module")
def storage(data_dir: Path) -> Iterator[Server]:
    with serving("storage-api", data_dir, api_processes="2") as server:
        yield server


@pytest.fixture(scope="module")
def compute(data_dir: Path) -> Iterator[Server]:
    # Nothing listens on the broker's port: orders are accepted all the same.
    with serving("compute-api", data_dir, api_processes="1", broker_url="redis://127.0.0.1:1/0") as server:
        yield server


def total(server: Server, kind: str = "data") -> int:
    return int(requests.get(f"{server.url}/{kind}", auth=AUTH, timeout=20).json()["total"])


def status_of(server: Server, path: str) -> int:
    return requests.get(server.url + path, auth=AUTH, timeout=20).status_code


FORM: bytes = form({"size": 666, "blob": b"x" * 1000})["data"]


CHUNKED = "Transfer-Encoding: chunked"


@pytest.mark.parametrize("content_type", [OCTETS, MULTIPART], ids=["raw", "form"])
def test_a_chunked_upload_is_stored_with_its_counted_size(storage: Server, content_type: str) -> None:
    body = b"x" * 1000 if content_type == OCTETS else FORM
    pieces = [chunk(body[start : start + 77]) for start in range(0, len(body), 77)]
    request = head("/data", content_type, CHUNKED, "Connection: close") + b"".join(pieces) + chunk(b"")
    status, answer = talk(storage, request, half_close=False)
    assert (status, b'"size":1000' in answer) == (201, True), answer


@pytest.mark.parametrize("attempt", range(3))
@pytest.mark.parametrize("content_type", [OCTETS, MULTIPART], ids=["raw", "form"])
def test_an_early_conflict_reaches_a_client_that_is_still_sending(
    storage: Server, content_type: str, attempt: int
) -> None:
    taken = storage.storage.upload(ArtifactKind.DATA, b"abc").id
    before = storage.blobs()
    start = part("uuid", taken) + part("size", 1) + part("blob", b"") if content_type == MULTIPART else b""
    client = http.client.HTTPConnection("127.0.0.1", storage.port, timeout=20)
    client.putrequest("POST", f"/data?uuid={taken}" if content_type == OCTETS else "/data")
    for name, value in (content_type.split(": "), ("Authorization", "Basic dTpw"), ("Content-Length", str(64 * MIB))):
        client.putheader(name, value)
    client.endheaders(start)
    try:
        for _ in range(64):
            client.send(b"x" * MIB)
    except (BrokenPipeError, ConnectionResetError):
        pass  # as `requests` and curl take it: the answer may be there
    answer = client.getresponse()
    assert (answer.status, answer.reason) == (409, "Conflict")
    assert str(taken).encode() in answer.read()
    client.close()
    assert storage.blobs() == before


def test_an_early_answer_reaches_the_python_clients(storage: Server, tmp_path: Path) -> None:
    taken = storage.storage.upload(ArtifactKind.DATA, b"abc").id
    large = tmp_path / "large"
    large.write_bytes(bytes(32 * MIB))
    with pytest.raises(ApiError, match="already exist") as conflict:
        storage.storage.upload(ArtifactKind.DATA, large, id=taken)
    assert conflict.value.status == 409
    with large.open("rb") as file:
        answer = requests.post(storage.url + "/data", data=file, auth=("u", "wrong"), timeout=20)
    assert (answer.status_code, answer.headers["WWW-Authenticate"][:6]) == (401, "Basic ")


def memory_bytes(server: Server, field: str) -> int:
    found = (re.search(rf"{field}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text()) for pid in server.pids())
    return sum(int(match[1]) << 10 for match in found if match)


def test_a_large_blob_goes_in_and_out_in_bounded_memory(storage: Server, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    digest = hashlib.sha256()
    with source.open("wb") as file:
        for _ in range(20):
            block = os.urandom(10 * MIB)
            digest.update(block)
            file.write(block)
    for pid in storage.pids():
        Path(f"/proc/{pid}/clear_refs").write_text("5")  # the peak begins anew
    before = memory_bytes(storage, "VmHWM")
    moved: list[int] = []
    stored = storage.storage.upload(ArtifactKind.DATA, source, progress=moved.append)
    assert (stored.sha256, stored.size_bytes, sum(moved)) == (digest.hexdigest(), 200 * MIB, 200 * MIB)
    with source.open("rb") as file:
        fields = part("size", 1) + f"--{BOUNDARY}\r\nContent-Disposition: form-data; name=blob\r\n\r\n".encode()
        pieces = [fields, *iter(lambda: file.read(MIB), b""), f"\r\n--{BOUNDARY}--".encode()]
        headers = {"Content-Type": MULTIPART.partition(": ")[2]}
        form_answer = requests.post(storage.url + "/data", data=iter(pieces), headers=headers, auth=AUTH, timeout=60)
    assert (form_answer.status_code, form_answer.json()["sha256"]) == (201, stored.sha256)
    moved.clear()
    storage.storage.download(ArtifactKind.DATA, stored.id, target, progress=moved.append)
    with target.open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == stored.sha256
    assert sum(moved) == 200 * MIB
    assert memory_bytes(storage, "VmHWM") - before < 64 * MIB


def test_a_server_that_is_killed_in_mid_upload_leaves_no_visible_artifact(data_dir: Path) -> None:
    given = uuid4()
    with serving("storage-api", data_dir, api_processes="1") as server, server.connect() as peer:
        before = server.blobs()
        peer.sendall(head(f"/data?uuid={given}", OCTETS, "Content-Length: 1000000") + b"x" * 500_000)
        wait_until(lambda: server.blobs() != before, what="the upload's temporary file")
        os.killpg(server.process.pid, signal.SIGKILL)
        server.process.wait(10)
    with serving("storage-api", data_dir, api_processes="1") as server:
        assert status_of(server, f"/data/{given}") == 404
        assert server.storage.upload(ArtifactKind.DATA, b"abc", id=given).id == given


@pytest.mark.parametrize("command", ["storage-api", "compute-api", "orchestrator-api"])
def test_sigterm_ends_a_server(data_dir: Path, command: str) -> None:
    with serving(command, data_dir, api_processes="1") as server:
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(90) == 0
        with pytest.raises(ConnectionRefusedError):
            server.connect()


def test_sigterm_lets_an_upload_end(data_dir: Path) -> None:
    given = uuid4()
    with serving("storage-api", data_dir, api_processes="1") as server, server.connect() as peer:
        before = server.blobs()
        half = b"x" * (1 << 20)
        length = f"Content-Length: {2 * len(half)}"
        peer.sendall(head(f"/data?uuid={given}", OCTETS, length, "Connection: close") + half)
        wait_until(lambda: server.blobs() != before, what="the upload's temporary file")
        server.process.send_signal(signal.SIGTERM)
        peer.sendall(half)
        assert receive(peer)[0] == 201
        assert server.process.wait(90) == 0


def test_the_client_lists_all_pages(storage: Server) -> None:
    client = storage.storage
    word = uuid4().hex
    stored = [client.upload(ArtifactKind.ALGO, b"a", name=f"{number} of {word}") for number in range(5)]
    client.upload(ArtifactKind.ALGO, b"a", name="another")
    listed = list(client.list(ArtifactKind.ALGO, name=word.upper(), page_size=2))
    assert sorted(listed, key=lambda item: item.name) == stored
    assert [client.get(ArtifactKind.ALGO, item.id) for item in stored] == stored


def test_the_clients_order_and_follow_a_job(storage: Server, compute: Server) -> None:
    client = storage.storage
    problem = client.upload(ArtifactKind.PROBLEM, b"p", name="n", description="d")
    algo = client.upload(ArtifactKind.ALGO, b"a", name="n")
    train, test = (client.upload(ArtifactKind.DATA, content).id for content in (b"1", b"2"))
    spec = make_learn_spec(workflow=problem.id, algo=algo.id, train_data=(train,), test_data=(test,))
    orders = ComputeClient(compute.url, user="u", password="p")
    job = orders.submit(spec)
    assert (job.spec, job.state, orders.submit(spec)) == (spec, "queued", job)
    assert [item.id for item in orders.jobs(algo=algo.id)] == [spec.id]
    assert orders.logs(spec.id) == ""
    assert orders.cancel(spec.id).state == "cancelled"
    assert orders.wait(spec.id, timeout_s=5).state == "cancelled"
    with pytest.raises(ApiError) as unknown:
        orders.job(UUID(int=1))
    assert unknown.value.status == 404
