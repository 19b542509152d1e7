"""The multipart reader: whatever the pieces in which a body comes, it reads the same, or says what is wrong."""

from __future__ import annotations

import contextlib
import io
import itertools
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from morpheo.api import multipart
from morpheo.api.multipart import MultipartReader
from morpheo.errors import InvalidInput, TooLarge
from tests.support.api import BOUNDARY, form, part

LIMITS = {"uuid": 255, "name": 255, "description": 255, "size": 20}
CONTENT_TYPE = f"multipart/form-data; boundary={BOUNDARY}"
#: Bytes that look like the beginning of a boundary are more likely than chance would have them.
CONTENT = (
    st.lists(
        st.sampled_from([b"\r", b"\n", b"-", b"--", b"\r\n--", f"\r\n--{BOUNDARY[:-1]}".encode(), b"a"])
        | st.binary(max_size=9),
        max_size=12,
    )
    .map(b"".join)
    .filter(lambda content: BOUNDARY.encode() not in content)
)


class Pieces:
    """A source that gives its content in given pieces, whatever is asked for."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = iter(pieces)

    def read(self, size: int = -1, /) -> bytes:
        return next(self._pieces, b"")


def split(content: bytes, cuts: Iterable[int]) -> list[bytes]:
    edges = [0, *sorted(cuts), len(content)]
    return [content[start:stop] for start, stop in itertools.pairwise(edges) if stop > start]


def read_all(pieces: Iterable[bytes], content_type: str = CONTENT_TYPE) -> tuple[list[tuple[str, bytes]], bytes | None]:
    reader = MultipartReader(Pieces(pieces), content_type)
    fields = list(reader.fields(LIMITS))
    if not reader.has_blob:
        return fields, None
    return fields, b"".join(iter(lambda: reader.read(7), b""))


@given(st.data(), CONTENT, CONTENT.filter(lambda text: len(text) <= 255))
def test_any_split_of_the_body_gives_the_same_fields_and_blob(data: st.DataObject, blob: bytes, name: bytes) -> None:
    body: bytes = form({"name": name, "size": 666, "blob": blob, "later": "x"})["data"]
    cuts = data.draw(st.lists(st.integers(0, len(body)), max_size=8))
    assert read_all(split(body, cuts)) == ([("name", name), ("size", b"666")], blob)


@pytest.mark.parametrize("padding", [b"", b" ", b"\t  "], ids=["none", "space", "blanks"])
def test_a_piece_may_end_at_any_byte(padding: bytes) -> None:
    end = f"--{BOUNDARY}".encode()
    body = form({"size": 666, "blob": b"ends\r\nwith\r"})["data"].replace(end + b"\r", end + padding + b"\r")
    for cut in range(1, len(body)):
        assert read_all([body[:cut], body[cut:]]) == ([("size", b"666")], b"ends\r\nwith\r"), cut


@given(st.data())
def test_a_damaged_body_is_read_or_refused_but_never_crashes(data: st.DataObject) -> None:
    body = bytearray(form({"uuid": "x" * 20, "name": "n", "size": 3, "blob": b"abc\r\n-", "z": "late"})["data"])
    for _ in range(data.draw(st.integers(1, 6))):
        start = data.draw(st.integers(0, len(body)))
        stop = data.draw(st.integers(start, min(len(body), start + 30)))
        body[start:stop] = data.draw(CONTENT)
    with contextlib.suppress(InvalidInput):  # TooLarge is one
        read_all(split(bytes(body), data.draw(st.lists(st.integers(0, len(body)), max_size=3))))


@given(st.text(max_size=90), st.binary(max_size=200))
def test_any_content_type_and_body_is_read_or_refused(content_type: str, body: bytes) -> None:
    for header in (content_type, f"multipart/form-data; boundary={content_type}"):
        with contextlib.suppress(InvalidInput):
            read_all([body], header)


@given(st.data())
def test_a_body_that_is_cut_anywhere_never_looks_like_a_short_blob(data: st.DataObject) -> None:
    body: bytes = form({"size": 3, "blob": b"0123456789"})["data"]
    cut = data.draw(st.integers(0, len(body) - len("--\r\n")))
    with pytest.raises(InvalidInput):
        read_all([body[:cut]])


def test_the_blob_is_read_in_pieces_as_large_as_asked_for() -> None:
    reader = MultipartReader(io.BytesIO(form({"blob": b"0123456789"})["data"]), CONTENT_TYPE)
    assert list(reader.fields(LIMITS)) == []
    assert [reader.read(4), reader.read(0), reader.read(), reader.read(), reader.read()] == [
        b"0123",
        b"",
        b"456789",
        b"",
        b"",
    ]


def test_fields_come_one_by_one_so_that_a_bad_one_is_seen_before_the_rest_is_read() -> None:
    body = part("name", "early") + part("size", 1)
    reader = MultipartReader(Pieces([body]), CONTENT_TYPE)
    assert next(reader.fields(LIMITS)) == ("name", b"early")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (form({"name": "x" * 256})["data"], "Error reading Name: Buffer overflow reading name (max length is 255"),
        (form({"uuid": "x" * 256})["data"], "Error reading UUID Buffer overflow reading uuid (max length is 255"),
        (form({"size": "1" * 21})["data"], "Error reading size field: Buffer overflow reading size (max length is 20"),
        (form({"description": "é" * 128})["data"], "Error reading description: Buffer overflow reading description"),
        (form({"owner": "x"})["data"], 'Unknown field "owner"'),
        (form({"blob": b"x"})["data"].replace(b'; name="blob"', b""), 'Unknown field ""'),
        (form([("blob", b"x"), ("blob", b"y")])["data"], "two blob parts"),
        (b"", "Error parsing multipart data: "),
        (form({"blob": b"x"}, end=b"")["data"], "Error parsing multipart data: "),
        (form({"blob": b"x"})["data"].replace(b"Content-Disposition", b"X"), "Error parsing multipart data: Missing"),
    ],
    ids=["name", "uuid", "size", "bytes-not-letters", "unknown", "nameless", "two", "empty", "cut", "no-disposition"],
)
def test_a_bad_body_is_refused_in_the_words_of_2017(body: bytes, message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        read_all([body])
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("content_type", "message"),
    [
        ("", 'Error parsing header "Content-Type"'),
        ("multipart/form-data", 'Error parsing header "Content-Type"'),
        ("multipart/form-data; boundary=", 'Error parsing header "Content-Type"'),
        (f"multipart/form-data; boundary={'x' * 300}", 'Error parsing header "Content-Type"'),
        ("multipart/form-data; boundary=é", 'Error parsing header "Content-Type"'),
        ("text/plain; boundary=x", "Invalid media type: text/plain. Should be: multipart/form-data"),
    ],
    ids=["absent", "no-boundary", "empty-boundary", "long-boundary", "letters", "not-multipart"],
)
def test_a_bad_content_type_is_refused_in_the_words_of_2017(content_type: str, message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        MultipartReader(io.BytesIO(), content_type)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    "body",
    [
        form([("name", "x")] * 1500 + [("blob", b"x")])["data"],
        part("name", "x").replace(b"\r\n\r\n", b"\r\n" + b"A: b\r\n" * 200_000 + b"\r\n"),
        part("name", "x").replace(b"\r\n\r\n", b"\r\nA: " + b"b" * (1 << 20) + b"\r\n\r\n"),
        b"no boundary anywhere " * 50_000,
        form([("blob", b"x")] + [("name", "x")] * 1500)["data"],
    ],
    ids=["parts", "headers", "long-header", "preamble", "parts-after-blob"],
)
def test_a_body_of_endless_small_things_is_refused_without_holding_it(body: bytes) -> None:
    with pytest.raises(TooLarge):
        read_all(split(body, range(0, len(body), multipart._READ_SIZE)))


def test_bytes_after_the_blob_and_after_the_end_are_ignored() -> None:
    body = form({"blob": b"x", "name": "late", "unknown": "later"}, end=f"--{BOUNDARY}--\r\nepilogue".encode())["data"]
    assert read_all([body]) == ([], b"x")


@pytest.mark.parametrize("filename", ["../../x", "C:\\\\x", "\x00", ""], ids=["parent", "drive", "nul", "empty"])
def test_the_filename_of_a_part_is_not_looked_at(filename: str) -> None:
    body = form({"name": "n", "blob": b"x"})["data"].replace(b'"blob"', f'"blob"; filename="{filename}"'.encode())
    assert read_all([body]) == ([("name", b"n")], b"x")
