"""
Requests that are made from the OpenAPI documents: no 5xx, no answer that is not documented, nothing wrong accepted.

``make fuzz`` sends more of them.
"""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from morpheo.api import examples
from morpheo.api.compute import create_compute_app
from morpheo.api.orchestrator import create_orchestrator_app
from morpheo.api.storage import create_storage_app
from morpheo.challenges import Problem
from morpheo.models import ArtifactKind, JobKind
from morpheo.storage.database import Database
from tests.support.api import Service, basic
from tests.support.generated import CASES, ID, send_generated
from tests.support.workbench import ALGO, PROBLEM, Workbench, make_workbench

HEADERS = {"Authorization": basic("u", "p")}
OCTETS = "application/octet-stream"
#: Each table has ids of its own.
GIVEN = examples.ALGO


@pytest.fixture
def bench(sqlite_url: str, tmp_path: Path) -> Workbench:
    return make_workbench(sqlite_url, tmp_path / "node")


def check(answers: dict[str, Counter[int]], cases: int) -> None:
    """Check that enough was sent, and that each operation was seen to succeed."""
    assert sum(map(Counter.total, answers.values())) >= cases
    failed = {label: counter for label, counter in answers.items() if not any(status < 400 for status in counter)}
    assert failed == {}


def test_the_storage_api_keeps_to_its_document(sqlite: Database) -> None:
    service = Service(create_storage_app, sqlite)
    words = {"algo": {"name": "n"}, "problem": {"name": "n", "description": "d"}, "model": {"algo": GIVEN}}
    for kind in ArtifactKind:
        query = {"uuid": GIVEN, **words.get(kind, {})}
        assert service.post(f"/{kind}", query_string=query, data=b"abc", content_type=OCTETS).status_code == 201
    cases = CASES // 3
    known = {ID: GIVEN, "algo": GIVEN}

    def known_of(path: str) -> dict[str, Any]:
        return {**known, "uuid": GIVEN} if "{" in path else known  # or a change would give it another id

    check(send_generated(service.app, cases=cases, known=known_of, headers=HEADERS), cases)


def challenge(bench: Workbench) -> tuple[Problem, UUID, UUID]:
    """Register a problem with one test file, a data file and an algo; train it. Returns the problem, algo and data."""
    orchestrator, store, kinds = bench.resources.orchestrator, bench.store, ArtifactKind
    problem = orchestrator.register_problem(
        Problem(
            id=uuid4(),
            workflow=store(kinds.PROBLEM, PROBLEM, name="p", description="p"),
            test_data=(store(kinds.DATA, b"a:1\n"),),
            batch_size=1,
            created_at=datetime.now(UTC),
        )
    )
    data, algo = store(kinds.DATA, b"a:1"), store(kinds.ALGO, ALGO, name="a")
    orchestrator.register_data([data], problem_ids=[problem.id])
    orchestrator.register_algo(algo, name="a", problem_id=problem.id)
    bench.resources.runner.run(bench.publisher.published.pop(0))
    return problem, algo, data


def submit(bench: Workbench, problem: Problem) -> str:
    """Let another algo take part; returns the id of its training job, which is queued."""
    algo = bench.store(ArtifactKind.ALGO, ALGO, name="b")
    bench.resources.orchestrator.register_algo(algo, name="b", problem_id=problem.id)
    (job,) = bench.resources.orchestrator.jobs(JobKind.LEARN, algo=algo)
    return str(job.id)


def test_the_orchestrator_api_keeps_to_its_document(bench: Workbench) -> None:
    problem, algo, data = challenge(bench)
    orchestrator = bench.resources.orchestrator
    predictions = [str(orchestrator.order_prediction(data=data, problem_id=problem.id).id) for _ in range(3)]
    retried = [submit(bench, problem), predictions[2]]
    for job in retried:
        bench.resources.jobs.cancel(UUID(job))
    known: dict[str, Any] = {
        "problem": str(problem.id),
        "problems": [str(problem.id)],
        "workflow": str(problem.workflow),
    }
    known |= {"test_dataset": [str(problem.test_data[0])], "data": str(data), "model": None}
    by_path = {
        "/algo": {ID: str(algo), "uuid": str(algo)},
        "/data": {ID: str(data), "uuid": str(data)},
        "/learndone": {ID: submit(bench, problem)},
        "/learnuplet": {ID: retried[0]},
        "/preddone": {ID: predictions[0]},
        "/preduplet": {ID: retried[1]},
        "/problem": {ID: str(problem.id)},
        "/worker/learnuplet": {ID: submit(bench, problem)},
        "/worker/preduplet": {ID: predictions[1]},
    }

    def known_of(path: str) -> dict[str, Any]:
        return known | next((found for start, found in by_path.items() if path.startswith(start)), {})

    app, cases = create_orchestrator_app(bench.resources), CASES // 3
    check(send_generated(app, cases=cases, known=known_of, headers=HEADERS), cases)


def test_the_compute_api_keeps_to_its_document(bench: Workbench) -> None:
    problem, algo, data = challenge(bench)
    (done,) = bench.resources.orchestrator.jobs(JobKind.LEARN, algo=algo)
    cancelled = submit(bench, problem)
    bench.resources.jobs.cancel(UUID(cancelled))
    known = {
        "problem": str(problem.id),
        "workflow": str(problem.workflow),
        "algo": str(algo),
        "data": str(data),
        "train_data": [str(data)],
        "test_data": [str(problem.test_data[0])],
        "model": str(done.result),
        "model_start": str(done.result),
        "after": "",
    }

    def known_of(path: str) -> dict[str, Any]:
        return {**known, ID: cancelled if path.endswith("retry") else str(done.id)}

    app, cases = create_compute_app(bench.resources), CASES // 3
    check(send_generated(app, cases=cases, known=known_of, headers=HEADERS), cases)
