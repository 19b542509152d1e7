"""The main job through HTTP and the command line, in real containers."""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest
import requests
from docker import APIClient

from morpheo.errors import ApiError
from morpheo.models import ArtifactKind, AttemptOutcome, Blame, Cause, JobState, PredictSpec, StepName
from morpheo.runtime.archive import ArchiveLimits, ArchiveReader
from morpheo.specs import spec_to_dict
from morpheo.testing import make_archive
from tests.acceptance.conftest import Stack
from tests.support.jobs import ALGO, PROBLEM, image_archive, make_order, store_algo
from tests.support.services import wait_until
from tests.support.workers import HELD

pytestmark = pytest.mark.docker

#: A job of three containers takes 2 s here; a slow machine gets much more.
PATIENCE_S = 120

HANGS_S = 600
HANG = f"import time; print('hanging', flush=True); time.sleep({HANGS_S})"


def test_a_learn_job_over_http_is_scored_and_its_model_is_stored(stack: Stack) -> None:
    spec = make_order(stack.storage)
    stack.compute.submit(spec)
    job = stack.compute.wait(spec.id, timeout_s=PATIENCE_S)
    assert job.state is JobState.SUCCEEDED, job.failure
    assert job.scores is not None
    first, second = map(str, spec.test_data)
    assert job.scores.test_perf == {first: 1.0, second: 0.0}
    assert set(job.scores.train_perf.values()) == {1.0}
    steps = {step.name: step for step in job.attempts[0].steps}
    assert list(steps)[-3:] == [StepName.DETARGET, StepName.TRAIN, StepName.PERF]
    assert all(steps[name].exit_code == 0 for name in (StepName.DETARGET, StepName.TRAIN, StepName.PERF))
    assert (steps[StepName.TRAIN].peak_memory_bytes or 0) > 1 << 20
    assert "remembers 2" in stack.compute.logs(spec.id)
    model = stack.storage.get(ArtifactKind.MODEL, spec.model_end)
    assert model.algo == spec.algo


def test_the_stored_model_is_an_archive_of_plain_files(stack: Stack, tmp_path: Path) -> None:
    spec = make_order(stack.storage)
    stack.compute.submit(spec)
    assert stack.compute.wait(spec.id, timeout_s=PATIENCE_S).state is JobState.SUCCEEDED
    target = tmp_path / "model.tar.gz"
    stack.storage.download(ArtifactKind.MODEL, spec.model_end, target)
    with target.open("rb") as file:
        reader = ArchiveReader(file, ArchiveLimits(max_bytes=1 << 20, max_entries=10))
        contents = {entry.name: reader.read() for entry in reader}
    assert json.loads(contents["model_trained.json"]) == {"a": "1", "b": "2"}


def test_a_client_of_2017_is_served(stack: Stack) -> None:
    """Multipart uploads with a wrong size, an order without a Content-Type, a status in its words."""
    auth = ("u", "p")
    names = {"problem": image_archive(PROBLEM), "algo": image_archive(ALGO)}
    ids = {}
    for kind, content in names.items():
        words = {"name": kind, "size": "666", **({"description": "d"} if kind == "problem" else {})}
        answer = requests.post(
            f"{stack.urls['storage']}/{kind}", data=words, files={"blob": ("x", content)}, auth=auth, timeout=30
        )
        assert (answer.status_code, answer.json()["name"]) == (201, kind)
        ids[kind] = answer.json()["uuid"]
    for name, content in (("train", b"a:1"), ("test", b"a:1")):
        answer = requests.post(
            f"{stack.urls['storage']}/data", data={"size": "666"}, files={"blob": ("x", content)}, auth=auth, timeout=30
        )
        ids[name] = answer.json()["uuid"]
    order = {
        "uuid": str(uuid4()),
        "problem": str(uuid4()),
        "workflow": ids["problem"],
        "algo": ids["algo"],
        "model_start": ids["algo"],
        "model_end": str(uuid4()),
        "train_data": [ids["train"]],
        "test_data": [ids["test"]],
        "rank": 0,
        "worker": None,
        "perf": None,
        "status": "todo",
        "timestamp_creation": 1,
    }
    answer = requests.post(f"{stack.urls['compute']}/learn", data=json.dumps(order).encode(), auth=auth, timeout=30)
    assert (answer.status_code, answer.json()) == (202, {"message": "Learn-uplet ingested accordingly"})
    url = f"{stack.urls['compute']}/jobs/{order['uuid']}"
    wait_until(
        lambda: requests.get(url, auth=auth, timeout=30).json()["status"] in ("done", "failed"), timeout_s=PATIENCE_S
    )
    assert requests.get(url, auth=auth, timeout=30).json()["status"] == "done"
    blob = requests.get(f"{stack.urls['storage']}/model/{order['model_end']}/blob", auth=auth, timeout=30)
    assert blob.content[:2] == b"\x1f\x8b"


def test_the_command_line_covers_the_whole_path(stack: Stack, tmp_path: Path) -> None:
    folders = {"problem": PROBLEM, "algo": ALGO}
    ids = {}
    for name, program in folders.items():
        folder = tmp_path / name
        folder.mkdir()
        (folder / "program.py").write_text(program)
        (folder / "Dockerfile").write_text(
            'FROM morpheo/base:1\nCOPY program.py /\nENTRYPOINT ["python3", "/program.py"]\n'
        )
        ids[name] = stack.cli_json("upload", name, str(folder))["id"]
    for name, content in (("train", "a:1"), ("test", "a:1")):
        (tmp_path / f"{name}.csv").write_text(content)
        ids[name] = stack.cli_json("upload", "data", str(tmp_path / f"{name}.csv"))["id"]
    job = stack.cli_json(
        "learn", "--workflow", ids["problem"], "--algo", ids["algo"], "--train", ids["train"], "--test", ids["test"]
    )
    assert (job["state"], job["scores"]["perf"]) == ("succeeded", 1.0)
    model = job["spec"]["model_end"]
    output = tmp_path / "prediction"
    stack.cli("predict", "--problem", ids["problem"], "--model", model, "--data", ids["test"], "--output", str(output))
    assert output.read_text() == "1"
    assert job["id"] in [item["id"] for item in stack.cli_json("jobs", "ls", "--state", "succeeded")]
    shown = stack.cli("jobs", "show", job["id"])
    assert "succeeded" in shown
    assert "train" in shown
    assert "==> train <==\nremembers 1\n" in stack.cli("jobs", "logs", job["id"])
    stack.cli("download", "model", model, str(tmp_path / "model.tar.gz"))
    assert (tmp_path / "model.tar.gz").read_bytes()[:2] == b"\x1f\x8b"
    assert ids["algo"] in stack.cli("ls", "algo", "--json")


def test_a_chain_and_a_prediction_use_the_model_before(stack: Stack) -> None:
    first = make_order(stack.storage)
    stack.compute.submit(first)
    stack.compute.wait(first.id, timeout_s=PATIENCE_S)
    more = (stack.storage.upload(ArtifactKind.DATA, b"c:3").id,)
    second = make_order(
        stack.storage,
        workflow=first.workflow,
        algo=first.algo,
        test_data=first.test_data,
        train_data=more,
        rank=1,
        model_start=first.model_end,
    )
    stack.compute.submit(second)
    job = stack.compute.wait(second.id, timeout_s=PATIENCE_S)
    assert job.scores is not None
    assert job.scores.perf == 1.0
    assert StepName.BUILD_ALGO not in {step.name for step in job.attempts[0].steps}
    data = stack.storage.upload(ArtifactKind.DATA, b"b").id
    predict = PredictSpec(id=uuid4(), problem=first.problem, workflow=first.workflow, model=second.model_end, data=data)
    stack.compute.submit(predict)
    assert stack.compute.wait(predict.id, timeout_s=PATIENCE_S).state is JobState.SUCCEEDED
    assert stack.storage.read(ArtifactKind.PREDICTION, predict.prediction) == b"2"


def test_the_same_order_twice_is_one_job_and_another_one_is_refused(stack: Stack) -> None:
    spec = make_order(stack.storage)
    stack.compute.submit(spec)
    stack.compute.submit(spec)
    job = stack.compute.wait(spec.id, timeout_s=PATIENCE_S)
    assert (job.state, job.attempt) == (JobState.SUCCEEDED, 1)
    stack.compute.submit(spec)
    with pytest.raises(ApiError, match="another job has the id") as refused:
        stack.compute.submit(replace(spec, rank=0, model_end=uuid4()))
    assert refused.value.status == 409


@pytest.mark.parametrize(
    ("program", "cause", "words"),
    [
        pytest.param("import sys; print('bad luck'); sys.exit(4)", Cause.EXIT_CODE, "bad luck", id="exit-code"),
        pytest.param("x = []\nwhile True: x.append(bytearray(1 << 20))", Cause.OUT_OF_MEMORY, "128 MiB", id="memory"),
        pytest.param(HANG, Cause.TIME_LIMIT, "hanging", id="hang"),
        pytest.param("pass", Cause.MISSING_OUTPUT, "train/pred", id="writes-nothing"),
        pytest.param(
            ALGO.replace("json.dump(memory", "0 and json.dump(memory"),
            Cause.MISSING_OUTPUT,
            "left no model",
            id="no-model",
        ),
        pytest.param(
            ALGO + "\nos.symlink('/etc/passwd', '/data/model/link')", Cause.BAD_OUTPUT, "link", id="symlink-model"
        ),
        pytest.param(
            ALGO + "\nname = os.listdir('/data/test/pred')[0]\nos.remove('/data/test/pred/' + name)\n"
            "os.mkfifo('/data/test/pred/' + name)",
            Cause.BAD_OUTPUT,
            "not a regular file",
            id="fifo-prediction",
        ),
        pytest.param(
            ALGO + "\nopen('/data/model/big', 'wb').truncate(5 << 20)", Cause.OUTPUT_LIMIT, "limit", id="large-model"
        ),
        pytest.param(
            "import socket; socket.create_connection(('10.0.0.1', 80), 2)",
            Cause.EXIT_CODE,
            "Network is unreachable",
            id="network",
        ),
    ],
)
def test_a_bad_algo_ends_with_a_cause_and_stores_nothing(stack: Stack, program: str, cause: Cause, words: str) -> None:
    limit_s = 15 if cause is Cause.TIME_LIMIT else None
    spec = make_order(stack.storage, algo=store_algo(stack.storage, program), time_limit_s=limit_s)
    stack.compute.submit(spec)
    job = stack.compute.wait(spec.id, timeout_s=PATIENCE_S)
    assert job.failure is not None
    assert (job.state, job.failure.cause, job.failure.blame) == (JobState.FAILED, cause, Blame.SUBMITTER)
    assert words in job.failure.message
    assert (job.attempt, job.strikes) == (1, 0)
    with pytest.raises(ApiError, match="not found"):
        stack.storage.get(ArtifactKind.MODEL, spec.model_end)


@pytest.mark.parametrize(
    ("archive", "cause", "words"),
    [
        pytest.param(image_archive(ALGO, "RUN echo no luck; exit 7"), Cause.BUILD_FAILED, "no luck", id="build-fails"),
        pytest.param(make_archive({"readme": "x"}), Cause.BAD_ARCHIVE, "no Dockerfile", id="no-dockerfile"),
        pytest.param(b"\x1f\x8bnonsense", Cause.BAD_ARCHIVE, "gzip", id="not-an-archive"),
        pytest.param(
            image_archive(ALGO, "COPY --from=morpheo/problem:x / /"), Cause.BAD_ARCHIVE, "--from", id="steals"
        ),
        pytest.param(
            make_archive({"Dockerfile": 'FROM morpheo/base:1\nENTRYPOINT ["/nowhere"]\n'}),
            Cause.EXIT_CODE,
            "ENTRYPOINT",
            id="no-entry-point",
        ),
    ],
)
def test_a_bad_archive_ends_with_a_cause(stack: Stack, archive: bytes, cause: Cause, words: str) -> None:
    algo = stack.storage.upload(ArtifactKind.ALGO, archive, name="bad").id
    spec = make_order(stack.storage, algo=algo)
    stack.compute.submit(spec)
    job = stack.compute.wait(spec.id, timeout_s=PATIENCE_S)
    assert job.failure is not None
    assert (job.failure.cause, job.failure.blame) == (cause, Blame.SUBMITTER)
    assert words in job.failure.message


@pytest.mark.parametrize(
    ("broken", "cause", "words"),
    [
        pytest.param(PROBLEM.replace("json.dump", "0 and json.dump"), Cause.BAD_PERFORMANCE, "not JSON", id="empty"),
        pytest.param(
            PROBLEM.replace('"perf":', '"other":'), Cause.BAD_PERFORMANCE, "perf must be a number", id="absent"
        ),
        pytest.param(PROBLEM.replace("sum(test.values())", 'float("nan")'), Cause.BAD_PERFORMANCE, "NaN", id="nan"),
        pytest.param(
            PROBLEM.replace('"test_perf": test', '"test_perf": {}'), Cause.BAD_PERFORMANCE, "no score", id="ids"
        ),
        pytest.param(PROBLEM.replace('"detarget"', '"never"'), Cause.EXIT_CODE, "detarget", id="detarget-fails"),
    ],
)
def test_a_bad_problem_is_blamed_on_the_problem(stack: Stack, broken: str, cause: Cause, words: str) -> None:
    spec = make_order(stack.storage, problem_archive=image_archive(broken))
    stack.compute.submit(spec)
    job = stack.compute.wait(spec.id, timeout_s=PATIENCE_S)
    assert job.failure is not None
    assert (job.failure.cause, job.failure.blame) == (cause, Blame.PROBLEM)
    assert words in job.failure.message
    with pytest.raises(ApiError, match="not found"):
        stack.storage.get(ArtifactKind.MODEL, spec.model_end)


def test_cancelling_kills_the_container(stack: Stack, engine: APIClient) -> None:
    spec = make_order(stack.storage, algo=store_algo(stack.storage, HANG + "\n# cancel"))
    stack.compute.submit(spec)

    def containers() -> list[str]:
        return [item["Id"] for item in engine.containers(filters={"label": f"morpheo.job={spec.id}", "name": "train"})]

    wait_until(lambda: bool(containers()), timeout_s=PATIENCE_S, what="the train container")
    began = time.monotonic()
    assert "cancel requested" in stack.cli("jobs", "cancel", str(spec.id))
    job = stack.compute.wait(spec.id, timeout_s=PATIENCE_S)
    assert time.monotonic() - began < HANGS_S / 10
    assert job.failure is not None
    assert (job.state, job.failure.cause) == (JobState.CANCELLED, Cause.CANCELLED)
    wait_until(lambda: not containers(), timeout_s=PATIENCE_S, what="the end of its container")
    assert "is cancelled" in stack.cli("jobs", "cancel", str(spec.id))


@pytest.mark.parametrize("time", range(3))  # the process that takes the place of a killed one must work every time
def test_a_job_whose_worker_is_killed_is_done_by_a_second_attempt(stack: Stack, engine: APIClient, time: int) -> None:
    spec = make_order(stack.storage, algo=store_algo(stack.storage, f"{HELD}# {time}\n"))
    stack.compute.submit(spec)

    def wait_for_training(attempt: int) -> None:
        name = f"{spec.id}-{attempt}-train"
        wait_until(lambda: bool(engine.containers(filters={"name": name})), timeout_s=PATIENCE_S, what=name)

    wait_for_training(1)
    worker = stack.compute.job(spec.id).worker
    assert worker is not None
    os.kill(int(worker.split("-")[-2]), signal.SIGKILL)
    wait_for_training(2)
    (stack.folder / "data" / "work" / f"{spec.id}-2" / "train" / "go").mkdir()
    job = stack.compute.wait(spec.id, timeout_s=PATIENCE_S)
    assert (job.state, job.attempt, job.strikes) == (JobState.SUCCEEDED, 2, 1), job
    assert [attempt.outcome for attempt in job.attempts] == [AttemptOutcome.LOST, AttemptOutcome.SUCCEEDED]


def test_health_is_really_checked(stack: Stack) -> None:
    for name in ("compute", "storage"):
        answer = requests.get(f"{stack.urls[name]}/health", timeout=10).json()
        assert answer["status"] == "ok"
        assert answer["checks"]["database"] == "ok"


@pytest.mark.parametrize("path", ["api/tasks", "api/workers", "", "tasks"])
def test_flower_asks_for_a_password(stack: Stack, path: str) -> None:
    url = f"{stack.urls['flower']}/{path}"
    assert requests.get(url, timeout=10).status_code == 401
    assert requests.get(url, auth=("u", "wrong"), timeout=10).status_code == 401
    assert requests.get(url, auth=("u", "p"), timeout=10).status_code == 200


def test_flower_shows_what_a_task_is_and_where_it_ran(stack: Stack) -> None:
    good = make_order(stack.storage)
    # A submitter's failure is a job that ended well, not an error of Celery.
    bad = make_order(stack.storage, algo=stack.storage.upload(ArtifactKind.ALGO, b"no archive", name="x").id)
    for spec in (good, bad):
        stack.compute.submit(spec)
        stack.compute.wait(spec.id, timeout_s=PATIENCE_S)
    url = f"{stack.urls['flower']}/api/tasks"

    def tasks() -> dict[str, dict[str, object]]:
        found: dict[str, dict[str, object]] = requests.get(url, auth=("u", "p"), timeout=60).json()
        return found

    for spec in (good, bad):

        def succeeded(name: str = str(spec.id)) -> bool:
            return tasks().get(name, {}).get("state") == "SUCCESS"

        wait_until(succeeded, timeout_s=PATIENCE_S, what="the task in Flower")
        task = tasks()[str(spec.id)]
        assert task["name"] == "morpheo.run_job"
        assert task["args"] == f"kind=learn problem={spec.problem}"
        assert str(task["worker"]).startswith("learn@")


def test_an_unknown_artifact_is_named(stack: Stack) -> None:
    spec = replace(make_order(stack.storage), algo=uuid4())
    with pytest.raises(ApiError, match=f"algo: algo {spec.algo} not found") as refused:
        stack.compute.submit(spec)
    assert refused.value.status == 400
    assert "uuid" not in spec_to_dict(spec)
    assert stack.cli("jobs", "show", str(spec.id), status=1) == ""
