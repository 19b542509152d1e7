"""
What holds after every fault, when all is whole again. I8 is that nobody but the installation itself did anything.

===  =================================================================================================================
I1   every order has ended, and has come to a final state exactly once; the audit trail says so too, and is intact
I2   row, blob and scores of a result come from the same attempt
I3   nothing is left of attempts that are over: no container, volume, unchecked image, workspace, temporary file
I4   all that was answered with success can be read back, with its sha256
I5   no row without its blob; a blob without a row is one that an attempt or upload left just now, and is found
I6   no job has more strikes than it may, and no two attempts had an effect
I7   no message is left, waiting or unacknowledged
===  =================================================================================================================
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from uuid import UUID

from morpheo.artifacts import ORPHAN_AGE
from morpheo.audit import Action
from morpheo.models import ArtifactKind, AttemptOutcome, Job, JobSpec, JobState, LearnSpec
from tests.faults.nodes import MAX_ATTEMPTS
from tests.faults.rig import Rig, result_of
from tests.support.servers import wait_until
from tests.support.trail import trail

#: How long a node may take to tidy up, and messages to drain, in seconds.
TIDY_S = 60

_ENDS = {Action.JOB_SUCCEEDED, Action.JOB_FAILED, Action.JOB_CANCELLED}


def check_invariants(rig: Rig) -> None:
    """Wait until all orders of the case are over and everything is tidy; then look at all that was promised."""
    orders = {spec.id: spec for spec in rig.ledger.orders}.values()
    rig.release(*orders)
    for spec in orders:
        rig.wait(lambda spec=spec: rig.job(spec).state.is_final, f"I1: the end of {spec.id}", timeout_s=120)  # type: ignore[misc]
    for spec in orders:
        check_ended_once(rig, spec)
    check_trail(rig, orders)
    check_tidy(rig)
    check_kept(rig)
    check_drained(rig)


def check_ended_once(rig: Rig, spec: JobSpec) -> None:
    """Check I1, I2 and I6 of one job."""
    job, history = rig.job(spec), rig.history(spec)
    ends = [change for change in history if change.state.is_final]
    assert len(ends) == 1, f"I1: {history}"
    assert history[-1] == ends[0], f"I1: {history}"
    assert ends[0].state is job.state, f"I1: {history}"
    attempts = [change.attempt for change in history]
    assert attempts == sorted(attempts), f"I6: {history}"
    outcomes = [attempt.outcome for attempt in job.attempts]
    assert AttemptOutcome.RUNNING not in outcomes, f"I1: {job.attempts}"
    effective = [outcome for outcome in outcomes if outcome in (AttemptOutcome.SUCCEEDED, AttemptOutcome.FAILED)]
    assert len(effective) <= 1, f"I6: {job.attempts}"
    assert [item.number for item in job.attempts] == list(range(1, job.attempt + 1)), f"I6: {job.attempts}"
    assert job.strikes <= MAX_ATTEMPTS, f"I6: {job.strikes}"
    if job.state is JobState.SUCCEEDED:
        assert outcomes[-1] is AttemptOutcome.SUCCEEDED, f"I1: {job.attempts}"
        check_one_origin(rig, job)
    else:
        kind, result = result_of(spec)
        assert not rig.postgres.query("SELECT 1 FROM artifacts WHERE kind = %s AND id = %s", kind, result), "I2"


def check_trail(rig: Rig, specs: Iterable[JobSpec]) -> None:
    """Check that the audit trail is intact, and has one end of each job: the one that its row has."""
    ends: dict[str, list[str]] = {}
    for event in trail(rig.resources.database):
        if event.subject_kind == "job" and event.action in _ENDS:
            ends.setdefault(event.subject_id, []).append(event.action)
    for spec in specs:
        assert ends.get(str(spec.id)) == [f"job.{rig.job(spec).state}"], f"I1: {spec.id}"


def check_one_origin(rig: Rig, job: Job) -> None:
    """Check I2: what is named is what the winning attempt drew, measured and stored."""
    artifact = rig.resources.artifacts.get(*result_of(job.spec))
    assert artifact.blob_key.rpartition("/")[2].startswith(f"{job.attempt}-"), f"I2: {artifact.blob_key}"
    content = read(rig, artifact.kind, artifact.id)
    if isinstance(job.spec, LearnSpec):
        assert job.scores is not None
        drawn = drawn_by(content)
        of_files = {*job.scores.train_perf.values(), *job.scores.test_perf.values()}
        assert job.scores.perf == drawn, "I2: the score is another attempt's"
        assert of_files == {drawn}, "I2: predictions are another attempt's"
    else:
        model = rig.resources.artifacts.get(ArtifactKind.MODEL, job.spec.model)
        assert json.loads(content) == drawn_by(read(rig, model.kind, model.id)), "I2"


def drawn_by(model: bytes) -> float:
    """Return the number that a model is."""
    with tarfile.open(fileobj=io.BytesIO(model)) as tar:
        file = tar.extractfile("model_trained.json")
        assert file is not None
        return float(json.load(file))


def read(rig: Rig, kind: ArtifactKind, artifact_id: UUID) -> bytes:
    """Return a blob of the right sha256."""
    artifact = rig.resources.artifacts.get(kind, artifact_id)
    with rig.resources.artifacts.open(artifact) as pieces:
        content = b"".join(pieces)
    assert hashlib.sha256(content).hexdigest() == artifact.sha256, f"I4: {kind} {artifact_id}"
    return content


def check_tidy(rig: Rig) -> None:
    """Check I3."""

    def left() -> list[str]:
        found = [f"container {item['Names'] or item['Id']}" for item in rig.engine.containers(all=True)]
        found += [f"volume {item['Name']}" for item in rig.engine.volumes()["Volumes"] or ()]
        found += [f"image {tag}" for item in rig.engine.images("morpheo/unchecked") for tag in item["RepoTags"] or ()]
        for worker in rig.workers.values():
            found += [str(path) for path in worker.workspaces()]
            found += map(str, worker.data_dir.glob("cache/blobs/sha256/fetch-*"))
        return found

    with_deadline(left, "I3: these are left")


def with_deadline(left: Callable[[], Sequence[object]], what: str) -> None:
    """Wait until nothing is left, or fail with what is."""
    try:
        wait_until(lambda: not left(), timeout_s=TIDY_S)
    except AssertionError:
        raise AssertionError(f"{what}: {left()}") from None


def check_kept(rig: Rig) -> None:
    """Check I4 and I5."""
    for (kind, artifact_id), digest in rig.ledger.uploads.items():
        artifact = rig.resources.artifacts.get(kind, artifact_id)
        assert artifact.sha256 == digest, f"I4: {kind} {artifact_id}"
        read(rig, kind, artifact_id)
    rows = {key for (key,) in rig.postgres.query("SELECT blob_key FROM artifacts")}
    blobs = {blob.key: blob for kind in ArtifactKind for blob in rig.resources.blobs.list(f"{kind}/")}
    assert not rows - blobs.keys(), "I5: rows without blobs"
    horizon = datetime.now(UTC) - ORPHAN_AGE
    old = [key for key in blobs.keys() - rows if blobs[key].modified_at < horizon]
    assert not old, f"I5: {old}"


def check_drained(rig: Rig) -> None:
    """Check I7."""

    def left() -> list[str]:
        counts = {kind: rig.redis.count("LLEN", kind) for kind in rig.kinds}
        counts["unacked"] = rig.redis.count("HLEN", "unacked")
        return [f"{count} in {name}" for name, count in counts.items() if count]

    with_deadline(left, "I7: messages are left")
