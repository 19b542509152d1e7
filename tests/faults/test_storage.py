"""Cases 45 to 51: an S3 server that refuses, breaks off, drips, is full or away, and blobs that are damaged or lost."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID, uuid4

import pytest
import requests

from morpheo.errors import ApiError
from morpheo.models import ArtifactKind, AttemptOutcome, Blame, Cause, Job, JobState
from tests.faults.links import Cut, Link
from tests.faults.nodes import LOGIN
from tests.faults.rig import Rig
from tests.support.servers import wait_until

pytestmark = [pytest.mark.docker, pytest.mark.database, pytest.mark.redis, pytest.mark.s3]

MIB = 1 << 20
#: Of a data file that is moved in many pieces.
SIZE = 3 * MIB
DAMAGES = ["altered", "truncated"]


def s3_links(rig: Rig) -> list[Link]:
    """Return what the workers reach the S3 server by."""
    return [worker.links["s3"] for worker in rig.workers.values()]


def error_answer(status: int, reason: str, code: str) -> bytes:
    """Return what an S3 server says that refuses a request."""
    body = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>{reason}</Message></Error>'
    head = f"HTTP/1.1 {status} {reason}\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n"
    return f"{head}Connection: close\r\n\r\n{body}".encode()


def outcomes(job: Job) -> list[AttemptOutcome]:
    """Return how the attempts at a job ended."""
    return [attempt.outcome for attempt in job.attempts]


def check_waited(job: Job) -> None:
    """Check that a job was given back some times, and that this has cost nothing."""
    *others, last = outcomes(job)
    assert last is AttemptOutcome.SUCCEEDED
    assert others, "nothing was broken"
    assert set(others) == {AttemptOutcome.RETRIED}
    assert job.strikes == 0


@pytest.mark.parametrize("status", [500, 503])
def test_45_a_server_that_refuses(rig: Rig, status: int) -> None:
    """The job waits without a strike, and is done when the server is well."""
    spec = rig.make_learn(fresh=True)
    for link in s3_links(rig):
        link.answer = error_answer(status, "Refused", "InternalError")
    rig.submit(spec)
    rig.wait_attempt(spec, 2)
    rig.heal()
    check_waited(rig.wait_done(spec))


def test_45_a_download_that_is_cut(rig: Rig) -> None:
    """It goes on where it was, in the same attempt."""
    data = rig.data(size=SIZE)
    resumed = [link.watch(b"Range: bytes=") for link in s3_links(rig)]
    for link in s3_links(rig):
        link.cuts.append(Cut("down", after=MIB, when=f"/data/{data}/".encode()))
    job = rig.wait_done(rig.order(train_data=(data,)))
    assert any(event.is_set() for event in resumed)
    assert (outcomes(job), job.strikes) == ([AttemptOutcome.SUCCEEDED], 0)


def test_45_an_upload_that_is_cut(rig: Rig) -> None:
    """It begins again, in the same attempt."""
    spec = rig.make_learn(model_bytes=MIB)
    for link in s3_links(rig):
        link.cuts.append(Cut("up", after=MIB // 2, when=f"/model/{spec.model_end}/".encode()))
    rig.submit(spec)
    job = rig.wait_done(spec)
    assert any(not link.cuts for link in s3_links(rig))
    assert (outcomes(job), job.strikes) == ([AttemptOutcome.SUCCEEDED], 0)
    assert len(rig.blob_keys(spec)) == 1


def test_46_an_upload_whose_answers_are_all_lost(rig: Rig) -> None:
    """What is stored is found to be there: that is success."""
    spec = rig.make_learn()
    for link in s3_links(rig):
        link.cuts.append(Cut("down", when=f"/model/{spec.model_end}/".encode(), times=4))
    rig.submit(spec)
    job = rig.wait_done(spec)
    assert any(not link.cuts for link in s3_links(rig))
    assert (outcomes(job), job.strikes) == ([AttemptOutcome.SUCCEEDED], 0)
    assert len(rig.blob_keys(spec)) == 1


def test_47_a_server_that_drips(rig: Rig) -> None:
    """A total deadline ends the attempt; no silence of a socket would."""
    data = rig.data(size=SIZE)
    for link in s3_links(rig):
        link.rate = 1000
    spec = rig.order(train_data=(data,))
    rig.wait_attempt(spec, 2)
    rig.heal()
    job = rig.wait_done(spec)
    check_waited(job)
    assert "too slow" in job.attempts[0].message


@contextmanager
def damaged_data(rig: Rig, damage: str) -> Iterator[UUID]:
    """Give a data file whose blob is damaged in the store; uploading it again then repairs it."""
    content = json.dumps({"detail": uuid4().hex + "x" * SIZE}).encode()
    artifact_id = rig.upload(ArtifactKind.DATA, content)
    key = rig.resources.artifacts.get(ArtifactKind.DATA, artifact_id).blob_key
    with rig.resources.blobs.get(key) as pieces:
        stored = b"".join(pieces)
    rig.resources.blobs.delete(key)
    if damage == "altered":
        rig.resources.blobs.put(key, io.BytesIO(stored[:-1000] + b"y" + stored[-999:]))
    elif damage == "truncated":
        rig.resources.blobs.put(key, io.BytesIO(stored[:-1000]))
    yield artifact_id
    with pytest.raises(ApiError, match="quarantine") as gone:
        rig.storage.read(ArtifactKind.DATA, artifact_id)
    assert gone.value.status == 410
    rig.upload(ArtifactKind.DATA, content, id=artifact_id)
    assert rig.storage.read(ArtifactKind.DATA, artifact_id) == content


@pytest.mark.parametrize("damage", DAMAGES)
def test_48_a_damaged_blob_and_a_job(rig: Rig, damage: str) -> None:
    """The job fails at once, in words; repaired, the same data can be used."""
    with damaged_data(rig, damage) as data:
        check_fails_at_once(rig, data)
    rig.wait_done(rig.order(train_data=(data,)))


def check_fails_at_once(rig: Rig, data: UUID) -> None:
    """Check that a job which needs lost or damaged data ends with its first attempt."""
    job = rig.wait_done(rig.order(train_data=(data,)), state=JobState.FAILED)
    assert (outcomes(job), job.strikes) == ([AttemptOutcome.FAILED], 0)
    assert job.failure is not None
    assert (job.failure.cause, job.failure.blame) == (Cause.CORRUPT_ARTIFACT, Blame.INFRASTRUCTURE)


@pytest.mark.parametrize("damage", DAMAGES)
def test_48_a_damaged_blob_and_a_download(rig: Rig, damage: str) -> None:
    """The answer breaks off rather than to end with a wrong body."""
    with damaged_data(rig, damage) as data, pytest.raises(requests.RequestException):
        requests.get(f"http://{rig.storage_api.front.address}/data/{data}/blob", auth=LOGIN, timeout=60)


def test_49_a_server_that_is_away(rig: Rig) -> None:
    """The job waits without a strike, and is done when the server is back."""
    spec = rig.make_learn(fresh=True)
    rig.s3.kill()
    rig.submit(spec)
    rig.wait_attempt(spec, 3)
    rig.s3.start()
    check_waited(rig.wait_done(spec))


def test_49_a_server_that_is_away_when_a_model_is_stored(rig: Rig) -> None:
    """The model waits on its node, and is stored when the server is back: nothing is computed twice."""
    spec = rig.order(hold="train")
    worker, _ = rig.begin(spec, "train")
    with worker.links["s3"].down():
        rig.release(spec)
        wait_until(lambda: "the result cannot be stored" in worker.learn.new_log(), what="a first try in vain")
    job = rig.wait_done(spec)
    assert (outcomes(job), job.strikes) == ([AttemptOutcome.SUCCEEDED], 0)
    assert len(rig.blob_keys(spec)) == 1


def test_50_a_server_without_room_for_a_model(rig: Rig) -> None:
    """The job waits without a strike, and is done when there is room."""
    spec = rig.make_learn()
    for link in s3_links(rig):
        link.answer = error_answer(507, "Insufficient Storage", "XMinioStorageFull")
        link.answer_to = f"/model/{spec.model_end}/".encode()
    rig.submit(spec)
    rig.wait_attempt(spec, 2)
    rig.heal()
    job = rig.wait_done(spec)
    check_waited(job)
    assert "no room left" in job.attempts[0].message
    assert len(rig.blob_keys(spec)) == 1


def test_50_a_server_without_room_for_an_upload(rig: Rig) -> None:
    """It is answered with 503 and when to try again, there is no row, and the id is free."""
    artifact_id = uuid4()
    link = rig.storage_api.links["s3"]
    link.answer = error_answer(507, "Insufficient Storage", "XMinioStorageFull")
    link.answer_to = f"/data/{artifact_id}/".encode()
    with pytest.raises(ApiError, match="no room left") as refused:
        rig.upload(ArtifactKind.DATA, os.urandom(1000), id=artifact_id)
    assert refused.value.status == 503
    assert not rig.postgres.query("SELECT 1 FROM artifacts WHERE id = %s", artifact_id)
    link.heal()
    rig.upload(ArtifactKind.DATA, os.urandom(1000), id=artifact_id)


def test_51_a_blob_that_is_lost(rig: Rig) -> None:
    """The job fails at once, in words; repaired, the same data can be used."""
    with damaged_data(rig, "lost") as data:
        check_fails_at_once(rig, data)
        assert not list(rig.resources.blobs.list(f"data/{data}/"))
    rig.wait_done(rig.order(train_data=(data,)))
