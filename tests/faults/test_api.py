"""Cases 37 to 41: an API that dies, clients that vanish, and answers that are lost."""

from __future__ import annotations

import base64
import os
import signal
import socket
import threading
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest
from minio import Minio

from morpheo import artifacts
from morpheo.errors import ApiError, ApiUnavailable, NotFound
from morpheo.models import ArtifactKind, AttemptOutcome
from tests.faults.links import Cut
from tests.faults.nodes import arm
from tests.faults.rig import Rig
from tests.support.servers import wait_until
from tests.support.services import S3Server

pytestmark = [pytest.mark.docker, pytest.mark.database, pytest.mark.redis, pytest.mark.s3]

MIB = 1 << 20
#: Of an upload that is sent to the S3 server in parts, and how much of it comes: one part and some of the next.
LARGE, SENT = 20 * MIB, 12 * MIB


def keys_of(rig: Rig, artifact_id: UUID) -> list[str]:
    """Return the keys of all blobs that were stored for a data file."""
    return [blob.key for blob in rig.resources.blobs.list(f"data/{artifact_id}/")]


def is_visible(rig: Rig, artifact_id: UUID) -> bool:
    """Return whether a data file has a row."""
    try:
        rig.resources.artifacts.get(ArtifactKind.DATA, artifact_id)
    except NotFound:
        return False
    return True


def test_37_killed_between_commit_and_publish(rig: Rig) -> None:
    """The order stands, a sweeper tells the workers, and the same order again is the same job."""
    arm(rig.compute_api.failpoints, "before_publish", "kill")
    spec = rig.make_learn()
    with pytest.raises(ApiUnavailable):
        rig.submit(spec)
    rig.ledger.orders.append(spec)
    wait_until(lambda: not rig.compute_api.is_running, what="its end")
    job = rig.wait_done(spec)
    assert [attempt.outcome for attempt in job.attempts] == [AttemptOutcome.SUCCEEDED]
    rig.settle()
    rig.submit(spec)
    assert rig.job(spec) == job


def test_38_killed_between_blob_and_row(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is visible, the id is free, and the blob without a row is collected."""
    arm(rig.storage_api.failpoints, "before_row", "kill")
    artifact_id, content = uuid4(), os.urandom(1000)
    with pytest.raises(ApiUnavailable):
        rig.upload(ArtifactKind.DATA, content, id=artifact_id)
    wait_until(lambda: not rig.storage_api.is_running, what="its end")
    assert not is_visible(rig, artifact_id)
    (orphan,) = keys_of(rig, artifact_id)
    rig.settle()
    rig.upload(ArtifactKind.DATA, content, id=artifact_id)
    (named,) = set(keys_of(rig, artifact_id)) - {orphan}
    monkeypatch.setattr(artifacts, "ORPHAN_AGE", timedelta(0))

    def collected() -> bool:
        rig.resources.artifacts.sweep()
        return keys_of(rig, artifact_id) == [named]

    wait_until(collected, what="the blob without a row to be collected")


@pytest.mark.parametrize("who", ["api", "client"])
def test_39_an_upload_that_breaks_in_the_middle(rig: Rig, who: str) -> None:
    """Nothing of it is visible or left, and the id is free."""
    artifact_id = uuid4()
    parts = rig.storage_api.links["s3"].watch(b"partNumber=")
    host, _, port = rig.storage_api.front.address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=60) as peer:
        peer.sendall(upload_head(artifact_id) + os.urandom(SENT))
        assert parts.wait(60)
        if who == "api":
            rig.storage_api.kill()
    rig.settle()
    assert not is_visible(rig, artifact_id)
    if who == "api":
        # A dead process can abort nothing: that is the sweeper's, a day later.
        assert broken_uploads(rig) == 1
        assert rig.resources.blobs.sweep(datetime.now(UTC) + timedelta(days=1)) == 1
    wait_until(lambda: not broken_uploads(rig), what="no upload in parts")
    wait_until(lambda: not keys_of(rig, artifact_id), what="no blob")
    rig.upload(ArtifactKind.DATA, os.urandom(1000), id=artifact_id)


def broken_uploads(rig: Rig) -> int:
    """Return how many uploads in parts the S3 server takes to be going on."""
    client = Minio(rig.s3.address, access_key=S3Server.access_key, secret_key=S3Server.secret_key, secure=False)
    return len(client._list_multipart_uploads(rig.resources.settings.s3_bucket).uploads)


def upload_head(artifact_id: UUID) -> bytes:
    """Return the head of a request that announces `LARGE` bytes."""
    password = base64.b64encode(b"u:p").decode()
    lines = [
        f"POST /data?uuid={artifact_id} HTTP/1.1",
        "Host: storage",
        f"Authorization: Basic {password}",
        "Content-Type: application/octet-stream",
        f"Content-Length: {LARGE}",
    ]
    return "\r\n".join([*lines, "", ""]).encode()


def test_40_an_upload_whose_answer_is_lost(rig: Rig) -> None:
    """Sent again, it is refused, and what is stored can be compared: never two objects."""
    artifact_id, content = uuid4(), os.urandom(1000)
    rig.storage_api.front.cuts.append(Cut("down", when=b"POST /data"))
    with pytest.raises(ApiUnavailable):
        rig.upload(ArtifactKind.DATA, content, id=artifact_id)
    with pytest.raises(ApiError) as refused:
        rig.upload(ArtifactKind.DATA, content, id=artifact_id)
    assert refused.value.status == 409
    assert rig.storage.read(ArtifactKind.DATA, artifact_id) == content
    assert len(keys_of(rig, artifact_id)) == 1


def test_40_an_order_whose_answer_is_lost(rig: Rig) -> None:
    """Given again, it is the same job."""
    spec = rig.make_learn(hold="train")
    rig.compute_api.front.cuts.append(Cut("down", when=b"POST /learn"))
    with pytest.raises(ApiUnavailable):
        rig.submit(spec)
    rig.submit(spec)
    assert rig.wait_done(spec).attempt == 1


def test_41_told_to_stop_under_load(rig: Rig) -> None:
    """Uploads finish or fail; what was answered with success is there."""
    stopped, refused = threading.Event(), []

    def upload_for_ever() -> None:
        while not stopped.is_set():
            try:
                rig.upload(ArtifactKind.DATA, os.urandom(256 << 10))
            except (ApiUnavailable, ApiError) as exc:
                refused.append(exc)
                stopped.wait(0.05)

    threads = [threading.Thread(target=upload_for_ever) for _ in range(4)]
    before = len(rig.ledger.uploads)
    for thread in threads:
        thread.start()
    try:
        wait_until(lambda: len(rig.ledger.uploads) >= before + 8, what="load")
        assert rig.storage_api.stop(signal.SIGTERM) == 0
        wait_until(lambda: bool(refused), what="a refusal")
    finally:
        stopped.set()
        for thread in threads:
            thread.join()
