"""
What a container engine is to Morpheo: the words, and the contract that every implementation keeps.

Life of one container: `ContainerRuntime.run` creates it, starts it, waits until it ends, is stopped by its deadline or
by its `Interrupt`, reads its log, and removes it. Nothing of it is left afterwards, whatever happened.
"""

from __future__ import annotations

import enum
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Protocol
from uuid import UUID

from morpheo.errors import Interrupted
from morpheo.models import StepName


class Image(enum.StrEnum):
    """Whose image a step runs."""

    PROBLEM = "problem"
    ALGO = "algo"


class Folder(enum.StrEnum):
    """The folders of a workspace that containers see; drawn in `morpheo.runtime.workspace`."""

    TEST = "test"
    DETARGETED = "detargeted"
    TRAIN = "train"
    VISIBLE = "visible"
    MODEL = "model"
    TRAIN_PRED = "train_pred"
    TEST_PRED = "test_pred"
    PERF = "perf"

    @property
    def is_output(self) -> bool:
        """Whether a container may write to it."""
        return self in (Folder.DETARGETED, Folder.MODEL, Folder.TRAIN_PRED, Folder.TEST_PRED, Folder.PERF)


@dataclass(frozen=True, kw_only=True)
class Mount:
    """A folder of the workspace, seen in a container."""

    folder: Folder
    target: str
    writable: bool = False
    #: Mount the harvested copy instead of the folder that a container wrote to.
    harvested: bool = False


@dataclass(frozen=True, kw_only=True)
class Step:
    """One container, before it is known where its image and folders are."""

    name: StepName
    image: Image
    args: tuple[str, ...]
    mounts: tuple[Mount, ...]


@dataclass(frozen=True, kw_only=True)
class Bind:
    """A folder of the host, seen in a container."""

    source: Path
    target: str
    writable: bool = False


@dataclass(frozen=True, kw_only=True)
class Owner:
    """Whom a container or a build belongs to; written into names and labels."""

    job_id: UUID
    attempt: int
    worker: str = ""


@dataclass(frozen=True, kw_only=True)
class ContainerSpec:
    """One container, ready to run."""

    owner: Owner
    step: StepName
    #: Id (``sha256:…``) of the image, never a tag.
    image_id: str
    args: tuple[str, ...]
    binds: tuple[Bind, ...]
    #: The container is killed when it has run for so long.
    timeout_s: float
    #: Whether it gets the GPUs of the profile.
    gpu: bool = False

    @property
    def name(self) -> str:
        """The container's name: a second start of the same step of the same attempt collides."""
        return f"morpheo-{self.owner.job_id}-{self.owner.attempt}-{self.step}"


@dataclass(frozen=True, kw_only=True)
class Profile:
    """What every container may use; all sizes in bytes."""

    user: int
    memory_bytes: int
    cpus: float
    pids: int
    tmp_bytes: int
    log_bytes: int
    #: Largest file that a container may write.
    file_bytes: int
    #: What a container that asks for GPUs gets: ``all``, how many, or comma-separated ids; empty is none.
    gpus: str = ""


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """How a container ended."""

    #: None if it never ran.
    exit_code: int | None
    oom_killed: bool = False
    timed_out: bool = False
    #: Time between start and end by the monotonic clock.
    seconds: float
    peak_memory_bytes: int | None = None
    #: The end of stdout and stderr, as it came.
    log: bytes = b""
    #: Why the container could not be started, if it could not and its image is to blame.
    start_error: str | None = None


@dataclass(frozen=True, kw_only=True)
class BuildResult:
    """How the build of an image ended."""

    #: None if the build failed.
    image_id: str | None
    log: bytes
    seconds: float
    timed_out: bool = False
    #: Why the build failed.
    error: str = ""


@dataclass(frozen=True, kw_only=True)
class BuildSpec:
    """An image to build."""

    owner: Owner
    #: ``name:digest``; the same context always has the same tag.
    tag: str
    timeout_s: float
    network: bool = False
    memory_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class ImageInfo:
    """What an image says of itself, as far as it matters to whether it may be used."""

    id: str
    size_bytes: int
    layers: int
    volumes: tuple[str, ...] = field(default=())
    working_dir: str = ""
    environment: int = 0
    runs_something: bool = True


class Interrupt:
    """
    Tells a running attempt to stop, from another thread.

    `set` may be called more than once; the first reason stays. What is registered with `calling` is called at once
    when it is set, or has been.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._callbacks: list[Callable[[], None]] = []
        self.reason: str | None = None

    def set(self, reason: str) -> None:
        """Stop whatever is registered."""
        with self._lock:
            if self.reason is not None:
                return
            self.reason = reason
            callbacks = list(self._callbacks)
        for callback in callbacks:
            callback()

    def check(self) -> None:
        """
        Do nothing if it is not set.

        Raises:
            Interrupted: it is.
        """
        if self.reason is not None:
            raise Interrupted(self.reason)

    @contextmanager
    def calling(self, callback: Callable[[], None]) -> Iterator[None]:
        """Call something if the interrupt is set during the block."""
        with self._lock:
            self._callbacks.append(callback)
            already = self.reason is not None
        try:
            if already:
                callback()
            yield
        finally:
            with self._lock:
                self._callbacks.remove(callback)


class ContainerRuntime(Protocol):
    """
    Builds images and runs containers.

    Every method raises `morpheo.errors.RuntimeUnavailable` if the engine does not answer or fails by itself. A failing
    build or container is no exception but a result: it was run successfully.
    """

    def check(self) -> None:
        """Find out whether the engine answers."""
        ...

    def find_image(self, tag: str) -> str | None:
        """Return the id of the image with that tag, None if there is none."""
        ...

    def inspect_image(self, image_id: str) -> ImageInfo:
        """Return what an image says of itself."""
        ...

    def retag_image(self, image_id: str, tag: str) -> None:
        """Give an image a tag in place of those that it has."""
        ...

    def remove_image(self, image_id: str) -> None:
        """Remove an image with its tags, if it is there and nothing uses it."""
        ...

    def build(self, context: BinaryIO, spec: BuildSpec, *, interrupt: Interrupt) -> BuildResult:
        """
        Build an image from a plain tar, which was checked before, without the engine's cache.

        Raises:
            Interrupted: the interrupt was set; nothing is left.
        """
        ...

    def run(self, spec: ContainerSpec, *, interrupt: Interrupt) -> StepResult:
        """
        Run a container to its end.

        Raises:
            Interrupted: the interrupt was set; the container is dead and removed.
        """
        ...

    def owners(self) -> list[Owner]:
        """Return to whom the containers that are here belong, each owner once."""
        ...

    def remove(self, owner: Owner) -> None:
        """Kill and remove all containers of an attempt; safe to call when there are none."""
        ...


@dataclass(frozen=True, kw_only=True)
class Engines:
    """
    The container engines of a node.

    Images of problems know the answers, and those of algos come from strangers: in two engines, neither can be built
    from the other. Both may be the same.
    """

    problem: ContainerRuntime
    algo: ContainerRuntime

    def __getitem__(self, image: Image) -> ContainerRuntime:
        return self.problem if image is Image.PROBLEM else self.algo

    def __iter__(self) -> Iterator[ContainerRuntime]:
        """Give each engine once."""
        yield self.problem
        if self.algo is not self.problem:
            yield self.algo
