"""The domain: what may follow which state, and values that survive being stored."""

from __future__ import annotations

import dataclasses
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import morpheo
from morpheo.models import (
    CANCELLED,
    NIL_UUID,
    TRANSITIONS,
    ArtifactKind,
    Blame,
    Cause,
    Failure,
    Job,
    JobFailed,
    JobKind,
    JobSpec,
    JobState,
    LearnSpec,
    PredictSpec,
    Scores,
)
from morpheo.specs import spec_digest, spec_from_dict, spec_to_dict
from morpheo.testing import make_learn_spec, make_predict_spec

IDS = st.uuids()
LEARN_SPECS = st.builds(
    LearnSpec,
    id=IDS,
    problem=IDS,
    workflow=IDS,
    algo=IDS,
    train_data=st.lists(IDS, max_size=4).map(tuple),
    test_data=st.lists(IDS, max_size=4).map(tuple),
    model_start=st.none() | IDS,
    model_end=IDS,
    rank=st.integers(0, 1000),
)
PREDICT_SPECS = st.builds(PredictSpec, id=IDS, problem=IDS, workflow=IDS, model=IDS, data=IDS)
SPECS = LEARN_SPECS | PREDICT_SPECS


# States


@pytest.mark.parametrize(
    ("state", "followers"),
    [
        ("waiting", {"queued", "cancelled", "failed"}),
        ("queued", {"running", "cancelled", "failed"}),
        ("running", {"succeeded", "failed", "cancelled", "queued"}),
        ("succeeded", set()),
        ("failed", set()),
        ("cancelled", set()),
    ],
)
def test_a_state_may_become(state: str, followers: set[str]) -> None:
    assert {str(follower) for follower in TRANSITIONS[JobState(state)]} == followers


def test_a_job_has_ended_where_nothing_may_follow() -> None:
    assert {state for state in JobState if state.is_final} == {
        JobState.SUCCEEDED,
        JobState.FAILED,
        JobState.CANCELLED,
    }


def test_every_state_has_its_transitions_and_its_old_word() -> None:
    assert set(TRANSITIONS) == set(JobState)
    assert {state: state.wire for state in JobState} == {
        JobState.WAITING: "todo",
        JobState.QUEUED: "todo",
        JobState.RUNNING: "pending",
        JobState.SUCCEEDED: "done",
        JobState.FAILED: "failed",
        JobState.CANCELLED: "failed",
    }


@pytest.mark.parametrize("state", JobState)
def test_every_job_can_come_to_an_end(state: JobState) -> None:
    reached, pending = {state}, [state]
    while pending:
        new = TRANSITIONS[pending.pop()] - reached
        reached |= new
        pending += new
    assert any(other.is_final for other in reached)


def test_a_job_changes_by_becoming_another_value() -> None:
    spec = make_learn_spec()
    job = Job(id=spec.id, kind=JobKind.LEARN, state=JobState.QUEUED, spec=spec, created_at=datetime.now(UTC))
    running = dataclasses.replace(job, state=JobState.RUNNING, attempt=1)
    assert (job.state, job.attempt) == (JobState.QUEUED, 0)
    assert (running.state, running.attempt, running.id) == (JobState.RUNNING, 1, job.id)
    with pytest.raises(dataclasses.FrozenInstanceError):
        job.state = JobState.RUNNING  # type: ignore[misc]


# Specs


@settings(max_examples=40)
@given(spec=SPECS)
def test_a_spec_survives_json(spec: JobSpec) -> None:
    assert spec_from_dict(spec.kind, json.loads(json.dumps(spec_to_dict(spec)))) == spec


@settings(max_examples=40)
@given(spec=SPECS)
def test_a_digest_depends_on_the_values_only(spec: JobSpec) -> None:
    values = dict(reversed(spec_to_dict(spec).items()))
    assert spec_digest(spec_from_dict(spec.kind, values)) == spec_digest(spec)


@settings(max_examples=40)
@given(first=SPECS, second=SPECS)
def test_different_orders_have_different_digests(first: JobSpec, second: JobSpec) -> None:
    assert (spec_digest(first) == spec_digest(second)) == (first == second)


@pytest.mark.parametrize("name", [item.name for item in dataclasses.fields(LearnSpec)])
def test_every_field_of_an_order_counts_in_its_digest(name: str) -> None:
    spec = make_learn_spec(model_start=uuid4())
    old = getattr(spec, name)
    new: object = old + 1 if isinstance(old, int) else (*old, uuid4()) if isinstance(old, tuple) else uuid4()
    changes: dict[str, Any] = {name: ("gpu",) if name == "tags" else new}
    assert spec_digest(dataclasses.replace(spec, **changes)) != spec_digest(spec)


def test_the_order_of_data_counts_in_the_digest() -> None:
    first, second = uuid4(), uuid4()
    spec = make_learn_spec(train_data=(first, second))
    assert spec_digest(dataclasses.replace(spec, train_data=(second, first))) != spec_digest(spec)


def test_a_digest_is_the_same_in_every_version() -> None:
    # It is stored: a repeated order is recognised by it after an upgrade.
    spec = PredictSpec(id=UUID(int=1), problem=UUID(int=2), workflow=UUID(int=3), model=UUID(int=4), data=UUID(int=5))
    assert spec_digest(spec) == "0e67c8f536952f586c38355ebc4d61a499e21250a4edadd817e4e610843258e1"


@pytest.mark.parametrize("change", [{"id": "no uuid"}, {"train_data": ["x"]}, {"workflow": None, "missing": 1}])
def test_values_that_are_no_spec_are_refused(change: dict[str, object]) -> None:
    values = spec_to_dict(make_learn_spec()) | change
    if "missing" in change:
        del values["workflow"]
    with pytest.raises((ValueError, KeyError, TypeError)):
        spec_from_dict(JobKind.LEARN, values)


def test_a_spec_of_the_other_kind_is_refused() -> None:
    with pytest.raises(KeyError):
        spec_from_dict(JobKind.LEARN, spec_to_dict(make_predict_spec()))


def test_a_learn_job_needs_its_image_archives_and_data() -> None:
    spec = make_learn_spec()
    assert spec.needs() == {
        "workflow": (ArtifactKind.PROBLEM, (spec.workflow,)),
        "algo": (ArtifactKind.ALGO, (spec.algo,)),
        "train_data": (ArtifactKind.DATA, spec.train_data),
        "test_data": (ArtifactKind.DATA, spec.test_data),
    }


@pytest.mark.parametrize(
    ("rank", "model_start", "needed"),
    [(0, NIL_UUID, False), (0, None, False), (1, None, False), (1, UUID(int=7), True)],
)
def test_the_model_to_start_from_is_needed_after_rank_0(rank: int, model_start: UUID | None, *, needed: bool) -> None:
    needs = make_learn_spec(rank=rank, model_start=model_start).needs()
    assert needs.get("model_start") == ((ArtifactKind.MODEL, (model_start,)) if needed else None)


def test_a_predict_job_needs_its_model_and_its_data() -> None:
    spec = make_predict_spec()
    assert spec.needs() == {"model": (ArtifactKind.MODEL, (spec.model,)), "data": (ArtifactKind.DATA, (spec.data,))}


def test_every_attempt_at_a_prediction_gives_it_the_same_id() -> None:
    spec = make_predict_spec()
    assert spec.prediction == dataclasses.replace(spec, data=uuid4()).prediction
    assert spec.prediction != make_predict_spec().prediction
    assert spec.prediction not in (spec.id, spec.model, spec.data)


# Failures and scores


def test_causes_are_their_own_words() -> None:
    assert all(cause == cause.name for cause in Cause)


def test_every_cause_is_given_somewhere() -> None:
    package = Path(morpheo.__path__[0])
    readers = {"models.py", "disclosure.py"}  # they say what there is, and what is told of it
    source = "".join(path.read_text() for path in package.rglob("*.py") if path.name not in readers)
    unused = {cause for cause in Cause if f"Cause.{cause.name}" not in source}
    assert unused == {CANCELLED.cause}  # whose failure is a constant of the domain


def test_a_failed_job_carries_its_failure() -> None:
    failure = Failure(cause=Cause.EXIT_CODE, blame=Blame.SUBMITTER, message="train ended with exit code 1")
    error = JobFailed(failure)
    assert error.failure is failure
    assert str(error) == failure.message


def test_two_scores_do_not_share_their_tables() -> None:
    assert Scores(perf=1).train_perf is not Scores(perf=1).train_perf
