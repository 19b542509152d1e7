"""The leaderboard of chains that were really trained and scored, on a node with a fake engine, through its API."""

from __future__ import annotations

import csv
import io
import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import event, text

from morpheo.api.app import AT_START
from morpheo.api.leaderboard import LeaderboardSchema
from morpheo.api.orchestrator import create_orchestrator_app
from morpheo.challenges import Problem
from morpheo.client import Leaderboard
from morpheo.models import ArtifactKind, LearnSpec, Scores
from morpheo.orchestrator import Orchestrator
from morpheo.storage.database import Database
from morpheo.testing import make_learn_spec
from tests.support.workbench import ALGO, PROBLEM, Workbench, make_workbench

AUTH = ("u", "p")


@pytest.fixture
def bench(sqlite_url: str, tmp_path: Path) -> Workbench:
    return make_workbench(sqlite_url, tmp_path / "node")


def challenge(bench: Workbench, *names: str) -> Problem:
    """Register a problem with six test files and four train files in batches of two, and algos; train all of it."""
    orchestrator = bench.resources.orchestrator
    store, kinds = bench.store, ArtifactKind
    problem = orchestrator.register_problem(
        Problem(
            id=uuid4(),
            workflow=store(kinds.PROBLEM, PROBLEM, name="p", description="p"),
            test_data=tuple(store(kinds.DATA, each + b"\n") for each in b"a:1 b:2 c:3 d:4 e:5 f:0".split()),
            batch_size=2,
            created_at=datetime.now(UTC),
        )
    )
    data = [store(kinds.DATA, content) for content in (b"a:1", b"x:9", b"b:2", b"c:3")]
    orchestrator.register_data(data, problem_ids=[problem.id])
    for name in names:
        orchestrator.register_algo(store(kinds.ALGO, ALGO, name=name), name=name, problem_id=problem.id)
    return problem


def train(bench: Workbench) -> None:
    while bench.publisher.published:
        bench.resources.runner.run(bench.publisher.published.pop(0))


def get(bench: Workbench, path: str, **kwargs: Any) -> Any:
    return create_orchestrator_app(bench.resources).test_client().get(path, auth=AUTH, **kwargs)


def test_trained_chains_become_a_leaderboard(bench: Workbench) -> None:
    problem = challenge(bench, "one")
    path = f"/problem/{problem.id}/leaderboard"
    (waiting,) = get(bench, path).json["entries"]
    assert (waiting["name"], waiting["place"], waiting["perf"], waiting["trainings"]) == ("one", None, None, 0)
    train(bench)
    answer = get(bench, path)
    assert answer.content_type == "application/json"
    assert answer.json["problem"] == str(problem.id)
    assert (answer.json["higher_is_better"], answer.json["test_files"]) == (True, 6)
    (entry,) = answer.json["entries"]
    # It remembers "a" after two files, and "b" and "c" too after four; it guesses 0.
    assert entry["curve"] == {"ranks": [0, 1], "train_files": [2, 4], "perf": [0.333333, 0.666667]}
    assert (entry["perf"], entry["rank"], entry["trainings"], entry["mean"]) == (0.666667, 1, 2, 0.666667)
    assert entry["spread"] == {"files": 6, "sd": 0.516398, "min": 0.0, "median": 1.0, "max": 1.0}
    assert 0 <= entry["interval"][0] < 0.666667 < entry["interval"][1] <= 1
    assert (entry["place"], entry["range"]) == (1, [1, 1])
    bench.resources.orchestrator.register_algo(
        bench.store(ArtifactKind.ALGO, ALGO, name="two"), name="two", problem_id=problem.id
    )
    assert [item["place"] for item in get(bench, path).json["entries"]] == [1, None]
    train(bench)
    entries = get(bench, path).json["entries"]
    assert [(item["name"], item["place"], item["range"]) for item in entries] == [
        ("one", 1, [1, 2]),
        ("two", 1, [1, 2]),
    ]


def test_the_schemas_say_what_the_json_is(bench: Workbench) -> None:
    problem = challenge(bench, "one")
    for _ in range(2):
        document = get(bench, f"/problem/{problem.id}/leaderboard").json
        assert LeaderboardSchema().dump(LeaderboardSchema().load(document)) == document
        train(bench)
    described = get(bench, "/openapi.json").json["paths"]["/problem/{problem_id}/leaderboard"]["get"]
    assert described["responses"]["200"]["content"]["application/json"]["schema"]["$ref"].endswith("/Leaderboard")


def test_the_client_says_what_the_json_says(bench: Workbench) -> None:
    problem = challenge(bench, "one")
    for _ in range(2):
        board = bench.resources.orchestrator.leaderboard(problem.id)
        document = get(bench, f"/problem/{problem.id}/leaderboard").json
        assert vars(Leaderboard.from_json(document)) == vars(board)
        train(bench)


@pytest.mark.parametrize("query", [{"query_string": "format=csv"}, {"headers": {"Accept": "text/csv"}}])
def test_a_table_for_spreadsheets(bench: Workbench, query: dict[str, Any]) -> None:
    names = ['=HYPERLINK("http://x")', "+1", "-1", "@SUM(A1)", 'a, "b"\r\nc', "\t=1", "fair"]
    problem = challenge(bench, *names)
    train(bench)
    answer = get(bench, f"/problem/{problem.id}/leaderboard", **query)
    assert answer.content_type == "text/csv; charset=utf-8; header=present"
    assert "Accept" in answer.headers["Vary"]
    assert answer.text.splitlines()[0].startswith("place,first_place,last_place,algo,name,perf,rank,trainings,mean,")
    assert answer.text.endswith("\r\n")
    rows = list(csv.DictReader(io.StringIO(answer.text, newline="")))
    assert [row["name"] for row in rows] == ["'" + name for name in names[:4]] + [names[4], "'\t=1", "fair"]
    assert rows[6] | {"algo": ""} == {
        **dict.fromkeys(("place", "first_place", "rank"), "1"),
        "last_place": "7",
        "algo": "",
        "name": "fair",
        "perf": "0.666667",
        "trainings": "2",
        "mean": "0.666667",
        "interval_low": rows[0]["interval_low"],
        "interval_high": rows[0]["interval_high"],
        "files": "6",
        "sd": "0.516398",
        "min": "0.0",
        "median": "1.0",
        "max": "1.0",
    }


def test_a_table_of_algos_without_a_score_has_empty_cells(bench: Workbench) -> None:
    problem = challenge(bench, "one")
    text = get(bench, f"/problem/{problem.id}/leaderboard?format=csv").text
    algo = bench.resources.orchestrator.submissions(problem.id)[0].algo
    assert text.splitlines()[1] == f",,,{algo},one,,,0" + "," * 8


def test_what_is_asked_for_decides(bench: Workbench) -> None:
    path = f"/problem/{challenge(bench).id}/leaderboard"
    for accept in ("*/*", "application/json", "text/csv;q=0.5, application/json", "image/png"):
        assert get(bench, path, headers={"Accept": accept}).content_type == "application/json", accept
    assert get(bench, path + "?format=json", headers={"Accept": "text/csv"}).content_type == "application/json"
    assert get(bench, path + "?format=xml").status_code == 400
    assert get(bench, path + "?fromat=csv").status_code == 400


@pytest.mark.parametrize("name", [str(UUID(int=7)), "7"])
def test_an_unknown_problem_is_not_found(bench: Workbench, name: str) -> None:
    answer = get(bench, f"/problem/{name}/leaderboard")
    assert (answer.status_code, answer.json["Error"]) == (404, f"problem {name} not found")


def test_an_unchanged_leaderboard_is_not_computed_again(bench: Workbench) -> None:
    problem = challenge(bench, "one")
    train(bench)
    statements: list[str] = []
    event.listen(bench.database.engine, "before_cursor_execute", lambda *given: statements.append(given[2]))
    first = bench.resources.orchestrator.leaderboard(problem.id)
    assert any("scores" in statement for statement in statements)
    statements.clear()
    assert bench.resources.orchestrator.leaderboard(problem.id) is first
    assert not any("scores" in statement or "perf, " in statement for statement in statements)


def test_leaderboards_are_made_when_a_service_starts(bench: Workbench) -> None:
    problem = challenge(bench, "one")
    train(bench)
    app = create_orchestrator_app(bench.resources)
    app.extensions[AT_START]()
    statements: list[str] = []
    event.listen(bench.database.engine, "before_cursor_execute", lambda *given: statements.append(given[2]))
    answer: Any = app.test_client().get(f"/problem/{problem.id}/leaderboard", auth=AUTH)
    assert answer.json["entries"][0]["trainings"] == 2
    assert statements
    assert not any("scores" in statement for statement in statements)


def test_a_service_starts_without_a_database(bench: Workbench, caplog: pytest.LogCaptureFixture) -> None:
    with bench.database.engine.begin() as connection:
        connection.execute(text("ALTER TABLE problems RENAME TO gone"))
    create_orchestrator_app(bench.resources).extensions[AT_START]()
    assert "leaderboards are not made" in caplog.text


def test_a_leaderboard_that_has_grown_is_as_if_read_anew(bench: Workbench) -> None:
    problem = challenge(bench, "one", "two")
    orchestrator = bench.resources.orchestrator
    for _ in range(4):
        bench.resources.runner.run(bench.publisher.published.pop(0))
        assert orchestrator.leaderboard(problem.id) == Orchestrator(bench.database).leaderboard(problem.id)
    orchestrator.register_algo(bench.store(ArtifactKind.ALGO, ALGO, name="x"), name="x", problem_id=problem.id)
    assert orchestrator.leaderboard(problem.id) == Orchestrator(bench.database).leaderboard(problem.id)
    train(bench)
    assert orchestrator.leaderboard(problem.id) == Orchestrator(bench.database).leaderboard(problem.id)
    assert [entry.trainings for entry in orchestrator.leaderboard(problem.id).entries] == [2, 2, 2]


def end(database: Database, spec: LearnSpec, scores: Scores) -> None:
    with database.begin() as work:
        work.jobs.add(spec, algo=spec.algo, planned=True)
        claimed = work.jobs.claim(spec.id, worker="w", lease_s=60, max_attempts=3)
        assert claimed is not None
        assert work.jobs.succeed(spec.id, claimed.attempt, scores, result=spec.model_end)


def test_the_database_gives_the_trained_ranks_of_a_problem_and_scores_of_some(database: Database) -> None:
    problem, algo, other = uuid4(), uuid4(), uuid4()
    with database.begin() as work:
        template = make_learn_spec()
        test_data = tuple(map(str, template.test_data))
        for name in (problem, other):
            work.challenges.add_problem(
                Problem(
                    id=name, workflow=uuid4(), test_data=template.test_data, batch_size=2, created_at=datetime.now(UTC)
                )
            )
        work.challenges.add_submission(algo, problem, "a")
    specs = [make_learn_spec(problem=problem, algo=algo, rank=rank, model_start=uuid4()) for rank in (2, 0)]
    for spec in specs:
        end(database, spec, Scores(perf=0.1 * spec.rank, test_perf={**dict.fromkeys(test_data, 0.25), "another": 9.0}))
    with database.begin() as work:
        work.jobs.add(make_learn_spec(problem=problem, algo=algo, rank=5, model_start=uuid4()), algo=algo, planned=True)
    with database.read() as work:
        (chain,) = work.leaderboard.chains(problem)
        assert (chain.algo, chain.name, list(chain.ranks), list(chain.perf)) == (algo, "a", [0, 2], [0.0, 0.2])
        assert [UUID(job) for job in chain.jobs] == [specs[1].id, specs[0].id]
        assert list(chain.train_files) == [len(specs[0].train_data)] * 2
        assert work.leaderboard.trained(problem) == {chain.algo.hex: 2}
        assert work.leaderboard.chains(problem, [chain.algo.hex]) == [chain]
        assert work.leaderboard.chains(problem, [uuid4().hex]) == []
        assert (work.leaderboard.chains(other), work.leaderboard.trained(other)) == ([], {})
        ((job, read),) = work.leaderboard.test_perf([chain.jobs[1]], [uuid4(), *template.test_data]).items()
        assert (job, math.isnan(read[0]), list(read[1:])) == (chain.jobs[1], True, [0.25] * len(test_data))
        assert work.leaderboard.test_perf([], template.test_data) == {}
