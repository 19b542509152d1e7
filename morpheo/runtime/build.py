"""One image build on a Docker engine."""

from __future__ import annotations

import contextlib
import re
import threading
import time
from typing import Any, BinaryIO

import requests
from docker import APIClient
from docker.errors import APIError, DockerException, ImageNotFound
from urllib3.exceptions import HTTPError

from morpheo.runtime.contract import BuildResult, BuildSpec
from morpheo.runtime.profile import owner_labels

_STAGE = re.compile(r"Step \d+/\d+ : FROM ")
_INTERMEDIATE = re.compile(r"---> ([0-9a-f]{12})\s*")
#: How long the engine is given to end the container of a build that was stopped, in seconds.
_REMOVE_DEADLINE_S = 15


class ImageBuild:
    """
    Builds one image, without network or cache, and keeps the end of the log.

    The engine reports a failure as a line of its stream, not as an error; and it goes on building until its client
    hangs up, so both the deadline and `stop` close the connection.

    Args:
        client: Used for this build only.
        spec: What to build.
        log_bytes: How much of the log is kept.
    """

    def __init__(self, client: APIClient, spec: BuildSpec, *, log_bytes: int) -> None:
        self._client = client
        self._spec = spec
        self._log = _Tail(log_bytes)
        self._error = ""
        self._intermediate: list[str] = []
        self._stages = 0
        self._stopped = False
        self._timed_out = False
        self._response: requests.Response | None = None
        client.hooks = {"response": [self._keep_response]}

    def run(self, context: BinaryIO) -> BuildResult:
        """Build, and return how it ended; leaves no intermediate container or image behind."""
        began = time.monotonic()
        watchdog = threading.Timer(self._spec.timeout_s, self._expire)
        watchdog.daemon = True
        watchdog.start()
        try:
            self._follow(context)
        except (DockerException, requests.RequestException, HTTPError, AttributeError, ValueError):
            if not self._stopped:
                raise
        finally:
            watchdog.cancel()
            self._client.hooks = {"response": []}
        image_id = None if self._error or self._stopped else self._find()
        if image_id is None or self._stages > 1:
            self._remove_intermediate()
        return BuildResult(
            image_id=image_id,
            log=self._log.content(),
            seconds=time.monotonic() - began,
            timed_out=self._timed_out,
            error=self._error or ("" if image_id else "the engine ended the build without an image"),
        )

    def stop(self) -> None:
        """Hang up: the engine then kills the running instruction."""
        self._stopped = True
        if self._response is not None:
            with contextlib.suppress(OSError, ValueError, HTTPError):
                self._response.raw.shutdown()

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
        lines = self._client.build(
            fileobj=context,
            custom_context=True,
            tag=self._spec.tag,
            labels=owner_labels(self._spec.owner),
            rm=True,
            forcerm=True,
            pull=False,
            nocache=True,
            network_mode=None if self._spec.network else "none",
            container_limits=limits,
            shmsize=64 << 20,
            use_config_proxy=False,
            timeout=int(self._spec.timeout_s) + 60,
            decode=True,
        )
        for line in lines:
            self._take(line)
            if self._stopped:
                return

    def _take(self, line: dict[str, Any]) -> None:
        text = str(line.get("stream") or line.get("status") or "")
        self._log.add(text.encode("utf-8", "replace"))
        if match := _INTERMEDIATE.search(text):
            self._intermediate.append(match[1])
        self._stages += bool(_STAGE.match(text))
        if "error" in line or "errorDetail" in line:
            self._error = str(line.get("error") or line["errorDetail"].get("message"))
            self._log.add(self._error.encode("utf-8", "replace") + b"\n")

    def _find(self) -> str | None:
        try:
            return str(self._client.inspect_image(self._spec.tag)["Id"])
        except ImageNotFound:
            return None

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


class _Tail:
    """The last bytes of what was added."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._content = bytearray()
        self._cut = False

    def add(self, piece: bytes) -> None:
        """Add a piece; forgets the oldest bytes."""
        self._content += piece
        if len(self._content) > 2 * self._size:
            self._cut = True
            del self._content[: -self._size]

    def content(self) -> bytes:
        """Return what is left, marked if something is missing."""
        kept = bytes(self._content[-self._size :])
        return (
            b"[the beginning of this log was dropped]\n" + kept
            if self._cut or len(self._content) > self._size
            else kept
        )
