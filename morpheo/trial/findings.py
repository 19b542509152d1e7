"""What a trial saw, and what it says."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass, field
from uuid import UUID

from morpheo.config import Settings
from morpheo.models import Blame, Cause, Job, StepName, StepRecord
from morpheo.trial.sample import Item, Sample
from morpheo.trial.watch import Left

#: Steps of the algo's containers.
ALGO_STEPS = (StepName.TRAIN, StepName.PREDICT)


class State(enum.StrEnum):
    """How a check ended."""

    PASSED = "passed"
    #: A job with this algo would fail.
    FAILED = "failed"
    #: It went well here, and may not on real data.
    WARNING = "warning"
    #: Something before it failed.
    NOT_REACHED = "not reached"


@dataclass(frozen=True, kw_only=True)
class Check:
    """One line of the report."""

    name: str
    state: State
    #: What was found, and what to do about it.
    detail: str = ""
    #: How long it took, if it is something that takes time.
    seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class JobFailure:
    """Why one of the jobs failed."""

    #: What it was, such as "train".
    job: str
    cause: Cause
    blame: Blame
    message: str
    #: The end of the log of the step that failed, if the message does not quote it.
    log: str = ""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a trial found."""

    passed: bool
    checks: tuple[Check, ...]
    failures: tuple[JobFailure, ...] = ()
    #: What the problem computed, on the sample only.
    score: float | None = None
    #: Wall-clock time of the whole trial.
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Trial:
    """The jobs of a trial, each None if it was not reached, and what their containers left."""

    sample: Sample
    train: Job
    again: Job | None = None
    predict: Job | None = None
    #: The test item that was predicted.
    predicted: Item | None = None
    left: dict[tuple[UUID, StepName, str], Left] = field(default_factory=dict)
    #: The end of the log of each step, by job.
    logs: dict[UUID, dict[StepName, str]] = field(default_factory=dict)
    #: The limits.
    settings: Settings
    #: Whether predict wrote what train had written for the same item; None if it is not known.
    same_prediction: bool | None = None

    @property
    def jobs(self) -> Iterator[tuple[str, Job]]:
        """The jobs that were run, with what each is."""
        named = (("train", self.train), ("train again", self.again), ("predict", self.predict))
        return ((name, job) for name, job in named if job is not None)


def step_of(job: Job | None, name: StepName) -> StepRecord | None:
    """Return a step of the last attempt at a job, None if it was not reached."""
    steps = job.attempts[-1].steps if job is not None and job.attempts else ()
    return next((step for step in steps if step.name is name), None)


def stopped_in(job: Job, name: StepName) -> bool:
    """Return whether a step is what a job failed of."""
    return job.failure is not None and job.failure.step is name
