"""The blob store: an S3 server, or a folder."""

from __future__ import annotations

import io
import os
import time
from contextlib import closing
from email.utils import parsedate_to_datetime
from uuid import uuid4

import urllib3
from minio import Minio
from minio.error import S3Error
from urllib3.exceptions import HTTPError, SSLError

from morpheo.config import MIB, Settings
from morpheo.doctor.findings import Check, Finding, clock, fail, is_local, ok, warn
from morpheo.errors import MorpheoError
from morpheo.resources import blob_store
from morpheo.storage.blobs import BlobStore
from morpheo.storage.database import Database

#: How long the server may take for one answer, in seconds.
TIMEOUT_S = 5.0
#: How many artifacts in quarantine are named.
NAMED = 5
#: What S3 servers are delivered with.
DEFAULT_KEYS = frozenset({"minioadmin", "minio", "admin", "any", "password"})

_WRONG_KEYS = {
    "InvalidAccessKeyId": "the server does not know the access key",
    "SignatureDoesNotMatch": "the secret key is wrong",
}
_KEYS = "set MORPHEO_S3_ACCESS_KEY and MORPHEO_S3_SECRET_KEY to those of a user of the server"


def checks(settings: Settings) -> list[Check]:
    """Return the checks of the blob store."""
    needs: tuple[str, ...] = ()
    found = []
    if settings.s3_endpoint:
        server = _Server(settings)
        found = [
            Check(name="blobs.answers", run=server.check_answers),
            Check(name="blobs.clock", run=server.check_clock, needs=("blobs.answers",)),
            Check(name="blobs.credentials", run=server.check_credentials, needs=("blobs.answers",)),
            Check(name="blobs.password", run=server.check_password),
            Check(name="blobs.bucket", run=server.check_bucket, needs=("blobs.credentials",)),
        ]
        needs = ("blobs.bucket",)
    return [
        *found,
        Check(name="blobs.objects", run=lambda: _check_blob(settings, os.urandom(10_000)), needs=needs),
        Check(name="blobs.quarantine", run=lambda: _check_quarantine(settings)),
        Check(name="blobs.multipart", run=lambda: _check_blob(settings, os.urandom(6 * MIB)), needs=needs),
    ]


class _Server:
    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._http = urllib3.PoolManager(timeout=TIMEOUT_S, retries=False)
        self._client = Minio(
            settings.s3_endpoint,
            access_key=settings.s3_access_key,
            secret_key=settings.s3_secret_key.get_secret_value(),
            region=settings.s3_region,
            secure=settings.s3_secure,
            http_client=self._http,
        )

    def check_answers(self) -> Finding:
        endpoint = self._settings.s3_endpoint
        try:
            answer = self._ask()
        except SSLError as exc:
            return fail(
                f"{endpoint} does not speak HTTPS, or its certificate is not trusted: {str(exc)[:200]}",
                "MORPHEO_S3_SECURE=false for a server without TLS; SSL_CERT_FILE=FILE for an authority of your own",
            )
        except HTTPError as exc:
            return fail(
                f"no S3 server answers at {endpoint}: {str(exc).rpartition(': ')[2][:200]}",
                "start it, or set MORPHEO_S3_ENDPOINT=HOST:PORT",
            )
        if not self._settings.s3_secure and b"HTTPS" in answer.data:
            return fail(f"{endpoint} speaks HTTPS only", "MORPHEO_S3_SECURE=true")
        return ok(endpoint)

    def check_clock(self) -> Finding:
        before = time.time()
        date = self._ask().headers.get("Date")
        middle = (before + time.time()) / 2
        if date is None:
            return ok("the server does not tell its time")
        # The header has whole seconds, cut off.
        difference = parsedate_to_datetime(date).timestamp() + 0.5 - middle
        return clock("the S3 server", difference, lease_s=self._settings.lease_s)

    def check_credentials(self) -> Finding:
        try:
            # A listing, because the answer to HEAD has no body that names the error.
            next(iter(self._client.list_objects(self._settings.s3_bucket, prefix="doctor/")), None)
        except S3Error as exc:
            if exc.code in _WRONG_KEYS:
                return fail(_WRONG_KEYS[exc.code], _KEYS)
            if exc.code == "RequestTimeTooSkewed":
                return fail(
                    "the S3 server refuses requests because this machine's clock is wrong, or its own",
                    "synchronise both machines with NTP: `timedatectl set-ntp true`",
                )
            if exc.code not in ("NoSuchBucket", "AccessDenied"):  # the next checks find out what is allowed
                return fail(f"the S3 server refuses to list objects: {exc.code}", _KEYS)
        return ok("the server accepts the keys")

    def check_password(self) -> Finding:
        settings = self._settings
        keys = {settings.s3_access_key, settings.s3_secret_key.get_secret_value()}
        if not keys & DEFAULT_KEYS:
            return ok("not the ones that servers are delivered with")
        cause = "the S3 server has the user or password that it was delivered with"
        fix = "another MINIO_ROOT_USER and MINIO_ROOT_PASSWORD, or `mc admin user add`; then " + _KEYS
        return warn(cause, fix) if is_local(settings.s3_endpoint.partition(":")[0]) else fail(cause, fix)

    def check_bucket(self) -> Finding:
        bucket = self._settings.s3_bucket
        fix = f"`mc mb SERVER/{bucket}` as an administrator, and a policy with s3:* on it for the access key"
        try:
            if self._client.bucket_exists(bucket):
                return ok(f"bucket {bucket}")
            self._client.make_bucket(bucket)
        except S3Error as exc:
            if exc.code != "BucketAlreadyOwnedByYou":
                return fail(f"bucket {bucket} cannot be used, nor made: {exc.code}", fix)
        return ok(f"bucket {bucket}, made now")

    def _ask(self) -> urllib3.BaseHTTPResponse:
        scheme = "https" if self._settings.s3_secure else "http"
        return self._http.request("GET", f"{scheme}://{self._settings.s3_endpoint}/")


def _check_blob(settings: Settings, content: bytes) -> Finding:
    """Put, get, get a range of, and delete a blob."""
    store, key = blob_store(settings), f"doctor/{uuid4().hex}"
    try:
        return _round_trip(store, key, content)
    except MorpheoError as exc:
        said = getattr(exc.__cause__, "code", None) or str(exc.__cause__ or exc)[:200]
        doing = "in parts" if len(content) > 5 * MIB else "at once"
        return fail(
            f"a blob of {len(content)} bytes cannot be stored {doing}, read and removed: {said}",
            f"a policy with s3:* on bucket {settings.s3_bucket} for the access key, and room on the server's disk"
            if settings.s3_endpoint
            else f"`chown -R $(id -u) {settings.data_dir}`, and room on its disk",
        )


def _check_quarantine(settings: Settings) -> Finding:
    try:
        with closing(Database(settings.database)) as database, database.read() as work:
            found = work.artifacts.quarantined()
    except MorpheoError:
        return ok("not known: the database does not answer")  # which its own checks say
    if not found:
        return ok("no artifact is in quarantine")
    names = ", ".join(f"{item.kind} {item.id}" for item in found[:NAMED]) + (
        " and others" if len(found) > NAMED else ""
    )
    return fail(
        f"{len(found)} artifacts cannot be used, because their blobs are lost or damaged: {names}",
        "upload each again under its id, or copy its blob from a backup; `morpheo fsck` lists them",
    )


def _round_trip(store: BlobStore, key: str, content: bytes) -> Finding:
    try:
        store.put(key, io.BytesIO(content), length=len(content))
        with store.get(key) as pieces:
            whole = b"".join(pieces)
        with store.get(key, offset=100, length=1000) as pieces:
            part = b"".join(pieces)
    finally:
        store.delete(key)
    if whole != content or part != content[100:1100]:
        return fail(
            "the blob store gives back other bytes than were put" if whole != content else "ranges are not honoured",
            "no proxy or gateway that changes bodies or drops the Range header before the server",
        )
    if any(blob.key == key for blob in store.list("doctor/")):
        return fail("what was removed is still there", "switch versioning or object lock of the bucket off")
    return ok(f"{len(content)} bytes were put, read, read in part, and removed")
