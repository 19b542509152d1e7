"""Jobs from order to end on one node, with real rows and a fake engine."""

from __future__ import annotations

import gzip
import io
import json
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from morpheo.errors import DatabaseUnavailable, InvalidInput, NotFound, RuntimeUnavailable, StorageUnavailable
from morpheo.execution import MODEL_FILE
from morpheo.models import (
    ArtifactKind,
    AttemptOutcome,
    Blame,
    Cause,
    Job,
    JobSpec,
    JobState,
    Scores,
    StepName,
)
from morpheo.runtime.contract import BuildSpec, ContainerSpec, Engines, Image, Interrupt, Owner, StepResult
from morpheo.runtime.log import BoundedLog
from morpheo.storage.blobs import Source
from morpheo.storage.database import Database
from morpheo.storage.jobs import JobRepository
from morpheo.testing import FakeContainer, FakeRuntime, make_archive
from tests.support.services import wait_until
from tests.support.workbench import Workbench, algo, flag, make_workbench, problem


@pytest.fixture
def bench(sqlite_url: str, tmp_path: Path) -> Workbench:
    return make_workbench(sqlite_url, tmp_path / "node")


def run(bench: Workbench, spec: JobSpec | None = None) -> Job:
    """Order a job and make one attempt at it; the node must be clean afterwards."""
    job = bench.resources.jobs.submit(spec or bench.learn_spec())
    ended = bench.resources.runner.run(job.id)
    assert ended is not None
    assert not bench.work_dir.exists() or list(bench.work_dir.iterdir()) == []
    return ended


def blob_keys(bench: Workbench, prefix: str) -> list[str]:
    return [blob.key for blob in bench.blobs.list(prefix)]


def test_a_learn_job_is_scored_and_its_model_is_stored(bench: Workbench) -> None:
    spec = bench.learn_spec()
    job = run(bench, spec)
    assert job.state is JobState.SUCCEEDED, job.failure
    assert job.scores is not None
    first, second = map(str, spec.test_data)
    assert job.scores.perf == 0.5
    assert job.scores.test_perf == {first: 1.0, second: 0.0}
    assert job.scores.train_perf == {str(data_id): 1.0 for data_id in spec.train_data}
    model = bench.resources.artifacts.get(ArtifactKind.MODEL, spec.model_end)
    assert model.algo == spec.algo
    assert model.blob_key.startswith(f"model/{spec.model_end}/1-")
    assert [step.name for step in job.attempts[0].steps] == [
        StepName.BUILD_PROBLEM,
        StepName.BUILD_ALGO,
        StepName.DETARGET,
        StepName.TRAIN,
        StepName.PERF,
    ]
    assert all(step.seconds is not None for step in job.attempts[0].steps)


def test_a_chain_learns_from_the_model_before(bench: Workbench) -> None:
    first = bench.learn_spec()
    run(bench, first)
    more = (bench.store(ArtifactKind.DATA, b"c:3"),)
    second = bench.learn_spec(
        workflow=first.workflow,
        algo=first.algo,
        train_data=more,
        test_data=first.test_data,
        rank=1,
        model_start=first.model_end,
    )
    job = run(bench, second)
    assert job.scores is not None
    assert job.scores.perf == 1.0  # a from the first rank, c from the second


def test_images_and_detargeted_sets_are_made_once(bench: Workbench) -> None:
    first = bench.learn_spec()
    run(bench, first)
    bench.runtime.history.clear()
    again = bench.learn_spec(workflow=first.workflow, algo=first.algo, test_data=first.test_data)
    job = run(bench, again)
    assert job.state is JobState.SUCCEEDED
    assert bench.runtime.history == [f"morpheo-{again.id}-1-train", f"morpheo-{again.id}-1-perf"]


def test_the_algo_never_sees_a_target_of_the_test_data(bench: Workbench) -> None:
    seen: list[bytes] = []

    def spy(container: FakeContainer) -> int:
        for bind in container._binds:
            seen.extend(
                path.read_bytes() for path in bind.source.rglob("*") if path.is_file() and "test" in bind.target
            )
        return algo(container)

    bench.programs["algo"] = spy
    assert run(bench).state is JobState.SUCCEEDED
    assert b"a" in seen
    assert not [content for content in seen if b":" in content]


def test_a_prediction_is_stored_under_the_id_that_the_order_promised(bench: Workbench) -> None:
    learn = bench.learn_spec()
    run(bench, learn)
    spec = bench.predict_spec(learn.model_end, b"b")
    bench.resources.jobs.submit(spec)
    job = bench.resources.runner.run(spec.id)
    assert job is not None
    assert job.state is JobState.SUCCEEDED, job.failure
    assert job.algo == learn.algo
    assert bench.read(ArtifactKind.PREDICTION, spec.prediction) == b"2"


def test_a_model_of_one_file_below_that_name_is_no_fault_of_the_platform(bench: Workbench) -> None:
    model = make_archive({f"{MODEL_FILE}/x": "7"})
    bench.programs["algo"] = lambda _container: 0
    model_id = bench.store(ArtifactKind.MODEL, model, algo=bench.learn_spec().algo)
    spec = bench.predict_spec(model_id, b"x")
    bench.resources.jobs.submit(spec)
    job = bench.resources.runner.run(spec.id)
    assert job is not None
    assert job.failure is None or job.failure.blame is not Blame.INFRASTRUCTURE


@pytest.mark.parametrize("name", [MODEL_FILE, "weights.bin"])
def test_a_model_of_one_file_is_there_under_the_name_of_2017_too(bench: Workbench, name: str) -> None:
    model = make_archive({name: json.dumps({"x": "7"})})
    algo_id = bench.learn_spec().algo
    model_id = bench.store(ArtifactKind.MODEL, model, algo=algo_id)
    seen: set[str] = set()

    def look(container: FakeContainer) -> int:
        seen.update(path.name for path in container.path("/data/model").iterdir())
        return algo(container)

    bench.programs["algo"] = look
    spec = bench.predict_spec(model_id, b"x")
    bench.resources.jobs.submit(spec)
    bench.resources.runner.run(spec.id)
    assert seen == {name, MODEL_FILE}
    assert bench.read(ArtifactKind.PREDICTION, spec.prediction) == b"7"


def test_nested_models_come_back_with_their_folders(bench: Workbench) -> None:
    def nested(container: FakeContainer) -> int:
        names = {
            path.relative_to(container.path("/data/model")).as_posix()
            for path in container.path("/data/model").rglob("*")
            if path.is_file()
        }
        container.write("/data/model/deep/er/weights", f"{sorted(names)}".encode())
        return algo(container)

    bench.programs["algo"] = nested
    first = bench.learn_spec()
    run(bench, first)
    second = bench.learn_spec(workflow=first.workflow, algo=first.algo, rank=1, model_start=first.model_end)
    job = run(bench, second)
    assert job.state is JobState.SUCCEEDED, job.failure


def _exit(code: int) -> Callable[[FakeContainer], int]:
    def program(container: FakeContainer) -> int:
        container.print("line 1\nlast words\x1b[31m")
        return code

    return program


def _write(target: str, content: bytes, then: Callable[[FakeContainer], int]) -> Callable[[FakeContainer], int]:
    def program(container: FakeContainer) -> int:
        code = then(container)
        if flag(container, "-T") in ("train", "perf"):
            container.write(target.format(hidden=container.args[-3]), content)
        return code

    return program


def _forget(folder: str) -> Callable[[FakeContainer], int]:
    def program(container: FakeContainer) -> int:
        code = algo(container)
        for path in container.path(folder).iterdir():
            path.unlink()
        return code

    return program


def _no_detarget(container: FakeContainer) -> int:
    return 0 if flag(container, "-T") == "detarget" else problem(container)


@pytest.mark.parametrize(
    ("image", "program", "cause", "blame", "step", "words"),
    [
        ("algo", _exit(3), Cause.EXIT_CODE, Blame.SUBMITTER, StepName.TRAIN, "exit code 3"),
        ("algo", _exit(3), Cause.EXIT_CODE, Blame.SUBMITTER, StepName.TRAIN, "last words"),
        ("algo", _exit(127), Cause.EXIT_CODE, Blame.SUBMITTER, StepName.TRAIN, "ENTRYPOINT"),
        ("algo", _exit(153), Cause.OUTPUT_LIMIT, Blame.SUBMITTER, StepName.TRAIN, "larger than the limit"),
        ("problem", _exit(2), Cause.EXIT_CODE, Blame.PROBLEM, StepName.DETARGET, "Its log is kept for the custodian"),
        ("problem", _no_detarget, Cause.MISSING_OUTPUT, Blame.PROBLEM, StepName.DETARGET, "wrote no file for"),
        ("algo", _forget("/data/model"), Cause.MISSING_OUTPUT, Blame.SUBMITTER, StepName.TRAIN, "no model"),
        ("algo", _forget("/data/test/pred"), Cause.MISSING_OUTPUT, Blame.SUBMITTER, StepName.TRAIN, "test/pred"),
        ("algo", _forget("/data/train/pred"), Cause.MISSING_OUTPUT, Blame.SUBMITTER, StepName.TRAIN, "train/pred"),
        (
            "algo",
            _write("/data/test/pred/extra", b"x", algo),
            Cause.BAD_OUTPUT,
            Blame.SUBMITTER,
            StepName.TRAIN,
            "unexpected file 'extra'",
        ),
        (
            "algo",
            _write("/data/model/big", b"x" * 5000, algo),
            Cause.OUTPUT_LIMIT,
            Blame.SUBMITTER,
            StepName.TRAIN,
            "makes the output larger",
        ),
        (
            "problem",
            _write("{hidden}/perf/performance.json", b'{"perf": NaN}', problem),
            Cause.BAD_PERFORMANCE,
            Blame.PROBLEM,
            StepName.PERF,
            "NaN",
        ),
        (
            "problem",
            _write("{hidden}/perf/performance.json", b'{"perf": 1, "train_perf": {}, "test_perf": {}}', problem),
            Cause.BAD_PERFORMANCE,
            Blame.PROBLEM,
            StepName.PERF,
            "no score for",
        ),
    ],
)
def test_a_program_s_failure_ends_the_job_with_a_cause(
    sqlite_url: str,
    tmp_path: Path,
    image: str,
    program: Callable[[FakeContainer], int],
    cause: Cause,
    blame: Blame,
    step: StepName,
    words: str,
) -> None:
    bench = make_workbench(sqlite_url, tmp_path / "node", model_bytes=4000)
    bench.programs[image] = program
    spec = bench.learn_spec()
    job = run(bench, spec)
    assert job.state is JobState.FAILED
    assert job.failure is not None
    assert (job.failure.cause, job.failure.blame, job.failure.step) == (cause, blame, step)
    assert words in job.failure.message
    assert "\x1b" not in job.failure.message
    assert (job.attempt, job.strikes) == (1, 0)
    assert blob_keys(bench, "model/") == []
    with pytest.raises(NotFound):
        bench.resources.artifacts.get(ArtifactKind.MODEL, spec.model_end)


@pytest.mark.parametrize(
    ("files", "cause", "words"),
    [
        ({"Dockerfile": "FROM morpheo/base:1\nRUN false\n"}, Cause.BUILD_FAILED, "non-zero code"),
        ({"Dockerfile": "FROM morpheo/base:1\n"}, Cause.BAD_IMAGE, "no ENTRYPOINT"),
        ({"Dockerfile": 'FROM morpheo/base:1\nENTRYPOINT ["gone"]\n'}, Cause.BAD_IMAGE, "could not be started"),
        ({"Dockerfile": "FROM problem-1\n"}, Cause.BAD_ARCHIVE, "FROM problem-1 is not accepted"),
        ({"algo/Dockerfile": "FROM scratch\n"}, Cause.BAD_ARCHIVE, "no Dockerfile at the root"),
        ({"../Dockerfile": "FROM scratch\n"}, Cause.BAD_ARCHIVE, "leads out of the archive"),
    ],
)
def test_an_image_that_cannot_be_used_ends_the_job(
    bench: Workbench, files: dict[str, str], cause: Cause, words: str
) -> None:
    spec = bench.learn_spec(algo=bench.store(ArtifactKind.ALGO, make_archive(files), name="bad"))
    job = run(bench, spec)
    assert job.failure is not None
    assert (job.failure.cause, job.failure.blame) == (cause, Blame.SUBMITTER)
    assert words in job.failure.message


def test_an_archive_that_is_none_ends_the_job(bench: Workbench) -> None:
    job = run(bench, bench.learn_spec(algo=bench.store(ArtifactKind.ALGO, b"not gzip", name="bad")))
    assert job.failure is not None
    assert job.failure.cause is Cause.BAD_ARCHIVE
    assert "gzip" in job.failure.message


def test_a_container_that_hangs_is_stopped(sqlite_url: str, tmp_path: Path) -> None:
    bench = make_workbench(sqlite_url, tmp_path / "node", learn_timeout_s=0.2)

    def hang(container: FakeContainer) -> int:
        container.sleep(60)
        return 0

    bench.programs["algo"] = hang
    job = run(bench)
    assert job.failure is not None
    assert job.failure.cause is Cause.TIME_LIMIT
    assert "longer than 0.2 s" in job.failure.message


def test_a_job_may_ask_for_less_time_than_it_is_allowed(sqlite_url: str, tmp_path: Path) -> None:
    bench = make_workbench(sqlite_url, tmp_path / "node", learn_timeout_s=5)
    limits: list[float] = []
    run_container = bench.runtime.run

    def record(spec: ContainerSpec, *, interrupt: Interrupt, log: BoundedLog) -> StepResult:
        limits.append(spec.timeout_s)
        return run_container(spec, interrupt=interrupt, log=log)

    vars(bench.runtime)["run"] = record
    for asked in (None, 3, 50):
        assert run(bench, bench.learn_spec(time_limit_s=asked)).state is JobState.SUCCEEDED
    assert limits == [5, 5, 5, 3, 3, 3, 5, 5, 5]


def test_a_blob_that_changed_ends_the_job(bench: Workbench) -> None:
    spec = bench.learn_spec(train_data=(bench.store(ArtifactKind.DATA, b"only:here"),))
    artifact = bench.resources.artifacts.get(ArtifactKind.DATA, spec.train_data[0])
    bench.blobs._blobs[artifact.blob_key] = (b"something else", artifact.created_at)
    job = run(bench, spec)
    assert job.failure is not None
    assert job.failure.cause is Cause.CORRUPT_ARTIFACT
    assert str(spec.train_data[0]) in job.failure.message


def test_a_job_that_was_ordered_with_an_unknown_artifact_is_refused(bench: Workbench) -> None:
    unknown = uuid4()
    with pytest.raises(InvalidInput, match=f"test_data: data {unknown} not found"):
        bench.resources.jobs.submit(bench.learn_spec(test_data=(unknown,)))
    assert bench.publisher.published == []


def test_the_same_order_is_one_job(bench: Workbench) -> None:
    spec = bench.learn_spec()
    assert bench.resources.jobs.submit(spec).id == bench.resources.jobs.submit(spec).id
    assert bench.publisher.published == [spec.id]


def test_a_second_message_for_a_running_or_ended_job_does_nothing(bench: Workbench) -> None:
    spec = bench.learn_spec()
    inner: list[Job | None] = []

    def again(container: FakeContainer) -> int:
        inner.append(bench.resources.runner.run(spec.id))
        return algo(container)

    bench.programs["algo"] = again
    run(bench, spec)
    assert inner == [None]
    assert bench.resources.runner.run(spec.id) is None
    assert len(bench.resources.jobs.get(spec.id).attempts) == 1


def test_a_running_job_that_is_cancelled_stops(bench: Workbench) -> None:
    spec = bench.learn_spec()
    started = threading.Event()

    def hang(container: FakeContainer) -> int:
        started.set()
        container.sleep(60)
        return 0

    bench.programs["algo"] = hang
    bench.resources.jobs.submit(spec)
    thread = threading.Thread(target=bench.resources.runner.run, args=(spec.id,))
    thread.start()
    assert started.wait(60)
    assert bench.resources.jobs.cancel(spec.id).cancel_requested
    thread.join(60)
    job = bench.resources.jobs.get(spec.id)
    assert job.state is JobState.CANCELLED
    assert job.failure is not None
    assert job.failure.cause is Cause.CANCELLED
    assert bench.resources.jobs.cancel(spec.id).state is JobState.CANCELLED
    assert list(bench.work_dir.iterdir()) == []
    assert blob_keys(bench, "model/") == []


def test_an_attempt_that_lost_its_lease_stops_and_writes_nothing(bench: Workbench) -> None:
    spec = bench.learn_spec()
    killed = threading.Event()

    def lose(container: FakeContainer) -> int:
        with bench.database.begin() as work:
            work.jobs.renew(spec.id, 1, lease_s=-1)
            assert work.jobs.claim(spec.id, worker="other", lease_s=30, max_attempts=3) is not None
        container.sleep(60)
        killed.set()
        return 0

    bench.programs["algo"] = lose
    job = run(bench, spec)
    assert killed.is_set()
    assert (job.state, job.attempt, job.worker) == (JobState.RUNNING, 2, "other")
    assert blob_keys(bench, "model/") == []


def test_a_result_that_comes_after_the_lease_was_lost_is_dropped(sqlite_url: str, tmp_path: Path) -> None:
    bench = make_workbench(sqlite_url, tmp_path / "node", heartbeat_s=15)  # too slow to notice
    spec = bench.learn_spec()

    def lose(container: FakeContainer) -> int:
        code = algo(container)
        with bench.database.begin() as work:
            work.jobs.renew(spec.id, 1, lease_s=-1)
            work.jobs.claim(spec.id, worker="other", lease_s=30, max_attempts=3)
        return code

    bench.programs["algo"] = lose
    job = run(bench, spec)
    assert (job.state, job.attempt, job.worker) == (JobState.RUNNING, 2, "other")
    assert blob_keys(bench, "model/") == []


def test_a_service_that_is_out_costs_no_attempt(bench: Workbench) -> None:
    spec = bench.learn_spec()
    bench.runtime.down = True
    bench.resources.jobs.submit(spec)
    states = [bench.resources.runner.run(spec.id) for _ in range(5)]
    assert [job and (job.state, job.strikes) for job in states] == [(JobState.QUEUED, 0)] * 5
    bench.runtime.down = False
    job = bench.resources.runner.run(spec.id)
    assert job is not None
    assert (job.state, job.attempt, job.strikes) == (JobState.SUCCEEDED, 6, 0)


def test_a_service_that_is_out_for_long_ends_the_job(bench: Workbench) -> None:
    bench = make_workbench(bench.resources.database.url, bench.resources.settings.data_dir, outage_s=0)
    spec = bench.learn_spec()
    bench.runtime.down = True
    bench.resources.jobs.submit(spec)
    states = [bench.resources.runner.run(spec.id) for _ in range(3)]
    assert [job and (job.state, job.strikes) for job in states] == [
        (JobState.QUEUED, 1),
        (JobState.QUEUED, 2),
        (JobState.FAILED, 2),
    ]
    job = bench.resources.jobs.get(spec.id)
    assert job.failure is not None
    assert (job.failure.cause, job.failure.blame) == (Cause.RUNTIME_UNAVAILABLE, Blame.INFRASTRUCTURE)
    assert [attempt.outcome for attempt in job.attempts] == [
        AttemptOutcome.RETRIED,
        AttemptOutcome.RETRIED,
        AttemptOutcome.FAILED,
    ]
    assert "no container engine answers" in job.attempts[0].message


def test_a_retry_that_works_ends_well(bench: Workbench) -> None:
    spec = bench.learn_spec()
    bench.runtime.down = True
    bench.resources.jobs.submit(spec)
    bench.resources.runner.run(spec.id)
    bench.runtime.down = False
    job = bench.resources.runner.run(spec.id)
    assert job is not None
    assert (job.state, job.attempt, job.strikes) == (JobState.SUCCEEDED, 2, 0)
    assert bench.resources.artifacts.get(ArtifactKind.MODEL, spec.model_end).blob_key.split("/")[2].startswith("2-")


def test_a_full_disk_is_named(sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = make_workbench(sqlite_url, tmp_path / "node", outage_s=0)

    def full(*_args: object, **_kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("morpheo.execution.pack", full)
    spec = bench.learn_spec()
    bench.resources.jobs.submit(spec)
    for _ in range(3):
        bench.resources.runner.run(spec.id)
    job = bench.resources.jobs.get(spec.id)
    assert job.failure is not None
    assert (job.failure.cause, job.failure.blame) == (Cause.DISK_FULL, Blame.INFRASTRUCTURE)


def test_a_bug_is_retried_and_its_text_stays_in_the_log(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(*_args: object, **_kwargs: object) -> None:
        raise ZeroDivisionError("secret detail")

    monkeypatch.setattr("morpheo.execution.pack", bug)
    spec = bench.learn_spec()
    bench.resources.jobs.submit(spec)
    for _ in range(3):
        bench.resources.runner.run(spec.id)
    job = bench.resources.jobs.get(spec.id)
    assert job.failure is not None
    assert job.failure.cause is Cause.INTERNAL_ERROR
    assert "secret detail" not in job.failure.message


def test_a_worker_that_is_told_to_stop_gives_its_job_back(bench: Workbench) -> None:
    spec = bench.learn_spec()

    def stop(container: FakeContainer) -> int:
        raise SystemExit

    bench.programs["algo"] = stop
    bench.resources.jobs.submit(spec)
    with pytest.raises(SystemExit):
        bench.resources.runner.run(spec.id)
    job = bench.resources.jobs.get(spec.id)
    assert (job.state, job.strikes, job.attempts[0].outcome) == (JobState.QUEUED, 0, AttemptOutcome.RELEASED)
    assert list(bench.work_dir.iterdir()) == []


def test_a_model_whose_id_was_taken_meanwhile_ends_the_job(bench: Workbench) -> None:
    spec = bench.learn_spec()

    def steal(container: FakeContainer) -> int:
        other = bench.resources.artifacts.get(ArtifactKind.ALGO, spec.algo)
        with bench.database.begin() as work:
            from dataclasses import replace  # noqa: PLC0415

            work.artifacts.add(replace(other, kind=ArtifactKind.MODEL, id=spec.model_end, blob_key="model/other/1"))
        return algo(container)

    bench.programs["algo"] = steal
    job = run(bench, spec)
    assert job.state is JobState.FAILED
    assert job.failure is not None
    assert job.failure.cause is Cause.ARTIFACT_EXISTS
    assert blob_keys(bench, f"model/{spec.model_end}") == []


def test_logs_of_all_steps_can_be_read(bench: Workbench) -> None:
    job = run(bench)
    logs = dict(bench.resources.jobs.logs(job.id))
    assert logs[StepName.TRAIN] == b"remembers 2\n"
    assert logs[StepName.PERF] == b"scored\n"
    with pytest.raises(NotFound, match="no attempt 5"):
        list(bench.resources.jobs.logs(job.id, attempt=5))


def test_a_commit_whose_answer_was_lost_counts(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    from contextlib import contextmanager  # noqa: PLC0415

    real, calls = Database.begin, []

    @contextmanager
    def lossy(self: Database):  # type: ignore[no-untyped-def]
        with real(self) as work:
            yield work
            calls.append(work.jobs.get(spec.id).state)
        if calls[-1] is JobState.SUCCEEDED:
            raise DatabaseUnavailable

    spec = bench.learn_spec()
    bench.resources.jobs.submit(spec)
    monkeypatch.setattr(Database, "begin", lossy)
    job = bench.resources.runner.run(spec.id)
    assert job is not None
    assert job.state is JobState.SUCCEEDED
    assert bench.read(ArtifactKind.MODEL, spec.model_end)


def test_an_end_that_cannot_be_written_at_once_is_written_later(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, failures = JobRepository.succeed, [DatabaseUnavailable(), DatabaseUnavailable()]

    def flaky(self: JobRepository, job_id: UUID, attempt: int, scores: Scores | None, *, result: UUID) -> bool:
        if failures:
            raise failures.pop()
        return real(self, job_id, attempt, scores, result=result)

    monkeypatch.setattr("morpheo.runner.WRITE_AGAIN_S", 0)
    monkeypatch.setattr(JobRepository, "succeed", flaky)
    spec = bench.learn_spec()
    job = run(bench, spec)
    assert failures == []
    assert (job.state, job.attempt, job.strikes) == (JobState.SUCCEEDED, 1, 0)
    assert bench.read(ArtifactKind.MODEL, spec.model_end)


def test_a_cancelled_job_is_not_tried_again(sqlite_url: str, tmp_path: Path) -> None:
    bench = make_workbench(sqlite_url, tmp_path / "node", heartbeat_s=15)  # too slow to notice the cancel
    spec = bench.learn_spec()

    def cancel_and_break(container: FakeContainer) -> int:
        bench.resources.jobs.cancel(spec.id)
        bench.runtime.down = True
        return algo(container)

    bench.programs["algo"] = cancel_and_break
    job = run(bench, spec)
    assert job.failure is not None
    assert (job.state, job.failure.cause) == (JobState.CANCELLED, Cause.CANCELLED)


def test_an_image_that_was_refused_has_no_tag(bench: Workbench) -> None:
    bad = bench.store(ArtifactKind.ALGO, make_archive({"Dockerfile": "FROM morpheo/base:1\n"}), name="bad")
    digest = bench.resources.artifacts.get(ArtifactKind.ALGO, bad).sha256
    run(bench, bench.learn_spec(algo=bad))
    assert bench.runtime.find_image(f"morpheo/algo:{digest}") is None
    assert not [tag for tag in bench.runtime._tags if "unchecked" in tag]


@pytest.mark.parametrize(
    ("tags", "with_gpu"), [((), set()), (("big-memory",), set()), (("gpu",), {"train", "predict"})]
)
def test_only_the_algo_of_a_job_that_asks_gets_gpus(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch, tags: tuple[str, ...], with_gpu: set[str]
) -> None:
    specs: list[ContainerSpec] = []
    run_container = bench.runtime.run

    def recording(spec: ContainerSpec, **kwargs: Any) -> StepResult:
        specs.append(spec)
        return run_container(spec, **kwargs)

    monkeypatch.setattr(bench.runtime, "run", recording)
    learned = bench.learn_spec(tags=tags)
    run(bench, learned)
    run(bench, replace(bench.predict_spec(learned.model_end), tags=tags))
    assert [spec.step for spec in specs] == ["detarget", "train", "perf", "predict"]
    assert {str(spec.step) for spec in specs if spec.gpu} == with_gpu


def test_an_image_that_another_node_builds_at_the_same_time_is_used(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = bench.runtime
    retag = runtime.retag_image

    def lose(image_id: str, tag: str) -> None:
        """Take the tag for a twin, as if another node had been faster; the engine then removes what has no tag."""
        retag(image_id, tag)
        twin = f"{image_id}-twin"
        runtime._images[twin] = runtime._images[image_id]
        retag(twin, tag)
        runtime.remove_image(image_id)

    monkeypatch.setattr(runtime, "retag_image", lose)
    assert run(bench).state is JobState.SUCCEEDED


def test_an_order_is_accepted_when_the_broker_is_down(bench: Workbench) -> None:
    bench.publisher.down = True
    spec = bench.learn_spec()
    assert bench.resources.jobs.submit(spec).state is JobState.QUEUED
    bench.publisher.down = False
    assert bench.resources.sweeper.publish_waiting() == 1
    assert bench.publisher.published == [spec.id]
    assert bench.resources.sweeper.publish_waiting() == 0


@pytest.mark.parametrize(
    ("age_s", "waiting", "published_again"),
    [(50, 0, False), (70, 0, True), (70, 1, False), (700, 1, True), (70, 2, False), (7000, 2, False), (7000, 9, False)],
)
def test_an_old_message_is_repeated_if_it_is_likely_lost(
    bench: Workbench, age_s: float, waiting: int, published_again: bool
) -> None:
    spec = bench.learn_spec(tags=("gpu",))
    bench.resources.jobs.submit(spec)
    bench.resources.jobs.submit(bench.learn_spec(tags=("gpu",)))
    with bench.database.connect() as connection:
        connection.exec_driver_sql(f"UPDATE jobs SET published_at = published_at - {age_s} WHERE id = '{spec.id.hex}'")
        connection.commit()
    bench.publisher.published.clear()
    # In the queue of this job; how full others are does not matter.
    bench.publisher.waiting = {"learn.gpu": waiting, "learn": 0 if waiting else 5}
    bench.resources.sweeper.publish_waiting()
    assert bench.publisher.published == ([spec.id] if published_again else [])


def test_what_was_never_published_is_however_many_messages_wait(bench: Workbench) -> None:
    bench.publisher.down = True
    spec = bench.learn_spec()
    bench.resources.jobs.submit(spec)
    bench.publisher.down = False
    bench.publisher.waiting = {"learn": 1000}
    assert bench.resources.sweeper.publish_waiting() == 1


def test_the_sweeper_recovers_a_lost_job_and_ends_one_that_is_lost_too_often(bench: Workbench) -> None:
    spec = bench.learn_spec()
    bench.resources.jobs.submit(spec)
    outcomes = []
    for _ in range(3):
        with bench.database.begin() as work:
            assert work.jobs.claim(spec.id, worker="dead", lease_s=-1, max_attempts=9) is not None
        assert bench.resources.sweeper.recover_lost() == 1
        outcomes.append(bench.resources.jobs.get(spec.id).state)
    assert outcomes == [JobState.QUEUED, JobState.QUEUED, JobState.FAILED]
    job = bench.resources.jobs.get(spec.id)
    assert job.failure is not None
    assert (job.failure.cause, job.failure.blame) == (Cause.WORKER_LOST, Blame.INFRASTRUCTURE)
    assert bench.resources.sweeper.recover_lost() == 0


def test_the_sweeper_ends_a_cancelled_job_whose_worker_died(bench: Workbench) -> None:
    spec = bench.learn_spec()
    bench.resources.jobs.submit(spec)
    with bench.database.begin() as work:
        work.jobs.claim(spec.id, worker="dead", lease_s=-1, max_attempts=3)
    bench.resources.jobs.cancel(spec.id)
    bench.resources.sweeper.sweep_jobs()
    assert bench.resources.jobs.get(spec.id).state is JobState.CANCELLED


def test_the_sweeper_leaves_live_jobs_alone_and_cleans_the_rest(bench: Workbench) -> None:
    live, other = bench.learn_spec(), uuid4()
    bench.resources.jobs.submit(live)
    with bench.database.begin() as work:
        work.jobs.claim(live.id, worker="alive", lease_s=30, max_attempts=3)
    for name in (f"{live.id}-1", f"{live.id}-0", f"{other}-1", "notes"):
        (bench.work_dir / name / "deep").mkdir(parents=True)
    half = bench.resources.settings.data_dir / "cache" / "blobs" / "sha256" / f"fetch-{'0' * 64}"
    half.parent.mkdir(parents=True)
    half.write_bytes(b"half of it")
    assert bench.resources.sweeper.clean_node() == 2
    assert not half.exists()
    assert sorted(path.name for path in bench.work_dir.iterdir()) == sorted([f"{live.id}-1", "notes"])


def test_a_sweep_whose_parts_fail_goes_on(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = bench.learn_spec()
    bench.publisher.down = True
    bench.resources.jobs.submit(spec)
    bench.publisher.down = False

    def recover_lost() -> int:
        raise DatabaseUnavailable

    monkeypatch.setattr(bench.resources.sweeper, "recover_lost", recover_lost)
    bench.resources.sweeper.sweep_jobs()
    assert bench.publisher.published == [spec.id]


def test_lost_jobs_do_not_wait_for_an_engine_that_hangs(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    hangs, stop = threading.Event(), threading.Event()

    def owners() -> set[Owner]:
        hangs.set()
        stop.wait()
        return set()

    monkeypatch.setattr(bench.runtime, "owners", owners)
    spec = bench.learn_spec()
    bench.resources.jobs.submit(spec)
    bench.publisher.published.clear()
    threads = bench.resources.sweeper.start(stop, every_s=0.01)
    assert hangs.wait(30)
    with bench.database.begin() as work:
        work.jobs.claim(spec.id, worker="dead", lease_s=-1, max_attempts=3)
    wait_until(lambda: bench.publisher.published == [spec.id])
    stop.set()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()


def test_storage_that_is_down_is_no_strike(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = bench.learn_spec()
    bench.resources.jobs.submit(spec)

    def down(*_args: object, **_kwargs: object) -> None:
        raise StorageUnavailable

    monkeypatch.setattr(bench.blobs, "put", down)
    monkeypatch.setattr("morpheo.results.STORE_FOR_S", 0)
    job = bench.resources.runner.run(spec.id)
    assert job is not None
    assert (job.state, job.strikes) == (JobState.QUEUED, 0)


def test_a_result_waits_for_storage_that_is_down(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = bench.learn_spec()
    bench.resources.jobs.submit(spec)
    tries = refuse_model(bench, monkeypatch, times=3)
    job = bench.resources.runner.run(spec.id)
    assert job is not None
    assert [attempt.outcome for attempt in job.attempts] == [AttemptOutcome.SUCCEEDED]
    assert len(set(tries)) == 4
    assert bench.resources.artifacts.get(ArtifactKind.MODEL, spec.model_end).blob_key == tries[-1]


def test_a_job_is_cancelled_whose_result_waits(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = bench.learn_spec()
    bench.resources.jobs.submit(spec)
    tries = refuse_model(bench, monkeypatch, times=1_000_000)

    def cancel() -> None:
        wait_until(lambda: bool(tries))
        bench.resources.jobs.cancel(spec.id)

    canceller = threading.Thread(target=cancel)
    canceller.start()
    job = bench.resources.runner.run(spec.id)
    canceller.join()
    assert job is not None
    assert job.state is JobState.CANCELLED


def refuse_model(bench: Workbench, monkeypatch: pytest.MonkeyPatch, *, times: int) -> list[str]:
    """Let the blob store refuse models some times; give the keys that are tried."""
    put, tries = bench.blobs.put, []

    def refuse(key: str, source: Source, *, length: int | None = None) -> int:
        if key.startswith("model/"):
            tries.append(key)
            if len(tries) <= times:
                raise StorageUnavailable
        return put(key, source, length=length)

    monkeypatch.setattr(bench.blobs, "put", refuse)
    monkeypatch.setattr("morpheo.results.STORE_AGAIN_S", 0.01)
    return tries


def test_problems_and_algos_have_engines_of_their_own(bench: Workbench) -> None:
    algos = FakeRuntime(bench.programs)
    vars(bench.resources)["engines"] = Engines(problem=bench.runtime, algo=algos)
    job = run(bench)
    assert job.state is JobState.SUCCEEDED, job.failure
    steps = [[name.rpartition("-")[2] for name in engine.history] for engine in (bench.runtime, algos)]
    assert steps == [["problem", "detarget", "perf"], ["algo", "train"]]


@pytest.mark.parametrize("image", [Image.PROBLEM, Image.ALGO])
def test_the_sweeper_cleans_both_engines(bench: Workbench, image: Image) -> None:
    started = threading.Event()

    def hang(container: FakeContainer) -> int:
        started.set()
        container.sleep(60)
        return 0

    engines = Engines(problem=FakeRuntime({"hang": hang}), algo=FakeRuntime({"hang": hang}))
    vars(bench.resources)["engines"] = engines
    owner = Owner(job_id=uuid4(), attempt=1)
    tar = io.BytesIO(gzip.decompress(make_archive({"Dockerfile": 'FROM scratch\nENTRYPOINT ["hang"]\n'})))
    build = BuildSpec(owner=owner, tag="stray:1", timeout_s=30)
    built = engines[image].build(tar, build, interrupt=Interrupt())
    assert built.image_id is not None
    stray = ContainerSpec(owner=owner, step=StepName.TRAIN, image_id=built.image_id, args=(), binds=(), timeout_s=30)
    thread = threading.Thread(target=engines[image].run, args=(stray,), kwargs={"interrupt": Interrupt()})
    thread.start()
    assert started.wait(30)
    other = engines[Image.ALGO if image is Image.PROBLEM else Image.PROBLEM]
    assert isinstance(other, FakeRuntime)
    other.down = True  # which keeps nobody from cleaning this one
    with pytest.raises(RuntimeUnavailable):
        bench.resources.sweeper.clean_node()
    thread.join(30)
    assert engines[image].owners() == []
