"""A compute side that reports to an orchestrator of another database, over HTTP on loopback."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from flask import Flask
from werkzeug.serving import make_server

from morpheo.api.compute import create_compute_app
from morpheo.api.orchestrator import create_orchestrator_app
from morpheo.client import OrchestratorClient
from morpheo.client.documents import Learnuplet
from morpheo.models import ArtifactKind
from tests.support.workbench import ALGO, PROBLEM, Workbench, make_workbench


@contextmanager
def serve(app: Flask) -> Iterator[str]:
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class Stacks:
    """An orchestrator that plans, and a compute side that works for it; both know the blobs of one storage."""

    def __init__(self, planner: Workbench, worker: Workbench, client: OrchestratorClient) -> None:
        self.planner, self.worker, self.client = planner, worker, client
        self.compute = create_compute_app(worker.resources).test_client()

    def store(self, kind: ArtifactKind, content: bytes, **words: str) -> UUID:
        """Store an artifact that both see."""
        artifact_id = self.planner.store(kind, content, **words)
        self.share(self.planner, self.worker, kind, artifact_id)
        return artifact_id

    def share(self, source: Workbench, target: Workbench, kind: ArtifactKind, artifact_id: UUID) -> None:
        with source.database.read() as work:
            artifact = work.artifacts.get(kind, artifact_id)
        with target.database.begin() as work:
            work.artifacts.add(artifact)

    def order(self, route: str, document: dict[str, object]) -> UUID:
        """Order what a document of the orchestrator says, as that of 2017 did."""
        answer = self.compute.post(route, json=document, auth=("u", "p"))
        assert answer.status_code == 202, answer.text
        return UUID(str(document["uuid"]))

    def work(self, job_id: UUID) -> None:
        self.worker.resources.runner.run(job_id)

    def report(self) -> None:
        assert self.worker.resources.reporter is not None
        assert self.worker.resources.reporter.deliver()

    def learnuplets(self, algo: UUID) -> list[Learnuplet]:
        return sorted(self.client.learnuplets(algo=algo), key=lambda found: found.rank)

    def document(self, path: str) -> dict[str, object]:
        document: dict[str, object] = self.client._http.request("GET", path).json()
        return document


@pytest.fixture
def stacks(sqlite_template: bytes, tmp_path: Path) -> Iterator[Stacks]:
    for name in ("planner", "worker"):
        (tmp_path / f"{name}.db").write_bytes(sqlite_template)
    planner = make_workbench(f"sqlite:///{tmp_path}/planner.db", tmp_path / "planner")
    with ExitStack() as stack:
        url = stack.enter_context(serve(create_orchestrator_app(planner.resources)))
        client = stack.enter_context(closing(OrchestratorClient(url, user="u", password="p")))
        worker = make_workbench(f"sqlite:///{tmp_path}/worker.db", tmp_path / "worker", orchestrator_url=url)
        vars(worker.resources).update(blobs=planner.blobs)
        yield Stacks(planner, worker, client)
        worker.database.close()
    planner.database.close()


def test_the_reports_of_one_stack_let_the_chain_of_another_go_on(stacks: Stacks) -> None:
    test = stacks.store(ArtifactKind.DATA, b"c:3\n")
    problem = stacks.client.add_problem(
        uuid4(),
        workflow=stacks.store(ArtifactKind.PROBLEM, PROBLEM, name="p", description="p"),
        test_data=[test],
        batch_size=1,
    )
    data = [stacks.store(ArtifactKind.DATA, content) for content in (b"a:1", b"c:3", b"d:4")]
    stacks.client.add_data(data, problems=[problem.id])
    algo = stacks.store(ArtifactKind.ALGO, ALGO, name="a")
    assert stacks.client.add_algo(algo, name="a", problem=problem.id)[1] == 3

    for rank in range(3):
        current = stacks.learnuplets(algo)[rank]
        job_id = stacks.order("/learn", stacks.document(f"/learnuplet/{current.uuid}"))
        stacks.work(job_id)
        assert stacks.learnuplets(algo)[rank].status == "todo"  # nobody was told yet
        # Storage is one service in such a world; here it is two tables.
        stacks.share(stacks.worker, stacks.planner, ArtifactKind.MODEL, current.model_end)
        stacks.report()
    ended = stacks.learnuplets(algo)
    assert [found.status for found in ended] == ["done"] * 3
    assert [found.perf for found in ended] == [0.0, 1.0, 1.0]
    assert [found.model_start for found in ended] == [algo, ended[0].model_end, ended[1].model_end]
    assert {found.worker for found in ended} == {stacks.worker.resources.runner.worker}

    ordered = stacks.client.predict(stacks.store(ArtifactKind.DATA, b"c"), problem=problem.id)
    job_id = stacks.order("/pred", stacks.document(f"/preduplet/{ordered.uuid}"))
    stacks.work(job_id)
    result = stacks.worker.resources.jobs.get(job_id).result
    assert result is not None
    stacks.share(stacks.worker, stacks.planner, ArtifactKind.PREDICTION, result)
    stacks.report()
    predicted = stacks.client.preduplet(ordered.uuid)
    assert (predicted.status, predicted.prediction_storage_uuid) == ("done", result)


def test_a_job_that_fails_in_one_stack_stalls_the_chain_of_another(stacks: Stacks) -> None:
    problem = stacks.client.add_problem(
        uuid4(),
        workflow=stacks.store(ArtifactKind.PROBLEM, PROBLEM, name="p", description="p"),
        test_data=[stacks.store(ArtifactKind.DATA, b"c:3\n")],
        batch_size=1,
    )
    data = [stacks.store(ArtifactKind.DATA, content) for content in (b"a:1", b"c:3")]
    stacks.client.add_data(data, problems=[problem.id])
    algo = stacks.store(ArtifactKind.ALGO, b"no archive", name="bad")
    stacks.client.add_algo(algo, name="bad", problem=problem.id)
    current = stacks.learnuplets(algo)[0]
    stacks.work(stacks.order("/learn", stacks.document(f"/learnuplet/{current.uuid}")))
    stacks.report()
    assert [found.status for found in stacks.learnuplets(algo)] == ["failed", "todo"]
    assert stacks.client.submission(algo).stalled
