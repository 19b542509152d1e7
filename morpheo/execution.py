"""
One attempt at a job, from its inputs to its outputs.

An `Execution` fetches, builds, runs and harvests, and returns a `Result`: scores and the artifacts whose blobs are
already stored. It decides nothing about the job's row; `morpheo.runner` writes rows and result in one transaction.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from morpheo.artifacts import ArtifactService, Upload
from morpheo.errors import BadArchive, BadOutput, CorruptBlob, NotFound
from morpheo.failures import check_result, failed
from morpheo.images import ImageShelf
from morpheo.models import Artifact, ArtifactKind, Blame, Cause, Job, LearnSpec, PredictSpec, Scores, StepName
from morpheo.performance import FILE_NAME, MAX_BYTES, parse_performance
from morpheo.queues import GPU_TAG
from morpheo.runtime.archive import ArchiveLimits, pack, unpack
from morpheo.runtime.cache import NodeCache, detarget_key
from morpheo.runtime.contract import ContainerSpec, Engines, Folder, Image, Interrupt, Owner, Profile, Step
from morpheo.runtime.outputs import OutputLimits, TooMuchOutput, harvest_files, harvest_tree, read_file
from morpheo.runtime.workspace import Workspace
from morpheo.steps import StepLog
from morpheo.workflow import learn_steps, predict_step

#: The name that algos of 2017 expect when a model is a single file.
MODEL_FILE = "model_trained.json"
_BLAME = {Image.PROBLEM: Blame.PROBLEM, Image.ALGO: Blame.SUBMITTER}


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a job may take and leave."""

    profile: Profile
    learn_timeout_s: float
    predict_timeout_s: float
    archive: ArchiveLimits
    model: OutputLimits
    prediction_bytes: int


@dataclass(frozen=True, kw_only=True)
class Tools:
    """What every execution on this node uses."""

    artifacts: ArtifactService
    images: ImageShelf
    engines: Engines
    cache: NodeCache
    limits: Limits


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a job made; the blobs of its artifacts are stored, their rows are not."""

    artifacts: tuple[Artifact, ...]
    scores: Scores | None = None


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
        self._owner = Owner(job_id=job.id, attempt=job.attempt, worker=job.worker or "")

    def run(self) -> Result:
        """
        Do the job.

        Raises:
            JobFailed: it cannot be done; trying again would not help.
            Unavailable: infrastructure failed.
            Interrupted: the interrupt was set.
        """
        spec = self._job.spec
        return self._learn(spec) if isinstance(spec, LearnSpec) else self._predict(spec)

    def _learn(self, spec: LearnSpec) -> Result:
        problem = self._find(ArtifactKind.PROBLEM, spec.workflow)
        algo = self._find(ArtifactKind.ALGO, spec.algo)
        test_data = [self._find(ArtifactKind.DATA, data_id) for data_id in spec.test_data]
        images = {Image.PROBLEM: self._image(problem), Image.ALGO: self._image(algo)}
        self._link(test_data, Folder.TEST)
        self._link([self._find(ArtifactKind.DATA, data_id) for data_id in spec.train_data], Folder.TRAIN)
        if spec.rank > 0 and spec.model_start is not None:
            self._unpack_model(self._find(ArtifactKind.MODEL, spec.model_start))
            self._workspace.give(Folder.MODEL)

        hidden = f"hidden-{secrets.token_hex(16)}"
        detarget, train, perf = learn_steps(hidden)
        self._hide_targets(detarget, images, problem, test_data)
        self._container(train, images, self._limits.learn_timeout_s)
        self._harvest_predictions(Folder.TRAIN_PRED, spec.train_data, StepName.TRAIN)
        self._harvest_predictions(Folder.TEST_PRED, spec.test_data, StepName.TRAIN)
        names = self._harvest_model()
        self._container(perf, images, self._limits.learn_timeout_s)
        scores = self._read_scores(spec)  # before the model is stored: bad scores leave nothing behind
        return Result(artifacts=(self._store_model(spec, names),), scores=scores)

    def _predict(self, spec: PredictSpec) -> Result:
        model = self._find(ArtifactKind.MODEL, spec.model)
        if model.algo is None:
            raise failed(Cause.ARTIFACT_NOT_FOUND, Blame.CUSTODIAN, f"model {model.id} names no algo")
        images = {Image.ALGO: self._image(self._find(ArtifactKind.ALGO, model.algo))}
        self._link([self._find(ArtifactKind.DATA, spec.data)], Folder.TEST)
        names = self._unpack_model(model)
        if len(names) == 1 and names[0] != MODEL_FILE:
            (self._workspace[Folder.MODEL] / MODEL_FILE).hardlink_to(self._workspace[Folder.MODEL] / names[0])
        self._container(predict_step(), images, self._limits.predict_timeout_s)
        self._harvest_predictions(Folder.TEST_PRED, [spec.data], StepName.PREDICT)
        upload = Upload(kind=ArtifactKind.PREDICTION, id=spec.prediction)
        path = self._workspace.harvest(Folder.TEST_PRED) / str(spec.data)
        return Result(artifacts=(self._store(upload, path),))

    def _find(self, kind: ArtifactKind, artifact_id: UUID) -> Artifact:
        try:
            return self._tools.artifacts.get(kind, artifact_id)
        except NotFound as exc:
            message = f"{exc}; upload it and order the job again"
            raise failed(Cause.ARTIFACT_NOT_FOUND, Blame.CUSTODIAN, message) from exc

    def _image(self, archive: Artifact) -> str:
        try:
            return self._tools.images.image_id(
                archive, owner=self._owner, workspace=self._workspace, steps=self._steps, interrupt=self._interrupt
            )
        except (NotFound, CorruptBlob) as exc:
            raise _damaged(exc) from exc

    def _link(self, artifacts: Iterable[Artifact], folder: Folder) -> None:
        for artifact in artifacts:
            self._fetch(artifact, self._workspace[folder] / str(artifact.id))

    def _fetch(self, artifact: Artifact, target: Path) -> None:
        try:
            self._tools.cache.link(artifact, target, self._interrupt)
        except (NotFound, CorruptBlob) as exc:
            raise _damaged(exc) from exc

    def _unpack_model(self, model: Artifact) -> list[str]:
        packed = self._workspace.temporary("model_start.tar.gz")
        self._fetch(model, packed)
        try:
            with packed.open("rb") as file:
                names = unpack(file, self._workspace[Folder.MODEL], self._limits.archive)
        except BadArchive as exc:
            message = f"the archive of model {model.id}: {exc}; upload it again"
            raise failed(Cause.BAD_ARCHIVE, Blame.SUBMITTER, message) from exc
        packed.unlink()
        return names

    def _hide_targets(self, step: Step, images: dict[Image, str], problem: Artifact, test_data: list[Artifact]) -> None:
        visible = self._workspace[Folder.VISIBLE]
        key = detarget_key(problem, test_data)
        with self._tools.cache.lock(f"detarget-{key}", self._interrupt):
            if not self._tools.cache.link_detargeted(key, visible):
                self._detarget(step, images, test_data)
                self._tools.cache.keep_detargeted(key, visible)

    def _detarget(self, step: Step, images: dict[Image, str], test_data: list[Artifact]) -> None:
        self._container(step, images, self._limits.learn_timeout_s)
        expected = {str(item.id) for item in test_data}
        try:
            found = harvest_files(
                self._workspace[Folder.DETARGETED],
                self._workspace[Folder.VISIBLE],
                names=expected,
                max_bytes=self._limits.profile.file_bytes,
            )
        except BadOutput as exc:
            raise _bad_output(exc, Blame.PROBLEM, step.name) from exc
        if missing := sorted(expected - found):
            message = f"detarget wrote no file for {', '.join(missing[:5])}; write one for each file of the test folder"
            raise failed(Cause.MISSING_OUTPUT, Blame.PROBLEM, message, step.name)

    def _container(self, step: Step, images: dict[Image, str], timeout_s: float) -> None:
        spec = ContainerSpec(
            owner=self._owner,
            step=step.name,
            image_id=images[step.image],
            args=step.args,
            binds=self._workspace.binds(step),
            timeout_s=timeout_s,
            gpu=step.image is Image.ALGO and GPU_TAG in self._job.spec.tags,
        )
        with self._steps.recording(step.name) as record:
            record.result = self._tools.engines[step.image].run(spec, interrupt=self._interrupt)
        memory_bytes = self._limits.profile.memory_bytes
        check_result(record.result, step.name, _BLAME[step.image], timeout_s=timeout_s, memory_bytes=memory_bytes)

    def _harvest_predictions(self, folder: Folder, data: Iterable[UUID], step: StepName) -> None:
        expected = {str(data_id) for data_id in data}
        target = self._workspace.harvest(folder)
        try:
            found = harvest_files(
                self._workspace[folder], target, names=expected, max_bytes=self._limits.prediction_bytes
            )
        except BadOutput as exc:
            raise _bad_output(exc, Blame.SUBMITTER, step) from exc
        if missing := sorted(expected - found):
            where = "train/pred" if folder is Folder.TRAIN_PRED else "test/pred"
            message = f"{step} wrote no prediction for {', '.join(missing[:5])}; write {where}/<data id> for each file"
            raise failed(Cause.MISSING_OUTPUT, Blame.SUBMITTER, message, step)

    def _harvest_model(self) -> list[str]:
        try:
            names = harvest_tree(
                self._workspace[Folder.MODEL], self._workspace.harvest(Folder.MODEL), self._limits.model
            )
        except BadOutput as exc:
            raise _bad_output(exc, Blame.SUBMITTER, StepName.TRAIN) from exc
        if not names:
            message = "train left no model; write at least one file to /data/model"
            raise failed(Cause.MISSING_OUTPUT, Blame.SUBMITTER, message, StepName.TRAIN)
        return names

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
        # The token is new each time: a zombie of this attempt can overwrite nothing.
        token = f"{self._job.attempt}-{secrets.token_hex(8)}"
        with path.open("rb") as file:
            return self._tools.artifacts.put_blob(upload, file, length=path.stat().st_size, token=token)


def _damaged(error: NotFound | CorruptBlob) -> Exception:
    return failed(Cause.CORRUPT_ARTIFACT, Blame.INFRASTRUCTURE, f"{error}; upload the artifact again")


def _bad_output(error: BadOutput, blame: Blame, step: StepName) -> Exception:
    cause = Cause.OUTPUT_LIMIT if isinstance(error, TooMuchOutput) else Cause.BAD_OUTPUT
    return failed(cause, blame, f"the output of {step}: {error}", step)
