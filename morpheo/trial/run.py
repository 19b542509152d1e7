"""Runs the jobs of a trial."""

from __future__ import annotations

import contextlib
import functools
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from pydantic import SecretStr

from morpheo.artifacts import Upload
from morpheo.config import Settings
from morpheo.errors import BadArchive, Interrupted, InvalidInput, RuntimeUnavailable
from morpheo.models import Artifact, ArtifactKind, Blame, Job, JobSpec, JobState, LearnSpec, PredictSpec, StepName
from morpheo.packing import context_limits, pack_folder
from morpheo.resources import Resources
from morpheo.runtime.archive import repack_context
from morpheo.runtime.contract import ContainerRuntime, Engines
from morpheo.runtime.dockerfile import base_images, check_dockerfile
from morpheo.storage import migrate
from morpheo.trial.findings import Report, Trial
from morpheo.trial.home import Home, owner_name
from morpheo.trial.report import make_report
from morpheo.trial.sample import Item, Sample, store_sample
from morpheo.trial.watch import Watch

#: How soon a job is stopped when the person wants that, in seconds.
_HEARTBEAT_S = 0.2
_DOING = {
    StepName.BUILD_PROBLEM: "building the problem's image",
    StepName.BUILD_ALGO: "building the algo's image",
    StepName.DETARGET: "hiding the targets of the test items",
    StepName.TRAIN: "training",
    StepName.PERF: "scoring",
    StepName.PREDICT: "predicting",
}

#: Told what the trial does now.
OnStep = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What is tried, on what. A folder is packed, a file taken as it is."""

    algo: Path
    problem: Path
    #: Items in place of those that the problem ships.
    train: Sequence[Path] = ()
    test: Sequence[Path] = ()


def run_trial(
    inputs: Inputs,
    settings: Settings,
    *,
    home: Home,
    on_step: OnStep,
    keep_algo: bool = False,
    engine: ContainerRuntime | None = None,
) -> Report:
    """
    Try an algo on a problem's sample; nothing is left of it but the images that `home` keeps.

    Three jobs, as a worker runs them: train from nothing, train again from the model of the first, and predict.

    Args:
        inputs: What is tried.
        settings: The limits, and where the engine is. Nothing else in them is used.
        home: Where it is done.
        on_step: Told of each step.
        keep_algo: Leave the algo's image too, until the next trial.
        engine: In place of that of the settings.

    Raises:
        InvalidInput: the algo, the problem or its sample cannot be used.
        RuntimeUnavailable: the engine does not answer, or lacks a base image.
    """
    began = time.monotonic()
    with home.held(lambda: on_step("waiting for another trial to end")), home.data() as data_dir:
        bench = _Bench(_isolated(settings, data_dir), home, on_step, engine)
        with bench.cleared(keep_algo=keep_algo), ThreadPoolExecutor(1) as pool:
            ended = pool.submit(bench.run, inputs)
            try:
                while not ended.done():  # a signal that another thread was given does not wake a wait without end
                    wait([ended], timeout=_HEARTBEAT_S)
                trial = ended.result()
            except BaseException:  # Ctrl-C: the job is told to stop, as a worker's is, and removes its container
                bench.stop()
                raise
    return make_report(trial, seconds=time.monotonic() - began)


def _isolated(settings: Settings, data_dir: Path) -> Settings:
    """Return settings with the same limits, that name no service but the engine."""
    return settings.model_copy(
        update={
            "data_dir": data_dir,
            "database_url": SecretStr(""),
            "s3_endpoint": "",
            "orchestrator_url": "",
            "algo_docker_host": "",
            "heartbeat_s": _HEARTBEAT_S,
            "max_attempts": 1,
            "outage_s": 0.0,
        }
    )


class _NoBroker:
    """A `morpheo.jobs.Publisher` that tells nobody: a trial runs its jobs itself."""

    def publish(self, spec: JobSpec) -> None:
        """Do nothing."""

    def backlog(self, queue: str) -> int:
        """Return that nothing waits."""
        del queue
        return 0


class _Watched(Resources):
    """What a worker works with, on an engine that is watched."""

    def __init__(self, settings: Settings, watch: Watch, engine: ContainerRuntime | None) -> None:
        super().__init__(settings, _NoBroker(), image_repository=owner_name())
        self._watch = watch
        self._given = engine

    @functools.cached_property
    def engine(self) -> ContainerRuntime:
        """The engine itself."""
        return self._given or self._engine(self.settings.engine_url)

    @functools.cached_property
    def engines(self) -> Engines:
        """The engine, watched."""
        watched = self._watch.over(self.engine)
        return Engines(problem=watched, algo=watched)


class _Bench:
    """A worker without services, for one trial."""

    def __init__(self, settings: Settings, home: Home, on_step: OnStep, engine: ContainerRuntime | None) -> None:
        self._settings = settings
        self._home = home
        self._watch = Watch(settings.data_dir / "detargeted", lambda step: on_step(_DOING[step]))
        self._resources = _Watched(settings, self._watch, engine)
        self._lock = threading.Lock()
        self._running: UUID | None = None
        self._stopped = False

    @contextlib.contextmanager
    def cleared(self, *, keep_algo: bool) -> Iterator[None]:
        """Remove what trials left on the engine, before and after the block."""
        engine = self._resources.engine
        self._home.clear(engine, keep_algo=True)
        try:
            yield
        finally:
            self._resources.database.close()
            self._home.clear(engine, keep_algo=keep_algo)

    def stop(self) -> None:
        """End the job that runs, and start no other."""
        with self._lock:
            self._stopped = True
            if self._running is not None:
                self._resources.jobs.cancel(self._running)

    def run(self, inputs: Inputs) -> Trial:
        """Store what is needed, and run the jobs."""
        migrate.upgrade(self._resources.database)
        archives = {
            kind: self._archive(kind, path)
            for kind, path in ((ArtifactKind.PROBLEM, inputs.problem), (ArtifactKind.ALGO, inputs.algo))
        }
        sample = store_sample(
            archives[ArtifactKind.PROBLEM],
            self._resources.artifacts,
            context_limits(self._settings),
            train=inputs.train,
            test=inputs.test,
        )
        stored = {kind: self._store(kind, archive) for kind, archive in archives.items()}
        return self._try(stored[ArtifactKind.PROBLEM].id, stored[ArtifactKind.ALGO].id, sample)

    def _archive(self, kind: ArtifactKind, path: Path) -> Path:
        if path.is_dir():
            packed = self._settings.data_dir / f"{kind}.tar.gz"
            with packed.open("wb") as target:
                pack_folder(path, target, limits=context_limits(self._settings))
            return packed
        if not path.is_file():
            raise InvalidInput(f"{path} is neither a folder nor a .tar.gz; name the folder that has the Dockerfile")
        return path

    def _store(self, kind: ArtifactKind, archive: Path) -> Artifact:
        self._check_base(archive)
        with archive.open("rb") as file:
            artifact = self._resources.artifacts.upload(
                Upload(kind=kind, id=uuid.uuid4(), name=kind, description=kind), file, length=archive.stat().st_size
            )
        self._home.made(self._resources.images.tag(artifact))
        return artifact

    def _check_base(self, archive: Path) -> None:
        try:
            with archive.open("rb") as source, open(os.devnull, "wb") as nowhere:
                dockerfile = repack_context(source, nowhere, context_limits(self._settings))
            check_dockerfile(dockerfile, base_images=self._settings.base_images)
        except BadArchive:
            return  # the job says so
        for name in base_images(dockerfile):
            if self._resources.engine.find_image(name) is None:
                raise RuntimeUnavailable(
                    f"the engine has no image {name}, which the Dockerfile starts from; make morpheo/base:1 with "
                    "scripts/base-image, or get another with `docker pull` or `docker load`; `morpheo doctor engine` "
                    "looks for one"
                )

    def _try(self, problem: UUID, algo: UUID, sample: Sample) -> Trial:
        learn = functools.partial(
            LearnSpec,
            problem=problem,
            workflow=problem,
            algo=algo,
            train_data=tuple(item.id for item in sample.train),
            test_data=tuple(item.id for item in sample.test),
        )
        first = learn(id=uuid.uuid4(), model_start=None, model_end=uuid.uuid4())
        trained = self._job(first)
        again = predicted = item = None
        if trained.state is JobState.SUCCEEDED:
            again = self._job(learn(id=uuid.uuid4(), model_start=first.model_end, model_end=uuid.uuid4(), rank=1))
            item = self._unseen(sample)
            spec = PredictSpec(id=uuid.uuid4(), problem=problem, workflow=problem, model=first.model_end, data=item.id)
            predicted = self._job(spec)
        digests = self._watch.digests
        return Trial(
            sample=sample,
            train=trained,
            again=again,
            predict=predicted,
            predicted=item,
            left=self._watch.left,
            logs={job.id: self._logs(job) for job in (trained, again, predicted) if job is not None},
            settings=self._settings,
            same_prediction=None
            if predicted is None or item is None
            else digests.get((trained.id, str(sample.test[0].id))) == digests.get((predicted.id, str(item.id))),
        )

    def _unseen(self, sample: Sample) -> Item:
        """Store the first test item as predict jobs get theirs: without its target."""
        path = self._watch.detargeted / str(sample.test[0].id)
        item = Item(id=uuid.uuid4(), name=sample.test[0].name)
        with path.open("rb") as file:
            upload = Upload(kind=ArtifactKind.DATA, id=item.id)
            self._resources.artifacts.upload(upload, file, length=path.stat().st_size)
        return item

    def _job(self, spec: JobSpec) -> Job:
        with self._lock:
            if self._stopped:
                raise Interrupted
            self._running = self._resources.jobs.submit(spec).id
        job = self._resources.runner.run(spec.id)
        if job is None or job.state is JobState.CANCELLED:
            raise Interrupted
        if job.failure is not None and job.failure.blame is Blame.INFRASTRUCTURE:
            said = f": {self._watch.engine_error}" if self._watch.engine_error else ""
            raise RuntimeUnavailable(f"{job.failure.message}{said}; `morpheo doctor` looks for the cause")
        return job

    def _logs(self, job: Job) -> dict[StepName, str]:
        return {step: log.decode("utf-8", "replace") for step, log in self._resources.jobs.logs(job.id)}
