"""Containers through the Docker Engine API."""

from __future__ import annotations

import contextlib
import functools
import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import BinaryIO, Self
from uuid import UUID

import requests
from docker import APIClient
from docker.errors import APIError, DockerException, ImageNotFound, NotFound
from urllib3.exceptions import HTTPError

from morpheo.errors import RuntimeUnavailable
from morpheo.runtime.build import ImageBuild
from morpheo.runtime.contract import (
    BuildResult,
    BuildSpec,
    ContainerSpec,
    ImageInfo,
    Interrupt,
    Owner,
    Profile,
    StepResult,
)
from morpheo.runtime.memory import MemoryWatch
from morpheo.runtime.profile import LABEL_ATTEMPT, LABEL_JOB, LABEL_NODE, create_arguments

#: What the engine may take for the end of a container that was killed, in seconds.
KILL_GRACE_S = 30
#: How long the engine is asked again to remove a container that is busy, in seconds.
REMOVE_DEADLINE_S = 30
#: What the engine says when an image's own program cannot be started.
_IMAGE_ERROR = re.compile(r"exec: .*|executable file not found.*|exec format error|[Nn]o command specified")
#: What the engine says when it cannot give a container GPUs.
_NO_GPU = "could not select device driver"


class DockerRuntime:
    """
    A `morpheo.runtime.contract.ContainerRuntime` on a Docker engine; not to be shared with a forked child.

    Args:
        url: ``unix:///…`` or ``tcp://…``.
        profile: What every container may use.
        node: Name of this node; containers of other nodes on the same engine are left alone.
        timeout_s: How long one call to the engine may take.
    """

    def __init__(self, url: str, *, profile: Profile, node: str, timeout_s: float) -> None:
        self._url = url
        self._profile = profile
        self._node = node
        self._timeout_s = timeout_s

    @functools.cached_property
    def _client(self) -> APIClient:
        return self._connect()

    def _connect(self) -> APIClient:
        with _mapped_errors(self._url):
            return APIClient(base_url=self._url, version="auto", timeout=int(self._timeout_s))

    def check(self) -> None:
        """Find out whether the engine answers."""
        with _mapped_errors(self._url):
            self._client.ping()

    def find_image(self, tag: str) -> str | None:
        """Return the id of the image with that tag, None if there is none."""
        with _mapped_errors(self._url):
            try:
                return str(self._client.inspect_image(tag)["Id"])
            except ImageNotFound:
                return None

    def inspect_image(self, image_id: str) -> ImageInfo:
        """Return what an image says of itself."""
        with _mapped_errors(self._url):
            image = self._client.inspect_image(image_id)
        config = image.get("Config") or {}
        return ImageInfo(
            id=image["Id"],
            size_bytes=image["Size"],
            layers=len(image["RootFS"].get("Layers") or ()),
            volumes=tuple(config.get("Volumes") or ()),
            working_dir=config.get("WorkingDir") or "",
            environment=len(config.get("Env") or ()),
            runs_something=bool(config.get("Entrypoint") or config.get("Cmd")),
        )

    def retag_image(self, image_id: str, tag: str) -> None:
        """Give an image a tag in place of those that it has."""
        with _mapped_errors(self._url):
            old = self._client.inspect_image(image_id)["RepoTags"]
            repository, _, name = tag.rpartition(":")
            self._client.tag(image_id, repository, name)
            for other in old:
                if other != tag:
                    self._client.remove_image(other)

    def remove_image(self, image_id: str) -> None:
        """Remove an image, if it is there and nothing uses it."""
        with _mapped_errors(self._url), contextlib.suppress(ImageNotFound):
            self._client.remove_image(image_id, force=True)

    def build(self, context: BinaryIO, spec: BuildSpec, *, interrupt: Interrupt) -> BuildResult:
        """Build an image."""
        # A client of its own: stopping a build means closing its connection.
        with contextlib.closing(self._connect()) as client, _mapped_errors(self._url):
            build = ImageBuild(client, spec, log_bytes=self._profile.log_bytes)
            with interrupt.calling(build.stop):
                result = build.run(context)
        interrupt.check()
        return result

    def run(self, spec: ContainerSpec, *, interrupt: Interrupt) -> StepResult:
        """Run a container to its end."""
        interrupt.check()
        try:
            with _mapped_errors(self._url):
                container_id, error = self._create(spec)
                result = (
                    StepResult(exit_code=None, seconds=0.0, start_error=error)
                    if container_id is None
                    else self._run_created(container_id, spec, interrupt)
                )
        except RuntimeUnavailable:
            interrupt.check()  # a container that the interrupter removed is no fault of the engine
            raise
        finally:
            self._remove(spec.name)
        interrupt.check()
        return result

    def owners(self) -> list[Owner]:
        """Return to whom the containers that are here belong."""
        with _mapped_errors(self._url):
            containers = self._client.containers(all=True, filters={"label": [LABEL_JOB, f"{LABEL_NODE}={self._node}"]})
        owners = set()
        for container in containers:
            labels = container["Labels"]
            with contextlib.suppress(ValueError, KeyError):  # labels are an image's to choose, names are not
                owner = Owner(job_id=UUID(labels[LABEL_JOB]), attempt=int(labels[LABEL_ATTEMPT]))
                if any(name.startswith(f"/morpheo-{owner.job_id}-{owner.attempt}-") for name in container["Names"]):
                    owners.add(owner)
        return sorted(owners, key=lambda owner: (str(owner.job_id), owner.attempt))

    def remove(self, owner: Owner) -> None:
        """Kill and remove all containers of an attempt."""
        prefix = f"/morpheo-{owner.job_id}-{owner.attempt}-"
        with _mapped_errors(self._url):
            containers = self._client.containers(all=True, filters={"label": f"{LABEL_JOB}={owner.job_id}"})
        for container in containers:
            for name in container["Names"]:
                if name.startswith(prefix):
                    self._remove(name.removeprefix("/"))

    def _create(self, spec: ContainerSpec) -> tuple[str | None, str | None]:
        arguments = create_arguments(spec, self._profile, node=self._node)
        try:
            return self._client.create_container(**arguments)["Id"], None
        except APIError as exc:
            if exc.status_code == requests.codes.conflict:  # left by a worker that died: the name is ours alone
                self._remove(spec.name)
                return self._client.create_container(**arguments)["Id"], None
            if error := _image_error(exc):
                return None, error
            raise

    def _run_created(self, container_id: str, spec: ContainerSpec, interrupt: Interrupt) -> StepResult:
        kill = functools.partial(self._kill, container_id)
        deadline = _Deadline(spec.timeout_s, kill)
        with interrupt.calling(kill), deadline:
            began = time.monotonic()
            try:
                self._client.start(container_id)
            except APIError as exc:
                if error := _image_error(exc):
                    return StepResult(exit_code=None, seconds=0.0, start_error=error)
                raise
            if interrupt.reason is not None:  # it was set before there was anything to kill
                kill()
            with MemoryWatch(self._client, container_id) as memory:
                self._client.wait(container_id, timeout=int(spec.timeout_s + KILL_GRACE_S))
            seconds = time.monotonic() - began
        state = self._client.inspect_container(container_id)["State"]
        return StepResult(
            exit_code=state["ExitCode"],
            oom_killed=state["OOMKilled"],
            timed_out=deadline.passed,
            seconds=seconds,
            peak_memory_bytes=self._profile.memory_bytes if state["OOMKilled"] else memory.peak_bytes,
            log=self._client.logs(container_id, stdout=True, stderr=True)[-self._profile.log_bytes :],
        )

    def _kill(self, container_id: str) -> None:
        # From another thread: whatever goes wrong, `run` sees it as a container that does not end, and removes it.
        with contextlib.suppress(DockerException, requests.RequestException):
            self._client.kill(container_id)

    def _remove(self, name: str) -> None:
        give_up = time.monotonic() + REMOVE_DEADLINE_S
        with _mapped_errors(self._url):
            while True:
                try:
                    self._client.remove_container(name, force=True, v=True)
                except NotFound:
                    return
                except APIError as exc:  # "removal in progress" and "device or resource busy" pass
                    if exc.status_code < requests.codes.conflict or time.monotonic() > give_up:
                        raise
                    time.sleep(0.1)
                else:
                    return


class _Deadline:
    """Calls something once if a block takes too long."""

    def __init__(self, seconds: float, action: Callable[[], None]) -> None:
        self.passed = False
        self._action = action
        self._timer = threading.Timer(seconds, self._pass)
        self._timer.daemon = True

    def _pass(self) -> None:
        self.passed = True
        self._action()

    def __enter__(self) -> Self:
        self._timer.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._timer.cancel()


def _image_error(error: APIError) -> str | None:
    """Return why an image cannot be started, None if something else is the matter."""
    match = _IMAGE_ERROR.search(str(error.explanation))
    return match[0][:200] if match else None


@contextlib.contextmanager
def _mapped_errors(url: str) -> Iterator[None]:
    try:
        yield
    except APIError as exc:
        if _NO_GPU in str(exc.explanation):
            raise RuntimeUnavailable(
                "the container engine has no driver for GPUs; install the NVIDIA container toolkit where it runs, "
                "or take gpu out of this worker's MORPHEO_QUEUES"
            ) from exc
        # What the engine says may name folders of this machine: it is for the log, by way of `from`.
        raise RuntimeUnavailable("the container engine refused a call; see the worker's log") from exc
    except (DockerException, requests.RequestException, HTTPError) as exc:
        raise RuntimeUnavailable(
            f"no container engine answers at {url}; start one, or set MORPHEO_DOCKER_HOST"
        ) from exc
