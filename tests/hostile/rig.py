"""
A stack on an engine of its own, on which hostile submissions run, and what must hold after each of them.

===  =================================================================================================================
P1   one terminal transition in the history, with the cause named
P2   nothing is left on the node and its engine: containers, volumes, images, networks, workspaces, mounts, loop
     devices, cgroups
P3   a benign job that runs next is done, with the score that it had before
P4   no canary is in a blob, a row, an answer of an API or a log, neither as it is nor in hex, base64 or reversed
P5   the worker's processes are the same, and have not grown by more than 50 MB
P6   nothing has reached the sink
===  =================================================================================================================
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import json
import secrets
import sqlite3
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psutil

from morpheo.audit import Action
from morpheo.cli.demo import throwaway_stack
from morpheo.client import ComputeClient, StorageClient
from morpheo.models import ArtifactKind, Blame, Cause, Job, JobSpec, JobState, LearnSpec, PredictSpec
from morpheo.storage.database import Database
from tests.conftest import BASE_IMAGE
from tests.hostile import payload
from tests.hostile.sink import Sink
from tests.support.engine import Engine
from tests.support.services import wait_until
from tests.support.trail import trail

#: What a job takes at most, in seconds, on a slow machine; its own limit is `LIMIT_S`.
PATIENCE_S = 90
LIMIT_S = 12
MIB = 1 << 20
#: What containers get.
MEMORY_BYTES, TMP_BYTES, MODEL_BYTES, PREDICTION_BYTES, OUTPUT_BYTES = 128 * MIB, 8 * MIB, 4 * MIB, MIB, 16 * MIB
PIDS, MODEL_FILES, LOG_BYTES = 64, 50, 64 << 10
#: How much a worker may grow in one case, in bytes (P5).
GROWTH_BYTES = 50 * MIB

_ENDS = {Action.JOB_SUCCEEDED, Action.JOB_FAILED, Action.JOB_CANCELLED}


@dataclass(frozen=True)
class Canaries:
    """Words that nobody else knows, in what must not be read."""

    #: In every hidden file.
    hidden: str = field(default_factory=lambda: secrets.token_hex(16))
    #: In every train file.
    train: str = field(default_factory=lambda: secrets.token_hex(16))
    #: In the worker's environment and data folder.
    node: str = field(default_factory=lambda: secrets.token_hex(16))


def disguises(word: str) -> set[bytes]:
    """Return the ways in which a word may be written: as it is, reversed, in hex, in base64 at each offset."""
    plain = word.encode()
    forms = {plain, plain[::-1], plain.hex().encode(), bytes.fromhex(word)}
    for offset in range(3):
        # The characters that depend on the neighbours are cut off.
        forms.add(base64.b64encode(b"\0" * offset + plain)[4 if offset else 0 : -4])
    return forms


def find_canaries(content: bytes, words: Iterable[str]) -> set[str]:
    """Return which words are in some bytes, in any disguise."""
    return {word for word in words if any(form in content for form in disguises(word))}


@dataclass(frozen=True)
class Snapshot:
    """What is on a node and its engine."""

    containers: frozenset[str]
    volumes: frozenset[str]
    networks: frozenset[str]
    untagged: frozenset[str]
    images: frozenset[str]
    workspaces: frozenset[str]
    mounts: frozenset[str]
    loops: frozenset[str]
    cgroups: frozenset[str]

    def more_than(self, before: Snapshot) -> list[str]:
        """Return what is here and was not there before."""
        names = self.__dataclass_fields__
        return [f"{name}: {item}" for name in names for item in sorted(getattr(self, name) - getattr(before, name))]


class HostileEngine(Engine):
    """An engine of the rig's own, whose containers have a cgroup of their own."""

    def __init__(self, folder: Path, settings: Mapping[str, Any] | None = None) -> None:
        super().__init__(folder)
        #: What the cgroups of its containers are in; two rigs may run on one machine.
        self.cgroup = f"morpheo-{folder.parent.name}"
        path = folder / "daemon.json"
        known = json.loads(path.read_text())
        path.write_text(json.dumps({**known, "cgroup-parent": f"/{self.cgroup}", **(settings or {})}))

    def load_all(self, source_url: str, tags: Iterable[str]) -> None:
        """Copy images from another engine, their common layers once."""
        save = subprocess.Popen(["docker", "--host", source_url, "save", *tags], stdout=subprocess.PIPE)
        subprocess.run(
            ["docker", "--host", self.url, "load", "--quiet"], stdin=save.stdout, check=True, capture_output=True
        )
        assert save.stdout is not None
        save.stdout.close()
        assert save.wait() == 0

    def remove(self) -> None:
        """End it for good, and with it the cgroups of its containers."""
        super().remove()
        for path in sorted(Path("/sys/fs/cgroup").glob(f"*/{self.cgroup}"), reverse=True):
            for inner in [*sorted(path.glob("**/"), reverse=True)]:
                with contextlib.suppress(OSError):
                    inner.rmdir()


class HostileRig:
    """
    The stack.

    Args:
        folder: An empty folder with a short path.
        source_url: An engine that has the base images; the rig's own copies them from there.
        engine: Settings of the rig's engine, as in ``daemon.json``.
        settings: Settings of the stack.
    """

    def __init__(
        self,
        folder: Path,
        source_url: str,
        *,
        engine: Mapping[str, Any] | None = None,
        settings: Mapping[str, object] | None = None,
    ) -> None:
        self.folder = folder
        self.canaries = Canaries()
        self._source_url = source_url
        self._engine_settings = engine
        self._settings = settings or {}
        self._stack = contextlib.ExitStack()
        self._uploads: set[UUID] = set()
        self._algos: dict[tuple[str, ...], UUID] = {}
        self.baseline = -1.0

    # ---- start and end

    def start(self) -> None:
        """Start everything, and find out how a benign job scores."""
        self.dockerd = HostileEngine(self.folder / "engine", self._engine_settings)
        self._stack.callback(self.dockerd.remove)
        self._stack.callback(self.dockerd.kill)
        self.dockerd.start()
        self.engine = self._stack.enter_context(contextlib.closing(self.dockerd.client()))
        self.dockerd.load_all(self._source_url, [BASE_IMAGE, payload.BASE])
        self.sink = self._stack.enter_context(Sink())
        urls = self._stack.enter_context(throwaway_stack(self.folder, self._environment()))
        self.data_dir = self.folder / "data"
        self.urls = urls
        (self.data_dir / "canary").write_text(self.canaries.node)
        self.storage = StorageClient(urls["storage"], user="u", password="p")
        self.compute = ComputeClient(urls["compute"], user="u", password="p")
        self.database = Database(f"sqlite:///{self.data_dir / 'morpheo.db'}")
        self._stack.callback(self.database.close)
        self.problem = self.upload(ArtifactKind.PROBLEM, payload.problem_archive(), name="p", description="d")
        self.algo = self.algo_of()
        self.test_data = (self.data("a", "1", hidden=True), self.data("c", "3", hidden=True))
        self.train_data = (self.data("a", "1"), self.data("b", "2"))
        self.baseline = self.run_benign()

    def _environment(self) -> dict[str, str]:
        values: dict[str, object] = {
            "DOCKER_HOST": self.dockerd.url,
            "LEARN_PARALLELISM": 2,
            "LEARN_TIMEOUT_S": LIMIT_S,
            "PREDICT_TIMEOUT_S": LIMIT_S,
            "MEMORY_BYTES": MEMORY_BYTES,
            "TMP_BYTES": TMP_BYTES,
            "MODEL_BYTES": MODEL_BYTES,
            "MODEL_FILES": MODEL_FILES,
            "PREDICTION_BYTES": PREDICTION_BYTES,
            "OUTPUT_BYTES": OUTPUT_BYTES,
            "PIDS": PIDS,
            "LOG_BYTES": LOG_BYTES,
            "SWEEP_S": 0.5,
            "LEASE_S": 6,
            "HEARTBEAT_S": 1,
            "RETRY_DELAY_S": 0.2,
            "S3_SECRET_KEY": self.canaries.node,
            **self._settings,
        }
        return {
            **{f"MORPHEO_{name}": str(value) for name, value in values.items()},
            "AWS_SECRET_ACCESS_KEY": self.canaries.node,
        }

    def close(self) -> None:
        """End everything; nothing of it is left."""
        self._stack.close()

    # ---- orders

    def upload(self, kind: ArtifactKind, content: bytes, **words: Any) -> UUID:
        """Upload an artifact, and return its id."""
        artifact_id = self.storage.upload(kind, content, **words).id
        self._uploads.add(artifact_id)
        return artifact_id

    def algo_of(self, *instructions: str) -> UUID:
        """Return an algo that does what its data says, with more instructions in its Dockerfile."""
        if instructions not in self._algos:
            archive = payload.algo_archive(*instructions)
            self._algos[instructions] = self.upload(ArtifactKind.ALGO, archive, name="a")
        return self._algos[instructions]

    def data(self, x: str, target: str, *, hidden: bool = False, **attack: str) -> UUID:
        """Upload a data file, whose attack is Python source for each step."""
        canary = self.canaries.hidden if hidden else self.canaries.train
        document = {"x": x, "target": target, "canary": canary, "attack": attack}
        return self.upload(ArtifactKind.DATA, json.dumps(document).encode())

    def learn(self, **changes: Any) -> LearnSpec:
        """
        Order a learn job, and return its order.

        Args:
            changes: Fields of the order; `train` and `perf` are source that runs in these containers.
        """
        attack = {step: changes.pop(step) for step in ("train", "perf") if step in changes}
        train = (*self.train_data, self.data("d", "4", **attack)) if attack else self.train_data
        values: dict[str, Any] = {
            "id": uuid4(),
            "problem": self.problem,
            "workflow": self.problem,
            "algo": self.algo,
            "train_data": train,
            "test_data": self.test_data,
            "model_start": None,
            "model_end": uuid4(),
        }
        spec = LearnSpec(**{**values, **changes})
        self.compute.submit(spec)
        return spec

    def predict(self, model: UUID, attack: str, **changes: Any) -> PredictSpec:
        """Order a prediction with a model, of data that carries an attack."""
        values: dict[str, Any] = {
            "id": uuid4(),
            "problem": self.problem,
            "workflow": self.problem,
            "model": model,
            "data": self.data("a", "1", predict=attack),
        }
        spec = PredictSpec(**{**values, **changes})
        self.compute.submit(spec)
        return spec

    def wait(self, spec: JobSpec) -> Job:
        """Wait until a job is over, and return it."""
        return self.compute.wait(spec.id, timeout_s=PATIENCE_S)

    def run_benign(self) -> float:
        """Run a job that does nothing bad, and return its score."""
        job = self.wait(self.learn())
        assert job.state is JobState.SUCCEEDED, job.failure
        assert job.scores is not None
        return job.scores.perf

    # ---- what is known

    def log(self, spec: JobSpec) -> str:
        """Return the log of a job, which is for the custodian."""
        return self.compute.logs(spec.id)

    def attempts(self, spec: JobSpec) -> dict[str, dict[str, Any]]:
        """Return what the payload's attempts came to, by name."""
        lines = [line for line in self.log(spec).splitlines() if line.startswith('{"name": ')]
        return {found["name"]: found for found in map(json.loads, lines)}

    def succeeded(self, spec: JobSpec) -> Job:
        """Wait until a job is done, as it must be, and return it."""
        job = self.wait(spec)
        assert job.state is JobState.SUCCEEDED, (job.failure, self.log(spec)[-2000:])
        return job

    def all_failed(
        self, attacks: Mapping[str, str], *causes: Cause, step: str = "train", **more: Any
    ) -> dict[str, Job]:
        """Order a job for each attack at once; all must fail with one of these causes. Return them by name."""
        specs = {name: self.learn(**{step: attack}) for name, attack in attacks.items()}
        found = {}
        for name, spec in specs.items():
            try:
                found[name] = self.failed(spec, *causes, **more)
            except AssertionError as exc:
                raise AssertionError(f"{name}: {exc}; {self.log(spec)[-500:]}") from None
        return found

    def failed(self, spec: JobSpec, *causes: Cause, blame: Blame = Blame.SUBMITTER) -> Job:
        """Wait until a job has failed, as it must, with one of these causes and in one attempt; return it."""
        job = self.wait(spec)
        assert job.state is JobState.FAILED, (job.state, job.scores)
        assert job.failure is not None
        assert (job.failure.cause in causes, job.failure.blame) == (True, blame), job.failure
        assert job.attempt == 1
        return job

    def workers(self) -> dict[int, int]:
        """Return the resident bytes of the worker's processes, by process id."""
        found = {}
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                words = process.cmdline()
                if "celery" in " ".join(words[:4]) and "worker" in words and self._is_ours(process):
                    found[process.pid] = process.memory_info().rss
        assert found
        return found

    def _is_ours(self, process: psutil.Process) -> bool:
        return process.environ().get("MORPHEO_DATA_DIR") == str(self.data_dir)

    def snapshot(self) -> Snapshot:
        """Return what is on the node and its engine now."""
        images = self.engine.images(all=False)
        tags = {tag for image in images for tag in image["RepoTags"] or ()}
        mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
        loops = Path("/sys/block").glob("loop*/loop/backing_file")
        backing = {text for path in loops if (text := _read(path)).startswith(str(self.folder))}
        cgroups = {str(path) for path in Path("/sys/fs/cgroup").glob(f"*/{self.dockerd.cgroup}/*") if path.is_dir()}
        return Snapshot(
            containers=frozenset(item["Id"] for item in self.engine.containers(all=True)),
            volumes=frozenset(item["Name"] for item in self.engine.volumes()["Volumes"] or ()),
            networks=frozenset(item["Id"] for item in self.engine.networks()),
            untagged=frozenset(image["Id"] for image in images if set(image["RepoTags"] or ()) <= {"<none>:<none>"}),
            # The image of an archive stays, by design, until its room is needed.
            images=frozenset(tag for tag in tags if not tag.startswith(("morpheo/algo:", "morpheo/problem:"))),
            workspaces=frozenset(path.name for path in (self.data_dir / "work").glob("*")),
            mounts=frozenset(path for path in mounts if path.startswith(str(self.data_dir))),
            loops=frozenset(backing),
            cgroups=frozenset(cgroups),
        )

    def blobs(self) -> set[Path]:
        """Return the files of the blob store."""
        return {path for path in (self.data_dir / "blobs").rglob("*") if path.is_file()}


def _read(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text()
    return ""


class Case:
    """What a case finds when it begins, and the check of all that must hold when it has ended."""

    def __init__(self, rig: HostileRig) -> None:
        self.rig = rig
        self._snapshot = rig.snapshot()
        self._workers = rig.workers()
        self._hits = len(rig.sink.hits)
        self._blobs = rig.blobs()
        self._events = len(trail(rig.database))

    def check(self) -> None:
        """Check P1 to P6."""
        ended = self.check_ended_once()
        self.check_nothing_left()
        self.check_canaries(ended)
        assert self.rig.run_benign() == self.rig.baseline, "P3"
        self.check_nothing_left()
        self.check_workers()
        assert self.rig.sink.hits[self._hits :] == [], "P6"

    def check_ended_once(self) -> set[UUID]:
        """Check P1 of all jobs of the case, and return them."""
        ends: dict[str, list[str]] = {}
        ordered: set[str] = set()
        for event in trail(self.rig.database)[self._events :]:
            if event.subject_kind == "job":
                ordered.add(event.subject_id)
                if event.action in _ENDS:
                    ends.setdefault(event.subject_id, []).append(event.action)
        for job_id in ordered:
            job = self.rig.compute.job(UUID(job_id))
            assert ends.get(job_id) == [f"job.{job.state}"], f"P1: {job_id} {ends.get(job_id)}"
            assert job.state is not JobState.FAILED or job.failure is not None, f"P1: {job_id}"
        return set(map(UUID, ordered))

    def check_nothing_left(self) -> None:
        """Check P2; what a sweeper tidies up gets a while."""
        with contextlib.suppress(AssertionError):
            wait_until(lambda: not self.rig.snapshot().more_than(self._snapshot), timeout_s=20)
        assert self.rig.snapshot().more_than(self._snapshot) == [], "P2"

    def check_canaries(self, jobs: Iterable[UUID]) -> None:
        """Check P4."""
        words = (self.rig.canaries.hidden, self.rig.canaries.node)
        for path in self.rig.blobs() - self._blobs:
            if any(str(upload) in str(path) for upload in self.rig._uploads):
                continue
            content = path.read_bytes()
            assert not find_canaries(content, words), f"P4: {path}"
            if content.startswith(b"\x1f\x8b"):
                assert not find_canaries(gzip.decompress(content), words), f"P4: {path}"
        assert not find_canaries("\n".join(self._rows()).encode(), words), "P4: a row"
        for job_id in jobs:
            answer = self.rig.compute._http.request("GET", f"/jobs/{job_id}").content
            # What was in a train file is for the custodian's log alone.
            assert not find_canaries(answer, words), f"P4: the answer on {job_id}"
            assert not find_canaries(self.rig.compute.logs(job_id).encode(), words), f"P4: the log of {job_id}"

    def _rows(self) -> Iterator[str]:
        with contextlib.closing(sqlite3.connect(f"file:{self.rig.data_dir / 'morpheo.db'}?mode=ro", uri=True)) as rows:
            yield from rows.iterdump()

    def check_workers(self) -> None:
        """Check P5."""
        now = self.rig.workers()
        assert set(self._workers) <= set(now), f"P5: {self._workers} {now}"
        grown = {pid: now[pid] - bytes_ for pid, bytes_ in self._workers.items() if now[pid] - bytes_ > GROWTH_BYTES}
        assert not grown, f"P5: {grown}"
