"""The doctor and container engines, broken for real."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from docker import APIClient

from morpheo.config import Settings
from morpheo.doctor import engine as doctor
from morpheo.doctor.findings import Finding, Status
from tests.support.doctor import diagnose, doctor_command, failed
from tests.support.proxies import engine_proxy
from tests.support.services import engine_url

NOBODY = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder with a short path: a socket's must not be longer than 107 characters."""
    with tempfile.TemporaryDirectory(prefix="morpheo-") as folder:
        yield Path(folder)


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that other tests use may need long for an answer; who waits for none to come shortens this."""
    monkeypatch.setattr(doctor, "CALL_S", 60.0)
    monkeypatch.setattr(doctor, "PROBE_S", 120.0)


def engine_findings(url: str, **settings: Any) -> dict[str, Finding]:
    return diagnose(doctor.checks(url, Settings(**settings)))


def containers(engine: APIClient) -> set[str]:
    return {container["Id"] for container in engine.containers(all=True)}


@pytest.mark.docker
def test_a_healthy_engine_passes_and_keeps_nothing(engine: APIClient, tmp_path: Path) -> None:
    before = containers(engine)
    findings = engine_findings(engine_url())
    assert {found.status for found in findings.values()} == {Status.OK}, findings
    assert containers(engine) == before
    assert list((tmp_path / "data").iterdir()) == []


def test_no_socket_at_all(short: Path) -> None:
    findings = engine_findings(f"unix://{short}/docker.sock")
    found = failed(findings, "engine.answers")
    assert "there is no socket" in found.cause
    assert "systemctl start docker" in found.fix
    assert {findings[f"engine.{name}"].status for name in ("version", "image", "memory", "data")} == {Status.SKIPPED}


def test_a_socket_whose_engine_has_ended(short: Path) -> None:
    with closing(socket.socket(socket.AF_UNIX)) as dead:
        dead.bind(f"{short}/docker.sock")
    assert "nobody listens" in failed(engine_findings(f"unix://{short}/docker.sock"), "engine.answers").cause


def test_a_socket_that_may_not_be_opened(short: Path) -> None:
    with closing(socket.socket(socket.AF_UNIX)) as guarded:
        guarded.bind(f"{short}/docker.sock")
        guarded.listen()
        (short / "docker.sock").chmod(0)
        short.chmod(0o755)
        with as_nobody():
            found = failed(engine_findings(f"unix://{short}/docker.sock"), "engine.answers")
    assert "may not open" in found.cause
    assert "usermod -aG docker" in found.fix


@contextmanager
def as_nobody() -> Iterator[None]:
    """Run a block as a user without rights, if the tests run as root."""
    if os.geteuid() != 0:
        yield
        return
    groups = os.getgroups()
    os.setgroups([])
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setgroups(groups)


def test_an_engine_that_hangs(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "CALL_S", 0.2)
    with closing(socket.socket(socket.AF_UNIX)) as silent:
        silent.bind(f"{short}/docker.sock")
        silent.listen()
        assert "in time" in failed(engine_findings(f"unix://{short}/docker.sock"), "engine.answers").cause


def test_a_url_of_something_else() -> None:
    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        found = failed(engine_findings(f"tcp://127.0.0.1:{server.server_port}"), "engine.answers")
        server.shutdown()
    assert "no container engine" in found.cause


def test_a_url_that_is_none() -> None:
    assert "is no URL" in failed(engine_findings("/var/run/docker.sock"), "engine.answers").cause


def test_a_host_that_is_none() -> None:
    assert "there is no host" in failed(engine_findings("tcp://nowhere.invalid:2375"), "engine.answers").cause


def _unlimited_memory(body: dict[str, Any]) -> None:
    for name in ("Memory", "MemorySwap"):
        del body["HostConfig"][name]


def _unlimited_pids(body: dict[str, Any]) -> None:
    del body["HostConfig"]["PidsLimit"]


def _with_network(body: dict[str, Any]) -> None:
    body["HostConfig"]["NetworkMode"] = "host"
    del body["NetworkDisabled"]


def _read_only(body: dict[str, Any]) -> None:
    body["HostConfig"]["Mounts"][0]["ReadOnly"] = True


@pytest.mark.docker
@pytest.mark.parametrize(
    ("change", "check", "cause"),
    [
        (_unlimited_memory, "engine.memory", "with a limit of 64 MiB got 256 MiB"),
        (_unlimited_pids, "engine.pids", "with a limit of 32 processes got 128"),
        (_with_network, "engine.network", "the loopback of the engine's machine"),
        (_read_only, "engine.data", "cannot write"),
    ],
)
def test_a_proxy_that_takes_a_protection_away(
    engine: APIClient, short: Path, change: Any, check: str, cause: str
) -> None:
    def if_asked(body: dict[str, Any]) -> None:
        if change is not _read_only or body["HostConfig"].get("Mounts"):
            change(body)

    before = containers(engine)
    with engine_proxy(short / "docker.sock", engine_url(), if_asked) as url:
        found = failed(engine_findings(url), check)
    assert cause in found.cause
    assert "MORPHEO_DOCKER_HOST" in found.fix or "daemon.json" in found.fix
    assert containers(engine) == before


@pytest.mark.docker
def test_no_base_image(engine: APIClient) -> None:
    findings = engine_findings(engine_url(), base_images="nobody/has:this")
    assert "MORPHEO_BASE_IMAGES=nobody/has:this" in failed(findings, "engine.image").cause
    assert "scripts/base-image" in findings["engine.image"].fix
    assert findings["engine.memory"].status is Status.SKIPPED


@pytest.mark.docker
def test_more_processors_than_there_are(engine: APIClient) -> None:
    findings = engine_findings(engine_url(), cpus=10_000)
    assert findings["engine.cgroups"].fix.startswith("MORPHEO_CPUS=")
    assert findings["engine.cgroups"].status is Status.FAIL


@pytest.mark.docker
@needs_root
def test_a_data_folder_that_the_engine_does_not_see(engine: APIClient, tmp_path: Path) -> None:
    """As when the worker runs in a container: the folder is a file system that only the doctor has."""
    folder = tmp_path / "data"
    folder.mkdir(mode=0o700)
    command = 'mount -t tmpfs -o mode=700 none "$0" && exec "$@"'
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", command, str(folder), *doctor_command("engine")],
        env={**os.environ, "MORPHEO_DOCKER_HOST": engine_url(), "MORPHEO_DATA_DIR": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    found = {finding["check"]: finding for finding in json.loads(done.stdout)}
    assert [name for name, finding in found.items() if finding["status"] == "fail"] == ["engine.data"]
    assert f"does not see MORPHEO_DATA_DIR={folder}" in found["engine.data"]["cause"]
    assert f"--volume {folder}:{folder}" in found["engine.data"]["fix"]


@pytest.mark.docker
def test_another_folder_at_the_same_path(engine: APIClient, short: Path) -> None:
    def elsewhere(body: dict[str, Any]) -> None:
        for mount in body["HostConfig"].get("Mounts") or ():
            mount["Source"] = str(short / "data")

    (short / "data").mkdir()
    short.chmod(0o755)

    with engine_proxy(short / "docker.sock", engine_url(), elsewhere) as url:
        assert "does not see" in failed(engine_findings(url), "engine.data").cause


@pytest.mark.docker
def test_containers_that_nobody_removes(engine: APIClient, monkeypatch: pytest.MonkeyPatch) -> None:
    image = engine.images("morpheo/base:1")[0]["Id"]
    left = engine.create_container(image, ["true"], labels={"morpheo.job": "x"})["Id"]
    try:
        monkeypatch.setattr("morpheo.doctor.engine.time.time", lambda: 2e10)
        found = engine_findings(engine_url())["engine.leftovers"]
    finally:
        engine.remove_container(left)
    assert found.status is Status.WARN
    assert left[:12] in found.fix
