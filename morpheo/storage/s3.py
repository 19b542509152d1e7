"""Blobs as objects of an S3 server, such as MinIO."""

from __future__ import annotations

import contextlib
import ctypes
import io
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import urllib3
from minio import Minio
from minio.datatypes import Upload
from minio.error import InvalidResponseError, MinioException, S3Error, ServerError
from urllib3.exceptions import HTTPError, ProtocolError

from morpheo.errors import InvalidInput, NotFound, StorageUnavailable
from morpheo.storage.blobs import CHUNK_SIZE, BlobStat, ExactSource, Source, checked_key
from morpheo.storage.patience import GRACE_S, Patience, TooSlow, impatient_pool

MIB = 1 << 20
#: The protocol's smallest part, and largest number of parts.
MIN_PART = 5 * MIB
MAX_PARTS = 10_000
#: Parts on their way at once.
PARALLEL_PARTS = 2
#: How often a download that breaks off without a byte is resumed.
RESUMES = 3
#: Pieces of a download that arrive with at least so many bytes are passed on as they are: to join them costs more.
LARGE = 64 << 10
#: What servers answer that have no room.
_FULL = ("XMinioStorageFull", "InsufficientStorage", "StorageFull", "QuotaExceeded", "XMinioAdminBucketQuotaExceeded")


class S3BlobStore:
    """
    A `morpheo.storage.blobs.BlobStore` in a bucket, through the MinIO client.

    Args:
        endpoint: ``host:port``.
        bucket: Made at the first use if it does not exist.
        max_bytes: Largest blob; decides the size of the parts of one whose length is not known. About four parts are
            in memory at once.
        grace_s: How long the server may take for anything, besides `morpheo.storage.patience.MIN_RATE`, in seconds.
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
        grace_s: float = GRACE_S,
    ) -> None:
        self._grace_s = grace_s
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
            http_client=impatient_pool(grace_s),
        )

    def put(self, key: str, source: Source, *, length: int | None = None) -> int:
        """
        Store what the source gives: in one request if it is known to be small, else in parts, some at once.

        A source that raises while parts are on their way would leave the SDK's threads waiting for ever (minio-py
        7.2.20). It is made to end instead; what was stored is then removed, and the exception goes on.
        """
        exact = ExactSource(source, length)
        ending = _EndingSource(exact)
        try:
            with _mapped_errors(checked_key(key)):
                self._put(key, ending, length)
        except StorageUnavailable:
            ending.check()
            if not (ending.ended and self._has(key, exact.count)):
                raise
        if ending.error is not None:
            self.delete(key)
        ending.check()
        return exact.count

    def _put(self, key: str, ending: _EndingSource, length: int | None) -> None:
        self._make_bucket()
        if length is not None and length <= MIN_PART:
            content = ending.read(MIN_PART + 1)
            ending.check()
            self._client.put_object(self._bucket, key, io.BytesIO(content), len(content))
            return
        self._client.put_object(
            self._bucket,
            key,
            ending,  # type: ignore[arg-type]  # only read() is used
            length=-1,
            part_size=_part_size(self._max_bytes if length is None else length),
            num_parallel_uploads=PARALLEL_PARTS,
        )
        _give_memory_back()

    def _has(self, key: str, size_bytes: int) -> bool:
        # An answer that was lost on the way says nothing of the object, which appears whole or not at all, and whose
        # key nobody else has.
        with contextlib.suppress(NotFound, StorageUnavailable):
            return self.stat(key).size_bytes == size_bytes
        return False

    @contextlib.contextmanager
    def get(self, key: str, *, offset: int = 0, length: int | None = None) -> Iterator[Iterator[bytes]]:
        """Open an object or a range of it."""
        if length == 0:
            self.stat(key)
            yield iter(())
            return
        download = _Download(self._open, checked_key(key), offset, length, Patience(self._grace_s))
        with contextlib.closing(download):
            with _mapped_errors(key):
                download.open()
            yield _mapped(download.pieces(), key)

    def _open(self, key: str, offset: int, length: int) -> urllib3.BaseHTTPResponse:
        return self._client.get_object(self._bucket, key, offset=offset, length=length)

    def stat(self, key: str) -> BlobStat:
        """Return what is known of an object."""
        with _mapped_errors(key):
            stat = self._client.stat_object(self._bucket, checked_key(key))
        return _to_stat(key, stat.size, stat.last_modified)

    def delete(self, key: str) -> None:
        """Remove an object."""
        with contextlib.suppress(NotFound, NoBucket), _mapped_errors(key):
            self._client.remove_object(self._bucket, checked_key(key))

    def list(self, prefix: str = "") -> Iterator[BlobStat]:
        """Return the objects whose key begins with `prefix`."""
        with contextlib.suppress(NotFound, NoBucket), _mapped_errors(prefix):
            for item in self._client.list_objects(self._bucket, prefix=prefix, recursive=True):
                if item.object_name is not None:
                    yield _to_stat(item.object_name, item.size, item.last_modified)

    def sweep(self, before: datetime) -> int:
        """Abort uploads in parts whose process died: their parts take room, and no listing of objects shows them."""
        count = 0
        with contextlib.suppress(NotFound, NoBucket), _mapped_errors(self._bucket):
            for upload in self._uploads():
                begun = upload.initiated_time
                if upload.upload_id and begun is not None and begun < before:
                    self._client._abort_multipart_upload(self._bucket, upload.object_name, upload.upload_id)  # noqa: SLF001
                    count += 1
        return count

    def _uploads(self) -> Iterator[Upload]:
        # minio-py 7.2.20 has these two calls under private names only.
        key, upload_id = None, None
        while True:
            page = self._client._list_multipart_uploads(self._bucket, key_marker=key, upload_id_marker=upload_id)  # noqa: SLF001
            yield from page.uploads
            following = page.next_key_marker, page.next_upload_id_marker
            if not page.is_truncated or following == (key, upload_id):
                return
            key, upload_id = following

    def check(self) -> None:
        """Find out whether the bucket can be reached."""
        with _mapped_errors(self._bucket):
            self._make_bucket()
            if not self._client.bucket_exists(self._bucket):
                raise NoBucket(f"the S3 server has lost the bucket {self._bucket}")

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


class NoBucket(StorageUnavailable):
    """The bucket is not there."""


class _EndingSource:
    """
    Ends where its source raises, and keeps the exception.

    Reads are filled up: the SDK appends short ones to each other, copying all of the part every time.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self.error: BaseException | None = None
        #: Whether all of the source was read.
        self.ended = False

    def check(self) -> None:
        if self.error is not None:
            raise self.error

    def read(self, size: int = -1, /) -> bytes:
        pieces = []
        try:
            while self.error is None and size > 0 and not self.ended:
                piece = self._source.read(min(size, CHUNK_SIZE))
                self.ended = not piece
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
        if exc.code in ("NoSuchKey", "NoSuchObject"):
            raise NotFound(f"blob {key} not found") from exc
        if exc.code == "NoSuchBucket":  # of all blobs: it is the server that is wrong, or its address
            raise NoBucket(
                "the S3 server has no such bucket; see MORPHEO_S3_BUCKET, and whether its disk is there"
            ) from exc
        if exc.code == "InvalidRange":
            raise InvalidInput("the range lies outside the blob", field="offset") from exc
        if exc.code in _FULL:
            raise StorageUnavailable("the S3 server has no room left; add some, or remove what is not needed") from exc
        if exc.code == "RequestTimeTooSkewed":
            raise StorageUnavailable("the clocks of this machine and of the S3 server differ; set them by NTP") from exc
        raise StorageUnavailable(f"the S3 server refused a request: {exc.code}") from exc
    except TooSlow as exc:
        raise StorageUnavailable(f"the S3 server is too slow to be waited for: {exc}") from exc
    except (MinioException, InvalidResponseError, ServerError, HTTPError) as exc:
        raise StorageUnavailable("the S3 server does not answer") from exc


def _mapped(pieces: Iterator[bytes], key: str) -> Iterator[bytes]:
    with _mapped_errors(key):
        yield from pieces


class _Download:
    """
    An object or a range of it; goes on where it was when the connection breaks.

    Args:
        request: Asks for a key, from an offset, so many bytes; 0 is to the end.
        key: Which object.
        offset: First byte.
        length: Number of bytes; None is to the end.
        patience: Ends a server that drips.
    """

    def __init__(
        self,
        request: Callable[[str, int, int], urllib3.BaseHTTPResponse],
        key: str,
        offset: int,
        length: int | None,
        patience: Patience,
    ) -> None:
        self._request = request
        self._key = key
        self._offset = offset
        self._left = length
        self._patience = patience
        self._response: urllib3.BaseHTTPResponse | None = None

    def open(self) -> None:
        """Ask for what is left."""
        self.close()
        self._response = None
        self._response = self._request(self._key, self._offset, self._left or 0)
        announced = self._response.headers.get("Content-Length")
        if announced is None:  # the end of a connection that broke would be taken for that of the object
            raise ProtocolError("the answer has no length")
        self._left = int(announced)  # a range may reach over the end

    def close(self) -> None:
        """Hang up."""
        if self._response is not None:
            self._response.close()
            self._response.release_conn()

    def pieces(self) -> Iterator[bytes]:
        """Return all of it, in pieces of about `CHUNK_SIZE`."""
        piece = bytearray()
        broken = 0
        while self._left != 0:
            try:
                read = self._read()
            except HTTPError:
                broken += 1
                if broken > RESUMES:
                    raise
                self.open()
                continue
            if not read:
                break
            broken = 0
            if len(read) >= LARGE and not piece:
                yield read
                continue
            piece += read
            if len(piece) >= CHUNK_SIZE:
                yield bytes(piece)
                piece.clear()
        if piece:
            yield bytes(piece)

    def _read(self) -> bytes:
        assert self._response is not None  # noqa: S101 - for the type checker
        size = CHUNK_SIZE if self._left is None else min(CHUNK_SIZE, self._left)
        piece = self._patience.read(self._response, size)
        if not piece and self._left:
            raise ProtocolError(f"{self._left} bytes are missing")
        self._offset += len(piece)
        if self._left is not None:
            self._left -= len(piece)
        return piece


def _give_memory_back() -> None:
    # glibc keeps the freed buffers of parts, for each thread that ever had one.
    with contextlib.suppress(OSError, AttributeError):  # another C library does as it likes
        ctypes.CDLL(None).malloc_trim(0)


def _part_size(length: int) -> int:
    wanted = -(-length // MAX_PARTS)
    return max(MIN_PART, -(-wanted // MIB) * MIB)


def _to_stat(key: str, size: int | None, modified_at: datetime | None) -> BlobStat:
    return BlobStat(key=key, size_bytes=size or 0, modified_at=modified_at or datetime.fromtimestamp(0, UTC))
