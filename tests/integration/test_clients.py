"""The Python clients and a service that fails: what is tried again, what is not, and what a broken transfer leaves."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from uuid import uuid4

import pytest

from morpheo.client import ComputeClient, StorageClient
from morpheo.client.storage import CHUNK_SIZE
from morpheo.errors import ApiError, ApiUnavailable, CorruptBlob
from morpheo.models import ArtifactKind
from morpheo.testing import make_learn_spec

EMPTY_LIST = b'{"page": 0, "length": 0, "items": [], "total": 0}'
CONTENT = b"0123456789" * CHUNK_SIZE
Answer = Callable[[BaseHTTPRequestHandler], None]


@dataclass
class Stub:
    """A service that gives prepared answers, the last one for ever."""

    url: str
    answers: list[Answer] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    @property
    def storage(self) -> StorageClient:
        return StorageClient(self.url, user="u", password="p")


def answering(status: int, body: bytes = b"", *, length: int | None = None, **headers: str) -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", str(len(body) if length is None else length))
        handler.send_header("Connection", "close")  # or a client that is faster than the end asks on it once more
        handler.end_headers()
        handler.wfile.write(body)
        handler.close_connection = True

    return answer


def hanging_up(handler: BaseHTTPRequestHandler) -> None:
    handler.close_connection = True


@pytest.fixture
def stub() -> Iterator[Stub]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            prepared.asked.append(f"{self.command} {self.path}")
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            (prepared.answers.pop(0) if len(prepared.answers) > 1 else prepared.answers[0])(self)

        do_GET = do_POST = _answer  # noqa: N815 - as the base class calls them

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as the base class calls it
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        prepared = Stub(f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield prepared
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("failure", [answering(503), answering(502), hanging_up], ids=["503", "502", "hang-up"])
def test_a_get_is_tried_again(stub: Stub, failure: Answer) -> None:
    stub.answers = [failure, failure, answering(200, EMPTY_LIST)]
    assert list(stub.storage.list(ArtifactKind.DATA)) == []
    assert len(stub.asked) == 3


def test_a_get_is_not_tried_for_ever(stub: Stub) -> None:
    stub.answers = [answering(503, b'{"error": "the database does not answer"}', Retry_After="0")]
    with pytest.raises(ApiError, match="the database does not answer") as caught:
        list(stub.storage.list(ArtifactKind.DATA))
    assert (caught.value.status, len(stub.asked)) == (503, 4)


@pytest.mark.parametrize(
    ("failure", "error"), [(answering(503), ApiError), (hanging_up, ApiUnavailable)], ids=["503", "hang-up"]
)
@pytest.mark.parametrize("act", ["upload", "order", "cancel"])
def test_what_changes_something_is_sent_once(stub: Stub, act: str, failure: Answer, error: type[Exception]) -> None:
    stub.answers = [failure]
    acts: dict[str, Callable[[], object]] = {
        "upload": lambda: stub.storage.upload(ArtifactKind.DATA, b"abc"),
        "order": lambda: ComputeClient(stub.url).submit(make_learn_spec()),
        "cancel": lambda: ComputeClient(stub.url).cancel(uuid4()),
    }
    with pytest.raises(error):
        acts[act]()
    assert len(stub.asked) == 1


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"error": "of storage"}', "of storage"),
        (b'{"Error": "of the orchestrator"}', "of the orchestrator"),
        (b'{"Error": "wrong key", "detail": "wrong key: uuid is missing"}', "wrong key: uuid is missing"),
    ],
    ids=["error", "Error", "detail"],
)
def test_an_error_is_told_in_the_words_of_the_service(stub: Stub, body: bytes, message: str) -> None:
    stub.answers = [answering(400, body)]
    with pytest.raises(ApiError) as caught:
        stub.storage.get(ArtifactKind.DATA, uuid4())
    assert (str(caught.value), caught.value.status) == (message, 400)


@pytest.mark.parametrize("body", [b"<html>", b"[]", b"{}", b"\xff"], ids=["html", "list", "no-error", "binary"])
def test_an_error_of_somebody_else_is_told_by_its_status(stub: Stub, body: bytes) -> None:
    stub.answers = [answering(404, body)]
    with pytest.raises(ApiError, match="404 Not Found"):
        stub.storage.get(ArtifactKind.DATA, uuid4())


def test_a_service_that_is_not_there_is_said_to_be() -> None:
    client = StorageClient("http://127.0.0.1:1", user="u", password="p")
    with pytest.raises(ApiUnavailable, match=r"no answer from http://127\.0\.0\.1:1; is it running\?"):
        client.upload(ArtifactKind.DATA, b"abc")


SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.mark.parametrize("tag", [f'"{SHA256}"', f'W/"{SHA256}"'], ids=["strong", "weak"])
def test_a_download_appears_whole(stub: Stub, tmp_path: Path, tag: str) -> None:
    stub.answers = [answering(200, CONTENT, ETag=tag)]
    moved: list[int] = []
    stub.storage.download(ArtifactKind.DATA, uuid4(), tmp_path / "target", progress=moved.append)
    assert (tmp_path / "target").read_bytes() == CONTENT
    assert sum(moved) == len(CONTENT)
    assert len(moved) > 1


@pytest.mark.parametrize(
    ("failure", "error"),
    [
        (answering(200, CONTENT[:-1] + b"x", ETag=f'"{SHA256}"'), CorruptBlob),
        (answering(200, CONTENT[:-1], ETag=f'"{SHA256}"'), CorruptBlob),
        (answering(200, CONTENT[:-1], length=len(CONTENT), ETag=f'"{SHA256}"'), ApiUnavailable),
        (answering(404, b'{"error": "data not found"}'), ApiError),
    ],
    ids=["changed", "shorter", "cut-off", "not-there"],
)
def test_a_download_that_goes_wrong_leaves_the_old_file_and_no_other(
    stub: Stub, tmp_path: Path, failure: Answer, error: type[Exception]
) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"old")
    stub.answers = [failure]
    with pytest.raises(error):
        stub.storage.download(ArtifactKind.DATA, uuid4(), target)
    assert target.read_bytes() == b"old"
    assert list(tmp_path.glob("*target*")) == [target]


def test_a_blob_that_is_read_is_checked_too(stub: Stub) -> None:
    stub.answers = [answering(200, b"other", ETag=f'"{SHA256}"')]
    with pytest.raises(CorruptBlob):
        stub.storage.read(ArtifactKind.DATA, uuid4())
