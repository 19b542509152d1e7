"""Stand-ins for the clients that the command line uses: what they answer is what a test puts there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID, uuid4

from morpheo.challenges import AddedData, Dataset, Problem, Submission
from morpheo.client import Leaderboard, Learnuplet, Preduplet, StoredArtifact
from morpheo.client.storage import Progress
from morpheo.errors import ApiError, ApiUnavailable
from morpheo.models import ArtifactKind, Job, JobKind, JobState

T = TypeVar("T")

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)


def make_problem(**changes: Any) -> Problem:
    values = {"id": uuid4(), "workflow": uuid4(), "test_data": (uuid4(),), "batch_size": 2, "created_at": NOW}
    return Problem(**{**values, **changes})


def make_submission(problem: Problem, **changes: Any) -> Submission:
    values = {"algo": uuid4(), "problem": problem.id, "name": "forest", "created_at": NOW}
    return Submission(**{**values, **changes})


_STATES = {
    "todo": JobState.QUEUED,
    "pending": JobState.RUNNING,
    "done": JobState.SUCCEEDED,
    "failed": JobState.FAILED,
}


def make_learnuplet(submission: Submission, rank: int, status: str = "todo", **changes: Any) -> Learnuplet:
    values: dict[str, Any] = {
        "uuid": uuid4(),
        "problem": submission.problem,
        "workflow": uuid4(),
        "algo": submission.algo,
        "model_start": None if status == "todo" and rank else submission.algo,
        "model_end": uuid4(),
        "train_data": (),
        "test_data": (),
        "status": status,
        "state": _STATES[status] if rank == 0 or status != "todo" else JobState.WAITING,
        "rank": rank,
        "worker": None,
        "perf": None,
        "train_perf": None,
        "test_perf": None,
        "timestamp_creation": NOW,
        "timestamp_done": None,
        "failure": None,
    }
    return Learnuplet(**{**values, **changes})


def make_preduplet(**changes: Any) -> Preduplet:
    values: dict[str, Any] = {
        **{name: uuid4() for name in ("uuid", "problem", "workflow", "model", "data")},
        "status": "todo",
        "worker": None,
        "prediction_storage_uuid": None,
        "timestamp_request": NOW,
        "timestamp_done": None,
        "failure": None,
    }
    return Preduplet(**{**values, **changes})


@dataclass
class FakeStorage:
    """A storage API that keeps what it is sent."""

    stored: dict[UUID, tuple[StoredArtifact, bytes]] = field(default_factory=dict)
    #: Names of files whose upload breaks.
    breaking: set[str] = field(default_factory=set)

    def add(self, kind: ArtifactKind, content: bytes = b"", *, name: str = "") -> UUID:
        artifact = StoredArtifact(
            id=uuid4(),
            kind=kind,
            name=name,
            description="",
            algo=None,
            size_bytes=len(content),
            sha256="",
            created_at=NOW,
        )
        self.stored[artifact.id] = artifact, content
        return artifact.id

    def upload(
        self, kind: ArtifactKind, content: Path, *, name: str | None, description: str | None, progress: Progress
    ) -> StoredArtifact:
        needed = {ArtifactKind.PROBLEM: name and description, ArtifactKind.ALGO: name}
        assert needed.get(kind, True), "the service refuses this"
        if content.name in self.breaking:
            raise ApiUnavailable("no answer from http://storage; is it running?")
        progress(content.stat().st_size)
        return self.stored[self.add(kind, content.read_bytes(), name=name or "")][0]

    def get(self, kind: ArtifactKind, artifact_id: UUID) -> StoredArtifact:
        if artifact_id not in self.stored:
            raise ApiError(f"{kind} {artifact_id} not found", status=404)
        return self.stored[artifact_id][0]

    def list(self, kind: ArtifactKind) -> Iterator[StoredArtifact]:
        return (artifact for artifact, _ in self.stored.values() if artifact.kind is kind)

    def read(self, _: ArtifactKind, artifact_id: UUID) -> bytes:
        return self.stored[artifact_id][1]

    def download(self, kind: ArtifactKind, artifact_id: UUID, target: Path) -> None:
        target.write_bytes(self.read(kind, artifact_id))


@dataclass
class FakeOrchestrator:
    """An orchestrator API: what follows from what is registered is what a test says."""

    known_problems: list[Problem] = field(default_factory=list)
    known_submissions: list[Submission] = field(default_factory=list)
    data: list[Dataset] = field(default_factory=list)
    #: Jobs of all algos: what is listed at each look, the last for ever. An exception is raised.
    looks: list[list[Learnuplet] | Exception] = field(default_factory=lambda: [[]])
    predictions: list[Preduplet] = field(default_factory=list)
    trainings: int = 0
    #: Data that is test data of every problem.
    held_out: list[UUID] = field(default_factory=list)
    #: Raised by whatever registers something.
    refusal: Exception | None = None
    #: What `leaderboard` answers.
    board: Leaderboard = field(
        default_factory=lambda: Leaderboard(problem=uuid4(), higher_is_better=True, test_files=1, entries=())
    )
    asked: list[tuple[str, Any]] = field(default_factory=list)

    def add_problem(self, problem_id: UUID, **values: Any) -> Problem:
        self._register("problem", values)
        self.known_problems.append(make_problem(id=problem_id, **values))
        return self.known_problems[-1]

    def change_problem(self, problem_id: UUID, **changes: Any) -> Problem:
        (known,) = [item for item in self.known_problems if item.id == problem_id]
        changed = replace(known, disclosure=replace(known.disclosure, **changes))
        self.known_problems[self.known_problems.index(known)] = changed
        return changed

    def add_algo(self, algo: UUID, *, name: str, problem: UUID) -> tuple[Submission, int]:
        self._register("algo", name)
        self.known_submissions.append(Submission(algo=algo, problem=problem, name=name, created_at=NOW))
        made = self.known_submissions[-1]
        for look in self.looks:
            if not isinstance(look, Exception):
                look[:] = [replace(item, algo=algo) for item in look]
        return made, self.trainings

    def add_data(self, data: Sequence[UUID], *, problems: Sequence[UUID]) -> AddedData:
        self._register("data", (list(data), list(problems)))
        self.data += [Dataset(id=item, problems=tuple(problems), created_at=NOW) for item in data]
        left_out = tuple(item for item in data if item in self.held_out)
        held_out = {item: left_out for item in problems if left_out}
        return AddedData(datasets=tuple(self.data[-len(data) :]), trainings=self.trainings, held_out=held_out)

    def predict(self, data: UUID, *, problem: UUID, model: UUID | None = None) -> Preduplet:
        self._register("prediction", (data, problem, model))
        return self.predictions[0]

    def retry(self, job_id: UUID) -> UUID:
        self._register("retry", job_id)
        return UUID(int=job_id.int + 1)

    def problems(self) -> list[Problem]:
        return self.known_problems

    def problem(self, problem_id: UUID) -> Problem:
        return _one(self.known_problems, lambda item: item.id == problem_id, f"problem {problem_id}")

    def submissions(self, problem: UUID | None = None) -> list[Submission]:
        return [item for item in self.known_submissions if problem in (None, item.problem)]

    def submission(self, algo: UUID) -> Submission:
        return _one(self.known_submissions, lambda item: item.algo == algo, f"algo {algo}")

    def datasets(self) -> list[Dataset]:
        return self.data

    def learnuplets(self, *, problem: UUID | None = None, algo: UUID | None = None) -> list[Learnuplet]:
        now = self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]
        if isinstance(now, Exception):
            raise now
        return [item for item in now if problem in (None, item.problem) and algo in (None, item.algo)]

    def learnuplet(self, job_id: UUID) -> Learnuplet:
        return _one(self.learnuplets(), lambda item: item.uuid == job_id, f"learnuplet {job_id}")

    def preduplet(self, _: UUID) -> Preduplet:
        return self.predictions.pop(0) if len(self.predictions) > 1 else self.predictions[0]

    def leaderboard(self, _: UUID) -> Leaderboard:
        return self.board

    def leaderboard_csv(self, _: UUID) -> str:
        return "place,name\r\n1,algo 1\r\n"

    def _register(self, what: str, values: Any) -> None:
        self.asked.append((what, values))
        if self.refusal is not None:
            raise self.refusal


@dataclass
class FakeCompute:
    """A compute API that knows some jobs and logs; none of them if it is down."""

    known: dict[UUID, Job] = field(default_factory=dict)
    written: dict[UUID, str] = field(default_factory=dict)
    down: bool = False

    def jobs(self, *, kind: JobKind, algo: UUID) -> list[Job]:
        self._answer()
        return [job for job in self.known.values() if (job.kind, job.algo) == (kind, algo)]

    def job(self, job_id: UUID) -> Job:
        self._answer()
        if job_id not in self.known:
            raise ApiError(f"job {job_id} not found", status=404)
        return self.known[job_id]

    def logs(self, job_id: UUID) -> str:
        self._answer()
        return self.written.get(job_id, "")

    def _answer(self) -> None:
        if self.down:
            raise ApiUnavailable("no answer from http://compute; is it running?")


def _one(items: Sequence[T], fits: Callable[[T], bool], what: str) -> T:
    for item in items:
        if fits(item):
            return item
    raise ApiError(f"{what} not found", status=404)
