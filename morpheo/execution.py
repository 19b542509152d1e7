"""
One attempt at a job, from its inputs to its outputs.

An `Execution` fetches, builds, runs and harvests, and returns a `Result`: scores and the artifacts whose blobs are
already stored. It decides nothing about the job's row; `morpheo.runner` writes rows and result in one transaction.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import UUID

from morpheo.artifacts import ArtifactService, Upload
from morpheo.disk import Disk, Need
from morpheo.errors import (
    BadOutput,
    CorruptBlob,
    DiskFull,
    EngineFull,
    NotFound,
)
from morpheo.failpoints import failpoint
from morpheo.failures import check_result, failed
from morpheo.harvest import bad_output, harvest_model, harvest_predictions
from morpheo.images import ImageShelf, disk_filled
from morpheo.inputs import Inputs
from morpheo.models import (
    Artifact,
    ArtifactKind,
    Blame,
    Cause,
    Job,
    JobFailed,
    LearnSpec,
    PredictSpec,
    Scores,
    StepName,
)
from morpheo.performance import FILE_NAME, MAX_BYTES, parse_performance
from morpheo.queues import GPU_TAG
from morpheo.results import Result, store_result
from morpheo.runtime.archive import ArchiveLimits, pack
from morpheo.runtime.cache import NodeCache, detarget_key
from morpheo.runtime.contract import ContainerSpec, Engines, Folder, Image, Interrupt, Owner, Profile, Step, StepResult
from morpheo.runtime.outputs import OutputLimits, harvest_files, read_file
from morpheo.runtime.quota import Quota, used_bytes
from morpheo.runtime.workspace import Workspace
from morpheo.sanitizer import PROGRAM, check_sanitized, find_suspects, no_sanitizer, replace_suspects
from morpheo.steps import StepLog
from morpheo.workflow import learn_steps, predict_step, sanitize_step

#: The name that algos of 2017 expect when a model is a single file.
MODEL_FILE = "model_trained.json"
#: How much larger than its archive a build context or a model is taken to be, before it is unpacked.
UNPACKED = 4
#: Files that an algo may write beside each prediction, and beside its model, until it has ended.
_SPARE_FILES = 4
_BLAME = {Image.PROBLEM: Blame.PROBLEM, Image.ALGO: Blame.SUBMITTER, Image.PLATFORM: Blame.SUBMITTER}


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a job may take and leave."""

    profile: Profile
    learn_timeout_s: float
    predict_timeout_s: float
    archive: ArchiveLimits
    model: OutputLimits
    prediction_bytes: int
    #: What all output folders together may hold while containers run, besides copies of the test data.
    output_bytes: int


@dataclass(frozen=True, kw_only=True)
class Tools:
    """What every execution on this node uses."""

    artifacts: ArtifactService
    images: ImageShelf
    engines: Engines
    cache: NodeCache
    disk: Disk
    limits: Limits
    #: Whether output folders get a file system of their own.
    has_volumes: Callable[[], bool]
    #: Name of the image that rewrites predictions.
    sanitizer: str


class Execution:
    """
    Runs one attempt.

    Args:
        job: The job, claimed.
        tools: What this node has.
        workspace: The attempt's folder.
        steps: Records what happens.
        interrupt: Stops it from outside.
    """

    def __init__(self, job: Job, tools: Tools, *, workspace: Workspace, steps: StepLog, interrupt: Interrupt) -> None:
        self._job = job
        self._tools = tools
        self._limits = tools.limits
        self._workspace = workspace
        self._steps = steps
        self._interrupt = interrupt
        self._inputs = Inputs(tools.artifacts, tools.cache, workspace=workspace, interrupt=interrupt)
        self._owner = Owner(job_id=job.id, attempt=job.attempt, worker=job.worker or "")
        #: Bytes of outputs that have room on the disk.
        self._promised = 0
        #: What all output folders together may hold.
        self._outputs = Quota(max_bytes=tools.limits.output_bytes, max_files=0)
        #: What is counted while containers run; None if a file system of its own limits it.
        self._quota: Quota | None = None

    def run(self) -> Result:
        """
        Do the job.

        Raises:
            JobFailed: it cannot be done; trying again would not help.
            Unavailable: infrastructure failed.
            Interrupted: the interrupt was set.
        """
        spec = self._job.spec
        with self._tools.disk.watched():
            self._tools.disk.reserve(self._need(), self._workspace, self._interrupt)
            return self._learn(spec) if isinstance(spec, LearnSpec) else self._predict(spec)

    def _need(self) -> Need:
        """Return what may be written: inputs that this machine does not have, contexts, images, outputs."""
        inputs = [self._inputs.find(kind, item) for kind, ids in self._job.spec.needs().values() for item in ids]
        algos = {item.algo for item in inputs if item.kind is ArtifactKind.MODEL and item.algo is not None}
        if not isinstance(self._job.spec, LearnSpec):
            inputs += [self._inputs.find(ArtifactKind.ALGO, algo) for algo in algos]
        unpacked = 0
        images = 0
        for item in inputs:
            grown = min(item.size_bytes * UNPACKED, self._limits.archive.max_bytes)
            if item.kind is ArtifactKind.MODEL:
                unpacked += grown
            elif item.kind is not ArtifactKind.DATA and not self._tools.images.has(item):
                unpacked += grown
                images += grown
        fetched = sum(item.size_bytes for item in inputs if not self._tools.cache.has(item))
        # A model is there as its folder, its copy and its archive, which with the prediction are at their limits. What
        # detarget writes is about as large as what it reads, and is copied.
        test_bytes = 0
        outputs = self._limits.prediction_bytes
        if isinstance(self._job.spec, LearnSpec):
            test_data = set(self._job.spec.test_data)
            test_bytes = sum(item.size_bytes for item in inputs if item.id in test_data)
            outputs += 2 * (self._limits.model.max_bytes + test_bytes)
        self._promised = self._limits.model.max_bytes + self._limits.prediction_bytes + 2 * test_bytes
        self._outputs = Quota(
            max_bytes=self._limits.output_bytes + 2 * test_bytes,
            max_files=_SPARE_FILES * (self._limits.model.max_files + len(inputs)),
        )
        files = len(inputs) + self._limits.model.max_files
        return Need(data=fetched + unpacked + outputs, images=images, files=files)

    def _learn(self, spec: LearnSpec) -> Result:
        problem = self._inputs.find(ArtifactKind.PROBLEM, spec.workflow)
        algo = self._inputs.find(ArtifactKind.ALGO, spec.algo)
        test_data = [self._inputs.find(ArtifactKind.DATA, data_id) for data_id in spec.test_data]
        images = {Image.PROBLEM: self._image(problem), Image.ALGO: self._image(algo)}
        self._bound([folder for folder in Folder if folder.is_output])
        self._inputs.link(test_data, Folder.TEST)
        self._inputs.link([self._inputs.find(ArtifactKind.DATA, data_id) for data_id in spec.train_data], Folder.TRAIN)
        if spec.rank > 0 and spec.model_start is not None:
            self._inputs.unpack_model(self._inputs.find(ArtifactKind.MODEL, spec.model_start), self._limits.archive)
            self._workspace.give(Folder.MODEL)

        hidden = f"hidden-{secrets.token_hex(16)}"
        detarget, train, perf = learn_steps(hidden)
        self._hide_targets(detarget, images, problem, test_data)
        self._container(train, images)
        self._harvest_predictions(Folder.TRAIN_PRED, spec.train_data, StepName.TRAIN)
        self._harvest_predictions(Folder.TEST_PRED, spec.test_data, StepName.TRAIN)
        names = harvest_model(self._workspace, self._limits.model)
        failpoint("after_harvest")
        self._sanitize()
        self._container(perf, images)
        scores = self._read_scores(spec)  # before the model is stored: bad scores leave nothing behind
        return Result(artifacts=(self._store_model(spec, names),), scores=scores)

    def _predict(self, spec: PredictSpec) -> Result:
        model = self._inputs.find(ArtifactKind.MODEL, spec.model)
        if model.algo is None:
            raise failed(Cause.ARTIFACT_NOT_FOUND, Blame.CUSTODIAN, f"model {model.id} names no algo")
        images = {Image.ALGO: self._image(self._inputs.find(ArtifactKind.ALGO, model.algo))}
        self._bound([Folder.TEST_PRED])
        self._inputs.link([self._inputs.find(ArtifactKind.DATA, spec.data)], Folder.TEST)
        names = self._inputs.unpack_model(model, self._limits.archive)
        expected = self._workspace[Folder.MODEL] / MODEL_FILE
        if len(names) == 1 and not expected.exists():  # which may be a folder, with that one file in it
            expected.hardlink_to(self._workspace[Folder.MODEL] / names[0])
        self._container(predict_step(), images)
        self._harvest_predictions(Folder.TEST_PRED, [spec.data], StepName.PREDICT)
        failpoint("after_harvest")
        upload = Upload(kind=ArtifactKind.PREDICTION, id=spec.prediction)
        path = self._workspace.harvest(Folder.TEST_PRED) / str(spec.data)
        return Result(artifacts=(self._store(upload, path),))

    def _bound(self, folders: Iterable[Folder]) -> None:
        if self._tools.has_volumes():
            self._workspace.bound(folders, self._outputs)
        else:
            self._quota = self._outputs

    def _image(self, archive: Artifact) -> str:
        try:
            return self._tools.images.image_id(
                archive, owner=self._owner, workspace=self._workspace, steps=self._steps, interrupt=self._interrupt
            )
        except (NotFound, CorruptBlob) as exc:
            raise self._inputs.damaged(archive, exc) from exc
        except EngineFull as exc:
            has_room = self._tools.disk.has_engine_room()
            if has_room:  # what it wrote has gone with it: it was the build that filled the disk, also the second time
                raise disk_filled(archive.kind) from exc
            if has_room is None:
                raise
            raise DiskFull(str(exc)) from exc
        except JobFailed as exc:
            build_failed = exc.failure.cause is Cause.BUILD_FAILED
            if build_failed and self._tools.disk.stopped(exc.failure.message.encode()):
                # What it wrote itself has gone with its container: the room is taken by others.
                raise DiskFull("a build found the disk of the container engine full; make room there") from exc
            raise

    def _hide_targets(self, step: Step, images: dict[Image, str], problem: Artifact, test_data: list[Artifact]) -> None:
        visible = self._workspace[Folder.VISIBLE]
        key = detarget_key(problem, test_data)
        with self._tools.cache.lock(f"detarget-{key}", self._interrupt):
            names = {str(item.id) for item in test_data}
            if not self._tools.cache.link_detargeted(key, visible, names):
                self._detarget(step, images, test_data)
                self._tools.cache.keep_detargeted(key, visible)

    def _detarget(self, step: Step, images: dict[Image, str], test_data: list[Artifact]) -> None:
        self._container(step, images)
        expected = {str(item.id) for item in test_data}
        try:
            found = harvest_files(
                self._workspace[Folder.DETARGETED],
                self._workspace[Folder.VISIBLE],
                names=expected,
                max_bytes=self._limits.profile.file_bytes,
            )
        except BadOutput as exc:
            raise bad_output(exc, Blame.PROBLEM, step.name) from exc
        if missing := sorted(expected - found):
            message = f"detarget wrote no file for {', '.join(missing[:5])}; write one for each file of the test folder"
            raise failed(Cause.MISSING_OUTPUT, Blame.PROBLEM, message, step.name)

    def _sanitize(self) -> None:
        """Let HDF5 predictions be written anew, if there are any, before they are opened beside the hidden data."""
        suspects = find_suspects(self._workspace)
        if not suspects:
            return
        image = self._tools.sanitizer
        image_id = self._tools.engines[Image.PLATFORM].find_image(image)
        if image_id is None:
            raise no_sanitizer(image)
        step = sanitize_step(PROGRAM, self._limits.prediction_bytes)
        check_sanitized(self._run(step, {Image.PLATFORM: image_id}), image)
        replace_suspects(self._workspace, suspects, max_bytes=self._limits.prediction_bytes)

    def _container(self, step: Step, images: dict[Image, str]) -> None:
        result = self._run(step, images)
        memory_bytes = self._limits.profile.memory_bytes
        check_result(result, step.name, _BLAME[step.image], timeout_s=self._time_limit_s(), memory_bytes=memory_bytes)

    def _run(self, step: Step, images: dict[Image, str]) -> StepResult:
        spec = ContainerSpec(
            owner=self._owner,
            step=step.name,
            image_id=images[step.image],
            args=step.args,
            binds=self._workspace.binds(step),
            timeout_s=self._time_limit_s(),
            entrypoint=step.entrypoint,
            quota=self._quota,
            gpu=step.image is Image.ALGO and GPU_TAG in self._job.spec.tags,
        )
        with self._steps.recording(step.name) as record, self._workspace.watched() as check_written:
            result = record.result = self._tools.engines[step.image].run(
                spec, interrupt=self._interrupt, log=record.log
            )
            if not result.exit_code:
                check_written()
                return result
        if self._tools.disk.stopped(result.log):
            self._blame_for_full_disk(step)
        return replace(result, over_quota=result.over_quota or self._workspace.is_full)

    def _time_limit_s(self) -> float:
        spec = self._job.spec
        allowed = self._limits.learn_timeout_s if isinstance(spec, LearnSpec) else self._limits.predict_timeout_s
        return allowed if spec.time_limit_s is None else min(allowed, spec.time_limit_s)

    def _blame_for_full_disk(self, step: Step) -> None:
        # A program may have filled the disk by itself, with more than it was promised room for.
        written = [self._workspace[mount.folder] for mount in step.mounts if mount.writable]
        limit = self._promised
        if used_bytes(written) > limit:
            message = f"{step.name} wrote more than {limit} bytes, and filled the worker's disk; write less"
            raise failed(Cause.OUTPUT_LIMIT, _BLAME[step.image], message, step.name)
        raise DiskFull(f"{step.name} found this worker's disk full; make room there")

    def _harvest_predictions(self, folder: Folder, data: Iterable[UUID], step: StepName) -> None:
        harvest_predictions(self._workspace, folder, data, step, max_bytes=self._limits.prediction_bytes)

    def _read_scores(self, spec: LearnSpec) -> Scores:
        try:
            content = read_file(self._workspace[Folder.PERF], FILE_NAME, max_bytes=MAX_BYTES)
            if content is None:
                raise BadOutput(f"perf wrote no {FILE_NAME}; write it to the perf folder beside the hidden test folder")
            return parse_performance(content, train_data=spec.train_data, test_data=spec.test_data)
        except BadOutput as exc:
            raise failed(Cause.BAD_PERFORMANCE, Blame.PROBLEM, str(exc), StepName.PERF) from exc

    def _store_model(self, spec: LearnSpec, names: list[str]) -> Artifact:
        packed = self._workspace.temporary("model.tar.gz")
        with packed.open("wb") as target:
            pack(self._workspace.harvest(Folder.MODEL), names, target)
        return self._store(Upload(kind=ArtifactKind.MODEL, id=spec.model_end, algo=spec.algo), packed)

    def _store(self, upload: Upload, path: Path) -> Artifact:
        artifacts, attempt = self._tools.artifacts, self._job.attempt
        return store_result(artifacts, upload, path, attempt=attempt, interrupt=self._interrupt)
