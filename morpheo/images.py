"""Images of problems and algos: built once from each archive, checked before and after, found by digest."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import BinaryIO

from morpheo.errors import BadArchive, DiskFull, RuntimeUnavailable
from morpheo.failpoints import failpoint
from morpheo.failures import failed, last_lines
from morpheo.models import Artifact, ArtifactKind, Blame, Cause, JobFailed, StepName
from morpheo.runtime.archive import ArchiveLimits
from morpheo.runtime.cache import NodeCache
from morpheo.runtime.confined import repack_confined
from morpheo.runtime.contract import (
    BuildNetwork,
    BuildResult,
    BuildSpec,
    ContainerRuntime,
    Engines,
    Image,
    ImageInfo,
    Interrupt,
    Owner,
    unchecked_tag,
)
from morpheo.runtime.dockerfile import base_images, check_dockerfile, is_masked
from morpheo.runtime.log import BoundedLog
from morpheo.runtime.workspace import Workspace
from morpheo.steps import StepLog

logger = logging.getLogger(__name__)

#: An image that was built so long ago, and not checked since, is one of a worker that died; in seconds.
UNCHECKED_S = 3600.0
#: Each: ENV values, LABELs, and EXPOSEd ports.
_MAX_WORDS = 200
_MAX_LAYERS = 64

_ROLES = {
    ArtifactKind.PROBLEM: (StepName.BUILD_PROBLEM, Blame.PROBLEM),
    ArtifactKind.ALGO: (StepName.BUILD_ALGO, Blame.SUBMITTER),
}


class ImageShelf:
    """
    Gives the image of an archive.

    Args:
        engines: Build and keep the images.
        cache: Fetches the archives; its locks keep two jobs from building the same image.
        limits: What a build context may hold.
        base_images: What FROM may name.
        timeout_s: How long a build may take.
        network: A build's way out, None if it has none.
        memory_bytes: Memory of each instruction of a build.
        cpus: Processors that an instruction may keep busy.
        max_image_bytes: Largest image.
        repository: What the names of its images begin with.
    """

    def __init__(
        self,
        engines: Engines,
        cache: NodeCache,
        *,
        limits: ArchiveLimits,
        base_images: tuple[str, ...],
        timeout_s: float,
        network: BuildNetwork | None,
        memory_bytes: int,
        cpus: float,
        max_image_bytes: int,
        repository: str = "morpheo",
    ) -> None:
        self._engines = engines
        self._cache = cache
        self._limits = limits
        self._base_images = base_images
        self._timeout_s = timeout_s
        self._network = network
        self._memory_bytes = memory_bytes
        self._cpus = cpus
        self._max_image_bytes = max_image_bytes
        self._repository = repository

    def tag(self, archive: Artifact) -> str:
        """Return the name of an archive's image."""
        return f"{self._repository}/{archive.kind}:{archive.sha256}"

    def image_id(
        self, archive: Artifact, *, owner: Owner, workspace: Workspace, steps: StepLog, interrupt: Interrupt
    ) -> str:
        """
        Return the id of an archive's image, built first if this engine does not have it.

        Raises:
            JobFailed: the archive, its Dockerfile, the build or the image is not acceptable.
            RuntimeUnavailable: the engine does not answer.
            Interrupted: the interrupt was set.
        """
        tag, name = self.tag(archive), _name(archive)
        engine = self._engines[Image(archive.kind)]
        self._cache.hold_image(name, workspace.temporary(f"image-{archive.kind}"), interrupt)
        if found := engine.find_image(tag):
            return found
        with self._cache.lock(f"image-{name}", interrupt):
            if found := engine.find_image(tag):  # built by another job meanwhile
                return found
            return self._build(engine, archive, tag, owner=owner, workspace=workspace, steps=steps, interrupt=interrupt)

    def has(self, archive: Artifact) -> bool:
        """Whether the engine has an archive's image."""
        return self._engines[Image(archive.kind)].find_image(self.tag(archive)) is not None

    def evict(self, enough: Callable[[], bool]) -> None:
        """
        Remove images until there is room: what dead builds left, then what no job holds, least recently used first.

        Only images that this machine has used: an engine may have others of somebody else's. An engine that does not
        answer keeps its images.
        """
        with suppress(RuntimeUnavailable):
            for engine in self._engines:
                engine.drop_unchecked(older_than_s=self._timeout_s + UNCHECKED_S)
            for name in self._cache.idle_images():
                if enough():
                    return
                kind, _, digest = name.partition("-")
                engine, tag = self._engines[Image(kind)], f"{self._repository}/{kind}:{digest}"
                self._cache.forget_image(name, partial(engine.drop_image, tag))
                logger.info("image evicted", extra={"image": tag})

    def _build(
        self,
        engine: ContainerRuntime,
        archive: Artifact,
        tag: str,
        *,
        owner: Owner,
        workspace: Workspace,
        steps: StepLog,
        interrupt: Interrupt,
    ) -> str:
        step, blame = _ROLES[archive.kind]
        packed = workspace.temporary(f"{archive.id}.tar.gz")
        context = workspace.temporary(f"{archive.id}.tar")
        self._cache.link(archive, packed, interrupt)
        failpoint("after_download")
        with steps.recording(step) as record:
            self._repack(engine, archive, packed, context, interrupt)
            spec = BuildSpec(
                owner=owner,
                tag=unchecked_tag(owner, Image(archive.kind)),
                timeout_s=self._timeout_s,
                network=self._network,
                memory_bytes=self._memory_bytes,
                cpus=self._cpus,
            )
            with context.open("rb") as file:
                result = self._run_build(engine, file, spec, interrupt=interrupt, log=record.log)
            image_id = self._built(result, step, blame)
            self._check_image(engine, engine.inspect_image(image_id), step, blame)
        failpoint("after_build")
        packed.unlink()
        context.unlink()
        found = engine.find_image(tag)
        if found is not None and found != image_id:  # another node on the same engine was faster
            engine.remove_image(image_id)
            return found
        # Only now: what has the archive's tag is used without another look.
        engine.retag_image(image_id, tag)
        # Another node on the same engine may have built it too, and have taken the tag: ours is then gone.
        return engine.find_image(tag) or image_id

    def _run_build(
        self, engine: ContainerRuntime, context: BinaryIO, spec: BuildSpec, *, interrupt: Interrupt, log: BoundedLog
    ) -> BuildResult:
        try:
            return engine.build(context, spec, interrupt=interrupt, log=log)
        except DiskFull:  # most likely by images of other jobs
            logger.warning("the engine's disk is full: images that no job uses go")
            self.evict(lambda: False)
            context.seek(0)
            return engine.build(context, spec, interrupt=interrupt, log=log)

    def _repack(
        self, engine: ContainerRuntime, archive: Artifact, packed: Path, context: Path, interrupt: Interrupt
    ) -> None:
        step, blame = _ROLES[archive.kind]
        try:
            dockerfile = repack_confined(packed, context, self._limits, interrupt)
            check_dockerfile(dockerfile, base_images=self._base_images)
            # An engine that can reach a registry would ask it for what is not here, and take that from anybody.
            if absent := [name for name in base_images(dockerfile) if engine.find_image(name) is None]:
                raise BadArchive(f"FROM {absent[0]}: the container engine has no such image; ask the operator")
        except BadArchive as exc:
            raise failed(Cause.BAD_ARCHIVE, blame, f"the {archive.kind}'s archive: {exc}", step) from exc

    def _built(self, result: BuildResult, step: StepName, blame: Blame) -> str:
        if result.timed_out:
            raise failed(
                Cause.TIME_LIMIT,
                blame,
                f"the build took longer than {self._timeout_s:g} s and was stopped; make it do less",
                step,
            )
        if result.image_id is None:
            raise failed(Cause.BUILD_FAILED, blame, f"the build failed: {result.error}{last_lines(result.log)}", step)
        return result.image_id

    def _check_image(self, engine: ContainerRuntime, image: ImageInfo, step: StepName, blame: Blame) -> None:
        complaint = None
        if not image.runs_something:
            complaint = "the image has no ENTRYPOINT; add one that accepts the -T flag"
        elif image.volumes:
            complaint = (
                f"the image declares the volume {image.volumes[0]!r}; remove it (it may come from the base image)"
            )
        elif is_masked(image.working_dir):
            complaint = f"the image's WORKDIR {image.working_dir!r} is not usable; remove it"
        elif image.layers > _MAX_LAYERS:
            complaint = f"the image has {image.layers} layers, more than {_MAX_LAYERS}; join instructions with &&"
        elif max(image.environment, image.labels, image.ports) > _MAX_WORDS:
            complaint = f"the image has more than {_MAX_WORDS} ENV values, LABELs or EXPOSEd ports; use fewer"
        elif image.size_bytes > self._max_image_bytes:
            complaint = f"the image has {image.size_bytes} bytes, more than {self._max_image_bytes}; install less"
        if complaint is not None:
            engine.remove_image(image.id)
            raise failed(Cause.BAD_IMAGE, blame, complaint, step)


def disk_filled(kind: ArtifactKind) -> JobFailed:
    """Return why a job failed whose problem's or algo's build filled the disk of the container engine."""
    step, blame = _ROLES[kind]
    message = "the build filled the disk of the container engine; write and install less"
    return failed(Cause.BUILD_FAILED, blame, message, step)


def _name(archive: Artifact) -> str:
    return f"{archive.kind}-{archive.sha256}"
