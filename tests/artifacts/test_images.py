"""The images of the services: what is in them, and what they do as hardened containers."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from docker import APIClient

import morpheo
from morpheo.client import ComputeClient, StorageClient
from morpheo.models import JobState
from tests.support.checkout import ROOT, SERVICES, copy_of_checkout
from tests.support.jobs import make_order
from tests.support.services import answers, engine_url, free_port, redis_binary, redis_server, wait_until

pytestmark = pytest.mark.docker

#: What the README promises, in bytes.
LARGEST = 310_000_000
UID = os.getuid() or 10001
#: As compose runs them.
APIS = [name for name in SERVICES if name.endswith("-api")]
HARDENED = ["--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--tmpfs=/tmp", f"--user={UID}:{UID}"]


def docker(*arguments: str) -> str:
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


@contextmanager
def running(*arguments: str) -> Iterator[str]:
    """Run a container until the block ends; gives its id."""
    container = docker("run", "--detach", *HARDENED, *arguments)
    try:
        yield container
    finally:
        docker("rm", "--force", "--volumes", container)


def health(container: str) -> str:
    state = json.loads(docker("inspect", "--format={{json .State}}", container))
    assert state["Running"], docker("logs", container)
    return str(state["Health"]["Status"])


@pytest.fixture
def volume() -> Iterator[str]:
    """An empty volume of the engine."""
    name = docker("volume", "create")
    yield name
    docker("volume", "rm", "--force", name)


@pytest.mark.parametrize("service", SERVICES)
def test_an_image_says_what_it_is_and_is_small(images: dict[str, str], service: str, engine: APIClient) -> None:
    image = engine.inspect_image(images[service])
    labels = image["Config"]["Labels"]
    assert labels["org.opencontainers.image.version"] == morpheo.__version__
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?|unknown", labels["org.opencontainers.image.revision"])
    assert image["Config"]["User"] == "10001:10001"
    assert image["Config"]["Entrypoint"] == ["morpheo"]
    assert image["Config"]["Healthcheck"]["Test"][0] == "CMD"
    assert image["Size"] < LARGEST


def test_an_image_has_the_locked_packages_and_nothing_else(images: dict[str, str]) -> None:
    listing = "from importlib.metadata import distributions as d; print(*[f'{i.name}=={i.version}' for i in d()])"
    command = ["run", "--rm", "--network=none", "--entrypoint=python", images["compute-api"], "-I", "-c", listing]
    locked = re.findall(r"^([\w.-]+==[\w.]+)", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
    expected = {*locked, f"morpheo=={morpheo.__version__}"}
    assert {normal(name) for name in docker(*command).split()} == {normal(name) for name in expected}
    left = "ls -d /src /tools /root/.cache /opt/morpheo/bin/pip* /var/cache/apt/*.bin 2>/dev/null || true"
    assert docker("run", "--rm", "--network=none", "--entrypoint=sh", images["compute-api"], "-c", left) == ""


def normal(requirement: str) -> str:
    return re.sub(r"[-_.]+", "-", requirement.partition("==")[0]).lower() + requirement.partition("==")[2]


@pytest.mark.parametrize("service", APIS)
def test_an_api_is_healthy_without_root_on_a_read_only_file_system(
    images: dict[str, str], service: str, volume: str
) -> None:
    data = f"--volume={volume}:/var/lib/morpheo"
    docker("run", "--rm", *HARDENED, "--network=none", data, images[service], "migrate")
    with running("--network=none", data, "--env=MORPHEO_PASSWORD=p", images[service]) as container:
        wait_until(lambda: health(container) == "healthy", timeout_s=90, what="health")
        assert docker("exec", container, "id", "-u") == str(UID)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder for the services' data, which containers and the engine see at the same path."""
    data = tmp_path / "data"
    data.mkdir(mode=0o711)
    if os.getuid() == 0:
        os.chown(data, UID, UID)
    return data


@pytest.mark.redis
def test_the_images_do_a_job(images: dict[str, str], redis_url: str, folder: Path) -> None:
    socket = Path(engine_url().removeprefix("unix://"))
    common = ["--network=host", f"--volume={folder}:{folder}", f"--env=MORPHEO_DATA_DIR={folder}"]
    common += ["--env=MORPHEO_PASSWORD=p", f"--env=MORPHEO_BROKER_URL={redis_url}", "--env=MORPHEO_STOP_GRACE_S=1"]
    with_engine = [f"--volume={socket}:/var/run/docker.sock", f"--group-add={socket.stat().st_gid}"]
    docker("run", "--rm", *HARDENED, *common, images["compute-api"], "migrate")
    urls = {}
    with ExitStack() as stack:
        for service in APIS:
            port = free_port()
            urls[service] = f"http://127.0.0.1:{port}"
            stack.enter_context(running(*common, images[service], service, f"--port={port}"))
        worker = stack.enter_context(running(*common, *with_engine, images["compute-worker"]))
        for service, url in urls.items():
            wait_until(partial(answers, f"{url}/health"), timeout_s=120, what=service)
        compute = ComputeClient(urls["compute-api"], user="u", password="p")
        storage = StorageClient(urls["storage-api"], user="u", password="p")
        spec = make_order(storage)
        compute.submit(spec)
        job = compute.wait(spec.id, timeout_s=120)
        assert job.state is JobState.SUCCEEDED, (job.failure, docker("logs", worker))
        wait_until(lambda: health(worker) == "healthy", timeout_s=60, what="the worker's health")


def test_a_worker_without_its_broker_says_so_and_does_not_start(images: dict[str, str]) -> None:
    options = ["--network=none", "--tmpfs=/var/lib/morpheo"]
    name = f"lonely-{uuid4().hex[:8]}"
    done = subprocess.run(
        ["docker", "run", "--rm", f"--name={name}", *HARDENED, *options, images["compute-worker"]],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 69, done.stderr
    assert "no broker answers" in done.stderr


@pytest.mark.redis
def test_a_worker_that_loses_its_broker_becomes_unhealthy(images: dict[str, str], folder: Path, tmp_path: Path) -> None:
    """Thirty seconds after the last beat, and three looks."""
    binary = redis_binary()
    assert binary is not None
    socket = Path(engine_url().removeprefix("unix://"))
    options = ["--network=host", "--health-interval=1s", "--health-start-period=1s", "--health-retries=3"]
    options += [f"--volume={folder}:{folder}", f"--env=MORPHEO_DATA_DIR={folder}"]
    options += [f"--volume={socket}:/var/run/docker.sock", f"--group-add={socket.stat().st_gid}"]
    with ExitStack() as stack:
        with redis_server(tmp_path, binary) as url:
            options.append(f"--env=MORPHEO_BROKER_URL={url}")
            docker("run", "--rm", *HARDENED, *options, images["compute-api"], "migrate")
            worker = stack.enter_context(running(*options, images["compute-worker"]))
            wait_until(lambda: health(worker) == "healthy", timeout_s=60, what="health")
        wait_until(lambda: health(worker) == "unhealthy", timeout_s=120, what="illness")


def test_flower_runs_from_the_image_of_the_compute_api(images: dict[str, str], redis_url: str) -> None:
    port = free_port()
    command = ["-A", "morpheo", "flower", "--address=127.0.0.1", f"--port={port}", "--basic-auth=u:p"]
    broker = f"--env=MORPHEO_BROKER_URL={redis_url}"
    with running("--network=host", broker, "--entrypoint=celery", images["compute-api"], *command):
        wait_until(partial(answers, f"http://127.0.0.1:{port}/healthcheck"), timeout_s=60, what="Flower")


@pytest.mark.timeout(900)
def test_two_builds_have_the_same_files(images: dict[str, str], tmp_path: Path) -> None:
    """The same contents, modes and owners, from a checkout elsewhere with a strict umask, and without a cache."""
    copy, tag = copy_of_checkout(tmp_path / "elsewhere"), f"again-{uuid4().hex[:8]}"
    nameless = set(docker("images", "-q", "--filter=dangling=true").split())
    environment = {**os.environ, "TAG": tag, "NO_CACHE": "1"}
    subprocess.run(["scripts/service-images", "compute-api"], cwd=copy, check=True, env=environment)
    again = f"morpheo/compute-api:{tag}"
    ids = [docker("inspect", "--format={{.Id}}", name) for name in (again, images["compute-api"])]
    try:
        assert ids[0] != ids[1]
        assert files_of(again) == files_of(images["compute-api"])
    finally:
        docker("rmi", again)
        docker("rmi", *set(docker("images", "-q", "--filter=dangling=true").split()) - nameless)


def files_of(image: str) -> dict[str, tuple[Any, ...]]:
    container = docker("create", "--network=none", image)
    try:
        with (
            subprocess.Popen(["docker", "export", container], stdout=subprocess.PIPE) as export,
            tarfile.open(fileobj=export.stdout, mode="r|") as tar,
        ):
            return {entry.name: description(tar, entry) for entry in tar}
    finally:
        docker("rm", "--force", container)


def description(tar: tarfile.TarFile, entry: tarfile.TarInfo) -> tuple[Any, ...]:
    content = tar.extractfile(entry) if entry.isreg() else None
    digest = hashlib.sha256(content.read()).hexdigest() if content else ""
    return entry.type, entry.mode, entry.uid, entry.gid, entry.linkname, digest
