"""Downloads: whole blobs, ranges, conditions, and blobs that are not what they were."""

from __future__ import annotations

import hashlib
from uuid import uuid4

import pytest

from morpheo.api.storage import create_storage_app
from morpheo.errors import CorruptBlob, StorageUnavailable
from morpheo.models import ArtifactKind
from morpheo.storage.blobs import CHUNK_SIZE
from morpheo.storage.database import Database
from morpheo.testing import MemoryBlobStore
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


def test_a_download_says_how_long_it_is_and_what_it_is(storage: Service) -> None:
    answer = storage.get(PATH)
    assert (answer.status_code, answer.data) == (200, TEN)
    assert answer.headers["Content-Length"] == "10"
    assert answer.headers["ETag"] == ETAG
    assert answer.headers["Accept-Ranges"] == "bytes"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.content_type == "application/octet-stream"
    assert answer.last_modified is not None


@pytest.mark.parametrize("headers", [{}, {"Range": "bytes=2-4"}], ids=["whole", "range"])
def test_head_has_the_headers_of_get_and_opens_no_blob(storage: Service, headers: dict[str, str]) -> None:
    headers = {**headers, "X-Request-ID": "the-same"}
    got = storage.get(PATH, headers=headers)
    storage.blobs._blobs.clear()
    answer = storage.client.head(PATH, headers=headers)
    assert (answer.status_code, answer.data) == (got.status_code, b"")
    assert dict(answer.headers) == dict(got.headers)


@pytest.mark.parametrize("size", [1, CHUNK_SIZE, 2 * CHUNK_SIZE + 1], ids=["byte", "piece", "pieces"])
def test_a_blob_that_has_changed_is_cut_off_before_its_end(storage: Service, size: int) -> None:
    content = b"x" * size
    given = uuid4()
    storage.post("/data", query_string={"uuid": str(given)}, data=content, content_type="application/octet-stream")
    key = next(key for key in storage.blobs._blobs if str(given) in key)
    storage.blobs._blobs[key] = content[:-1] + b"y", storage.blobs._blobs[key][1]
    received: list[bytes] = []
    with pytest.raises(CorruptBlob, match="has changed"):
        received.extend(storage.get(f"/data/{given}/blob", buffered=False).response)
    assert len(b"".join(received)) < size


def test_a_download_is_one_problem_document_when_the_blob_store_is_down(storage: Service) -> None:
    class DownBlobs(MemoryBlobStore):
        def get(self, key: str, *, offset: int = 0, length: int | None = None) -> object:  # type: ignore[override]
            raise StorageUnavailable("the blob store does not answer")

    storage.replace(blobs=DownBlobs())
    answer = storage.get(PATH)
    assert answer.status_code == 503
    assert answer.headers["Retry-After"] == "5"
    assert answer.json["error"] == "the blob store does not answer"


def test_a_model_s_blob_is_found_only_under_its_own_kind(storage: Service) -> None:
    assert storage.get(PATH.replace(ArtifactKind.DATA, ArtifactKind.MODEL)).status_code == 404
