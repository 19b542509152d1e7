"""``morpheo try``, as a data scientist runs it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from docker import APIClient
from docker.errors import NotFound

import morpheo.demo
from morpheo.cli.common import EXIT_INTERRUPTED, EXIT_JOB_FAILED, EXIT_UNAVAILABLE
from morpheo.client import OrchestratorClient
from morpheo.models import ArtifactKind
from morpheo.packing import pack_folder
from morpheo.runtime.profile import LABEL_NODE
from morpheo.trial.home import owner_name
from tests.acceptance.conftest import Stack
from tests.support.jobs import ALGO
from tests.support.services import wait_until
from tests.support.trials import DOCKERFILE, algo_folder, problem_folder

pytestmark = pytest.mark.docker

ASSETS = Path(morpheo.demo.__file__).parent / "assets"


@pytest.fixture
def home(engine: APIClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of trials; nothing of them is left on the engine."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "cache" / "morpheo" / "try"
    yield folder
    assert {path.name for path in folder.iterdir()} == {"images", "lock"}
    for tag in (folder / "images").read_text().split():
        engine.remove_image(tag)
    assert not engine.containers(all=True, filters={"label": f"{LABEL_NODE}={owner_name()}"})


def command(*arguments: str | Path) -> list[str]:
    """Return the command."""
    return [sys.executable, "-m", "morpheo", "try", *map(str, arguments)]


def test_the_demos_algos_pass_on_the_sample_that_its_problem_ships(home: Path) -> None:
    for name in ("logistic", "bayes"):
        done = subprocess.run(
            command(ASSETS / name, "--problem", ASSETS / "problem"), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "✗" not in done.stdout
        assert "nothing would fail" in done.stdout
    assert len((home / "images").read_text().split()) == 1


def test_a_problem_of_the_orchestrator_is_downloaded(
    stack: Stack, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MORPHEO_ORCHESTRATOR_URL", stack.urls["orchestrator"])
    archive = tmp_path / "problem.tar.gz"
    with archive.open("wb") as target:
        pack_folder(problem_folder(tmp_path / "problem"), target)
    workflow = stack.storage.upload(ArtifactKind.PROBLEM, archive, name="p", description="p").id
    test_data = stack.storage.upload(ArtifactKind.DATA, b"hidden:1").id
    problem = OrchestratorClient(stack.urls["orchestrator"], user="u", password="p").add_problem(
        uuid4(), workflow=workflow, test_data=[test_data], batch_size=1
    )
    algo = algo_folder(tmp_path / "algo")
    assert "nothing would fail" in stack.cli("try", str(algo), "--problem", str(problem.id))
    algo_folder(algo, program=ALGO.replace("/pred/", "/predictions/"))
    report = stack.cli_json("try", str(algo), "--problem", str(problem.id), status=EXIT_JOB_FAILED)
    assert report["passed"] is False
    assert not list(stack.compute.jobs(problem=problem.id))
    assert home.exists()
    stack.cli("try", str(algo), "--problem", str(uuid4()), status=1)


def containers_of(engine: APIClient, marker: str) -> list[str]:
    """Return the commands of the containers that have a variable: others may use the engine too."""
    found = []
    for container in engine.containers(all=True):
        with contextlib.suppress(NotFound):  # gone meanwhile
            if marker in engine.inspect_container(container["Id"])["Config"]["Env"]:
                found.append(container["Command"])
    return found


def images_of(engine: APIClient, marker: str) -> list[str]:
    """Return the images, layers of builds too, that have a variable."""
    found = []
    for image in engine.images(all=True):
        with contextlib.suppress(NotFound):
            if marker in (engine.inspect_image(image["Id"])["Config"].get("Env") or ()):
                found.append(image["Id"])
    return found


@pytest.mark.parametrize("during", ["build", "train"])
def test_ctrl_c_leaves_nothing(engine: APIClient, home: Path, tmp_path: Path, during: str) -> None:
    marker = f"TRIAL={uuid4()}"
    program, dockerfile = ALGO, DOCKERFILE.replace("COPY", f"ENV {marker}\nCOPY")
    if during == "train":
        program += "import time\ntime.sleep(597)\n"
    else:
        dockerfile = dockerfile.replace("ENTRYPOINT", "RUN sleep 597\nENTRYPOINT")
    algo = algo_folder(tmp_path / "algo", program=program, dockerfile=dockerfile)
    process = subprocess.Popen(
        command(algo, "--problem", problem_folder(tmp_path / "problem")),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "MORPHEO_LEARN_TIMEOUT_S": "600"},
    )

    def has_begun() -> bool:
        assert process.poll() is None, process.communicate()
        words = "sleep 597" if during == "build" else "-T train"
        return any(words in each for each in containers_of(engine, marker))

    wait_until(has_begun, timeout_s=180, what=during)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=180)
    assert process.returncode == EXIT_INTERRUPTED
    assert b"Traceback" not in output
    assert home.exists()
    assert containers_of(engine, marker) == []
    assert images_of(engine, marker) == []


def test_without_an_engine_one_line_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/no.sock")
    done = subprocess.run(
        command(ASSETS / "bayes", "--problem", ASSETS / "problem"), capture_output=True, text=True, check=False
    )
    assert done.returncode == EXIT_UNAVAILABLE
    assert "no container engine answers" in done.stderr
    assert done.stderr.strip().count("\n") == 0
