"""Looks at what containers leave, before it is harvested or thrown away."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast
from uuid import UUID

from morpheo.errors import BadOutput, RuntimeUnavailable
from morpheo.models import StepName
from morpheo.runtime.contract import BuildResult, BuildSpec, ContainerRuntime, ContainerSpec, Interrupt, StepResult
from morpheo.runtime.log import BoundedLog
from morpheo.runtime.outputs import harvest_files, read_file

#: Most names that are noted of one folder.
_MOST_NAMES = 10_000
_MOST_BYTES = 1 << 30
#: Largest prediction that is compared with another.
_MOST_HASHED = 64 << 20
#: Where algos write predictions of test items.
TEST_PRED = "/data/test/pred"

#: Called with the step that begins.
OnStep = Callable[[StepName], None]


@dataclass(frozen=True, kw_only=True)
class Left:
    """What lies in one output folder of a container that has ended."""

    #: Size in bytes of each regular file, by its path in the folder.
    files: dict[str, int] = field(default_factory=dict)
    #: Paths of links, pipes and whatever else is no file.
    others: tuple[str, ...] = ()


class Watch:
    """
    Notes what the containers of a trial leave.

    Args:
        detargeted: Folder for copies of the test items without their targets, as algos see them.
        on_step: Told of each image build and container that begins.
    """

    def __init__(self, detargeted: Path, on_step: OnStep) -> None:
        self.detargeted = detargeted
        self.on_step = on_step
        #: By job, step and path in the container.
        self.left: dict[tuple[UUID, StepName, str], Left] = {}
        #: sha256 of each prediction of a test item, by job and name.
        self.digests: dict[tuple[UUID, str], str] = {}
        #: What the engine said when it failed.
        self.engine_error = ""

    def over(self, runtime: ContainerRuntime) -> ContainerRuntime:
        """Return an engine that is watched."""
        return cast("ContainerRuntime", _WatchedRuntime(runtime, self))

    def ended(self, spec: ContainerSpec) -> None:
        """Note what a container has left."""
        for bind in spec.binds:
            if bind.writable:
                self.left[spec.owner.job_id, spec.step, bind.target] = look_into(bind.source)
                if spec.step is StepName.DETARGET:
                    self._keep_detargeted(bind.source)
                elif bind.target == TEST_PRED:
                    self._note_digests(spec.owner.job_id, bind.source)

    def _keep_detargeted(self, folder: Path) -> None:
        self.detargeted.mkdir(exist_ok=True)
        names = {path.name for path in folder.iterdir()}
        try:
            harvest_files(folder, self.detargeted, names=names, max_bytes=_MOST_BYTES)
        except BadOutput:
            return  # the job ends with the same complaint

    def _note_digests(self, job_id: UUID, folder: Path) -> None:
        for name in [path.name for path in folder.iterdir()]:
            with contextlib.suppress(BadOutput):
                if content := read_file(folder, name, max_bytes=_MOST_HASHED):
                    self.digests[job_id, name] = hashlib.sha256(content).hexdigest()


class _WatchedRuntime:
    """A `ContainerRuntime`: all but two methods are those of the one that is watched."""

    def __init__(self, runtime: ContainerRuntime, watch: Watch) -> None:
        self._runtime = runtime
        self._watch = watch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runtime, name)

    def build(
        self, context: BinaryIO, spec: BuildSpec, *, interrupt: Interrupt, log: BoundedLog | None = None
    ) -> BuildResult:
        self._watch.on_step(StepName.BUILD_ALGO if "-algo" in spec.tag else StepName.BUILD_PROBLEM)
        with self._noting_errors():
            return self._runtime.build(context, spec, interrupt=interrupt, log=log)

    def run(self, spec: ContainerSpec, *, interrupt: Interrupt, log: BoundedLog | None = None) -> StepResult:
        self._watch.on_step(spec.step)
        with self._noting_errors():
            result = self._runtime.run(spec, interrupt=interrupt, log=log)
        self._watch.ended(spec)
        return result

    @contextlib.contextmanager
    def _noting_errors(self) -> Iterator[None]:
        # The person of a trial is the engine's operator too, and may know what its words mean.
        try:
            yield
        except RuntimeUnavailable as exc:
            self._watch.engine_error = str(getattr(exc.__cause__, "explanation", None) or exc.__cause__ or "")
            raise


def look_into(folder: Path) -> Left:
    """Return what lies in a folder that a container wrote to; no link is followed."""
    files: dict[str, int] = {}
    others: list[str] = []
    pending = [folder]
    while pending and len(files) + len(others) < _MOST_NAMES:
        inner = pending.pop()
        try:
            entries = sorted(os.scandir(inner), key=lambda entry: entry.name)
        except OSError:  # the container took it away from its owner
            others.append(inner.relative_to(folder).as_posix())
            continue
        for entry in entries:
            status = entry.stat(follow_symlinks=False)
            name = Path(entry.path).relative_to(folder).as_posix()
            if stat.S_ISDIR(status.st_mode):
                pending.append(Path(entry.path))
            elif stat.S_ISREG(status.st_mode):
                files[name] = status.st_size
            else:
                others.append(name)
    return Left(files=files, others=tuple(others))
