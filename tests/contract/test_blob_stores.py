"""What every blob store does: in memory, in a folder, on an S3 server."""

import hashlib
import io
import os

import pytest

from morpheo.errors import InvalidInput, NotFound
from morpheo.storage.blobs import BlobStore
from morpheo.testing import BrokenSource

MIB = 1 << 20


def read(blobs: BlobStore, key: str, **span: int) -> bytes:
    with blobs.get(key, **span) as pieces:
        return b"".join(pieces)


@pytest.mark.parametrize("length", [11, None], ids=["known", "unknown"])
def test_what_is_put_can_be_read_back(blobs: BlobStore, length: int | None) -> None:
    assert blobs.put("data/1/a", io.BytesIO(b"some bytes."), length=length) == 11
    assert read(blobs, "data/1/a") == b"some bytes."
    assert blobs.stat("data/1/a").size_bytes == 11


@pytest.mark.parametrize("announce", [True, False], ids=["known", "unknown"])
def test_a_blob_of_several_parts_comes_back_whole(blobs: BlobStore, announce: bool) -> None:
    content = os.urandom(35 * MIB + 7)
    blobs.put("model/1/a", io.BytesIO(content), length=len(content) if announce else None)
    assert hashlib.sha256(read(blobs, "model/1/a")).digest() == hashlib.sha256(content).digest()


def test_an_empty_blob_can_be_kept(blobs: BlobStore) -> None:
    assert blobs.put("data/1/a", io.BytesIO(b"")) == 0
    assert read(blobs, "data/1/a") == b""


@pytest.mark.parametrize(
    ("offset", "length", "expected"), [(0, 3, b"012"), (4, 3, b"456"), (7, None, b"789"), (8, 5, b"89"), (3, 0, b"")]
)
def test_a_range_is_only_that(blobs: BlobStore, offset: int, length: int | None, expected: bytes) -> None:
    blobs.put("data/1/a", io.BytesIO(b"0123456789"))
    with blobs.get("data/1/a", offset=offset, length=length) as pieces:
        assert b"".join(pieces) == expected


@pytest.mark.parametrize("length", [None, 20 * MIB], ids=["unknown", "known"])
@pytest.mark.parametrize("given", [0, 10, 17 * MIB], ids=["at-once", "small", "large"])
def test_a_broken_source_leaves_nothing_behind(blobs: BlobStore, length: int | None, given: int) -> None:
    with pytest.raises(InvalidInput, match="ended before its end"):
        blobs.put("data/1/a", BrokenSource(b"x" * given), length=length)
    with pytest.raises(NotFound):
        blobs.stat("data/1/a")
    assert list(blobs.list()) == []


def test_the_source_s_own_exception_passes_through(blobs: BlobStore) -> None:
    class Hangup(Exception):
        pass

    with pytest.raises(Hangup):
        blobs.put("data/1/a", BrokenSource(b"x", Hangup()))


@pytest.mark.parametrize("announced", [9, 11])
def test_a_wrong_length_is_refused_and_leaves_nothing(blobs: BlobStore, announced: int) -> None:
    with pytest.raises(InvalidInput, match="announced"):
        blobs.put("data/1/a", io.BytesIO(b"0123456789"), length=announced)
    assert list(blobs.list()) == []


def test_deleting_is_final_and_may_be_repeated(blobs: BlobStore) -> None:
    blobs.put("data/1/a", io.BytesIO(b"x"))
    blobs.delete("data/1/a")
    blobs.delete("data/1/a")
    with pytest.raises(NotFound), blobs.get("data/1/a"):
        pass


def test_a_list_has_the_keys_with_the_prefix_in_order(blobs: BlobStore) -> None:
    for key in ("model/2/a", "data/1/b", "data/1/a", "data/10/a"):
        blobs.put(key, io.BytesIO(b"xy"))
    assert [blob.key for blob in blobs.list("data/1/")] == ["data/1/a", "data/1/b"]
    assert [blob.key for blob in blobs.list()] == ["data/1/a", "data/1/b", "data/10/a", "model/2/a"]
    assert {blob.size_bytes for blob in blobs.list()} == {2}


@pytest.mark.parametrize("key", ["", "/etc/passwd", "data/../x", "data//x", "data/.", "a\nb", "a\\b", "data/x/"])
def test_a_malformed_key_is_refused(blobs: BlobStore, key: str) -> None:
    with pytest.raises(InvalidInput, match="malformed"):
        blobs.put(key, io.BytesIO(b"x"))
    with pytest.raises(InvalidInput, match="malformed"):
        blobs.stat(key)


def test_a_missing_blob_is_not_found(blobs: BlobStore) -> None:
    blobs.check()  # an S3 server without the bucket is another matter
    with pytest.raises(NotFound, match="data/1/a"):
        blobs.stat("data/1/a")
    with pytest.raises(NotFound), blobs.get("data/1/a") as pieces:
        list(pieces)


def test_a_usable_store_passes_its_check(blobs: BlobStore) -> None:
    blobs.check()
    assert list(blobs.list()) == []


def test_a_listing_is_in_the_order_of_keys_and_only_of_its_prefix(blobs: BlobStore) -> None:
    # No folder's name goes on with what sorts before a slash, as in keys of ours: the test's S3 server lists folder by
    # folder, where S3 compares whole keys.
    keys = ["a/b", "a/b.c", "a/b0/c", "a0/b", "b/a/c/d", "b/a0.c"]
    for key in keys:
        blobs.put(key, io.BytesIO(b"x"))
    assert [blob.key for blob in blobs.list()] == sorted(keys)
    for prefix in ("a", "a/", "a/b", "a/b/", "b/a", "c"):
        assert [blob.key for blob in blobs.list(prefix)] == [key for key in sorted(keys) if key.startswith(prefix)]
