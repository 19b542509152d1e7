"""Bad input that only a real connection has: cut, reset, malformed, slow. Ids begin with the case number."""

from __future__ import annotations

import re
import socket
import struct
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

import pytest
import requests

from morpheo.models import ArtifactKind
from tests.support.api import BOUNDARY, form
from tests.support.api_server import Server, chunk, head, migrate, serving, talk
from tests.support.services import wait_until

AUTH = ("u", "p")
OCTETS = "Content-Type: application/octet-stream"
MULTIPART = f"Content-Type: multipart/form-data; boundary={BOUNDARY}"
CHUNKED = "Transfer-Encoding: chunked"


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    migrate(folder)
    return folder


@pytest.fixture(scope="module")
def storage(data_dir: Path) -> Iterator[Server]:
    with serving("storage-api", data_dir, api_processes="2") as server:
        yield server
        for log in data_dir.glob("storage-api-*.log"):
            assert log.read_text().replace("\n", "").isprintable(), "a payload is in the log as it came"


@pytest.fixture(scope="module")
def compute(data_dir: Path) -> Iterator[Server]:
    # Nothing listens on the broker's port: orders are accepted all the same.
    with serving("compute-api", data_dir, api_processes="1", broker_url="redis://127.0.0.1:1/0") as server:
        yield server


def total(server: Server, kind: str = "data") -> int:
    return int(requests.get(f"{server.url}/{kind}", auth=AUTH, timeout=20).json()["total"])


FORM: bytes = form({"size": 666, "blob": b"x" * 1000})["data"]


CUT_FORM = FORM[: -len(f"--{BOUNDARY}--\r\n")]


BROKEN = {
    "35-raw-shorter-than-announced": head("/data", OCTETS, "Content-Length: 1000") + b"x" * 10,
    "35-raw-without-any-byte": head("/data", OCTETS, "Content-Length: 1000"),
    "35-form-shorter-than-announced": head("/data", MULTIPART, f"Content-Length: {len(FORM) + 1}") + FORM,
    "31-form-cut": head("/data", MULTIPART, f"Content-Length: {len(CUT_FORM)}") + CUT_FORM,
    "35-form-cut-in-the-blob": head("/data", MULTIPART, f"Content-Length: {len(FORM)}") + FORM[:-500],
    "37-chunked-cut-between-chunks": head("/data", OCTETS, CHUNKED) + chunk(b"x" * 1000),
    "37-chunked-cut-in-a-chunk": head("/data", OCTETS, CHUNKED) + chunk(b"x" * 1000)[:-500],
    "37-chunked-cut-before-the-last-line": head("/data", OCTETS, CHUNKED) + chunk(b"x") + b"0\r\n",
    "37-chunked-of-nonsense": head("/data", OCTETS, CHUNKED) + b"xyz\r\n" + b"x" * 10,
    "37-chunked-form-cut": head("/data", MULTIPART, CHUNKED) + chunk(CUT_FORM) + chunk(b""),
    "37-chunked-empty": head("/data", OCTETS, CHUNKED) + b"0\r\n\r\n",
    "38-no-length-at-all": head("/data", OCTETS) + b"x" * 10,
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_35_to_37_a_body_that_ends_early_is_refused_and_nothing_is_stored(storage: Server, content: bytes) -> None:
    before = total(storage), storage.blobs()
    status, answer = talk(storage, content)
    assert status == 400, answer
    assert b"application/problem+json" in answer
    assert (total(storage), storage.blobs()) == before


def test_35_an_order_that_ends_early_is_refused(compute: Server) -> None:
    status, answer = talk(compute, head("/learn", "Content-Length: 1000") + b"{}")
    assert status == 400, answer
    assert b"Content-Length says 1000" in answer


@pytest.mark.parametrize("framing", ["Content-Length: 1000000", CHUNKED], ids=["length", "chunked"])
def test_36_a_reset_in_mid_body_stores_nothing_and_leaves_the_id_free(storage: Server, framing: str) -> None:
    given = uuid4()
    before = total(storage), storage.blobs()
    with storage.connect() as peer:
        peer.sendall(
            head(f"/data?uuid={given}", OCTETS, framing) + (b"" if framing != CHUNKED else b"f4240\r\n") + b"x" * 5000
        )
        wait_until(lambda: storage.blobs() != before[1], what="the upload's temporary file")
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    wait_until(lambda: storage.blobs() == before[1], what="the removal of the temporary file")
    assert total(storage) == before[0]
    assert storage.storage.upload(ArtifactKind.DATA, b"abc", id=given).size_bytes == 3


def test_43_of_ten_uploads_of_one_id_one_wins_and_its_blob_is_the_one(storage: Server) -> None:
    given = uuid4()
    before = len(storage.blobs())
    contents = [bytes([number]) * 100_000 for number in range(10)]
    barrier = threading.Barrier(10)

    def upload(content: bytes) -> requests.Response:
        barrier.wait()
        request = form({"uuid": given, "size": 1, "blob": content})
        headers = {"Content-Type": request["content_type"]}
        return requests.post(storage.url + "/data", data=request["data"], headers=headers, auth=AUTH, timeout=30)

    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(upload, contents))
    assert sorted(answer.status_code for answer in answers) == [201] + [409] * 9
    assert {answer.reason for answer in answers if answer.status_code == 409} == {"Conflict"}
    winner = next(number for number, answer in enumerate(answers) if answer.status_code == 201)
    assert storage.storage.read(ArtifactKind.DATA, given) == contents[winner]
    assert len(storage.blobs()) == before + 1


LINE = "GET /health HTTP/1.1\r\nHost: x\r\n"


MALFORMED = {
    "46-expect-with-bad-auth": (head("/data", "Content-Length: 9", "Expect: 100-continue", password="x"), {401}),
    "50-two-lengths": (head("/data", OCTETS, "Content-Length: 3", "Content-Length: 4") + b"abcd", {400}),
    "50-length-and-chunked": (head("/data", OCTETS, "Content-Length: 3", CHUNKED) + chunk(b"abc") + chunk(b""), {400}),
    "50-negative-length": (head("/data", OCTETS, "Content-Length: -5") + b"abcd", {400}),
    "50-letters-as-length": (head("/data", OCTETS, "Content-Length: abc") + b"abcd", {400}),
    "51-folded-header": (f"{LINE}A: b\r\n c\r\n\r\n".encode(), {400}),
    "51-space-before-colon": (f"{LINE}A : b\r\n\r\n".encode(), {400}),
    "51-nul-in-a-header": (f"{LINE}A: b\0c\r\n\r\n".encode(), {400}),
    "52-long-line": (f"GET /{'x' * 9000} HTTP/1.1\r\nHost: x\r\n\r\n".encode(), {400, 414}),
    "53-many-headers": ((LINE + "A: b\r\n" * 200 + "\r\n").encode(), {400, 431}),
    "53-long-header": (f"{LINE}A: {'x' * 20_000}\r\n\r\n".encode(), {400, 431}),
    "54-unknown-method": (head("/data", method="FROB"), {405}),
    "54-lower-case-method": (head("/data", method="get"), {400, 405}),
    "54-tls": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", {0, 400}),
}


@pytest.mark.parametrize(("content", "statuses"), MALFORMED.values(), ids=MALFORMED)
def test_46_to_54_a_malformed_request_is_refused_and_the_service_lives_on(
    storage: Server, content: bytes, statuses: set[int]
) -> None:
    before = total(storage), storage.blobs()
    status, answer = talk(storage, content)
    if status == 100:  # gunicorn says so before it asks the application
        status = int(answer.split(b"HTTP/1.1 ")[2][:3])
    assert status in statuses, answer
    assert (total(storage), storage.blobs()) == before


def test_58_what_follows_a_refused_upload_is_not_taken_for_a_request(storage: Server) -> None:
    smuggled = head("/data", OCTETS, "Content-Length: 3") + b"abc"
    refused = head("/data", OCTETS, f"Content-Length: {len(smuggled)}", password="x") + smuggled
    before = total(storage)
    status, answer = talk(storage, refused + head("/data", method="GET"))
    assert status == 401
    assert re.findall(rb"HTTP/1.1 (\d{3})", answer) in ([b"401"], [b"401", b"200"])
    assert total(storage) == before
