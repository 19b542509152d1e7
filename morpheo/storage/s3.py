"""Blobs as objects of an S3 server, such as MinIO."""

from __future__ import annotations

import contextlib
import ctypes
import io
from collections.abc import Iterator
from datetime import UTC, datetime

import urllib3
from minio import Minio
from minio.error import InvalidResponseError, MinioException, S3Error, ServerError
from urllib3.exceptions import HTTPError

from morpheo.errors import InvalidInput, NotFound, StorageUnavailable
from morpheo.storage.blobs import CHUNK_SIZE, BlobStat, ExactSource, Source, checked_key

MIB = 1 << 20
#: The protocol's smallest part, and largest number of parts.
MIN_PART = 5 * MIB
MAX_PARTS = 10_000
#: Parts on their way at once.
PARALLEL_PARTS = 2


class S3BlobStore:
    """
    A `morpheo.storage.blobs.BlobStore` in a bucket, through the MinIO client.

    Args:
        endpoint: ``host:port``.
        bucket: Made at the first use if it does not exist.
        max_bytes: Largest blob; decides the size of the parts of one whose length is not known. About four parts are
            in memory at once.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        bucket: str,
        access_key: str,
        secret_key: str,
        region: str,
        secure: bool,
        max_bytes: int = 48 << 30,
    ) -> None:
        self._bucket = bucket
        self._bucket_made = False
        self._max_bytes = max_bytes
        self._client = Minio(
            endpoint,
            access_key=access_key,
            secret_key=secret_key,
            region=region,
            secure=secure,
            # The SDK's own pool waits 5 minutes and retries for long; a caller here retries by itself.
            http_client=urllib3.PoolManager(
                maxsize=32,
                timeout=urllib3.Timeout(connect=5, read=60),
                retries=urllib3.Retry(total=3, backoff_factor=0.2, status_forcelist=(500, 502, 503, 504)),
            ),
        )

    def put(self, key: str, source: Source, *, length: int | None = None) -> int:
        """
        Store what the source gives: in one request if it is known to be small, else in parts, some at once.

        A source that raises while parts are on their way would leave the SDK's threads waiting for ever (minio-py
        7.2.20). It is made to end instead; what was stored is then removed, and the exception goes on.
        """
        exact = ExactSource(source, length)
        ending = _EndingSource(exact)
        with _mapped_errors(checked_key(key)):
            self._make_bucket()
            if length is not None and length <= MIN_PART:
                content = ending.read(MIN_PART + 1)
                ending.check()
                self._client.put_object(self._bucket, key, io.BytesIO(content), len(content))
            else:
                self._client.put_object(
                    self._bucket,
                    key,
                    ending,  # type: ignore[arg-type]  # only read() is used
                    length=-1,
                    part_size=_part_size(self._max_bytes if length is None else length),
                    num_parallel_uploads=PARALLEL_PARTS,
                )
                _give_memory_back()
        if ending.error is not None:
            self.delete(key)
        ending.check()
        return exact.count

    @contextlib.contextmanager
    def get(self, key: str, *, offset: int = 0, length: int | None = None) -> Iterator[Iterator[bytes]]:
        """Open an object or a range of it."""
        if length == 0:
            self.stat(key)
            yield iter(())
            return
        with _mapped_errors(key):
            response = self._client.get_object(self._bucket, checked_key(key), offset=offset, length=length or 0)
        try:
            yield _stream(response, key)
        finally:
            response.close()
            response.release_conn()

    def stat(self, key: str) -> BlobStat:
        """Return what is known of an object."""
        with _mapped_errors(key):
            stat = self._client.stat_object(self._bucket, checked_key(key))
        return _to_stat(key, stat.size, stat.last_modified)

    def delete(self, key: str) -> None:
        """Remove an object."""
        with contextlib.suppress(NotFound), _mapped_errors(key):
            self._client.remove_object(self._bucket, checked_key(key))

    def list(self, prefix: str = "") -> Iterator[BlobStat]:
        """Return the objects whose key begins with `prefix`."""
        with contextlib.suppress(NotFound), _mapped_errors(prefix):
            for item in self._client.list_objects(self._bucket, prefix=prefix, recursive=True):
                if item.object_name is not None:
                    yield _to_stat(item.object_name, item.size, item.last_modified)

    def check(self) -> None:
        """Find out whether the bucket can be reached."""
        with _mapped_errors(self._bucket):
            self._make_bucket()
            self._client.bucket_exists(self._bucket)

    def _make_bucket(self) -> None:
        if self._bucket_made:
            return
        if not self._client.bucket_exists(self._bucket):
            try:
                self._client.make_bucket(self._bucket)
            except S3Error as exc:
                if exc.code not in ("BucketAlreadyOwnedByYou", "BucketAlreadyExists"):
                    raise
        self._bucket_made = True


class _EndingSource:
    """
    Ends where its source raises, and keeps the exception.

    Reads are filled up: the SDK appends short ones to each other, copying all of the part every time.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self.error: BaseException | None = None

    def check(self) -> None:
        if self.error is not None:
            raise self.error

    def read(self, size: int = -1, /) -> bytes:
        pieces = []
        try:
            while self.error is None and size > 0 and (piece := self._source.read(min(size, CHUNK_SIZE))):
                pieces.append(piece)
                size -= len(piece)
        except BaseException as exc:  # noqa: BLE001 - raised again by `S3BlobStore.put`
            self.error = exc
        return b"".join(pieces)


@contextlib.contextmanager
def _mapped_errors(key: str) -> Iterator[None]:
    try:
        yield
    except S3Error as exc:
        if exc.code in ("NoSuchKey", "NoSuchBucket", "NoSuchObject"):
            raise NotFound(f"blob {key} not found") from exc
        if exc.code == "InvalidRange":
            raise InvalidInput("the range lies outside the blob", field="offset") from exc
        raise StorageUnavailable(f"the S3 server refused a request: {exc.code}") from exc
    except (MinioException, InvalidResponseError, ServerError, HTTPError) as exc:
        raise StorageUnavailable("the S3 server does not answer") from exc


def _stream(response: urllib3.BaseHTTPResponse, key: str) -> Iterator[bytes]:
    with _mapped_errors(key):
        yield from response.stream(CHUNK_SIZE)


def _give_memory_back() -> None:
    # glibc keeps the freed buffers of parts, for each thread that ever had one.
    with contextlib.suppress(OSError, AttributeError):  # another C library does as it likes
        ctypes.CDLL(None).malloc_trim(0)


def _part_size(length: int) -> int:
    wanted = -(-length // MAX_PARTS)
    return max(MIN_PART, -(-wanted // MIB) * MIB)


def _to_stat(key: str, size: int | None, modified_at: datetime | None) -> BlobStat:
    return BlobStat(key=key, size_bytes=size or 0, modified_at=modified_at or datetime.fromtimestamp(0, UTC))
