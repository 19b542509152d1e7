"""
Stand-ins for the blob store, the container engine and the broker, and makers of test data.

They keep the same contracts as the real ones, are tested by the same tests, and are shipped for users' own tests.
"""

from __future__ import annotations

import bisect
import contextlib
import gzip
import io
import tarfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO
from uuid import UUID, uuid4

from morpheo.errors import BrokerUnavailable, InvalidInput, NotFound, RuntimeUnavailable
from morpheo.models import JobSpec, LearnSpec, PredictSpec
from morpheo.runtime.contract import (
    SIGKILLED,
    UNCHECKED,
    BuildResult,
    BuildSpec,
    ContainerSpec,
    EngineFacts,
    ImageInfo,
    Interrupt,
    Owner,
    StepResult,
    unchecked_owner,
)
from morpheo.runtime.log import BoundedLog
from morpheo.storage.blobs import CHUNK_SIZE, BlobStat, ExactSource, Source, checked_key, pieces

#: How much is kept of a log that the caller does not keep.
_LOG_BYTES = 1 << 20


class MemoryBlobStore:
    """A `morpheo.storage.blobs.BlobStore` in memory."""

    def __init__(self) -> None:
        self._blobs: dict[str, tuple[bytes, datetime]] = {}

    def put(self, key: str, source: Source, *, length: int | None = None) -> int:
        """Store what the source gives."""
        checked_key(key)
        content = b"".join(pieces(ExactSource(source, length)))
        self._blobs[key] = content, datetime.now(UTC)
        return len(content)

    @contextlib.contextmanager
    def get(self, key: str, *, offset: int = 0, length: int | None = None) -> Iterator[Iterator[bytes]]:
        """Open a blob or a range of it."""
        content = self._find(key)[0][offset : None if length is None else offset + length]
        yield (content[start : start + CHUNK_SIZE] for start in range(0, len(content), CHUNK_SIZE))

    def stat(self, key: str) -> BlobStat:
        """Return what is known of a blob."""
        content, modified_at = self._find(key)
        return BlobStat(key=key, size_bytes=len(content), modified_at=modified_at)

    def delete(self, key: str) -> None:
        """Remove a blob."""
        self._blobs.pop(checked_key(key), None)

    def list(self, prefix: str = "") -> Iterator[BlobStat]:
        """Return the blobs whose key begins with `prefix`."""
        blobs = self._blobs.copy()  # what is removed meanwhile may be listed, as by S3
        keys = sorted(blobs)
        for key in keys[bisect.bisect_left(keys, prefix) :]:
            if not key.startswith(prefix):
                return
            content, modified_at = blobs[key]
            yield BlobStat(key=key, size_bytes=len(content), modified_at=modified_at)

    def sweep(self, _before: datetime) -> int:
        """Remove nothing: a write that ends early leaves nothing here."""
        return 0

    def check(self) -> None:
        """Always passes."""

    def _find(self, key: str) -> tuple[bytes, datetime]:
        try:
            return self._blobs[checked_key(key)]
        except KeyError:
            raise NotFound(f"blob {key} not found") from None


@dataclass
class RecordingPublisher:
    """A `morpheo.jobs.Publisher` that remembers what it was given."""

    published: list[UUID] = field(default_factory=list)
    #: What `backlog` answers, by queue.
    waiting: dict[str, int] = field(default_factory=dict)
    #: Set it to see what happens without a broker.
    down: bool = False

    def publish(self, spec: JobSpec) -> None:
        """Remember a job's id."""
        if self.down:
            raise BrokerUnavailable
        self.published.append(spec.id)

    def backlog(self, queue: str) -> int:
        """Return how many messages wait: none, unless a test says so."""
        if self.down:
            raise BrokerUnavailable
        return self.waiting.get(queue, 0)


class FakeContainer:
    """What a fake program sees: its arguments, the folders mounted into it, and a log."""

    def __init__(self, spec: ContainerSpec, ended: threading.Event, log: BoundedLog) -> None:
        self.args = spec.args
        self.log = log
        self._binds = spec.binds
        self._ended = ended

    def path(self, target: str) -> Path:
        """
        Return where a path of the container is on this machine.

        Raises:
            FileNotFoundError: it is in no mounted folder.
        """
        for bind in sorted(self._binds, key=lambda bind: len(bind.target), reverse=True):
            if target == bind.target or target.startswith(bind.target + "/"):
                return bind.source / target[len(bind.target) :].lstrip("/")
        raise FileNotFoundError(target)

    def write(self, target: str, content: bytes) -> None:
        """
        Write a file.

        Raises:
            PermissionError: it is not in a writable folder.
        """
        path = self.path(target)
        if not any(bind.writable and path.is_relative_to(bind.source) for bind in self._binds):
            raise PermissionError(f"read-only file system: {target}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    def print(self, text: str) -> None:
        """Write a line to the log."""
        self.log.write(text.encode() + b"\n")

    def sleep(self, seconds: float) -> None:
        """Wait, unless the container is killed."""
        self._ended.wait(seconds)


#: What a fake image does; returns its exit code.
Program = Callable[[FakeContainer], int]


class FakeRuntime:
    """
    A `morpheo.runtime.contract.ContainerRuntime` whose images are Python functions.

    An image runs the program that the last word of its Dockerfile's ENTRYPOINT names. ``RUN false`` fails a build.

    Args:
        programs: By name.
    """

    def __init__(self, programs: Mapping[str, Program]) -> None:
        self._programs = programs
        self._images: dict[str, str] = {}  # programs by image id
        self._tags: dict[str, str] = {}  # image ids by tag
        self._running: dict[str, tuple[Owner, threading.Event]] = {}
        #: Names of the containers that were run, and tags of the images that were built, in order.
        self.history: list[str] = []
        #: Set it to see what happens without an engine.
        self.down = False

    def check(self) -> None:
        """Find out whether the engine answers."""
        if self.down:
            raise RuntimeUnavailable("no container engine answers")

    def find_image(self, tag: str) -> str | None:
        """Return the id of the image with that tag; the base image is always there."""
        self.check()
        return self._tags.get(tag, tag if tag == "morpheo/base:1" else None)

    def inspect_image(self, image_id: str) -> ImageInfo:
        """Return what an image says of itself."""
        self.check()
        program = self._images[image_id]
        return ImageInfo(id=image_id, size_bytes=1, layers=1, runs_something=bool(program))

    def retag_image(self, image_id: str, tag: str) -> None:
        """Give an image a tag in place of the one that it has."""
        self.check()
        self._untag(image_id)
        self._tags[tag] = image_id

    def remove_image(self, image_id: str) -> None:
        """Remove an image."""
        self.check()
        self._untag(image_id)
        self._images.pop(image_id, None)

    def drop_image(self, tag: str) -> bool:
        """Remove an image by its tag."""
        self._images.pop(self._tags.pop(tag, ""), None)
        return True

    def drop_unchecked(self, *, older_than_s: float) -> int:
        """Remove images that were never checked."""
        return sum(self.drop_image(tag) for tag in list(self._tags) if tag.startswith(UNCHECKED))

    def facts(self) -> EngineFacts:
        """Return nothing: images here are words, and what is mounted is not seen."""
        return EngineFacts()

    def _untag(self, image_id: str) -> None:
        self._tags = {tag: tagged for tag, tagged in self._tags.items() if tagged != image_id}

    def build(
        self, context: BinaryIO, spec: BuildSpec, *, interrupt: Interrupt, log: BoundedLog | None = None
    ) -> BuildResult:
        """Read the Dockerfile of a context, and remember its program."""
        self.check()
        interrupt.check()
        with tarfile.open(fileobj=context, mode="r|") as tar:
            dockerfile = b""
            for member in tar:
                if member.name == "Dockerfile" and (file := tar.extractfile(member)) is not None:
                    dockerfile = file.read()
        lines = dockerfile.decode().splitlines()
        self.history.append(spec.tag)
        (log or BoundedLog(_LOG_BYTES)).write(dockerfile)
        if "RUN false" in lines:
            return BuildResult(image_id=None, log=dockerfile, seconds=0.0, error="'false' returned a non-zero code: 1")
        entrypoint = next((line for line in lines if line.startswith("ENTRYPOINT")), "")
        image_id = self._tags[spec.tag] = f"sha256:{uuid4().hex}"
        self._images[image_id] = entrypoint.strip('"] ').rpartition('"')[2]
        return BuildResult(image_id=image_id, log=dockerfile, seconds=0.0)

    def run(self, spec: ContainerSpec, *, interrupt: Interrupt, log: BoundedLog | None = None) -> StepResult:
        """Call an image's program."""
        self.check()
        interrupt.check()
        program = self._programs.get(self._images[spec.image_id])
        self.history.append(spec.name)
        if program is None:
            return StepResult(exit_code=None, seconds=0.0, start_error="executable file not found")
        ended = threading.Event()
        timer = threading.Timer(spec.timeout_s, ended.set)
        self._running[spec.name] = spec.owner, ended
        container = FakeContainer(spec, ended, log or BoundedLog(_LOG_BYTES))
        began = time.monotonic()
        timer.start()
        try:
            with interrupt.calling(ended.set):
                exit_code = _call(program, container)
        finally:
            timer.cancel()
            timer.join()
            del self._running[spec.name]
        interrupt.check()
        seconds = time.monotonic() - began
        timed_out = seconds >= spec.timeout_s
        return StepResult(
            exit_code=SIGKILLED if ended.is_set() else exit_code,
            timed_out=timed_out,
            seconds=seconds,
            log=container.log.text(),
        )

    def owners(self) -> list[Owner]:
        """Return to whom the running containers and the unchecked images belong."""
        self.check()
        unchecked = {owner for tag in self._tags if (owner := unchecked_owner(tag)) is not None}
        return sorted({owner for owner, _ in self._running.values()} | unchecked, key=str)

    def remove(self, owner: Owner) -> None:
        """Kill the containers of an attempt, and remove its unchecked images."""
        self.check()
        for tag, image_id in list(self._tags.items()):
            found = unchecked_owner(tag)
            if found is not None and (found.job_id, found.attempt) == (owner.job_id, owner.attempt):
                self.remove_image(image_id)
        for running, ended in list(self._running.values()):
            if (running.job_id, running.attempt) == (owner.job_id, owner.attempt):
                ended.set()

    def kill_overdue(self) -> int:
        """Kill nothing: a container of this engine never outlives its deadline."""
        self.check()
        return 0


def _call(program: Program, container: FakeContainer) -> int:
    try:
        return program(container)
    except Exception as exc:  # noqa: BLE001 - as an interpreter does it: the error is in the log, the exit code is 1
        container.print(f"{type(exc).__name__}: {exc}")
        return 1


def make_archive(files: Mapping[str, bytes | str]) -> bytes:
    """Return a ``.tar.gz`` with these files, the same bytes for the same files at any time."""
    target = io.BytesIO()
    with gzip.GzipFile(fileobj=target, mode="wb", mtime=0) as packed, tarfile.open(fileobj=packed, mode="w") as tar:
        for name, content in files.items():
            data = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size = len(data)
            info.mode = 0o644
            tar.addfile(info, io.BytesIO(data))
    return target.getvalue()


def make_learn_spec(**changes: Any) -> LearnSpec:
    """Return a learn order with random ids."""
    values: dict[str, Any] = {name: uuid4() for name in ("id", "problem", "workflow", "algo", "model_end")}
    values |= {"train_data": (uuid4(),), "test_data": (uuid4(),), "model_start": None}
    return LearnSpec(**{**values, **changes})


def make_predict_spec(**changes: Any) -> PredictSpec:
    """Return a predict order with random ids."""
    values = {name: uuid4() for name in ("id", "problem", "workflow", "model", "data")}
    return PredictSpec(**{**values, **changes})


class BrokenSource:
    """A source that gives some bytes and then raises."""

    def __init__(self, content: bytes, error: Exception | None = None) -> None:
        self._content = io.BytesIO(content)
        self._error = error or InvalidInput("the body ended before its end")

    def read(self, size: int = -1, /) -> bytes:
        """Return at most `size` bytes; raise at the end."""
        piece = self._content.read(size)
        if not piece:
            raise self._error
        return piece
