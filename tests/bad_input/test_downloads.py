"""Ranges and conditions that make no sense: never more than one part, never another blob."""

from __future__ import annotations

import hashlib
from uuid import uuid4

import pytest

from morpheo.api.storage import create_storage_app
from morpheo.storage.database import Database
from tests.support.api import Service

TEN = b"0123456789"
SHA256 = hashlib.sha256(TEN).hexdigest()
ETAG = f'"{SHA256}"'
PATH = f"/data/{uuid4()}/blob"


@pytest.fixture
def storage(sqlite: Database) -> Service:
    """A service that has ten bytes under `PATH`."""
    service = Service(create_storage_app, sqlite)
    uuid = PATH.split("/")[2]
    answer = service.post("/data", query_string={"uuid": uuid}, data=TEN, content_type="application/octet-stream")
    assert answer.status_code == 201
    return service


@pytest.mark.parametrize(
    ("asked", "start", "stop"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=-5", 5, 10),
        ("bytes=5-", 5, 10),
        ("bytes=2-4", 2, 5),
        ("bytes=9-9", 9, 10),
        ("bytes=0-9", 0, 10),
        ("bytes=0-", 0, 10),
        ("bytes=8-99", 8, 10),
        ("bytes=-99", 0, 10),
    ],
    ids=str,
)
def test_48_one_range_is_answered_with_that_part(storage: Service, asked: str, start: int, stop: int) -> None:
    answer = storage.get(PATH, headers={"Range": asked})
    assert (answer.status_code, answer.data) == (206, TEN[start:stop])
    assert answer.headers["Content-Range"] == f"bytes {start}-{stop - 1}/10"
    assert answer.headers["Content-Length"] == str(stop - start)
    assert answer.headers["ETag"] == ETAG


@pytest.mark.parametrize("asked", ["bytes=10-", "bytes=99-100", "bytes=10-10"])
def test_48_a_range_past_the_end_is_refused_with_the_length(storage: Service, asked: str) -> None:
    answer = storage.get(PATH, headers={"Range": asked})
    assert answer.status_code == 416
    assert answer.headers["Content-Range"] == "bytes */10"
    assert answer.json["field"] == "Range"


@pytest.mark.parametrize(
    "asked",
    [
        "bytes=9-5",
        "bytes=a-b",
        "bytes=0-0,2-3",
        "bytes=" + ",".join(f"{n}-{n}" for n in range(10_000)),
        "lines=1-2",
        "",
    ],
    ids=["backwards", "letters", "two", "ten-thousand", "other-unit", "empty"],
)
def test_48_any_other_range_gets_the_whole_blob(storage: Service, asked: str) -> None:
    answer = storage.get(PATH, headers={"Range": asked})
    assert (answer.status_code, answer.data) == (200, TEN)
    assert "Content-Range" not in answer.headers


@pytest.mark.parametrize(
    ("headers", "status", "body"),
    [
        ({"If-None-Match": ETAG}, 304, b""),
        ({"If-None-Match": f'"x", {ETAG}'}, 304, b""),
        ({"If-None-Match": f"W/{ETAG}"}, 304, b""),
        ({"If-None-Match": "*"}, 304, b""),
        ({"If-None-Match": '"other"'}, 200, TEN),
        ({"If-Match": ETAG}, 200, TEN),
        ({"If-Match": "*"}, 200, TEN),
        ({"If-Match": '"other"'}, 412, None),
        ({"If-Match": ETAG, "Range": "bytes=0-0"}, 206, b"0"),
        ({"If-Range": ETAG, "Range": "bytes=0-0"}, 206, b"0"),
        ({"If-Range": '"other"', "Range": "bytes=0-0"}, 200, TEN),
        ({"If-Range": "Mon, 01 Jan 2001 00:00:00 GMT", "Range": "bytes=0-0"}, 200, TEN),
        ({"If-Range": '"other"', "Range": "bytes=99-"}, 200, TEN),
    ],
    ids=[
        "none-match", "none-match-list", "none-match-weak", "none-match-any", "none-match-other", "match", "match-any",
        "match-other", "match-range", "range-same", "range-other", "range-old", "range-other-past-the-end",
    ],
)  # fmt: skip
def test_49_conditions_are_kept(storage: Service, headers: dict[str, str], status: int, body: bytes | None) -> None:
    answer = storage.get(PATH, headers=headers)
    assert answer.status_code == status
    if body is not None:
        assert answer.data == body
        assert answer.headers["ETag"] == ETAG
