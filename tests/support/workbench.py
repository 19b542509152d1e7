"""A node without services: SQLite, blobs in memory, and a fake engine with a problem and an algo that work."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from morpheo.artifacts import Upload
from morpheo.config import Settings
from morpheo.models import ArtifactKind, LearnSpec, PredictSpec
from morpheo.resources import Resources
from morpheo.runtime.contract import Engines
from morpheo.storage.database import Database
from morpheo.testing import FakeContainer, FakeRuntime, MemoryBlobStore, RecordingPublisher, make_archive

Program = Callable[[FakeContainer], int]

PROBLEM = make_archive({"Dockerfile": 'FROM morpheo/base:1\nENTRYPOINT ["problem"]\n'})
ALGO = make_archive({"Dockerfile": 'FROM morpheo/base:1\nENTRYPOINT ["algo"]\n'})


def flag(container: FakeContainer, name: str) -> str:
    """Return the value of a command-line flag."""
    return container.args[container.args.index(name) + 1]


def problem(container: FakeContainer) -> int:
    """Data is ``x:target``, maybe with an end of line; predictions are targets; the score is the share of right."""
    hidden, submission = flag(container, "-i"), flag(container, "-s")
    truth = {path.name: path for path in container.path(f"{hidden}/test").iterdir() if path.is_file()}
    if flag(container, "-T") == "detarget":
        for name, path in truth.items():
            container.write(f"{submission}/test/{name}", path.read_bytes().partition(b":")[0])
        return 0
    scores = {name: score(path, container.path(f"{submission}/test/pred/{name}")) for name, path in truth.items()}
    train = {path.name: path for path in container.path(f"{submission}/train").iterdir() if path.is_file()}
    train_scores = {
        name: score(path, container.path(f"{submission}/train/pred/{name}")) for name, path in train.items()
    }
    document = {"perf": sum(scores.values()) / len(scores), "train_perf": train_scores, "test_perf": scores}
    container.write(f"{hidden}/perf/performance.json", json.dumps(document).encode())
    container.print("scored")
    return 0


def score(truth: Path, prediction: Path) -> float:
    """Return 1 if a prediction is the truth's target."""
    return float(truth.read_bytes().partition(b":")[2].rstrip() == prediction.read_bytes())


def algo(container: FakeContainer) -> int:
    """Remember x and target of all train files; predict what was remembered, else 0."""
    volume = flag(container, "-V")
    path = container.path(f"{volume}/model/model_trained.json")
    memory: dict[str, str] = json.loads(path.read_text()) if path.exists() else {}
    if flag(container, "-T") == "train":
        for file in sorted(container.path(f"{volume}/train").iterdir()):
            if file.is_file():
                x, _, target = file.read_text().partition(":")
                memory[x] = target
        container.write(f"{volume}/model/model_trained.json", json.dumps(memory).encode())
        predict(container, f"{volume}/train", memory)
    predict(container, f"{volume}/test", memory)
    container.print(f"remembers {len(memory)}")
    return 0


def predict(container: FakeContainer, folder: str, memory: dict[str, str]) -> None:
    """Write a prediction for each file."""
    for file in sorted(container.path(folder).iterdir()):
        if file.is_file():
            x = file.read_text().partition(":")[0]
            container.write(f"{folder}/pred/{file.name}", memory.get(x, "0").encode())


@dataclass
class Workbench:
    """Everything of a node, with the parts that tests look at or replace."""

    resources: Resources
    blobs: MemoryBlobStore
    publisher: RecordingPublisher
    runtime: FakeRuntime
    programs: dict[str, Program]
    work_dir: Path
    ids: dict[str, UUID] = field(default_factory=dict)

    @property
    def database(self) -> Database:
        return self.resources.database

    def store(self, kind: ArtifactKind, content: bytes, **words: Any) -> UUID:
        """Upload an artifact and return its id."""
        upload = Upload(kind=kind, id=uuid4(), **words)
        return self.resources.artifacts.upload(upload, _Bytes(content), length=len(content)).id

    def learn_spec(self, **changes: Any) -> LearnSpec:
        """Return an order that can be done; its artifacts are stored."""
        kinds = ArtifactKind
        values: dict[str, Any] = {
            "id": uuid4(),
            "problem": uuid4(),
            "workflow": changes.get("workflow") or self.store(kinds.PROBLEM, PROBLEM, name="p", description="p"),
            "algo": changes.get("algo") or self.store(kinds.ALGO, ALGO, name="a"),
            "train_data": changes.get("train_data") or (self.store(kinds.DATA, b"a:1"), self.store(kinds.DATA, b"b:2")),
            "test_data": changes.get("test_data") or (self.store(kinds.DATA, b"a:1"), self.store(kinds.DATA, b"c:3")),
            "model_start": None,
            "model_end": uuid4(),
        }
        return LearnSpec(**{**values, **changes})

    def predict_spec(self, model: UUID, content: bytes = b"a") -> PredictSpec:
        """Return an order to predict with a model."""
        data = self.store(ArtifactKind.DATA, content)
        return PredictSpec(id=uuid4(), problem=uuid4(), workflow=uuid4(), model=model, data=data)

    def read(self, kind: ArtifactKind, artifact_id: UUID) -> bytes:
        """Return a blob."""
        artifact = self.resources.artifacts.get(kind, artifact_id)
        with self.resources.artifacts.open(artifact) as pieces:
            return b"".join(pieces)


class _Bytes:
    def __init__(self, content: bytes) -> None:
        self._content = content

    def read(self, size: int = -1, /) -> bytes:
        piece = self._content if size < 0 else self._content[:size]
        self._content = self._content[len(piece) :]
        return piece


def make_workbench(database_url: str, data_dir: Path, **settings: Any) -> Workbench:
    """Return a workbench on a database that has its tables."""
    values = {"lease_s": 30, "heartbeat_s": 0.02, "retry_delay_s": 0, **settings}
    resources = Resources(Settings(data_dir=data_dir, database_url=database_url, **values), RecordingPublisher())
    programs: dict[str, Program] = {"problem": problem, "algo": algo}
    blobs, runtime = MemoryBlobStore(), FakeRuntime(programs)
    vars(resources).update(blobs=blobs, engines=Engines(problem=runtime, algo=runtime))
    assert isinstance(resources.publisher, RecordingPublisher)
    return Workbench(resources, blobs, resources.publisher, runtime, programs, data_dir / "work")
