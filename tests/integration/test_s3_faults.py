"""The S3 store on a bad line, and what uploads leave that never ended."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import io
import os
import threading
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from morpheo.errors import StorageUnavailable
from morpheo.storage.s3 import S3BlobStore
from tests.support.lines import DOWN, UP, Cut, Line, bad_line
from tests.support.services import S3Server

pytestmark = [pytest.mark.s3, pytest.mark.timeout(120)]

MIB = 1 << 20


def make_store(s3: S3Server, endpoint: str, bucket: str, **options: Any) -> S3BlobStore:
    return S3BlobStore(
        endpoint,
        bucket=bucket,
        access_key=s3.access_key,
        secret_key=s3.secret_key,
        region="us-east-1",
        secure=False,
        **options,
    )


@pytest.fixture
def bucket() -> str:
    return f"test-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def line(s3: S3Server) -> Iterator[Line]:
    with bad_line(s3.endpoint) as opened:
        yield opened


@pytest.fixture
def store(s3: S3Server, line: Line, bucket: str) -> S3BlobStore:
    opened = make_store(s3, line.endpoint, bucket)
    opened.check()
    return opened


def read(store: S3BlobStore, key: str, **span: int) -> bytes:
    with store.get(key, **span) as pieces:
        return b"".join(pieces)


def unfinished(store: S3BlobStore) -> list[str]:
    return sorted(upload.object_name for upload in store._uploads())


@pytest.mark.parametrize("span", [{}, {"offset": 1000, "length": 4 * MIB}], ids=["whole", "range"])
def test_a_download_that_breaks_off_goes_on_where_it_was(store: S3BlobStore, line: Line, span: dict[str, int]) -> None:
    content = os.urandom(5 * MIB)
    store.put("data/1/a", io.BytesIO(content), length=len(content))
    line.cuts = [Cut(DOWN, 0), Cut(DOWN, 1), Cut(DOWN, 2 * MIB), Cut(DOWN, MIB)]
    start, length = span.get("offset", 0), span.get("length", len(content))
    assert read(store, "data/1/a", **span) == content[start : start + length]
    assert [cut.times for cut in line.cuts] == [0, 0, 0, 0]


def test_a_download_that_breaks_off_again_and_again_is_given_up(store: S3BlobStore, line: Line) -> None:
    content = os.urandom(MIB)
    store.put("data/1/a", io.BytesIO(content), length=len(content))
    line.cuts = [Cut(DOWN, 0, times=1000, request=b"GET")]
    with pytest.raises(StorageUnavailable):
        read(store, "data/1/a", offset=1)
    assert line.cuts[0].times > 980


@pytest.mark.parametrize(("size", "after"), [(MIB, 0), (MIB, 1), (MIB, MIB // 2), (12 * MIB, 5 * MIB)])
def test_an_upload_that_breaks_off_is_sent_again(store: S3BlobStore, line: Line, size: int, after: int) -> None:
    content = os.urandom(size)
    line.cuts = [Cut(UP, after, times=2, request=b"PUT")]
    assert store.put("data/1/a", io.BytesIO(content), length=size) == size
    assert line.cuts[0].times == 0
    assert hashlib.sha256(read(store, "data/1/a")).digest() == hashlib.sha256(content).digest()


@pytest.mark.parametrize(
    ("size", "cut"),
    [(MIB, Cut(DOWN, 0, times=4, request=b"PUT")), (12 * MIB, Cut(DOWN, 0, times=1, request=b"?uploadId="))],
    ids=["at-once", "in-parts"],
)
def test_an_upload_whose_answer_is_lost_has_arrived(store: S3BlobStore, line: Line, size: int, cut: Cut) -> None:
    content = os.urandom(size)
    if size > 5 * MIB:
        cut.request = b"POST /"  # the first POST begins the upload, the second ends it
        cut.times = 0
        begun = threading.Event()

        class Source(io.BytesIO):
            def read(self, count: int | None = -1, /) -> bytes:
                piece = super().read(count)
                if not piece and not begun.is_set():  # all is read: the next POST is the last
                    begun.set()
                    cut.times = 1
                return piece

        source: io.BytesIO = Source(content)
    else:
        source = io.BytesIO(content)
    line.cuts = [cut]
    assert store.put("data/1/a", source, length=size) == size
    assert cut.times == 0
    assert hashlib.sha256(read(store, "data/1/a")).digest() == hashlib.sha256(content).digest()
    assert unfinished(store) == []


def test_an_upload_that_never_arrives_is_an_outage_and_leaves_nothing(store: S3BlobStore, line: Line) -> None:
    line.cuts = [Cut(UP, 1000, times=1000, request=b"PUT")]
    with pytest.raises(StorageUnavailable):
        store.put("data/1/a", io.BytesIO(os.urandom(MIB)), length=MIB)
    with pytest.raises(StorageUnavailable):
        store.put("data/1/b", io.BytesIO(os.urandom(12 * MIB)), length=12 * MIB)
    line.cuts = []
    assert list(store.list()) == []
    assert unfinished(store) == []


@pytest.mark.parametrize("what", ["get", "put", "stat"])
def test_a_server_that_drips_is_not_waited_for(s3: S3Server, line: Line, bucket: str, what: str) -> None:
    content = os.urandom(MIB)
    make_store(s3, s3.endpoint, bucket).put("data/1/a", io.BytesIO(content), length=MIB)
    store = make_store(s3, line.endpoint, bucket, grace_s=1)
    store.check()
    began = time.monotonic()
    if what == "get":
        # Told beforehand: what the line has passed on already could be all of it.
        line.drip_s, line.drip_after = 0.01, MIB // 2
        slow = pytest.raises(StorageUnavailable, match=r"too slow|does not answer")
        with store.get("data/1/a") as pieces, slow:
            b"".join(pieces)
    else:
        line.drip_s = 0.01  # an answer has some hundred bytes: no single wait is long
        with pytest.raises(StorageUnavailable):
            store.stat("data/1/a") if what == "stat" else store.put("data/1/b", io.BytesIO(content), length=MIB)
    assert time.monotonic() - began < 30


def test_uploads_in_parts_that_never_ended_are_swept_and_those_under_way_are_not(s3_blobs: S3BlobStore) -> None:
    s3_blobs.put("data/1/whole", io.BytesIO(b"x"))
    for name in ("data/1/a", "data/1/b"):
        upload = s3_blobs._client._create_multipart_upload(s3_blobs._bucket, name, {})
        s3_blobs._client._upload_part(s3_blobs._bucket, name, b"x" * 5 * MIB, None, upload, 1)
    assert unfinished(s3_blobs) == ["data/1/a", "data/1/b"]
    assert s3_blobs.sweep(datetime.now(UTC) - timedelta(days=1)) == 0
    assert unfinished(s3_blobs) == ["data/1/a", "data/1/b"]
    assert s3_blobs.sweep(datetime.now(UTC) + timedelta(minutes=1)) == 2
    assert unfinished(s3_blobs) == []
    assert [blob.key for blob in s3_blobs.list()] == ["data/1/whole"]


@contextlib.contextmanager
def refusing(status: int, code: str) -> Iterator[str]:
    """Answer every request with an error of S3."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def refuse(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            body = f"<Error><Code>{code}</Code><Message>no</Message><Resource>/</Resource></Error>".encode()
            self.send_response(status if self.command == "PUT" else 200)
            self.send_header("Content-Type", "application/xml")
            self.send_header("Content-Length", str(0 if self.command == "HEAD" else len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = refuse  # noqa: N815 - the library's names

        def log_message(self, *_args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_bucket_that_is_not_there_is_an_outage_and_no_lost_blob(s3: S3Server, bucket: str) -> None:
    """Or each job would put what it needs into quarantine, one after the other."""
    store = make_store(s3, s3.endpoint, bucket)
    with pytest.raises(StorageUnavailable, match="no such bucket"), store.get("data/1/a"):
        pytest.fail("there is nothing")
    assert list(store.list()) == []
    store.delete("data/1/a")


@pytest.mark.parametrize(
    ("status", "code", "said"),
    [(507, "XMinioStorageFull", "has no room left"), (503, "SlowDown", "does not answer"), (500, "x", "not answer")],
)
def test_a_server_that_is_full_or_busy_is_an_outage_in_words(s3: S3Server, status: int, code: str, said: str) -> None:
    with refusing(status, code) as endpoint:
        store = make_store(s3, endpoint, "bucket")
        with pytest.raises(StorageUnavailable, match=said):
            store.put("data/1/a", io.BytesIO(b"x"), length=1)
