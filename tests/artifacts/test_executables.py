"""Each service as one executable file, started where there is no checkout and no package of the project."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest
from docker import APIClient

from morpheo.client import ComputeClient, StorageClient
from morpheo.models import JobState
from tests.support.checkout import SERVICES, copy_of_checkout
from tests.support.jobs import make_order
from tests.support.services import answers, child, free_port, wait_until

#: A Python that knows nothing of the project, and nothing else.
BARE_PATH = f"{sys.base_prefix}/bin:/usr/bin:/bin"


@pytest.fixture(scope="session")
def pex_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the files unpack themselves, once."""
    return tmp_path_factory.mktemp("pex")


@pytest.fixture
def bare(executables: dict[str, Path], pex_root: Path, tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """A folder with the files alone, and an environment with next to nothing."""
    folder = tmp_path / "bare"
    folder.mkdir()
    for executable in executables.values():
        shutil.copy(executable, folder)
    return folder, {
        "PATH": BARE_PATH,
        "PEX_ROOT": str(pex_root),
        "MORPHEO_DATA_DIR": str(tmp_path / "data"),
        "MORPHEO_PASSWORD": "p",
    }


def run(bare: tuple[Path, dict[str, str]], *command: str) -> str:
    folder, environment = bare
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_without_the_files_this_python_has_nothing_of_the_project(bare: tuple[Path, dict[str, str]]) -> None:
    seek = "import importlib.util as u; print([n for n in ('morpheo', 'celery', 'celeryconfig') if u.find_spec(n)])"
    assert run(bare, "python3", "-c", seek) == "[]\n"


@pytest.mark.parametrize(
    ("name", "command"), [*zip(SERVICES, ("compute-api", "worker", "orchestrator-api", "storage-api"), strict=True)]
)
def test_a_file_is_the_service_of_its_name_and_the_whole_command(
    bare: tuple[Path, dict[str, str]], name: str, command: str
) -> None:
    assert f"morpheo {command} [OPTIONS]" in run(bare, f"./{name}", "--help")
    assert "morpheo migrate [OPTIONS]" in run(bare, f"./{name}", "migrate", "--help")
    assert run(bare, f"./{name}", "--version").startswith("morpheo, version ")


@pytest.mark.docker
def test_a_file_runs_for_a_stranger_without_a_home_on_a_read_only_file_system(
    executables: dict[str, Path], images: dict[str, str]
) -> None:
    options = ["--rm", "--network=none", "--read-only", "--tmpfs=/tmp:exec", "--user=4242", "--env=HOME=/"]
    options += ["--env=PATH=/usr/local/bin:/usr/bin:/bin", f"--volume={executables['compute-api']}:/compute-api:ro"]
    command = ["docker", "run", *options, "--entrypoint=/compute-api", images["compute-api"], "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split(",")[0]) == (0, "morpheo"), done.stderr


@pytest.fixture
def services(bare: tuple[Path, dict[str, str]], redis_url: str, tmp_path: Path) -> Iterator[tuple[str, str]]:
    """The files running; gives the addresses of the compute and the storage API."""
    folder, environment = bare
    environment |= {"MORPHEO_BROKER_URL": redis_url, "MORPHEO_SWEEP_S": "1", "MORPHEO_STOP_GRACE_S": "1"}
    if "DOCKER_HOST" in os.environ:
        environment["DOCKER_HOST"] = os.environ["DOCKER_HOST"]
    (tmp_path / "data").mkdir(mode=0o711)
    run(bare, "./compute-api", "migrate")
    ports = {name: free_port() for name in SERVICES if name.endswith("-api")}
    with ExitStack() as stack:
        for name in SERVICES:
            command = [f"./{name}", *(["--port", str(ports[name])] if name in ports else [])]
            stack.enter_context(child(command, tmp_path / f"{name}.log", cwd=folder, env=environment))
        urls = {name: f"http://127.0.0.1:{port}" for name, port in ports.items()}
        for name, url in urls.items():
            wait_until(partial(answers, f"{url}/health"), timeout_s=120, what=name)
        yield urls["compute-api"], urls["storage-api"]


@pytest.mark.docker
@pytest.mark.redis
def test_the_files_do_a_job(services: tuple[str, str], engine: APIClient, tmp_path: Path) -> None:
    compute, storage = (
        ComputeClient(services[0], user="u", password="p"),
        StorageClient(services[1], user="u", password="p"),
    )
    spec = make_order(storage)
    compute.submit(spec)
    job = compute.wait(spec.id, timeout_s=120)
    assert job.state is JobState.SUCCEEDED, (job.failure, (tmp_path / "compute-worker.log").read_text())


def test_the_same_source_elsewhere_gives_the_same_bytes(executables: dict[str, Path], tmp_path: Path) -> None:
    copy = copy_of_checkout(tmp_path / "elsewhere")
    subprocess.run(["scripts/executable"], cwd=copy, check=True, umask=0o077)
    files = [*executables.values(), copy / "build" / "morpheo"]
    assert len({hashlib.sha256(path.read_bytes()).hexdigest() for path in files}) == 1
