"""The notebook of the documentation, executed against real APIs, with a worker whose engine is a fake."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import nbformat
import pytest
from flask import Flask
from nbclient import NotebookClient
from werkzeug.serving import make_server

from morpheo.api.orchestrator import create_orchestrator_app
from morpheo.api.storage import create_storage_app
from morpheo.challenges import Problem
from morpheo.models import ArtifactKind
from tests.support.workbench import ALGO, PROBLEM, Workbench, make_workbench

NOTEBOOK = Path(__file__).parents[2] / "docs" / "notebook" / "leaderboard.ipynb"
TEST = (b"a:1\n", b"b:2\n", b"c:3\n", b"d:4\n", b"e:5\n", b"f:0\n")
TRAIN = (b"a:1", b"x:9", b"b:2", b"c:3")


@contextmanager
def served(app: Flask) -> Iterator[str]:
    """Serve an application on loopback."""
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def working(bench: Workbench) -> Iterator[None]:
    """Run what is published."""
    stop = threading.Event()

    def work() -> None:
        while not stop.wait(0.02):
            while bench.publisher.published:
                bench.resources.runner.run(bench.publisher.published.pop(0))

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def challenge(bench: Workbench) -> Problem:
    orchestrator = bench.resources.orchestrator
    problem = orchestrator.register_problem(
        Problem(
            id=uuid4(),
            workflow=bench.store(ArtifactKind.PROBLEM, PROBLEM, name="p", description="p"),
            test_data=tuple(bench.store(ArtifactKind.DATA, content) for content in TEST),
            batch_size=2,
            created_at=datetime.now(UTC),
        )
    )
    data = [bench.store(ArtifactKind.DATA, content) for content in TRAIN]
    orchestrator.register_data(data, problem_ids=[problem.id])
    return problem


def test_the_notebook_has_no_outputs() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)


def test_the_notebook_goes_from_an_upload_to_a_curve(
    sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = make_workbench(sqlite_url, tmp_path / "node")
    problem = challenge(bench)
    archives = [tmp_path / f"{name}.tar.gz" for name in ("memory", "copy")]
    for archive in archives:
        archive.write_bytes(ALGO)
    storage, orchestrator = create_storage_app(bench.resources), create_orchestrator_app(bench.resources)
    with served(storage) as storage_url, served(orchestrator) as orchestrator_url, working(bench):
        monkeypatch.setenv("MORPHEO_STORAGE_URL", storage_url)
        monkeypatch.setenv("MORPHEO_ORCHESTRATOR_URL", orchestrator_url)
        monkeypatch.setenv("MORPHEO_PROBLEM", str(problem.id))
        monkeypatch.setenv("MORPHEO_ALGOS", os.pathsep.join(map(str, archives)))
        monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
        monkeypatch.setenv("MPLCONFIGDIR", str(tmp_path / "matplotlib"))
        notebook = nbformat.read(NOTEBOOK, as_version=4)
        NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    printed = "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")
    assert printed == (
        "6 test files, batches of 2\nmemory: 2 trainings\ncopy: 2 trainings\nmemory: place 1-2\ncopy: place 1-2\n"
    )
    shown = [output.data for output in outputs if output.output_type in ("execute_result", "display_data")]
    board, table, figure, curve = shown
    assert "<td>1-2</td><td>memory</td><td>0.666667</td>" in board["text/html"]
    assert "interval_low" in table["text/html"]
    assert len(figure["image/png"]) > 10_000
    assert curve["text/plain"].split()[-6:] == ["0", "2", "0.333333", "1", "4", "0.666667"]
