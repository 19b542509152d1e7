"""Containers through the Docker Engine API."""

from __future__ import annotations

import contextlib
import functools
import logging
import re
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO
from uuid import UUID

import requests
from docker import APIClient
from docker.errors import APIError, DockerException, ImageNotFound, NotFound
from urllib3.exceptions import HTTPError

from morpheo.errors import DiskFull, EngineFull, RuntimeUnavailable
from morpheo.failpoints import failpoint
from morpheo.runtime.build import ImageBuild, remove_strays
from morpheo.runtime.container import RunningContainer, kill_overdue
from morpheo.runtime.contract import (
    UNCHECKED,
    BuildResult,
    BuildSpec,
    ContainerSpec,
    EngineFacts,
    ImageInfo,
    Interrupt,
    Owner,
    Profile,
    StepResult,
    unchecked_owner,
)
from morpheo.runtime.log import BoundedLog
from morpheo.runtime.network import relayed
from morpheo.runtime.profile import LABEL_ATTEMPT, LABEL_JOB, LABEL_NODE, create_arguments

logger = logging.getLogger(__name__)

#: How long the engine is asked again to remove a container that is busy, in seconds.
REMOVE_DEADLINE_S = 30
#: What the engine says when an image cannot be started, and is to blame itself.
_IMAGE_ERROR = re.compile(
    r"exec: .*|executable file not found.*|exec format error|[Nn]o command specified"
    # Where the platform mounts something, the image has a link into /proc.
    r"|cannot be mounted because it is inside /\w+|container init: open /proc/[\w/]+: no such file"
)
#: What the engine says when its disk is full; at the end, where no name that an image chose can be.
_FULL = re.compile(r"no space left on device(: unknown)?\W*$")
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
        return_s: How long a container that runs, or a build, waits for an engine that is out.
        build_timeout_s: How long a build may take, of whatever node that uses the engine.
    """

    def __init__(
        self,
        url: str,
        *,
        profile: Profile,
        node: str,
        timeout_s: float,
        return_s: float = 120,
        build_timeout_s: float = 3600,
    ) -> None:
        self._url = url
        self._profile = profile
        self._node = node
        self._timeout_s = timeout_s
        self._return_s = return_s
        self._build_timeout_s = build_timeout_s

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
            labels=len(config.get("Labels") or ()),
            ports=len(config.get("ExposedPorts") or ()),
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

    def drop_image(self, tag: str) -> bool:
        """Remove an image by its tag, unless a container uses it."""
        with _mapped_errors(self._url):
            try:
                self._client.remove_image(tag)
            except ImageNotFound:
                return True
            except APIError as exc:
                if exc.status_code == requests.codes.conflict:
                    return False
                raise
        return True

    def drop_unchecked(self, *, older_than_s: float) -> int:
        """Remove images that were built so long ago and never checked."""
        with _mapped_errors(self._url):
            images = self._client.images(name=UNCHECKED)
        old = [image for image in images if image["Created"] < time.time() - older_than_s]
        return sum(self.drop_image(tag) for image in old for tag in image["RepoTags"] or ())

    def facts(self) -> EngineFacts:
        """Return what the engine says of itself."""
        return self._facts

    @functools.cached_property
    def _facts(self) -> EngineFacts:
        with _mapped_errors(self._url):
            return read_facts(self._url, self._client.info())

    def build(
        self, context: BinaryIO, spec: BuildSpec, *, interrupt: Interrupt, log: BoundedLog | None = None
    ) -> BuildResult:
        """Build an image."""
        # A client of its own: stopping a build means closing its connection.
        log = log or BoundedLog(self._profile.log_bytes)
        with (
            contextlib.closing(self._connect()) as client,
            _mapped_errors(self._url),
            relayed(self._client, spec, self._profile, node=self._node) as network_mode,
        ):
            build = ImageBuild(
                client, spec, node=self._node, log=log, network_mode=network_mode, return_s=self._return_s
            )
            with interrupt.calling(build.stop):
                result = build.run(context)
        interrupt.check()
        # Not of an instruction that failed: what that printed is its own affair.
        if result.image_id is None and _FULL.search(result.error):
            raise EngineFull("the disk of the container engine is full; make room there")
        return result

    def run(self, spec: ContainerSpec, *, interrupt: Interrupt, log: BoundedLog | None = None) -> StepResult:
        """Run a container to its end."""
        interrupt.check()
        try:
            with _mapped_errors(self._url):
                container_id, error = self._create(spec)
                result = (
                    StepResult(exit_code=None, seconds=0.0, start_error=error)
                    if container_id is None
                    else self._start(container_id, spec, interrupt, log or BoundedLog(self._profile.log_bytes))
                )
        except RuntimeUnavailable:
            interrupt.check()  # a container that the interrupter removed is no fault of the engine
            raise
        finally:
            try:
                self._remove(spec.name)
            except RuntimeUnavailable:  # its work is done: the next sweep removes it
                logger.warning("a container could not be removed yet: %s", spec.name, exc_info=True)
        interrupt.check()
        return result

    def owners(self) -> list[Owner]:
        """Return to whom the containers and unchecked images that are here belong."""
        with _mapped_errors(self._url):
            containers = self._client.containers(all=True, filters={"label": [LABEL_JOB, f"{LABEL_NODE}={self._node}"]})
        owners = set()
        for container in containers:
            labels = container["Labels"]
            with contextlib.suppress(ValueError, KeyError):  # labels are an image's to choose, names are not
                owner = Owner(job_id=UUID(labels[LABEL_JOB]), attempt=int(labels[LABEL_ATTEMPT]))
                if any(name.startswith(f"/morpheo-{owner.job_id}-{owner.attempt}-") for name in container["Names"]):
                    owners.add(owner)
        owners |= {owner for owner, _ in self._unchecked({"label": f"{LABEL_NODE}={self._node}"})}
        return sorted(owners, key=lambda owner: (str(owner.job_id), owner.attempt))

    def remove(self, owner: Owner) -> None:
        """Kill and remove all containers of an attempt, and its images that were not checked."""
        prefix = f"/morpheo-{owner.job_id}-{owner.attempt}-"
        with _mapped_errors(self._url):
            containers = self._client.containers(all=True, filters={"label": f"{LABEL_JOB}={owner.job_id}"})
        for container in containers:
            for name in container["Names"]:
                if name.startswith(prefix):
                    self._remove(name.removeprefix("/"))
        for found, tag in self._unchecked({}):
            if (found.job_id, found.attempt) == (owner.job_id, owner.attempt):
                self.remove_image(tag)

    def _unchecked(self, filters: dict[str, str]) -> list[tuple[Owner, str]]:
        """Return the owners and tags of images whose worker died between the build and the look at them."""
        with _mapped_errors(self._url):
            images = self._client.images(UNCHECKED, filters=filters)
        tags = [tag for image in images for tag in image["RepoTags"] or ()]
        return [(owner, tag) for tag in tags if (owner := unchecked_owner(tag)) is not None]

    def kill_overdue(self) -> int:
        """Kill the containers of this node, and of any node's builds, that have run for longer than they may."""
        with _mapped_errors(self._url):
            strays = remove_strays(self._client, build_timeout_s=self._build_timeout_s)
            return strays + kill_overdue(self._client, node=self._node)

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

    def _start(self, container_id: str, spec: ContainerSpec, interrupt: Interrupt, log: BoundedLog) -> StepResult:
        failpoint("after_create")
        container = RunningContainer(
            self._client, container_id, spec, self._profile, interrupt=interrupt, log=log, return_s=self._return_s
        )
        try:
            return container.run()
        except APIError as exc:
            if error := _image_error(exc):
                return StepResult(exit_code=None, seconds=0.0, start_error=error)
            raise

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


def read_facts(url: str, info: dict[str, Any]) -> EngineFacts:
    """Return what matters of an engine's answer to ``/info``."""
    local = url.startswith("unix://")
    folder = Path(info["DockerRootDir"])
    # An engine with user namespaces keeps its images in a folder that is called after the first ids.
    remapped = "name=userns" in (info.get("SecurityOptions") or ())
    return EngineFacts(
        data_root=folder if local and folder.is_dir() else None,  # that of an engine in a container is elsewhere
        pid=_peer(url.removeprefix("unix://")) if local else None,
        first_id=int(folder.name.partition(".")[0]) if remapped else 0,
    )


def _peer(path: str) -> int | None:
    """Return the id of the process that listens on a socket, None if it is in another namespace of processes."""
    with socket.socket(socket.AF_UNIX) as peer:
        try:
            peer.connect(path)
        except OSError:
            return None
        credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return struct.unpack("3i", credentials)[0] or None


def _image_error(error: APIError) -> str | None:
    """Return why an image cannot be started, None if something else is the matter."""
    match = _IMAGE_ERROR.search(str(error.explanation))
    return match[0][:200] if match else None


@contextlib.contextmanager
def _mapped_errors(url: str) -> Iterator[None]:
    try:
        yield
    except APIError as exc:
        if _FULL.search(str(exc.explanation)):
            raise DiskFull("the disk of the container engine is full; make room there") from exc
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
