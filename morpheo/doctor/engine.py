"""
The container engine: whether it answers, and whether what it is told of containers holds.

The limits are tried out in real containers, made by the same `DockerRuntime` and with the same profile as those of
jobs, only with less memory and fewer processes: what an engine says about itself is not believed.
"""

from __future__ import annotations

import functools
import json
import os
import pwd
import secrets
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit
from uuid import uuid4

from docker import APIClient
from docker.errors import APIError

from morpheo.config import KIB, MIB, Settings
from morpheo.doctor import probes
from morpheo.doctor.findings import Check, Finding, fail, is_local, ok, warn
from morpheo.errors import RuntimeUnavailable
from morpheo.models import StepName
from morpheo.runtime.contract import SIGKILLED, Bind, ContainerSpec, Interrupt, Owner, Profile, StepResult
from morpheo.runtime.docker import DockerRuntime, read_facts
from morpheo.runtime.profile import LABEL_JOB

#: Oldest engine that knows all that containers are told (API 1.41).
MIN_VERSION = (20, 10)
#: How long one call to the engine may take, in seconds.
CALL_S = 10.0
#: How long a probing container may run, in seconds.
PROBE_S = 20.0


def checks(url: str, settings: Settings, *, name: str = "engine", setting: str = "MORPHEO_DOCKER_HOST") -> list[Check]:
    """
    Return the checks of one engine.

    Args:
        url: Its URL, ``unix:///…`` or ``tcp://…``.
        settings: What containers may use, and the data folder that the engine must see.
        name: What the engine is called in the findings.
        setting: The variable that names its URL.
    """
    engine = _Engine(url, settings, setting)
    answers, image = f"{name}.answers", f"{name}.image"
    probes = {
        "memory": engine.check_memory,
        "pids": engine.check_pids,
        "network": engine.check_network,
        "data": engine.check_data,
    }
    return [
        Check(name=answers, run=engine.check_answers),
        Check(name=f"{name}.version", run=engine.check_version, needs=(answers,)),
        Check(name=f"{name}.cgroups", run=engine.check_cgroups, needs=(answers,)),
        Check(name=image, run=engine.check_image, needs=(answers,)),
        *(
            Check(name=f"{name}.{what}", run=run, needs=(image,), deadline_s=PROBE_S + 2 * CALL_S)
            for what, run in probes.items()
        ),
        Check(name=f"{name}.leftovers", run=engine.check_leftovers, needs=(answers,)),
    ]


class _Engine:
    def __init__(self, url: str, settings: Settings, setting: str) -> None:
        self._url = url
        self._settings = settings
        self._setting = setting
        self._node = f"doctor-{uuid4().hex}"
        self._image = ""

    def check_answers(self) -> Finding:
        parts = urlsplit(self._url)
        if parts.scheme not in ("unix", "tcp", "http"):
            return fail(f"{self._url} is no URL of an engine", f"{self._setting}=unix:///var/run/docker.sock")
        try:
            answer = _ping(parts)
        except OSError as exc:
            return self._unreachable(parts, exc)
        if b"api-version:" not in answer.lower():
            return fail(
                f"something answers at {self._url}, but it is no container engine",
                f"set {self._setting} to the engine's own URL; `docker context inspect` shows it",
            )
        if parts.scheme != "unix" and not is_local(parts.hostname):
            return warn(
                f"{self._url} is reached over the network: who reaches it too is root on that machine",
                f"run the worker beside its engine, with {self._setting}=unix:///var/run/docker.sock",
            )
        return ok(self._url)

    def _unreachable(self, parts: SplitResult, exc: OSError) -> Finding:
        path, start = parts.path, "start the engine: `systemctl start docker`, or `scripts/engine COMMAND`"
        correct = f"or set {self._setting} to the right URL"
        match exc:
            case FileNotFoundError():
                return fail(f"there is no socket {path}", f"{start}; {correct}")
            case PermissionError():
                user = pwd.getpwuid(os.geteuid()).pw_name
                return fail(
                    f"user {user} may not open {path}", f"`usermod -aG docker {user}`, and log in again; {correct}"
                )
            case ConnectionRefusedError() if path:
                return fail(f"nobody listens at {path}: its engine has ended", f"{start}; {correct}")
            case socket.gaierror():
                return fail(f"there is no host {parts.hostname}", f"set {self._setting} to the right URL")
            case TimeoutError():
                return fail(f"{self._url} does not answer in time", f"restart the engine, or see its log; {correct}")
        return fail(f"nothing answers at {self._url}: {exc.strerror or exc}", f"{start}; {correct}")

    @contextmanager
    def _client(self) -> Iterator[APIClient]:
        with closing(APIClient(base_url=self._url, version="auto", timeout=int(CALL_S))) as client:
            yield client

    @functools.cached_property
    def _info(self) -> dict[str, Any]:
        with self._client() as client:
            return dict(client.info())

    def check_version(self) -> Finding:
        version = str(self._info["ServerVersion"])
        numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
        if numbers < MIN_VERSION:
            return fail(
                f"the engine is {version}, older than {MIN_VERSION[0]}.{MIN_VERSION[1]}",
                "upgrade it: `apt-get install docker.io`, or https://docs.docker.com/engine/install",
            )
        return ok(version)

    def check_cgroups(self) -> Finding:
        info, settings = self._info, self._settings
        version, driver = info.get("CgroupVersion", "1"), info.get("CgroupDriver", "none")
        reboot = "then `update-grub` and reboot"
        if driver == "none" or not info.get("MemoryLimit") or not info.get("PidsLimit"):
            return fail(
                f"the engine cannot limit containers (cgroups v{version}, driver {driver})",
                f'GRUB_CMDLINE_LINUX="cgroup_enable=memory" in /etc/default/grub, {reboot}; a rootless engine needs v2',
            )
        if settings.cpus > info["NCPU"]:
            return fail(
                f"MORPHEO_CPUS={settings.cpus:g}, but the engine has {info['NCPU']} and refuses more",
                f"MORPHEO_CPUS={info['NCPU']}",
            )
        needed = settings.jobs_at_once * settings.memory_bytes
        if needed > info["MemTotal"]:
            return warn(
                f"{settings.jobs_at_once} jobs may use {needed} bytes, the machine has {info['MemTotal']}",
                f"MORPHEO_MEMORY_BYTES={info['MemTotal'] // settings.jobs_at_once // MIB * MIB}, or fewer jobs",
            )
        return ok(f"v{version}, {driver}")

    def check_image(self) -> Finding:
        with self._client() as client:
            tags = sorted(tag for image in client.images() for tag in image.get("RepoTags") or ())
            allowed = [tag for tag in tags if any(map(functools.partial(_matches, tag), self._settings.base_images))]
            usable = [tag for tag in allowed if not client.inspect_image(tag)["Config"].get("Entrypoint")]
            if usable:
                self._image = client.inspect_image(usable[0])["Id"]
                return ok(usable[0])
        names = ",".join(self._settings.base_images)
        return fail(
            f"the engine has no image that Dockerfiles may start from (MORPHEO_BASE_IMAGES={names})",
            "`scripts/base-image`, or `docker load -i FILE` of an image from a machine that has one",
        )

    def check_memory(self) -> Finding:
        result = self._probe(probes.MEMORY)
        # Not every engine says why it was killed; nobody else does that here.
        if result.oom_killed or (result.exit_code == SIGKILLED and not result.timed_out):
            return ok(f"a container over its {probes.MEMORY_LIMIT // MIB} MiB is killed")
        return self._does_not_hold(
            result,
            str(probes.MEMORY_WANTED),
            f"a container with a limit of {probes.MEMORY_LIMIT // MIB} MiB got {probes.MEMORY_WANTED // MIB} MiB",
            'GRUB_CMDLINE_LINUX="cgroup_enable=memory swapaccount=1" in /etc/default/grub, `update-grub`, reboot; '
            f"no proxy that changes calls between {self._setting} and the engine",
        )

    def check_pids(self) -> Finding:
        result = self._probe(probes.PIDS)
        count = result.log.decode(errors="replace").strip()
        if count.isdigit() and int(count) <= probes.PIDS_LIMIT:
            return ok(f"a container gets no more than its {probes.PIDS_LIMIT} processes")
        return self._does_not_hold(
            result,
            str(probes.PIDS_WANTED),
            f"a container with a limit of {probes.PIDS_LIMIT} processes got {probes.PIDS_WANTED}",
            f"a kernel with the pids cgroup; no proxy that changes calls between {self._setting} and the engine",
        )

    def check_network(self) -> Finding:
        with socket.create_server(("127.0.0.1", 0)) as canary:
            result = self._probe(probes.NETWORK, str(canary.getsockname()[1]))
        try:
            reached = json.loads(result.log)
        except ValueError:
            return _strange(result)
        if reached:
            return fail(
                f"a container without a network reaches {', '.join(reached)}",
                f"an engine that keeps `--network none`; no proxy that changes calls between {self._setting} and it",
            )
        return ok("a container has no interface, route or connection")

    def check_data(self) -> Finding:
        folder = self._settings.data_dir / self._node
        try:
            return self._try_folder(folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _try_folder(self, folder: Path) -> Finding:
        user, token = self._settings.container_user + read_facts(self._url, self._info).first_id, secrets.token_hex()
        folder.mkdir(parents=True)
        (folder / "canary").write_text(token)
        for path, mode in ((folder, 0o755), (folder / "canary", 0o644)):  # whatever the umask is
            path.chmod(mode)
        if os.getuid() == 0:
            os.chown(folder, user, user)
        unseen = fail(
            f"the engine does not see MORPHEO_DATA_DIR={folder.parent} of this machine",
            f"mount the folder at the same path where the engine runs (`--volume {folder.parent}:{folder.parent}`),"
            " or set MORPHEO_DATA_DIR to a folder that both see at one path",
        )
        try:
            result = self._probe(probes.FOLDER, binds=(Bind(source=folder, target="/data/doctor", writable=True),))
        except RuntimeUnavailable as exc:
            if "bind source path does not exist" in _explanation(exc):
                return unseen
            raise
        if token.encode() not in result.log:
            return unseen if b"FileNotFoundError" in result.log else _strange(result)
        if not (folder / "reply").exists():
            return fail(
                f"containers run as user {user}, who cannot write to folders that belong to {user} here",
                "mount the data folder read-write where the engine runs, or set MORPHEO_DOCKER_HOST to another one; "
                "with `userns-remap`, run the worker as root",
            )
        return ok(f"{folder.parent} is seen and can be written")

    def check_leftovers(self) -> Finding:
        with self._client() as client:
            containers = client.containers(all=True, filters={"label": LABEL_JOB})
        horizon = time.time() - self._settings.longest_job_s
        old = [container["Id"][:12] for container in containers if container["Created"] < horizon]
        if old:
            return warn(
                f"{len(old)} containers of jobs are older than the longest job: no worker's sweeper removes them",
                f"start a worker with this MORPHEO_DATA_DIR, or `docker rm -f {' '.join(old[:20])}`",
            )
        return ok("no container is left of a job that is over")

    def _probe(self, program: str, *arguments: str, binds: tuple[Bind, ...] = ()) -> StepResult:
        settings = self._settings
        profile = Profile(
            user=settings.container_user,
            memory_bytes=probes.MEMORY_LIMIT,
            cpus=settings.cpus,
            pids=probes.PIDS_LIMIT,
            tmp_bytes=MIB,
            log_bytes=64 * KIB,
            file_bytes=MIB,
        )
        # A node of its own: no worker's sweeper takes the container for one of its own.
        runtime = DockerRuntime(self._url, profile=profile, node=self._node, timeout_s=CALL_S)
        spec = ContainerSpec(
            owner=Owner(job_id=uuid4(), attempt=1, worker="doctor"),
            step=StepName.TRAIN,
            image_id=self._image,
            args=("python3", "-S", "-c", program, *arguments),
            binds=binds,
            timeout_s=PROBE_S,
        )
        return runtime.run(spec, interrupt=Interrupt())

    def _does_not_hold(self, result: StepResult, said: str, cause: str, fix: str) -> Finding:
        return fail(cause, fix) if result.log.decode(errors="replace").strip() == said else _strange(result)


def _ping(parts: SplitResult) -> bytes:
    if parts.scheme == "unix":
        peer = socket.socket(socket.AF_UNIX)
    else:
        peer = socket.create_connection((parts.hostname or "", parts.port or 2375), timeout=CALL_S)
    with peer:
        if parts.scheme == "unix":
            peer.settimeout(CALL_S)
            peer.connect(parts.path)
        peer.sendall(b"GET /_ping HTTP/1.1\r\nHost: engine\r\nConnection: close\r\n\r\n")
        return peer.recv(4096)


def _matches(tag: str, pattern: str) -> bool:
    return fnmatchcase(tag, pattern) or fnmatchcase(tag.removesuffix(":latest"), pattern)


def _explanation(exc: RuntimeUnavailable) -> str:
    cause = exc.__cause__
    return str(cause.explanation if isinstance(cause, APIError) else cause or exc)


def _strange(result: StepResult) -> Finding:
    said = result.start_error or result.log.decode(errors="replace").strip()[-200:] or "nothing"
    return fail(
        f"the probing container ended with {result.exit_code} and said: {said}",
        "an image with python3 and no ENTRYPOINT as the first of MORPHEO_BASE_IMAGES; `scripts/base-image` makes one",
    )
