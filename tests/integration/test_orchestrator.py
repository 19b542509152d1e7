"""What is registered becomes orders, on a node with a fake engine: every rank here is really trained and scored."""

from __future__ import annotations

import io
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from sqlalchemy import update

from morpheo.artifacts import Upload
from morpheo.challenges import Problem
from morpheo.errors import Conflict, InvalidInput, NotFound
from morpheo.models import (
    ArtifactKind,
    AttemptOutcome,
    Blame,
    Cause,
    Job,
    JobKind,
    JobState,
    LearnSpec,
    PredictSpec,
    Scores,
)
from morpheo.orchestrator import Orchestrator
from morpheo.storage.tables import JobRow
from morpheo.testing import FakeContainer
from tests.support.workbench import ALGO, PROBLEM, Workbench, make_workbench


@pytest.fixture
def bench(sqlite_url: str, tmp_path: Path) -> Workbench:
    return make_workbench(sqlite_url, tmp_path / "node")


@pytest.fixture
def orchestrator(bench: Workbench) -> Orchestrator:
    return bench.resources.orchestrator


def make_problem(bench: Workbench, **changes: object) -> Problem:
    """Register a problem with two test files and batches of two."""
    test = changes.pop("test_data", None) or (
        bench.store(ArtifactKind.DATA, b"a:1\n"),
        bench.store(ArtifactKind.DATA, b"c:3\n"),
    )
    problem = Problem(
        id=uuid4(),
        workflow=bench.store(ArtifactKind.PROBLEM, PROBLEM, name="p", description="p"),
        test_data=test,  # type: ignore[arg-type]
        **{"batch_size": 2, "created_at": datetime.now(UTC), **changes},  # type: ignore[arg-type]
    )
    return bench.resources.orchestrator.register_problem(problem)


def add_data(bench: Workbench, problem: Problem, *contents: bytes) -> list[UUID]:
    """Store and register data; return its ids."""
    ids = [bench.store(ArtifactKind.DATA, content) for content in contents]
    bench.resources.orchestrator.register_data(ids, problem_ids=[problem.id])
    return ids


def add_algo(bench: Workbench, problem: Problem) -> tuple[UUID, int]:
    """Store and register an algo; return its id and how many jobs follow."""
    algo = bench.store(ArtifactKind.ALGO, ALGO, name="a")
    return algo, bench.resources.orchestrator.register_algo(algo, name="a", problem_id=problem.id)[1]


def run_published(bench: Workbench) -> None:
    """Do what a worker does: run what was published, until nothing is any more."""
    while bench.publisher.published:
        bench.resources.runner.run(bench.publisher.published.pop(0))


def chain(bench: Workbench, algo: UUID) -> list[Job]:
    jobs = bench.resources.orchestrator.jobs(JobKind.LEARN, algo=algo)
    return sorted(
        jobs,
        key=lambda job: (job.spec.rank, job.created_at) if isinstance(job.spec, LearnSpec) else (0, job.created_at),
    )


def spec(job: Job) -> LearnSpec:
    assert isinstance(job.spec, LearnSpec)
    return job.spec


def test_a_chain_trains_batch_after_batch_from_the_best_model(bench: Workbench) -> None:
    problem = make_problem(bench)
    data = add_data(bench, problem, b"z:0", b"a:1", b"x:9", b"c:3", b"d:4")
    algo, added = add_algo(bench, problem)
    assert added == 3
    states = [job.state for job in chain(bench, algo)]
    assert states == [JobState.QUEUED, JobState.WAITING, JobState.WAITING]
    run_published(bench)
    jobs = chain(bench, algo)
    assert [spec(job).train_data for job in jobs] == [tuple(data[:2]), tuple(data[2:4]), tuple(data[4:])]
    assert [job.scores and job.scores.perf for job in jobs] == [0.5, 1.0, 1.0]
    # Rank 2 goes on from rank 1, which is better than rank 0; rank 0 starts from nothing.
    assert [spec(job).model_start for job in jobs] == [algo, spec(jobs[0]).model_end, spec(jobs[1]).model_end]


def test_a_rank_that_cannot_be_read_ends_when_its_turn_comes(bench: Workbench) -> None:
    """The rank before it is done nevertheless, and new data lets the chain go on from that."""
    problem = make_problem(bench)
    add_data(bench, problem, b"z:0", b"a:1", b"x:9", b"c:3", b"d:4")
    algo, _ = add_algo(bench, problem)
    _, damaged, _ = chain(bench, algo)
    with bench.database.engine.begin() as connection:
        connection.execute(update(JobRow).where(JobRow.id == damaged.id).values(spec={"algo": 5}))
    run_published(bench)
    first, second, third = chain(bench, algo)
    assert [job.state for job in (first, second, third)] == [JobState.SUCCEEDED, JobState.FAILED, JobState.WAITING]
    assert second.failure is not None
    assert (second.failure.cause, second.failure.blame) == (Cause.INTERNAL_ERROR, Blame.INFRASTRUCTURE)
    with bench.database.read() as work:
        assert work.challenges.submission(algo).stalled_by == second.id
    with pytest.raises(Conflict, match="damaged"):
        bench.resources.orchestrator.retry(second.id)
    add_data(bench, problem, b"e:5")
    run_published(bench)
    assert [job.state for job in chain(bench, algo)] == [
        JobState.SUCCEEDED,
        JobState.FAILED,
        JobState.SUCCEEDED,
        JobState.SUCCEEDED,
    ]
    assert spec(chain(bench, algo)[2]).model_start == spec(first).model_end


def test_a_model_in_quarantine_is_not_the_best(bench: Workbench) -> None:
    """A chain, and predictions, go on with the best of those that are there."""
    problem = make_problem(bench)
    add_data(bench, problem, b"z:0", b"a:1", b"x:9", b"c:3", b"d:4")
    algo, _ = add_algo(bench, problem)
    run_published(bench)
    first, *others = chain(bench, algo)
    for job in others:
        lost = bench.resources.artifacts.get(ArtifactKind.MODEL, spec(job).model_end)
        bench.resources.artifacts.quarantine(lost, "a test")
    asked = bench.store(ArtifactKind.DATA, b"y")
    prediction = bench.resources.orchestrator.order_prediction(data=asked, problem_id=problem.id)
    assert isinstance(prediction.spec, PredictSpec)
    assert prediction.spec.model == spec(first).model_end
    add_data(bench, problem, b"e:5", b"f:6")
    assert spec(chain(bench, algo)[-1]).model_start == spec(first).model_end


def test_a_registration_is_the_same_also_after_what_goes_out_was_changed(bench: Workbench) -> None:
    problem = make_problem(bench)
    orchestrator = bench.resources.orchestrator
    orchestrator.disclose(problem.id, score_digits=3)
    again = orchestrator.register_problem(problem)
    assert (again.id, again.disclosure.score_digits) == (problem.id, 3)


def test_test_data_never_trains_and_data_that_comes_later_extends_every_chain(bench: Workbench) -> None:
    problem = make_problem(bench)
    early, trainings = add_algo(bench, problem)
    assert trainings == 0
    add_data(bench, problem, b"a:1", b"b:2")
    late, _ = add_algo(bench, problem)
    run_published(bench)
    fresh = bench.store(ArtifactKind.DATA, b"c:3")
    data = [problem.test_data[0], fresh, problem.test_data[1]]
    added = bench.resources.orchestrator.register_data(data, problem_ids=[problem.id])
    assert ([item.id for item in added.datasets], added.trainings) == (data, 2)
    assert added.held_out == {problem.id: problem.test_data}
    again = bench.resources.orchestrator.register_data(data, problem_ids=[problem.id])
    assert (again.trainings, again.held_out) == (0, added.held_out)  # nothing is new
    run_published(bench)
    for algo in (early, late):
        jobs = chain(bench, algo)
        assert [(spec(job).rank, job.state) for job in jobs] == [(0, JobState.SUCCEEDED), (1, JobState.SUCCEEDED)]
        assert spec(jobs[1]).train_data == (fresh,)
        assert spec(jobs[1]).model_start == spec(jobs[0]).model_end


def test_a_copy_of_a_test_file_never_trains(bench: Workbench, orchestrator: Orchestrator) -> None:
    problem = make_problem(bench, batch_size=1)
    before, _ = add_algo(bench, problem)
    copy, fresh = add_data(bench, problem, b"a:1\n", b"a:1")
    after, _ = add_algo(bench, problem)
    for algo in (before, after):
        assert [spec(job).train_data for job in chain(bench, algo)] == [(fresh,)]
    # Of another problem, whose test data came later than this data, it is the other way round.
    other = make_problem(bench, batch_size=1, test_data=(bench.store(ArtifactKind.DATA, b"a:1"),))
    algo, _ = add_algo(bench, other)
    added = orchestrator.register_data([fresh, copy], problem_ids=[other.id, problem.id])
    assert added.held_out == {other.id: (fresh,), problem.id: (copy,)}
    assert [spec(job).train_data for job in chain(bench, algo)] == [(copy,)]


def test_a_copy_of_a_test_file_ends_no_stall(bench: Workbench, orchestrator: Orchestrator) -> None:
    problem = make_problem(bench)
    break_algo(bench)
    algo, _ = add_algo(bench, problem)
    add_data(bench, problem, b"b:2")
    run_published(bench)
    add_data(bench, problem, b"a:1\n")
    assert orchestrator.submission(algo).stalled


def break_algo(bench: Workbench) -> None:
    def broken(container: FakeContainer) -> int:
        container.print("no")
        return 1

    bench.programs["algo"] = broken


def test_a_failed_rank_stalls_its_chain_until_it_is_retried(bench: Workbench, orchestrator: Orchestrator) -> None:
    problem = make_problem(bench)
    add_data(bench, problem, b"a:1", b"b:2", b"c:3", b"d:4")
    works = bench.programs["algo"]
    break_algo(bench)
    algo, _ = add_algo(bench, problem)
    run_published(bench)
    first, second = chain(bench, algo)
    assert (first.state, second.state) == (JobState.FAILED, JobState.WAITING)
    assert orchestrator.submission(algo).stalled
    bench.programs["algo"] = works
    again = orchestrator.retry(first.id)
    assert (again.state, spec(again).rank, spec(again).train_data) == (JobState.QUEUED, 0, spec(first).train_data)
    with pytest.raises(Conflict, match=f"has job {again.id} already"):
        orchestrator.retry(first.id)
    run_published(bench)
    assert [job.state for job in chain(bench, algo)] == [JobState.FAILED, JobState.SUCCEEDED, JobState.SUCCEEDED]
    assert not orchestrator.submission(algo).stalled


def test_only_a_retry_of_the_rank_that_stalls_a_chain_lets_it_go_on(
    bench: Workbench, orchestrator: Orchestrator
) -> None:
    problem = make_problem(bench, batch_size=1)
    works = bench.programs["algo"]
    break_algo(bench)
    algo, _ = add_algo(bench, problem)
    for content in (b"a:1", b"b:2", b"c:3"):
        add_data(bench, problem, content)
        run_published(bench)
    first, second, third = chain(bench, algo)
    assert orchestrator.submission(algo).stalled_by == third.id
    bench.programs["algo"] = works
    again = orchestrator.retry(first.id)  # left out when new data came
    assert again.state is JobState.WAITING
    assert orchestrator.submission(algo).stalled_by == third.id
    assert orchestrator.retry(third.id).state is JobState.WAITING
    assert orchestrator.submission(algo).stalled_by is None
    assert orchestrator.jobs(JobKind.LEARN, job=again.id)[0].state is JobState.QUEUED  # the lowest rank first
    run_published(bench)
    done = [spec(job).rank for job in chain(bench, algo) if job.state is JobState.SUCCEEDED]
    assert done == [spec(first).rank, spec(third).rank]
    assert orchestrator.retry(second.id).state is JobState.QUEUED


def test_new_data_lets_a_stalled_chain_go_on_from_its_best_model(bench: Workbench, orchestrator: Orchestrator) -> None:
    problem = make_problem(bench)
    add_data(bench, problem, b"a:1", b"b:2")
    algo, _ = add_algo(bench, problem)
    run_published(bench)
    works = bench.programs["algo"]
    break_algo(bench)
    add_data(bench, problem, b"x:1")
    run_published(bench)
    assert orchestrator.submission(algo).stalled
    bench.programs["algo"] = works
    add_data(bench, problem, b"c:3")
    run_published(bench)
    jobs = chain(bench, algo)
    assert [job.state for job in jobs] == [JobState.SUCCEEDED, JobState.FAILED, JobState.SUCCEEDED]
    assert spec(jobs[2]).model_start == spec(jobs[0]).model_end


def test_lower_can_be_better(bench: Workbench, orchestrator: Orchestrator) -> None:
    problem = make_problem(bench, higher_is_better=False)
    add_data(bench, problem, b"x:1", b"y:2", b"a:1", b"c:3", b"e:3")
    algo, _ = add_algo(bench, problem)
    run_published(bench)
    jobs = chain(bench, algo)
    assert [job.scores and job.scores.perf for job in jobs][:2] == [0.0, 1.0]
    assert spec(jobs[2]).model_start == spec(jobs[0]).model_end
    new = bench.store(ArtifactKind.DATA, b"a")
    predicted = orchestrator.order_prediction(data=new, problem_id=problem.id)
    assert isinstance(predicted.spec, PredictSpec)
    assert predicted.spec.model == spec(jobs[0]).model_end


def test_ranks_of_one_algo_may_run_at_once_if_the_problem_says_so(bench: Workbench) -> None:
    problem = make_problem(bench, parallel_ranks=2, batch_size=1)
    add_data(bench, problem, b"a:1", b"b:2", b"c:3")
    algo, _ = add_algo(bench, problem)
    assert [job.state for job in chain(bench, algo)] == [JobState.QUEUED, JobState.QUEUED, JobState.WAITING]


def test_a_prediction_uses_the_best_model_or_a_named_one(bench: Workbench, orchestrator: Orchestrator) -> None:
    problem = make_problem(bench)
    with pytest.raises(NotFound, match="no trained model yet"):
        orchestrator.order_prediction(data=bench.store(ArtifactKind.DATA, b"a"), problem_id=problem.id)
    with pytest.raises(InvalidInput, match="is test data, whose targets are hidden"):
        orchestrator.order_prediction(data=problem.test_data[0], problem_id=problem.id)
    add_data(bench, problem, b"a:1", b"c:3", b"c:0")
    algo, _ = add_algo(bench, problem)
    run_published(bench)
    first, second = (spec(job).model_end for job in chain(bench, algo))
    data = bench.store(ArtifactKind.DATA, b"c")
    best = orchestrator.order_prediction(data=data, problem_id=problem.id)
    named = orchestrator.order_prediction(data=data, problem_id=problem.id, model=second)
    assert [job.spec.model for job in (best, named) if isinstance(job.spec, PredictSpec)] == [first, second]
    run_published(bench)
    done = orchestrator.jobs(JobKind.PREDICT, problem=problem.id)
    assert [job.state for job in done] == [JobState.SUCCEEDED] * 2
    results = [job.result for job in done]
    assert [bench.read(ArtifactKind.PREDICTION, item) for item in results if item] == [b"3", b"0"]


def test_a_prediction_takes_no_model_of_another_problem(bench: Workbench, orchestrator: Orchestrator) -> None:
    here, there = make_problem(bench), make_problem(bench)
    algos = []
    for problem in (here, there):
        add_data(bench, problem, b"a:1")
        algos.append(add_algo(bench, problem)[0])
    run_published(bench)
    mine, foreign = (spec(chain(bench, algo)[0]).model_end for algo in algos)
    nobodys = bench.store(ArtifactKind.MODEL, b"m", algo=bench.store(ArtifactKind.ALGO, ALGO, name="a"))
    data = bench.store(ArtifactKind.DATA, b"a")
    for model in (foreign, nobodys):
        with pytest.raises(InvalidInput, match=f"model: {model} is of an algo that takes no part in this problem"):
            orchestrator.order_prediction(data=data, problem_id=here.id, model=model)
    job = orchestrator.order_prediction(data=data, problem_id=here.id, model=mine)
    assert (job.algo, job.kind) == (algos[0], JobKind.PREDICT)


def test_a_cancelled_rank_that_had_not_its_turn_is_left_out(bench: Workbench) -> None:
    problem = make_problem(bench, batch_size=1)
    add_data(bench, problem, b"a:1", b"b:2", b"c:3")
    algo, _ = add_algo(bench, problem)
    bench.resources.jobs.cancel(chain(bench, algo)[1].id)
    run_published(bench)
    assert [job.state for job in chain(bench, algo)] == [JobState.SUCCEEDED, JobState.CANCELLED, JobState.SUCCEEDED]


def test_nothing_is_half_registered(bench: Workbench, orchestrator: Orchestrator) -> None:
    problem = make_problem(bench)
    known, unknown = bench.store(ArtifactKind.DATA, b"a:1"), uuid4()
    with pytest.raises(InvalidInput, match=f"data {unknown} not found in storage"):
        orchestrator.register_data([known, unknown], problem_ids=[problem.id])
    with pytest.raises(NotFound, match=f"problem {unknown} not found"):
        orchestrator.register_data([known], problem_ids=[problem.id, unknown])
    assert orchestrator.datasets() == []
    with pytest.raises(InvalidInput, match=f"algo {unknown} not found in storage"):
        orchestrator.register_algo(unknown, name="a", problem_id=problem.id)
    with pytest.raises(NotFound, match="problem"):
        orchestrator.register_algo(bench.store(ArtifactKind.ALGO, ALGO, name="a"), name="a", problem_id=unknown)
    assert orchestrator.submissions() == []
    with pytest.raises(InvalidInput, match="test_dataset: data"):
        make_problem(bench, test_data=(unknown,))


def test_the_same_registration_twice_is_one(bench: Workbench, orchestrator: Orchestrator) -> None:
    problem = make_problem(bench)
    add_data(bench, problem, b"a:1")
    algo, added = add_algo(bench, problem)
    assert added == 1
    assert orchestrator.register_problem(problem) == problem
    assert orchestrator.register_algo(algo, name="a", problem_id=problem.id)[1] == 0
    other = make_problem(bench)
    with pytest.raises(Conflict, match=f"takes part in problem {problem.id}"):
        orchestrator.register_algo(algo, name="a", problem_id=other.id)
    with pytest.raises(Conflict, match="another problem has the id"):
        orchestrator.register_problem(Problem(**{**vars(problem), "batch_size": 9}))


def test_a_worker_that_is_not_ours_reports(bench: Workbench, orchestrator: Orchestrator) -> None:
    outside = bench.resources.outside_workers
    problem = make_problem(bench, batch_size=1)
    add_data(bench, problem, b"a:1", b"c:3")
    algo, _ = add_algo(bench, problem)
    first, second = chain(bench, algo)
    assert outside.start(JobKind.LEARN, first.id, "go-worker")
    assert not outside.start(JobKind.LEARN, first.id, "another")
    assert not outside.start(JobKind.LEARN, second.id, "go-worker")  # it waits
    assert not outside.start(JobKind.PREDICT, first.id, "go-worker")
    assert bench.resources.runner.run(first.id) is None  # our own workers leave it alone
    scores = Scores(perf=0.75, test_perf={str(item): 0.75 for item in problem.test_data})
    with pytest.raises(InvalidInput, match=r"model_end: model .* not found in storage"):
        outside.end_learn(first.id, scores)
    upload = Upload(kind=ArtifactKind.MODEL, id=spec(first).model_end, algo=algo)
    bench.resources.artifacts.upload(upload, io.BytesIO(b"m"))
    assert outside.end_learn(first.id, scores)
    assert not outside.end_learn(first.id, scores)  # it is over
    first, second = chain(bench, algo)
    assert (first.state, second.state) == (JobState.SUCCEEDED, JobState.QUEUED)
    assert spec(second).model_start == spec(first).model_end
    assert outside.end_learn(second.id, None)
    assert chain(bench, algo)[1].state is JobState.FAILED
    assert orchestrator.submission(algo).stalled


def test_a_rank_is_done_again_whose_outside_worker_died_after_it_stored_a_model(
    bench: Workbench, orchestrator: Orchestrator
) -> None:
    outside = bench.resources.outside_workers
    problem = make_problem(bench, batch_size=1)
    add_data(bench, problem, b"a:1", b"c:3")
    algo, _ = add_algo(bench, problem)
    ordered, _ = chain(bench, algo)
    assert outside.start(JobKind.LEARN, ordered.id, "go-worker")
    stale = Upload(kind=ArtifactKind.MODEL, id=spec(ordered).model_end, algo=algo)
    bench.resources.artifacts.upload(stale, io.BytesIO(b"stale"))
    with bench.database.connect() as connection:
        connection.execute(update(JobRow).values(lease_expires_at=0.0))
        connection.commit()
    assert bench.resources.sweeper.recover_lost() == 1
    bench.publisher.published.append(ordered.id)
    run_published(bench)
    first, second = chain(bench, algo)
    assert (first.id, first.state, second.state) == (ordered.id, JobState.SUCCEEDED, JobState.SUCCEEDED)
    assert spec(first).model_end == first.result == spec(second).model_start
    assert first.result not in (None, stale.id)
    assert bench.read(ArtifactKind.MODEL, stale.id) == b"stale"
    assert spec(second).model_end == second.result
    assert not outside.end_learn(ordered.id, Scores(perf=1.0))  # it was not dead, only late


def test_a_job_of_a_worker_that_is_not_ours_is_cancelled_at_once(bench: Workbench, orchestrator: Orchestrator) -> None:
    problem = make_problem(bench)
    add_data(bench, problem, b"a:1")
    algo, _ = add_algo(bench, problem)
    (job,) = chain(bench, algo)
    assert bench.resources.outside_workers.start(JobKind.LEARN, job.id, "go-worker")
    cancelled = bench.resources.jobs.cancel(job.id)
    assert (cancelled.state, cancelled.attempts[0].outcome) == (JobState.CANCELLED, AttemptOutcome.CANCELLED)
    assert not bench.resources.outside_workers.end_learn(job.id, None)
    assert orchestrator.submission(algo).stalled
