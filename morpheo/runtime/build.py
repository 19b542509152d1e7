"""One image build on a Docker engine."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import threading
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any, BinaryIO

import requests
from docker import APIClient
from docker.errors import APIError, DockerException, ImageNotFound, NotFound
from urllib3.exceptions import HTTPError

from morpheo.runtime.contract import BuildResult, BuildSpec
from morpheo.runtime.log import BoundedLog
from morpheo.runtime.network import PROXY_URL
from morpheo.runtime.profile import LABEL_NODE, owner_labels

_STAGE = re.compile(r"Step \d+/\d+ : FROM ")
_INTERMEDIATE = re.compile(r"---> ([0-9a-f]{12})\s*")
_RUNNING = re.compile(r"---> Running in ([0-9a-f]{12})\s*")
#: Arguments that every build has without declaring them; the engine writes none of them into the image.
_PROXY_WORDS = ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy")
#: The control group of all instructions of builds, as the two drivers of the engine want it named.
_GROUPS = {"cgroupfs": "/morpheo-builds", "systemd": "morpheo-builds.slice"}
_CPU_PERIOD_US = 100_000
#: A build's container counts as a stray when it is older than any build by so much, in seconds.
_STRAY_GRACE_S = 60
#: How long the engine is given to end a build that was stopped, and then its container, in seconds.
_REMOVE_DEADLINE_S = 15
#: How many images a build may tell of: two for each instruction are fewer, but its programs may print such lines, too.
_MAX_TOLD = 1024
#: How often an engine that is out is asked whether it is back, in seconds.
_RETURN_EVERY_S = 0.2


class ImageBuild:
    """
    Builds one image, without network or cache.

    The engine reports a failure as a line of its stream, not as an error; and it goes on building until its client
    hangs up. The deadline and `stop` close one half of the connection only: over the other one comes what was made
    meanwhile, which is to be removed.

    Args:
        client: Used for this build only.
        spec: What to build.
        node: Name of this node.
        log: Where the engine's report goes.
        network_mode: The engine's word for the network that instructions are given.
        return_s: How long an engine that went out is waited for, to remove what it left.
    """

    def __init__(
        self,
        client: APIClient,
        spec: BuildSpec,
        *,
        node: str,
        log: BoundedLog,
        network_mode: str = "none",
        return_s: float = 120,
    ) -> None:
        self._client = client
        self._network_mode = network_mode
        self._spec = spec
        self._node = node
        self._log = log
        self._return_s = return_s
        self._error = ""
        #: Id of the container of the latest instruction.
        self._container = ""
        #: Ids of images in between, in the order in which they were told.
        self._intermediate: dict[str, None] = {}
        self._stages = 0
        self._stopped = False
        self._timed_out = False
        self._response: requests.Response | None = None
        self._timers: list[threading.Timer] = []
        client.hooks = {"response": [self._keep_response]}

    def run(self, context: BinaryIO) -> BuildResult:
        """Build, and return how it ended; leaves no intermediate container or image behind."""
        began = time.monotonic()
        self._call_after(self._spec.timeout_s, self._expire)
        try:
            self._follow(context)
        except (DockerException, requests.RequestException, HTTPError, AttributeError, ValueError):
            if not self._stopped:
                self._remove_container()
                raise
        finally:
            self._client.hooks = {"response": []}
            self._response = None
            for timer in self._timers:
                timer.cancel()
        if self._timed_out:
            self._client.ping()  # an engine that hangs is no fault of the build
        image_id = None if self._error or self._stopped else self._find()
        if image_id is None or self._stages > 1:
            self._remove_intermediate()
        return BuildResult(
            image_id=image_id,
            log=self._log.text(),
            seconds=time.monotonic() - began,
            timed_out=self._timed_out,
            error=self._error or ("" if image_id else "the engine ended the build without an image"),
        )

    def stop(self) -> None:
        """Let the engine know that nobody waits: it kills the running instruction, and says what it has made so far."""
        self._stopped = True
        connection = self._response.raw.connection if self._response is not None else None
        if connection is not None:
            with contextlib.suppress(OSError, AttributeError):  # the build has just ended
                # Not its own method: of a connection with TLS, that one would end its reading, too.
                socket.socket.shutdown(connection.sock, socket.SHUT_WR)
            self._call_after(_REMOVE_DEADLINE_S, self._hang_up)

    def _hang_up(self) -> None:
        if self._response is not None:
            with contextlib.suppress(OSError, ValueError, HTTPError):
                self._response.raw.shutdown()

    def _call_after(self, seconds: float, function: Callable[[], None]) -> None:
        timer = threading.Timer(seconds, function)
        timer.daemon = True
        timer.start()
        self._timers.append(timer)

    def _expire(self) -> None:
        self._timed_out = True
        self.stop()

    def _keep_response(self, response: requests.Response, *_args: object, **_kwargs: object) -> None:
        self._response = response
        if self._stopped:
            self.stop()

    def _follow(self, context: BinaryIO) -> None:
        memory = self._spec.memory_bytes
        limits: Any = {"memory": memory, "memswap": memory} if memory else None
        self._client.params = _more_limits(self._spec, build_group(self._client))
        lines = self._client.build(
            fileobj=context,
            custom_context=True,
            tag=self._spec.tag,
            labels={**owner_labels(self._spec.owner), LABEL_NODE: self._node},
            rm=True,
            forcerm=True,
            pull=False,
            nocache=True,
            network_mode=self._network_mode,
            buildargs=dict.fromkeys(_PROXY_WORDS, PROXY_URL) if self._spec.network else None,
            container_limits=limits,
            shmsize=64 << 20,
            use_config_proxy=False,
            timeout=int(self._spec.timeout_s) + 60,
            decode=True,
        )
        for line in lines:
            self._take(line)

    def _take(self, line: dict[str, Any]) -> None:
        text = str(line.get("stream") or line.get("status") or "")
        if not self._stopped:
            self._log.write(text.encode("utf-8", "replace"))
        if match := _INTERMEDIATE.search(text):
            self._intermediate[match[1]] = None
            if len(self._intermediate) > 2 * _MAX_TOLD:
                self._intermediate.pop(next(iter(self._intermediate)))
            if len(self._intermediate) == _MAX_TOLD:
                self._error = f"it prints what only the engine says, that it made an image, more than {_MAX_TOLD} times"
                self.stop()
        if match := _RUNNING.search(text):
            self._container = match[1]
        self._stages += bool(_STAGE.match(text))
        if not self._stopped and ("error" in line or "errorDetail" in line):
            self._error = str(line.get("error") or line["errorDetail"].get("message"))
            self._log.write(self._error.encode("utf-8", "replace") + b"\n")

    def _find(self) -> str | None:
        try:
            return str(self._client.inspect_image(self._spec.tag)["Id"])
        except ImageNotFound:
            return None

    def _remove_container(self) -> None:
        # An engine that was killed forgets its builds, not their containers, which nothing tells from other people's.
        give_up = time.monotonic() + self._return_s
        while self._container and not self._stopped and time.monotonic() < give_up:
            try:
                self._client.remove_container(self._container, force=True, v=True)
            except NotFound:
                return
            except (DockerException, requests.RequestException, HTTPError):
                time.sleep(_RETURN_EVERY_S)
            else:
                return

    def _remove_intermediate(self) -> None:
        # What a failed build got to, and each stage but the last, is an image without a tag. The engine refuses to
        # remove those that a tagged image is made of.
        give_up = time.monotonic() + _REMOVE_DEADLINE_S
        for image_id in reversed(self._intermediate):
            while not self._remove_untagged(image_id) and time.monotonic() < give_up:
                time.sleep(0.1)

    def _remove_untagged(self, image_id: str) -> bool:
        """Remove an image that has no tag; False if a container keeps that from happening, for now."""
        try:
            if not self._client.inspect_image(image_id)["RepoTags"]:
                self._client.remove_image(image_id)
        except APIError as exc:  # of a build that was stopped, the engine ends the last container in its own time
            return "being used by" not in str(exc.explanation)
        return True


def build_group(client: APIClient) -> str:
    """Return the control group in which an engine runs the instructions of builds; empty if it has none."""
    return _group(client.info())


def _group(info: dict[str, Any]) -> str:
    return _GROUPS.get(info.get("CgroupDriver", ""), "")


def remove_strays(client: APIClient, *, build_timeout_s: float) -> int:
    """
    Remove the containers of builds that nobody waits for any more; return how many there were.

    An engine that is killed forgets its builds, not their containers, which have no labels (``trust`` 0.16). They are
    known by their control group, and by being older than a build may be.
    """
    info = client.info()
    group = _group(info)
    oldest = datetime.fromisoformat(info["SystemTime"]).timestamp() - build_timeout_s - _STRAY_GRACE_S
    strays = 0
    for container in client.containers(all=True) if group else ():
        if container["Created"] > oldest:
            continue
        with contextlib.suppress(NotFound):  # it went by itself
            if client.inspect_container(container["Id"])["HostConfig"].get("CgroupParent") == group:
                client.remove_container(container["Id"], force=True, v=True)
                strays += 1
    return strays


def _more_limits(spec: BuildSpec, group: str) -> dict[str, Any]:
    # What the engine knows of and docker-py does not: sent with each request of the client.
    limits: dict[str, Any] = {"ulimits": json.dumps([{"Name": "core", "Soft": 0, "Hard": 0}])}
    if group:
        limits["cgroupparent"] = group
    if spec.cpus:
        limits |= {"cpuperiod": _CPU_PERIOD_US, "cpuquota": int(spec.cpus * _CPU_PERIOD_US)}
    return limits
