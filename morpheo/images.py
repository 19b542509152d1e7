"""Images of problems and algos: built once from each archive, checked before and after, found by digest."""

from __future__ import annotations

import posixpath
from pathlib import Path

from morpheo.errors import BadArchive
from morpheo.failures import failed, last_lines
from morpheo.models import Artifact, ArtifactKind, Blame, Cause, StepName
from morpheo.runtime.archive import ArchiveLimits, repack_context
from morpheo.runtime.cache import NodeCache
from morpheo.runtime.contract import (
    BuildResult,
    BuildSpec,
    ContainerRuntime,
    Engines,
    Image,
    ImageInfo,
    Interrupt,
    Owner,
)
from morpheo.runtime.dockerfile import check_dockerfile
from morpheo.runtime.workspace import Workspace
from morpheo.steps import StepLog

_MAX_ENVIRONMENT = 200
_MAX_LAYERS = 64
_MASKED_FOLDERS = ("/proc", "/sys", "/dev")

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
        network: Whether a build may use the network.
        memory_bytes: Memory of each instruction of a build.
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
        network: bool,
        memory_bytes: int,
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
        tag = self.tag(archive)
        engine = self._engines[Image(archive.kind)]
        if found := engine.find_image(tag):
            return found
        with self._cache.lock(f"image-{archive.sha256}", interrupt):
            if found := engine.find_image(tag):  # built by another job meanwhile
                return found
            return self._build(engine, archive, tag, owner=owner, workspace=workspace, steps=steps, interrupt=interrupt)

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
        with steps.recording(step) as record:
            self._repack(archive, packed, context)
            spec = BuildSpec(
                owner=owner,
                tag=f"morpheo/unchecked:{owner.job_id}-{owner.attempt}-{archive.kind}",
                timeout_s=self._timeout_s,
                network=self._network,
                memory_bytes=self._memory_bytes,
            )
            with context.open("rb") as file:
                result = engine.build(file, spec, interrupt=interrupt)
            record.log = result.log
            image_id = self._built(result, step, blame)
            self._check_image(engine, engine.inspect_image(image_id), step, blame)
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

    def _repack(self, archive: Artifact, packed: Path, context: Path) -> None:
        step, blame = _ROLES[archive.kind]
        try:
            with packed.open("rb") as source, context.open("wb") as target:
                dockerfile = repack_context(source, target, self._limits)
            check_dockerfile(dockerfile, base_images=self._base_images)
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
        elif any(posixpath.normpath(image.working_dir).startswith(folder) for folder in _MASKED_FOLDERS):
            complaint = f"the image's WORKDIR {image.working_dir!r} is not usable; remove it"
        elif image.environment > _MAX_ENVIRONMENT or image.layers > _MAX_LAYERS:
            complaint = f"the image has more than {_MAX_ENVIRONMENT} ENV values or {_MAX_LAYERS} layers; use fewer"
        elif image.size_bytes > self._max_image_bytes:
            complaint = f"the image has {image.size_bytes} bytes, more than {self._max_image_bytes}; install less"
        if complaint is not None:
            engine.remove_image(image.id)
            raise failed(Cause.BAD_IMAGE, blame, complaint, step)
