"""When a request can be given to a thread, by what has arrived of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from morpheo.api.connections import MAX_HEAD, MAX_LINE, SMALL_BODY, Kind, _Incoming, _Refused

LINE = b"POST /data HTTP/1.1\r\nHost: x\r\n"


def body(length: int, *headers: bytes) -> bytes:
    return LINE + b"Content-Length: %d\r\n" % length + b"".join(header + b"\r\n" for header in headers) + b"\r\n"


#: What arrives, how much of it is more than enough, and whether it may last; None is one of the large public answers.
REQUESTS: dict[str, tuple[bytes, int, bool | None]] = {
    "no-body": (b"GET /data HTTP/1.1\r\nHost: x\r\n\r\n", 0, False),
    "small-body": (body(SMALL_BODY) + b"x" * SMALL_BODY, 0, False),
    "small-body-and-the-next-request": (body(3) + b"abc" + LINE, len(LINE), False),
    "large-body": (body(SMALL_BODY + 1) + b"x", 1, True),
    "chunked": (LINE + b"transfer-ENCODING: chunked\r\n\r\n3\r\n", 3, True),
    "expects": (body(3, b"Expect: 100-continue"), 0, True),
    "two-lengths": (LINE + b"Content-Length: 1\r\ncontent-length:   4 \r\n\r\nabcd", 0, False),
    "no-length": (LINE + b"Content-Length: abc\r\n\r\n", 0, True),
    "length-with-zeros": (LINE + b"Content-Length: " + b"0" * 30 + b"100000\r\n\r\n", 0, True),
    "length-of-many-digits": (LINE + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n", 0, True),
    "empty-line-first": (b"\r\nGET /data/x/blob/ HTTP/1.1\r\n\r\n", 0, True),
    "hidden-download": (b"GET /data/x/%62lob HTTP/1.1\r\n\r\n", 0, None),
    "page-of-anybody": (b"GET /docs/swagger-ui-bundle.js HTTP/1.1\r\n\r\n", 0, None),
    "download": (b"GET /data/x/blob HTTP/1.1\r\n\r\n", 0, True),
    "followed-log": (b"GET /jobs/x/logs?follow=1 HTTP/1.1\r\n\r\n", 0, True),
    "named-like-a-download": (b"GET /algo?name=/blob HTTP/1.1\r\n\r\n", 0, False),
}


@pytest.mark.parametrize(("content", "more", "is_long"), REQUESTS.values(), ids=REQUESTS)
@given(data=st.data())
def test_a_request_is_complete_at_one_place_however_it_is_cut(
    content: bytes, more: int, is_long: bool | None, data: st.DataObject
) -> None:
    enough = len(content) - more
    cuts = sorted(data.draw(st.sets(st.integers(1, len(content) - 1), max_size=5)))
    incoming = _Incoming()
    for start, end in zip([0, *cuts], [*cuts, len(content)], strict=True):
        assert incoming.add(content[start:end]) is (end >= enough)
        if end >= enough:
            break
    assert bytes(incoming.content) == content[:end].removeprefix(b"\r\n")
    assert incoming.kind is {True: Kind.LONG, False: Kind.SHORT, None: Kind.PUBLIC}[is_long]


REFUSED = {
    "tls": (b"\x16\x03\x01", b"400"),
    "bare-line-feeds": (b"GET / HTTP/1.1\nHost: x\n\n", b"400"),
    "long-line": (b"GET /" + b"x" * MAX_LINE, b"414"),
    "long-head": (LINE + b"A: b\r\n" * (MAX_HEAD // 6), b"431"),
}


@pytest.mark.parametrize(("content", "status"), REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("size", [1, 1000, 1 << 20])
def test_what_cannot_become_a_request_is_refused_before_it_ends(content: bytes, status: bytes, size: int) -> None:
    incoming = _Incoming()
    pieces = [content[start : start + size] for start in range(0, len(content), size)]
    with pytest.raises(_Refused) as refused:
        assert not any(map(incoming.add, pieces))
    assert refused.value.args[0].startswith(status)
