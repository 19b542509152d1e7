"""
What a container engine is to Morpheo: the words, and the contract that every implementation keeps.

Life of one container: `ContainerRuntime.run` creates it, starts it, waits until it ends, is stopped by its deadline or
by its `Interrupt`, reads its log, and removes it. Nothing of it is left afterwards, whatever happened.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Protocol
from uuid import UUID

from morpheo.models import StepName
from morpheo.runtime.interrupt import Interrupt as Interrupt  # noqa: PLC0414 - one of the contract's words
from morpheo.runtime.log import BoundedLog
from morpheo.runtime.quota import Quota

#: Exit code of a program that was killed by SIGKILL: by somebody, or by the kernel for its memory.
SIGKILLED = 137


class Image(enum.StrEnum):
    """Whose image a step runs."""

    PROBLEM = "problem"
    ALGO = "algo"
    #: Our own, which runs beside the problems'.
    PLATFORM = "platform"


class Folder(enum.StrEnum):
    """The folders of a workspace that containers see; drawn in `morpheo.runtime.workspace`."""

    TEST = "test"
    DETARGETED = "detargeted"
    TRAIN = "train"
    VISIBLE = "visible"
    MODEL = "model"
    TRAIN_PRED = "train_pred"
    TEST_PRED = "test_pred"
    #: Predictions that were written anew, value by value.
    TRAIN_CLEAN = "train_clean"
    TEST_CLEAN = "test_clean"
    PERF = "perf"

    @property
    def is_output(self) -> bool:
        """Whether a container may write to it."""
        return self not in (Folder.TEST, Folder.TRAIN, Folder.VISIBLE)


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
    #: In place of the image's own.
    entrypoint: tuple[str, ...] | None = None


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
    #: In place of the image's own.
    entrypoint: tuple[str, ...] | None = None
    #: What its writable folders may hold, if their file system does not limit them; it is killed when they hold more.
    quota: Quota | None = None

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
    #: Name of the OCI runtime as the engine knows it; empty is the engine's default.
    runtime: str = ""


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """How a container ended."""

    #: None if it never ran.
    exit_code: int | None
    oom_killed: bool = False
    timed_out: bool = False
    #: Whether it wrote more to its folders than it may, or as much.
    over_quota: bool = False
    #: Time between start and end by the monotonic clock.
    seconds: float
    peak_memory_bytes: int | None = None
    #: Head and tail of stdout and stderr, with a line between them if something is left out.
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


#: Repository of images that were built and are not checked yet.
UNCHECKED = "morpheo/unchecked"
_UNCHECKED_TAG = re.compile(rf"{UNCHECKED}:([0-9a-f-]{{36}})-(\d+)-[a-z]+")


def unchecked_tag(owner: Owner, image: Image) -> str:
    """Return the name of an image that was built for an attempt and not looked at yet."""
    return f"{UNCHECKED}:{owner.job_id}-{owner.attempt}-{image}"


def unchecked_owner(tag: str) -> Owner | None:
    """Return whose an image is that was not looked at yet, None if the tag is another one."""
    match = _UNCHECKED_TAG.fullmatch(tag)
    return Owner(job_id=UUID(match[1]), attempt=int(match[2])) if match else None


@dataclass(frozen=True, kw_only=True)
class BuildNetwork:
    """The only way out of a build: through `morpheo.proxy`."""

    #: Where the container engine sees the proxy's Unix socket.
    proxy_socket: Path
    #: Image of the engine with Python 3 that brings requests to it.
    relay_image: str


@dataclass(frozen=True, kw_only=True)
class BuildSpec:
    """An image to build."""

    owner: Owner
    #: ``name:digest``; the same context always has the same tag.
    tag: str
    timeout_s: float
    #: None if there is no way out.
    network: BuildNetwork | None = None
    #: Of each instruction; 0 is no limit.
    memory_bytes: int = 0
    #: Processors that an instruction may keep busy; 0 is no limit.
    cpus: float = 0


@dataclass(frozen=True, kw_only=True)
class ImageInfo:
    """What an image says of itself, as far as it matters to whether it may be used."""

    id: str
    size_bytes: int
    layers: int
    volumes: tuple[str, ...] = field(default=())
    working_dir: str = ""
    environment: int = 0
    labels: int = 0
    ports: int = 0
    runs_something: bool = True


@dataclass(frozen=True, kw_only=True)
class EngineFacts:
    """What an engine says of itself; it does not change while it runs."""

    #: The folder where images are kept, None if this machine does not see it.
    data_root: Path | None = None
    #: Id of its process, None if it runs elsewhere.
    pid: int | None = None
    #: The user id of this machine that is root in its containers: 0 without user namespaces.
    first_id: int = 0


class ContainerRuntime(Protocol):
    """
    Builds images and runs containers.

    Every method raises `morpheo.errors.RuntimeUnavailable` if the engine does not answer or fails by itself, and
    `morpheo.errors.DiskFull` if it says that its disk is full. A failing
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

    def drop_image(self, tag: str) -> bool:
        """Remove an image by its tag, unless a container uses it; return whether it is gone."""
        ...

    def drop_unchecked(self, *, older_than_s: float) -> int:
        """Remove images that were built so long ago and never checked; return how many there were."""
        ...

    def facts(self) -> EngineFacts:
        """Return what the engine says of itself."""
        ...

    def build(
        self, context: BinaryIO, spec: BuildSpec, *, interrupt: Interrupt, log: BoundedLog | None = None
    ) -> BuildResult:
        """
        Build an image from a plain tar, which was checked before, without the engine's cache.

        What the build writes can be read from `log` while it runs.

        Raises:
            DiskFull: the engine's disk is full.
            Interrupted: the interrupt was set; nothing is left.
        """
        ...

    def run(self, spec: ContainerSpec, *, interrupt: Interrupt, log: BoundedLog | None = None) -> StepResult:
        """
        Run a container to its end, even if the engine is restarted meanwhile and the container survives that.

        What the container writes can be read from `log` while it runs, a moment later.

        Raises:
            Interrupted: the interrupt was set; the container is dead and removed.
        """
        ...

    def owners(self) -> list[Owner]:
        """Return to whom the containers and unchecked images that are here belong, each owner once."""
        ...

    def remove(self, owner: Owner) -> None:
        """Kill and remove all containers and unchecked images of an attempt; safe to call when there are none."""
        ...

    def kill_overdue(self) -> int:
        """
        Kill the containers of this node that have run for longer than they may; return how many there were.

        Whoever runs a container kills it at its deadline. This is for the case that it cannot.
        """
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
        return self.algo if image is Image.ALGO else self.problem

    def __iter__(self) -> Iterator[ContainerRuntime]:
        """Give each engine once."""
        yield self.problem
        if self.algo is not self.problem:
            yield self.algo
