"""Cases 68 to 70, 73 and 75: forgery and the next job."""

from __future__ import annotations

import json

import pytest

from morpheo.audit import Action
from morpheo.models import ArtifactKind, Blame, Cause, JobState
from tests.hostile.rig import HostileRig
from tests.support.trail import trail

pytestmark = pytest.mark.docker


def test_68_scores_of_ones_own_are_not_read(rig: HostileRig) -> None:
    forged = json.dumps({"perf": 1.0, "train_perf": {}, "test_perf": {}})
    spec = rig.learn(
        train=f"""
open("/data/model/performance.json", "w").write({forged!r})
for folder in ("/data/perf", "/data/train", "/data/test", "/data", "/"):
    attempt(folder, lambda: open(folder + "/performance.json", "w"))
"""
    )
    job = rig.succeeded(spec)
    assert job.scores is not None
    assert job.scores.perf == rig.baseline
    assert {found["error"] for found in rig.attempts(spec).values()} <= {"EROFS", "ENOENT"}


_DOCUMENTS = {
    "no object": "'NaN'",
    "NaN": """'{"perf": NaN, "train_perf": TRAIN, "test_perf": TEST}'""",
    "too large a number": """'{"perf": 1e999, "train_perf": TRAIN, "test_perf": TEST}'""",
    "true": """'{"perf": true, "train_perf": TRAIN, "test_perf": TEST}'""",
    "text": """'{"perf": "1", "train_perf": TRAIN, "test_perf": TEST}'""",
    "no train scores": """'{"perf": 1, "test_perf": TEST}'""",
    "unknown data": """'{"perf": 1, "train_perf": TRAIN, "test_perf": {"8b9c7d1e-0000-4000-8000-000000000001": 1}}'""",
    "a key twice": """'{"perf": 1, "perf": 2, "train_perf": TRAIN, "test_perf": TEST}'""",
    "deep": """'[' * 10_000""",
    "long": """'{"perf": ' + ' ' * 3_000_000 + '1, "train_perf": TRAIN, "test_perf": TEST}'""",
}


def test_69_scores_that_are_none_end_the_job_and_leave_no_model(rig: HostileRig) -> None:
    attacks = {
        name: f"""
train = json.dumps({{name: 1 for name in files(args.s + "/train")}})
test = json.dumps({{name: 1 for name in files(args.i + "/test")}})
with open(args.i + "/perf/performance.json", "w") as file:
    file.write(({document}).replace("TRAIN", train).replace("TEST", test))
"""
        for name, document in _DOCUMENTS.items()
    }
    models = {item.id for item in rig.storage.list(ArtifactKind.MODEL)}
    for job in rig.all_failed(attacks, Cause.BAD_PERFORMANCE, step="perf", blame=Blame.PROBLEM).values():
        assert job.scores is None
    assert {item.id for item in rig.storage.list(ArtifactKind.MODEL)} == models


def test_70_predictions_that_are_missing_are_named(rig: HostileRig) -> None:
    attacks = {
        "all": "[os.unlink('/data/test/pred/' + name) for name in files('/data/test')]",
        "one": "os.unlink('/data/train/pred/' + files('/data/train')[0])",
    }
    for job in rig.all_failed(attacks, Cause.MISSING_OUTPUT).values():
        assert "wrote no prediction for" in job.failure.message  # type: ignore[union-attr]


def test_73_the_next_job_finds_nothing_of_the_last(rig: HostileRig) -> None:
    mark = "left-by-the-last"
    places = ("/tmp", "/dev/shm", "/data/model", "/data/test/pred", "/data/train/pred")
    rig.wait(rig.learn(train=f"[open(folder + '/{mark}', 'w').close() for folder in {places[:3]!r}]"))
    spec = rig.learn(
        algo=rig.algo_of("ENV OTHER=1"),
        train=f"[attempt(folder, os.listdir, folder) for folder in {places!r}]",
    )
    rig.succeeded(spec)
    assert all(mark not in found["found"] for found in rig.attempts(spec).values())


def test_75_a_cancel_and_an_end_at_once_are_one_end(rig: HostileRig) -> None:
    """P1 looks at the history: one of the two won, and nothing else is written."""
    for _ in range(3):
        spec = rig.learn()
        job = rig.compute.job(spec.id)
        while job.state in (JobState.QUEUED, JobState.WAITING):
            job = rig.compute.job(spec.id)
        rig.compute.cancel(spec.id)
        job = rig.wait(spec)
        ends = [
            event.action
            for event in trail(rig.database)
            if event.subject_id == str(spec.id)
            and event.action in (Action.JOB_SUCCEEDED, Action.JOB_CANCELLED, Action.JOB_FAILED)
        ]
        assert ends == [f"job.{job.state}"]
