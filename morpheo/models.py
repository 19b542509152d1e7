"""
The domain: what artifacts and jobs are, and how a job may change.

Only the standard library is imported here. Everything is an immutable value; a changed job is a new value, read
back from the database after a guarded update.
"""

from __future__ import annotations

import enum
import uuid
from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

NIL_UUID = UUID(int=0)

#: Begins a tag that says whose algo a job runs, and that nobody can ask for (`morpheo.queues.in_lane`).
LANE = "@"

#: Namespace of the ids that are derived from a job's id, so that a second attempt gives the same ids.
DERIVED_IDS = UUID("6f0e7a3e-5d3b-4c39-9a53-7d6a3b1f0c11")


class ArtifactKind(enum.StrEnum):
    """What a stored blob is."""

    #: A ``.tar.gz`` with the Dockerfile of the image that hides the targets and computes the score.
    PROBLEM = "problem"
    #: A ``.tar.gz`` with the Dockerfile of the image that learns and predicts.
    ALGO = "algo"
    #: One file of examples with their targets.
    DATA = "data"
    #: A ``.tar.gz`` of the model folder that an algo left.
    MODEL = "model"
    #: One file of predictions.
    PREDICTION = "prediction"


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """A blob with a name: the row that makes the blob visible."""

    id: UUID
    kind: ArtifactKind
    name: str = ""
    description: str = ""
    #: The algo that made a model.
    algo: UUID | None = None
    size_bytes: int
    #: Lower-case hexadecimal digest of the blob.
    sha256: str
    #: Where the blob lies in the blob store; unique to one write.
    blob_key: str
    created_at: datetime
    #: Why its blob cannot be used, if it is known to be lost or damaged; empty is nothing known.
    quarantine: str = ""
    #: Name of the user whom it belongs to; empty is nobody.
    owner: str = ""


class JobKind(enum.StrEnum):
    """What a job does."""

    LEARN = "learn"
    PREDICT = "predict"


class JobState(enum.StrEnum):
    """Where a job is in its life; `TRANSITIONS` says what may follow."""

    #: An earlier rank of its chain is not done.
    WAITING = "waiting"
    #: May be claimed by a worker.
    QUEUED = "queued"
    #: A worker holds its lease.
    RUNNING = "running"
    #: Ended, with a result.
    SUCCEEDED = "succeeded"
    #: Ended, with a cause.
    FAILED = "failed"
    #: Ended, because somebody asked for it.
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        """Whether nothing may follow."""
        return not TRANSITIONS[self]

    @property
    def wire(self) -> str:
        """The word that clients of 2017 know."""
        return _WIRE_WORDS[self]


TRANSITIONS: dict[JobState, frozenset[JobState]] = {
    JobState.WAITING: frozenset({JobState.QUEUED, JobState.CANCELLED, JobState.FAILED}),
    JobState.QUEUED: frozenset({JobState.RUNNING, JobState.CANCELLED, JobState.FAILED}),
    JobState.RUNNING: frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED, JobState.QUEUED}),
    JobState.SUCCEEDED: frozenset(),
    JobState.FAILED: frozenset(),
    JobState.CANCELLED: frozenset(),
}

_WIRE_WORDS = dict(zip(JobState, ("todo", "todo", "pending", "done", "failed", "failed"), strict=True))


class Blame(enum.StrEnum):
    """Who can do something about a failure."""

    SUBMITTER = "submitter"
    PROBLEM = "problem"
    CUSTODIAN = "custodian"
    INFRASTRUCTURE = "infrastructure"


class Cause(enum.StrEnum):
    """Why a job ended without a result: a closed list."""

    BAD_ARCHIVE = "BAD_ARCHIVE"
    BUILD_FAILED = "BUILD_FAILED"
    BAD_IMAGE = "BAD_IMAGE"
    EXIT_CODE = "EXIT_CODE"
    OUT_OF_MEMORY = "OUT_OF_MEMORY"
    TIME_LIMIT = "TIME_LIMIT"
    OUTPUT_LIMIT = "OUTPUT_LIMIT"
    MISSING_OUTPUT = "MISSING_OUTPUT"
    BAD_OUTPUT = "BAD_OUTPUT"
    BAD_PERFORMANCE = "BAD_PERFORMANCE"
    ARTIFACT_NOT_FOUND = "ARTIFACT_NOT_FOUND"
    ARTIFACT_EXISTS = "ARTIFACT_EXISTS"
    CORRUPT_ARTIFACT = "CORRUPT_ARTIFACT"
    WORKER_LOST = "WORKER_LOST"
    DATABASE_UNAVAILABLE = "DATABASE_UNAVAILABLE"
    STORAGE_UNAVAILABLE = "STORAGE_UNAVAILABLE"
    RUNTIME_UNAVAILABLE = "RUNTIME_UNAVAILABLE"
    DISK_FULL = "DISK_FULL"
    INTERNAL_ERROR = "INTERNAL_ERROR"
    CANCELLED = "CANCELLED"


class StepName(enum.StrEnum):
    """The parts of a job that take time: two image builds and five containers."""

    BUILD_PROBLEM = "build_problem"
    BUILD_ALGO = "build_algo"
    DETARGET = "detarget"
    TRAIN = "train"
    #: HDF5 predictions are written anew, value by value.
    SANITIZE = "sanitize"
    PERF = "perf"
    PREDICT = "predict"


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why a job ended without a result, in words that a person can act on."""

    cause: Cause
    blame: Blame
    #: A sentence that says what happened and what to do.
    message: str
    step: StepName | None = None


CANCELLED = Failure(cause=Cause.CANCELLED, blame=Blame.SUBMITTER, message="cancelled on request")


class JobFailed(Exception):
    """
    The job has ended badly, and trying again would end the same way.

    Attributes:
        failure: What the job's row will say.
    """

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What the problem image computed, on targets that the algo never saw."""

    perf: float
    #: Score of each train file, by data id.
    train_perf: dict[str, float] = field(default_factory=dict)
    #: Score of each test file, by data id.
    test_perf: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class LearnSpec:
    """A learnuplet: train an algo on a batch of data, from a model, and score it on hidden data."""

    id: UUID
    problem: UUID
    #: Storage id of the problem's archive.
    workflow: UUID
    algo: UUID
    train_data: tuple[UUID, ...]
    test_data: tuple[UUID, ...]
    #: The model to start from; not looked at for rank 0.
    model_start: UUID | None
    #: The id that the trained model gets.
    model_end: UUID
    #: Place in a chain of mini-batches.
    rank: int = 0
    #: What its worker must have, sorted (`morpheo.queues.checked_tags`).
    tags: tuple[str, ...] = ()
    #: How long each of its containers may run, if that is less than the worker allows.
    time_limit_s: int | None = None

    kind = JobKind.LEARN

    def needs(self) -> dict[str, tuple[ArtifactKind, tuple[UUID, ...]]]:
        """Return the artifacts that must exist, by the order's field."""
        needs = {
            "workflow": (ArtifactKind.PROBLEM, (self.workflow,)),
            "algo": (ArtifactKind.ALGO, (self.algo,)),
            "train_data": (ArtifactKind.DATA, self.train_data),
            "test_data": (ArtifactKind.DATA, self.test_data),
        }
        if self.rank > 0 and self.model_start is not None:
            needs["model_start"] = (ArtifactKind.MODEL, (self.model_start,))
        return needs


@dataclass(frozen=True, kw_only=True)
class PredictSpec:
    """A preduplet: predict one data file with a stored model."""

    id: UUID
    problem: UUID
    workflow: UUID
    model: UUID
    data: UUID
    #: What its worker must have, sorted.
    tags: tuple[str, ...] = ()
    #: How long its container may run, if that is less than the worker allows.
    time_limit_s: int | None = None

    kind = JobKind.PREDICT

    @property
    def prediction(self) -> UUID:
        """The id that the prediction gets; the same for every attempt."""
        return uuid.uuid5(DERIVED_IDS, f"prediction/{self.id}")

    def needs(self) -> dict[str, tuple[ArtifactKind, tuple[UUID, ...]]]:
        """Return the artifacts that must exist, by the order's field."""
        return {"model": (ArtifactKind.MODEL, (self.model,)), "data": (ArtifactKind.DATA, (self.data,))}


JobSpec = LearnSpec | PredictSpec


class AttemptOutcome(enum.StrEnum):
    """How one attempt at a job ended."""

    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    #: Infrastructure failed, and the job went back to the queue.
    RETRIED = "retried"
    #: The worker was told to stop; the job went back to the queue without a strike.
    RELEASED = "released"
    #: The worker's lease ran out.
    LOST = "lost"


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """What is known of one step of one attempt."""

    name: StepName
    started_at: datetime
    #: Duration by the monotonic clock; None while the step runs.
    seconds: float | None = None
    exit_code: int | None = None
    oom_killed: bool = False
    #: Highest memory use seen, None if the engine told none.
    peak_memory_bytes: int | None = None
    #: Key of the step's log in the blob store, when it is whole.
    log_key: str | None = None
    #: Size of that blob; None if an older version wrote it.
    log_bytes: int | None = None
    #: Byte of that blob before which some were left out, and how many.
    log_gap_at: int | None = None
    log_gap_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One try of one worker at a job; its number is the fencing token of all that it writes."""

    number: int
    worker: str
    outcome: AttemptOutcome
    started_at: datetime
    ended_at: datetime | None = None
    message: str = ""
    steps: tuple[StepRecord, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Job:
    """An accepted order and what became of it."""

    id: UUID
    kind: JobKind
    state: JobState
    spec: JobSpec
    #: The algo that runs; a predict job has its model's.
    algo: UUID | None = None
    #: Number of the latest attempt; 0 before the first.
    attempt: int = 0
    #: How many attempts infrastructure has cost.
    strikes: int = 0
    cancel_requested: bool = False
    worker: str | None = None
    created_at: datetime
    started_at: datetime | None = None
    ended_at: datetime | None = None
    failure: Failure | None = None
    scores: Scores | None = None
    #: Id of the model or prediction that it ended with.
    result: UUID | None = None
    #: Whether the orchestrator made it, rather than an order from outside.
    planned: bool = False
    attempts: tuple[Attempt, ...] = ()
    #: Name of the user who ordered it, or of the owner of the algo in a chain; empty is nobody.
    owner: str = ""
    #: User of the worker that is not ours and has or had it.
    held_by: str | None = None


def cancel_answer(before: Job, after: Job) -> str:
    """Return in a sentence what asking to cancel a job has led to; `before` is the job as it was then."""
    if before.state.is_final:
        return f"the job had ended already, it is {before.state}; nothing was changed"
    if after.state.is_final:
        return f"the job is {after.state}"
    again = "was requested before" if before.cancel_requested else "requested"
    return f"cancel {again}; the job's worker stops it within a few seconds"
