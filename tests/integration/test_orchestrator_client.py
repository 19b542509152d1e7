"""The Python client of the orchestrator API, and the API as it runs: every method, typed."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import UUID, uuid4

import pytest

from morpheo.challenges import Problem
from morpheo.client import Learnuplet, OrchestratorClient, StorageClient
from morpheo.disclosure import Disclosure, Logs
from morpheo.errors import ApiError
from morpheo.models import ArtifactKind, Blame, Cause, JobKind, Scores
from tests.support.api_server import migrate, serving

BAD_REQUEST, UNAUTHORIZED, NOT_FOUND, CONFLICT = 400, 401, 404, 409


@pytest.fixture(scope="module")
def urls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    folder = tmp_path_factory.mktemp("services")
    migrate(folder)
    settings = {"api_processes": "1", "broker_url": "redis://127.0.0.1:1/0"}
    with (
        serving("storage-api", folder, **settings) as storage,
        serving("orchestrator-api", folder, **settings) as orchestrator,
    ):
        yield storage.url, orchestrator.url


@pytest.fixture
def storage(urls: tuple[str, str]) -> StorageClient:
    return StorageClient(urls[0], user="u", password="p")


@pytest.fixture
def client(urls: tuple[str, str]) -> Iterator[OrchestratorClient]:
    opened = OrchestratorClient(urls[1], user="u", password="p")
    yield opened
    opened.close()


@pytest.fixture
def problem(storage: StorageClient, client: OrchestratorClient) -> Problem:
    workflow = storage.upload(ArtifactKind.PROBLEM, b"w", name="n", description="d").id
    return client.add_problem(
        uuid4(), workflow=workflow, test_data=data(storage, 2), batch_size=1, higher_is_better=False
    )


def data(storage: StorageClient, count: int) -> list[UUID]:
    return [storage.upload(ArtifactKind.DATA, uuid4().bytes).id for _ in range(count)]


def add_algo(storage: StorageClient, client: OrchestratorClient, problem: Problem) -> UUID:
    algo = storage.upload(ArtifactKind.ALGO, b"a", name="n").id
    client.add_algo(algo, name="n", problem=problem.id)
    return algo


def do(storage: StorageClient, client: OrchestratorClient, uplet: Learnuplet, perf: float) -> None:
    client.start(JobKind.LEARN, uplet.uuid, "w")
    storage.upload(ArtifactKind.MODEL, b"m", id=uplet.model_end, algo=uplet.algo)
    test = {str(item): perf for item in uplet.test_data}
    client.report_learn(uplet.uuid, Scores(perf=perf, test_perf=test))


def test_what_is_registered_is_found(storage: StorageClient, client: OrchestratorClient, problem: Problem) -> None:
    assert (problem.batch_size, problem.higher_is_better, problem.parallel_ranks) == (1, False, 1)
    assert client.problem(problem.id) == problem
    assert problem in client.problems()
    algo = storage.upload(ArtifactKind.ALGO, b"a", name="n").id
    submission, added = client.add_algo(algo, name="é", problem=problem.id)
    assert (submission.algo, submission.name, submission.problem, added) == (algo, "é", problem.id, 0)
    assert client.submission(algo) == submission
    assert client.submissions(problem.id) == [submission]
    assert submission in client.submissions()
    files = data(storage, 2)
    answer = client.add_data([*files, problem.test_data[0]], problems=[problem.id])
    assert ([item.id for item in answer.datasets], answer.trainings) == ([*files, problem.test_data[0]], 2)
    assert answer.held_out == {problem.id: (problem.test_data[0],)}
    assert answer.datasets[0].problems == (problem.id,)
    assert set(answer.datasets) <= set(client.datasets())
    first, second = client.learnuplets(algo=algo)
    assert client.learnuplets(problem=problem.id) == [first, second]
    assert client.learnuplet(second.uuid) == second
    assert (first.train_data, first.test_data, first.model_start) == ((files[0],), problem.test_data, algo)
    assert (second.rank, second.status, second.model_start, second.perf) == (1, "todo", None, None)


def test_a_chain_a_failure_a_retry_and_a_prediction(
    storage: StorageClient, client: OrchestratorClient, problem: Problem
) -> None:
    client.add_data(data(storage, 2), problems=[problem.id])
    algo = add_algo(storage, client, problem)
    first, second = client.learnuplets(algo=algo)
    do(storage, client, first, 0.25)
    done = client.learnuplet(first.uuid)
    assert (done.status, done.perf, done.worker, done.train_perf) == ("done", 0.25, "w", {})
    assert done.test_perf == {str(item): 0.25 for item in problem.test_data}
    assert done.timestamp_done is not None
    assert done.timestamp_done >= done.timestamp_creation

    client.start(JobKind.LEARN, second.uuid, "w")
    client.report_learn(second.uuid, None)
    failed = client.learnuplet(second.uuid)
    assert failed.failure is not None
    assert (failed.status, failed.failure.cause, failed.failure.blame) == (
        "failed",
        Cause.INTERNAL_ERROR,
        Blame.INFRASTRUCTURE,
    )
    assert client.submission(algo).stalled
    again = client.learnuplet(client.retry(second.uuid))
    assert (again.rank, again.status, again.model_start) == (1, "todo", first.model_end)
    with pytest.raises(ApiError, match=f"has job {again.uuid} already") as caught:
        client.retry(second.uuid)
    assert caught.value.status == CONFLICT

    (new,) = data(storage, 1)
    ordered = client.predict(new, problem=problem.id)
    assert (ordered.model, ordered.data, ordered.status) == (first.model_end, new, "todo")
    client.report_prediction(ordered.uuid, None)
    failed_prediction = client.preduplet(ordered.uuid)
    assert (failed_prediction.status, failed_prediction.failure and failed_prediction.failure.cause) == (
        "failed",
        Cause.INTERNAL_ERROR,
    )
    retried = client.retry(ordered.uuid)
    client.start(JobKind.PREDICT, retried, "w")
    prediction = storage.upload(ArtifactKind.PREDICTION, b"0").id
    client.report_prediction(retried, prediction)
    found = {item.uuid: item for item in client.preduplets(problem=problem.id)}
    assert set(found) == {ordered.uuid, retried}
    assert (found[retried].status, found[retried].prediction_storage_uuid) == ("done", prediction)
    assert found[retried].timestamp_done is not None


def test_what_goes_out_of_a_problem_is_told_and_changed(client: OrchestratorClient, problem: Problem) -> None:
    assert client.problem(problem.id).disclosure == Disclosure()
    changed = client.change_problem(problem.id, logs=Logs.ALL, submissions_per_day=None)
    assert changed.disclosure == Disclosure(logs=Logs.ALL, submissions_per_day=None)
    assert client.problem(problem.id) == changed
    with pytest.raises(ApiError, match="score_digits") as raised:
        client.change_problem(problem.id, score_digits=99)
    assert raised.value.status == 400


def test_a_model_may_be_named(storage: StorageClient, client: OrchestratorClient, problem: Problem) -> None:
    client.add_data(data(storage, 2), problems=[problem.id])
    algo = add_algo(storage, client, problem)
    for rank, perf in enumerate((0.25, 0.5)):
        do(storage, client, client.learnuplets(algo=algo)[rank], perf)
    better, worse = (uplet.model_end for uplet in client.learnuplets(algo=algo))
    (new,) = data(storage, 1)
    assert client.predict(new, problem=problem.id).model == better
    assert client.predict(new, problem=problem.id, model=worse).model == worse


def test_errors_tell_status_and_what_is_wrong(
    urls: tuple[str, str], client: OrchestratorClient, problem: Problem
) -> None:
    unknown = uuid4()
    stranger = OrchestratorClient(urls[1], user="u", password="x")
    for act, status, message in (
        (lambda: client.problem(unknown), NOT_FOUND, f"problem {unknown} not found"),
        (lambda: client.retry(unknown), NOT_FOUND, f"preduplet {unknown} not found"),
        (lambda: client.predict(unknown, problem=unknown), BAD_REQUEST, f"problem {unknown} not found"),
        (lambda: client.start(JobKind.PREDICT, unknown, "w"), BAD_REQUEST, "worker not set for preduplet"),
        (lambda: client.report_prediction(unknown, None), BAD_REQUEST, f"no update of preduplet {unknown}"),
        (
            lambda: client.add_algo(unknown, name="n", problem=problem.id),
            BAD_REQUEST,
            f"uuid: algo {unknown} not found",
        ),
        (stranger.problems, UNAUTHORIZED, "401 Unauthorized: user, password or token is wrong"),
    ):
        with pytest.raises(ApiError, match=message) as caught:
            act()
        assert caught.value.status == status
