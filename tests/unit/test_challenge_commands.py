"""The commands for problems, algos, data, submissions and predictions, on stand-ins for the services."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import pytest
from rich.console import Console

from morpheo.challenges import Problem, Submission
from morpheo.cli.chains import chain_table, make_chain
from morpheo.cli.common import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_JOB_FAILED, EXIT_TIMEOUT, EXIT_USAGE
from morpheo.cli.leaderboard import place_in_words
from morpheo.client import Entry, Leaderboard
from morpheo.disclosure import Disclosure, Logs
from morpheo.errors import ApiError, ApiUnavailable
from morpheo.models import CANCELLED, ArtifactKind, Blame, Cause, Failure, Job, JobKind, JobState
from morpheo.standings import Spread
from morpheo.testing import make_learn_spec
from tests.support.commands import Terminal
from tests.support.fake_clients import (
    NOW,
    FakeCompute,
    FakeOrchestrator,
    FakeStorage,
    make_learnuplet,
    make_preduplet,
    make_problem,
    make_submission,
)

BROKEN = Failure(cause=Cause.EXIT_CODE, blame=Blame.SUBMITTER, message="train ended with exit code 1; see its log")


class Services(Terminal):
    """What stands in for the three services, and a terminal to speak with them."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        super().__init__(capsys)
        self.storage = FakeStorage()
        self.orchestrator = FakeOrchestrator()
        self.compute = FakeCompute()

    def problem(self, name: str = "sleep", **changes: Any) -> Problem:
        """Register a problem."""
        workflow = self.storage.add(ArtifactKind.PROBLEM, name=name)
        self.orchestrator.known_problems.append(make_problem(workflow=workflow, name=name, **changes))
        return self.orchestrator.known_problems[-1]

    def submission(self, problem: Problem, **changes: Any) -> Submission:
        """Register an algo."""
        self.orchestrator.known_submissions.append(make_submission(problem, **changes))
        return self.orchestrator.known_submissions[-1]


@pytest.fixture
def services(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Services:
    made = Services(capsys)
    for name, client in (
        ("StorageClient", made.storage),
        ("OrchestratorClient", made.orchestrator),
        ("ComputeClient", made.compute),
    ):
        monkeypatch.setattr(f"morpheo.cli.common.{name}", lambda *_, client=client, **__: client)
    monkeypatch.setattr("morpheo.cli.waiting.FIRST_POLL_S", 0)
    return made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of an algo."""
    made = tmp_path / "forest"
    made.mkdir()
    (made / "Dockerfile").write_text('FROM morpheo/base:1\nENTRYPOINT ["algo"]\n')
    (made / "algo.py").write_text("print()\n")
    return made


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Three files of data."""
    made = [tmp_path / name for name in ("c.csv", "a.csv", "b.csv")]
    for path in made:
        path.write_text(path.name)
    return made


# What is meant


@pytest.mark.parametrize(
    "given",
    [lambda item: "sleep", lambda item: str(item.id)[:6], lambda item: str(item.id)],
    ids=["name", "beginning", "id"],
)
def test_a_problem_is_found_by_name_by_the_beginning_of_its_id_and_by_its_id(
    services: Services, given: Callable[[Problem], str]
) -> None:
    services.problem("apnea")
    meant = services.problem("sleep")
    submission = services.submission(meant)
    services.submission(services.orchestrator.known_problems[0])
    listed = services.run_json("algo", "ls", "--problem", given(meant))
    assert [item["algo"] for item in listed] == [str(submission.algo)]


def test_what_may_be_several_problems_is_an_error_that_lists_them(services: Services) -> None:
    first, second = services.problem("sleep"), services.problem("sleep")
    _, error = services.run("data", "ls", "--problem", "sleep", status=EXIT_FAILED)
    assert error == (f"Error: 'sleep' may be any of 2 problems: {first.id} (sleep), {second.id} (sleep); give the id\n")


@pytest.mark.parametrize(
    ("given", "hint"),
    [("abc12", " (of an id, give at least 6 letters)"), ("00000000", ""), ("sleepy", "")],
)
def test_a_problem_that_is_not_there_is_an_error_that_says_where_to_look(
    services: Services, given: str, hint: str
) -> None:
    services.problem("sleep", id=UUID("abc12345-0000-4000-8000-000000000000"))
    _, error = services.run("data", "ls", "--problem", given, status=EXIT_FAILED)
    expected = f"no problem is called '{given}', or has an id that begins so{hint}; see `morpheo problem ls`"
    assert error == f"Error: {expected}\n"


def test_an_unknown_id_is_refused_before_anything_is_uploaded(services: Services, folder: Path) -> None:
    unknown = uuid4()
    _, error = services.run("submit", folder, "--problem", unknown, status=EXIT_FAILED)
    assert error == f"Error: problem {unknown} not found\n"
    assert services.storage.stored == {}


# What is registered


def test_a_problem_is_uploaded_with_its_test_data_and_registered(
    services: Services, folder: Path, files: list[Path]
) -> None:
    stored = services.storage.add(ArtifactKind.DATA)
    tests = ("--test", files[0], "--test", stored)
    added = services.run_json("problem", "add", folder, *tests, "--batch-size", 3, "--lower-is-better", "--id", stored)
    (problem,) = services.orchestrator.known_problems
    assert added["id"] == str(problem.id) == str(stored)
    assert (problem.batch_size, problem.higher_is_better, problem.parallel_ranks) == (3, False, 1)
    archive, content = services.storage.stored[problem.workflow]
    assert (archive.kind, archive.name, content[:2]) == (ArtifactKind.PROBLEM, "forest", b"\x1f\x8b")
    assert services.storage.stored[problem.test_data[0]][1] == b"c.csv"
    assert problem.test_data[1] == stored


def test_what_goes_out_of_a_problem_is_said_when_it_is_added_and_later(services: Services, folder: Path) -> None:
    stored = services.storage.add(ArtifactKind.DATA)
    words = ("problem", "add", folder, "--test", stored, "--batch-size", 3)
    services.run(*words)
    services.run(
        *words, "--logs", "none", "--model-download", "--score-digits", 0, "--submissions-per-day", "unlimited"
    )
    first, second = (item.disclosure for item in services.orchestrator.known_problems)
    assert first == Disclosure()
    assert second == Disclosure(logs=Logs.NONE, model_download=True, score_digits=0, submissions_per_day=None)
    given = services.orchestrator.known_problems[1].id
    told, _ = services.run("problem", "set", given, "--logs", "all", "--submissions-per-day", 3, "--time-step", 600)
    assert told == f"problem {given}: submitters see logs, models, 0 digits; 3 algos a day\n"
    services.run("problem", "set", given, "--no-model-download")
    changed = services.orchestrator.known_problems[1].disclosure
    assert changed == Disclosure(logs=Logs.ALL, score_digits=0, submissions_per_day=3, time_step_s=600)


def test_problems_are_listed_with_what_is_in_them(services: Services) -> None:
    problem = services.problem("sleep", higher_is_better=False, batch_size=7)
    services.submission(problem)
    services.orchestrator.add_data([uuid4(), uuid4()], problems=[problem.id])
    listed, _ = services.run("problem", "ls")
    (row,) = [line.replace("│", " ").split() for line in listed.splitlines() if "sleep" in line]
    assert row == [str(problem.id)[:8], "sleep", "7", "lowest", "1", "2", "1", "cause"]
    (document,) = services.run_json("problem", "ls")
    assert (document["id"], document["name"], document["algos"], document["data"]) == (str(problem.id), "sleep", 1, 2)
    assert document["test_data"] == [str(problem.test_data[0])]


def test_a_submitter_needs_nothing_that_is_for_custodians(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = services.problem("sleep")
    submission = services.submission(problem)

    def refuse(*_args: object) -> None:
        raise ApiError("this takes the role custodian", status=403)

    monkeypatch.setattr(services.storage, "list", refuse)
    monkeypatch.setattr(services.orchestrator, "datasets", refuse)
    listed, _ = services.run("problem", "ls")
    (row,) = [line.replace("│", " ").split() for line in listed.splitlines() if "sleep" in line]
    assert row[4:6] == ["1", "-"]
    (document,) = services.run_json("problem", "ls")
    assert document["data"] is None
    for command in (("algo", "ls"), ("algo", "ls", "--problem", "sleep")):
        listed, _ = services.run(*command)
        assert submission.name in listed
        assert "sleep" in listed


def test_a_job_that_was_ordered_by_itself_is_tried_again_at_the_compute_api(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, again = make_learn_spec().id, make_learn_spec()

    def unknown(*_args: object) -> None:
        raise ApiError("not found", status=404)

    asked: list[UUID] = []

    def retry(job_id: UUID) -> SimpleNamespace:
        asked.append(job_id)
        return SimpleNamespace(id=again.id)

    monkeypatch.setattr(services.orchestrator, "retry", unknown)
    monkeypatch.setattr("morpheo.cli.algos.compute_client", lambda: SimpleNamespace(retry=retry))
    printed, _ = services.run("retry", job)
    assert (printed, asked) == (f"job {again.id}\n", [job])


def test_a_reader_lists_problems_without_what_is_not_for_them(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    services.problem("sleep")

    def refuse(*_args: object) -> None:
        raise ApiError("this takes the role custodian or submitter", status=403)

    for name in ("datasets", "submissions"):
        monkeypatch.setattr(services.orchestrator, name, refuse)
    listed, _ = services.run("problem", "ls")
    (row,) = [line.replace("│", " ").split() for line in listed.splitlines() if "sleep" in line]
    assert row[4:6] == ["-", "-"]
    (document,) = services.run_json("problem", "ls")
    assert (document["algos"], document["data"]) == (None, None)


def test_another_error_than_a_refusal_is_told(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise ApiError("internal error", status=500)

    monkeypatch.setattr(services.orchestrator, "datasets", fail)
    _, error = services.run("problem", "ls", status=EXIT_FAILED)
    assert "internal error" in error


def test_data_are_registered_at_once_in_the_order_given(services: Services, files: list[Path]) -> None:
    first, second = services.problem("sleep"), services.problem("apnea")
    services.orchestrator.trainings = 4
    stored = services.storage.add(ArtifactKind.DATA, b"stored")
    given = [files[0], stored, files[1]]
    printed, remarks = services.run("data", "add", *given, "--problem", "sleep", "--problem", second.id)
    ((_, (ids, problems)),) = services.orchestrator.asked
    assert [services.storage.stored[item][1] for item in ids] == [b"c.csv", b"stored", b"a.csv"]
    assert problems == [first.id, second.id]
    assert printed.splitlines() == [f"data {item} ({source})" for item, source in zip(ids, given, strict=True)]
    assert "trainings to come: 4" in remarks


def test_an_upload_that_breaks_leaves_nothing_registered_and_can_be_gone_on_with(
    services: Services, files: list[Path]
) -> None:
    services.problem("sleep")
    services.storage.breaking.add("a.csv")
    _, error = services.run("data", "add", *files, "--problem", "sleep", status=69)
    assert services.orchestrator.asked == []
    (uploaded,) = [item.id for item, _ in services.storage.stored.values() if item.kind is ArtifactKind.DATA]
    assert error.splitlines()[-3:] == [
        f"uploaded {files[0]} as {uploaded}",
        "nothing was registered; to try again, give these ids in place of the files",
        "Error: no answer from http://storage; is it running?",
    ]
    services.storage.breaking.clear()
    services.run("data", "add", uploaded, *files[1:], "--problem", "sleep")
    ((_, (ids, _)),) = services.orchestrator.asked
    assert ids[0] == uploaded


@pytest.mark.parametrize(
    ("refusal", "said", "status"),
    [
        (ApiError("problem is closed", status=400), "nothing was registered", EXIT_FAILED),
        (ApiError("internal error", status=500), "whether this was registered is not known", EXIT_FAILED),
        (ApiUnavailable("no answer"), "whether this was registered is not known", 69),
    ],
)
def test_a_lost_answer_is_not_called_a_refusal(
    services: Services, files: list[Path], refusal: Exception, said: str, status: int
) -> None:
    services.problem("sleep")
    services.orchestrator.refusal = refusal
    _, error = services.run("data", "add", files[0], "--problem", "sleep", status=status)
    assert f"{said}; to try again, give these ids in place of the files" in error


def test_data_that_cannot_be_meant_are_usage_errors(services: Services, files: list[Path], tmp_path: Path) -> None:
    services.problem("sleep")
    for given, complaint in (
        ([files[0], files[0]], "c.csv is given twice"),
        ([tmp_path], "is a folder; name its files"),
        (["nowhere.csv"], "'nowhere.csv' is neither a file nor the id of something stored"),
    ):
        _, error = services.run("data", "add", *given, "--problem", "sleep", status=EXIT_USAGE)
        assert complaint in error.replace("\n", " ")
    assert [item for item, _ in services.storage.stored.values() if item.kind is ArtifactKind.DATA] == []


def test_it_says_why_no_training_follows_from_data(services: Services, files: list[Path]) -> None:
    problem = services.problem("sleep")
    assert "there is no algo yet" in services.run("data", "add", files[0], "--problem", "sleep")[1]
    held_out = problem.test_data[0]
    services.orchestrator.held_out.append(held_out)
    assert "all of it is test data" in services.run("data", "add", held_out, "--problem", "sleep")[1]


def test_it_names_the_test_data_among_data(services: Services, files: list[Path]) -> None:
    problem = services.problem("sleep")
    again = services.storage.add(ArtifactKind.DATA, b"a test file")
    services.orchestrator.held_out.append(again)
    remarks = services.run("data", "add", files[0], again, "--problem", "sleep")[1].splitlines()
    assert remarks == [
        f"{again} is test data of sleep, by its content, and is never trained on there",
        "trainings to come: 0; there is no algo yet, or none of the data is new",
    ]
    document = services.run_json("data", "add", files[0], again, "--problem", "sleep")
    assert document["held_out"] == {str(problem.id): [str(again)]}


def test_data_are_listed_with_the_names_of_their_problems(services: Services) -> None:
    first, second = services.problem("sleep"), services.problem("apnea")
    both, one = uuid4(), uuid4()
    services.orchestrator.add_data([both], problems=[first.id, second.id])
    services.orchestrator.add_data([one], problems=[second.id])
    listed, _ = services.run("data", "ls")
    assert f"{both} │ sleep, apnea " in listed
    assert [item["id"] for item in services.run_json("data", "ls", "--problem", "sleep")] == [str(both)]


def test_an_algo_that_is_stored_is_registered_with_its_name(services: Services) -> None:
    services.problem("sleep")
    stored = services.storage.add(ArtifactKind.ALGO, name="forest")
    services.orchestrator.trainings = 2
    printed, remarks = services.run("algo", "add", stored, "--problem", "sleep")
    assert printed == f"algo {stored} (forest)\n"
    assert remarks == f"trainings to come: 2; see how they end with `morpheo algo follow {str(stored)[:8]}`\n"


def test_algos_are_listed_with_what_stalls_them_and_what_to_do(services: Services) -> None:
    problem = services.problem("sleep")
    done, stalled = services.submission(problem), services.submission(problem, name="swamp", stalled_by=uuid4())
    failed = make_learnuplet(stalled, 1, "failed", uuid=stalled.stalled_by, failure=BROKEN)
    services.orchestrator.looks = [
        [
            make_learnuplet(done, 0, "done", perf=0.5),
            make_learnuplet(done, 1, "done", perf=0.75),
            make_learnuplet(stalled, 0, "done", perf=0.25),
            failed,
            make_learnuplet(stalled, 2),
        ]
    ]
    listed, _ = services.run("algo", "ls")
    rows = [line.replace("│", " ").split() for line in listed.splitlines() if "│" in line]
    assert rows == [
        [str(done.algo)[:8], "forest", "sleep", "2", "of", "2", "0.7500", "(rank", "1)", "done"],
        [str(stalled.algo)[:8], "swamp", "sleep", "1", "of", "3", "0.2500", "(rank", "0)", "stalled"],
    ]
    assert listed.splitlines()[-2:] == [
        "swamp stopped at rank 1: EXIT_CODE (to blame: submitter): train ended with exit code 1; see its log",
        f"  to try again: morpheo retry {failed.uuid}",
    ]
    documents = services.run_json("algo", "ls")
    assert [(item["state"], item["done"], item["trainings"]) for item in documents] == [
        ("done", 2, 2),
        ("stalled", 1, 3),
    ]
    assert documents[1]["stopped_at"]["job"] == str(failed.uuid)


def test_names_of_others_neither_colour_nor_steer_the_terminal(services: Services) -> None:
    problem = services.problem("[red]sleep[/red]")
    services.submission(problem, name="\x1b[2Jforest")
    listed, _ = services.run("algo", "ls")
    assert "[red]sleep[/red]" in listed
    assert "\x1b" not in listed


def test_a_job_is_retried(services: Services) -> None:
    job = uuid4()
    printed, remarks = services.run("retry", job)
    assert printed == f"job {UUID(int=job.int + 1)}\n"
    assert f"takes the place of {job}" in remarks
    services.orchestrator.refusal = ApiError(f"job {job} is running", status=409)
    assert services.run("retry", job, status=EXIT_FAILED)[1] == f"Error: job {job} is running\n"


# What is followed


def scripted(services: Services, *looks: list[tuple[str, dict[str, Any]]]) -> tuple[Problem, list[UUID]]:
    """Let an algo that is submitted next have these states of its ranks, one list at each look."""
    problem = services.problem("sleep")
    nobody = make_submission(problem)
    jobs = [uuid4() for _ in looks[0]]
    services.orchestrator.looks = [
        [make_learnuplet(nobody, rank, state, uuid=jobs[rank], **words) for rank, (state, words) in enumerate(look)]
        for look in looks
    ]
    services.orchestrator.trainings = len(looks[0])
    return problem, jobs


WAITS: tuple[str, dict[str, Any]] = ("todo", {})
RUNS: tuple[str, dict[str, Any]] = ("pending", {})


def scored(perf: float) -> tuple[str, dict[str, Any]]:
    return "done", {"perf": perf}


def test_a_submission_is_followed_to_its_score_and_place(services: Services, folder: Path) -> None:
    _, jobs = scripted(
        services,
        [WAITS, WAITS],
        [RUNS, WAITS],
        [RUNS, WAITS],
        [scored(0.5), RUNS],
        [scored(0.5), scored(0.25)],
    )
    spec = make_learn_spec(id=jobs[0])
    services.compute.known[jobs[0]] = Job(
        id=jobs[0],
        kind=JobKind.LEARN,
        state=JobState.SUCCEEDED,
        spec=spec,
        created_at=NOW,
        started_at=NOW,
        ended_at=NOW + timedelta(seconds=2.5),
    )
    printed, remarks = services.run("submit", folder, "--problem", "sleep", "--wait")
    (algo,) = services.orchestrator.known_submissions
    model = services.orchestrator.learnuplets()[0].model_end
    assert printed.splitlines() == [
        f"algo {algo.algo} (forest)",
        f"score 0.5000 (rank 0, model {model})",
        "no place on the leaderboard yet",
    ]
    assert remarks.splitlines() == [
        "rank 0: queued",
        "rank 0: running",
        "rank 0: done, perf 0.5000, 2.5 s",
        "rank 1: running",
        "rank 1: done, perf 0.2500",
    ]


def test_without_waiting_it_says_how_to_follow(services: Services, folder: Path) -> None:
    scripted(services, [WAITS])
    printed, remarks = services.run("submit", folder, "--problem", "sleep", "--name", "oak")
    (algo,) = services.orchestrator.known_submissions
    assert printed == f"algo {algo.algo} (oak)\n"
    assert f"`morpheo algo follow {str(algo.algo)[:8]}`" in remarks
    _, error = services.run("submit", folder, "--problem", "sleep", "--timeout", 3, status=EXIT_USAGE)
    assert "give --wait, too" in error


def test_a_folder_without_a_dockerfile_is_not_uploaded(services: Services, folder: Path) -> None:
    services.problem("sleep")
    (folder / "Dockerfile").unlink()
    _, error = services.run("submit", folder, "--problem", "sleep", "--wait", status=EXIT_FAILED)
    assert "there is no Dockerfile at its root" in error
    assert error.count("\n") == 1
    assert services.orchestrator.asked == []


def test_a_chain_that_stalls_ends_with_the_failure_the_end_of_the_log_and_status_3(
    services: Services, folder: Path
) -> None:
    _, jobs = scripted(services, [RUNS, WAITS], [("failed", {"failure": BROKEN}), WAITS])
    services.compute.written[jobs[0]] = "".join(f"line {number}\n" for number in range(100))
    add = services.orchestrator.add_algo

    def add_stalled(algo: UUID, **values: Any) -> tuple[Submission, int]:
        made, count = add(algo, **values)
        services.orchestrator.known_submissions[:] = [replace(made, stalled_by=jobs[0])]
        return made, count

    services.orchestrator.add_algo = add_stalled  # type: ignore[method-assign]
    _, remarks = services.run("submit", folder, "--problem", "sleep", "--wait", status=EXIT_JOB_FAILED)
    assert "stopped at rank 0: EXIT_CODE (to blame: submitter): train ended with exit code 1" in remarks
    assert "  line 99\n" in remarks
    assert "  line 80\n" in remarks
    assert "line 79\n" not in remarks
    assert remarks.splitlines()[-1].endswith(f"morpheo retry {jobs[0]}")


def test_a_service_that_is_out_for_a_moment_does_not_end_the_following(services: Services, folder: Path) -> None:
    scripted(services, [RUNS], [scored(1.0)])
    outages = [ApiUnavailable("no answer"), ApiError("try again", status=503)]
    services.orchestrator.looks[1:1] = outages
    services.compute.down = True
    printed, remarks = services.run("submit", folder, "--problem", "sleep", "--wait")
    assert "score 1.0000" in printed
    assert "rank 0: done, perf 1.0000" in remarks


def test_a_service_that_stays_away_ends_the_following(
    services: Services, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("morpheo.cli.waiting.OUTAGE_S", 0)
    scripted(services, [RUNS])
    services.orchestrator.looks.append(ApiUnavailable("no answer from http://orchestrator; is it running?"))
    _, error = services.run("submit", folder, "--problem", "sleep", "--wait", status=69)
    assert error.splitlines()[-1] == "Error: no answer from http://orchestrator; is it running?"


def test_the_time_limit_ends_the_waiting_and_not_the_trainings(services: Services, folder: Path) -> None:
    scripted(services, [RUNS])
    _, remarks = services.run(
        "submit", folder, "--problem", "sleep", "--wait", "--timeout", "0.05", status=EXIT_TIMEOUT
    )
    (algo,) = services.orchestrator.known_submissions
    hint = f"Follow them again with `morpheo algo follow {str(algo.algo)[:8]}`"
    assert remarks.splitlines()[-1] == f"not over in time; the trainings go on. {hint}"


def test_ctrl_c_ends_the_waiting_and_not_the_trainings(
    services: Services, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pressed(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("morpheo.cli.waiting.time.sleep", pressed)
    scripted(services, [RUNS])
    _, remarks = services.run("submit", folder, "--problem", "sleep", "--wait", status=EXIT_INTERRUPTED)
    assert "not followed any longer; the trainings go on. Follow them again" in remarks


def test_an_algo_is_followed_by_its_name(services: Services) -> None:
    problem, _ = scripted(services, [scored(0.25), scored(0.75)])
    submission = services.submission(problem)
    for look in services.orchestrator.looks:
        assert isinstance(look, list)
        look[:] = [replace(item, algo=submission.algo) for item in look]
    document = services.run_json("algo", "follow", "forest")
    assert [(rank["number"], rank["state"], rank["perf"]) for rank in document["ranks"]] == [
        (0, "done", 0.25),
        (1, "done", 0.75),
    ]
    services.orchestrator.known_submissions.append(make_submission(problem, name="new"))
    assert "they come with the problem's first data" in services.run("algo", "follow", "new")[1]


# Chains


def test_a_retried_rank_counts_with_its_latest_job() -> None:
    submission = make_submission(make_problem())
    failed = make_learnuplet(submission, 0, "failed", failure=BROKEN)
    again = make_learnuplet(submission, 0, "done", perf=0.5)
    chain = make_chain([failed, make_learnuplet(submission, 1, "pending"), again], stalled_by=None)
    assert [(rank.job, rank.state) for rank in chain.ranks] == [(again.uuid, "done"), (chain.ranks[1].job, "running")]
    assert not chain.is_over
    assert chain.stopped_at is None


def test_a_stalled_chain_is_over_when_nothing_of_it_runs() -> None:
    submission = make_submission(make_problem())
    failed = make_learnuplet(submission, 0, "failed", failure=BROKEN)
    waits, runs = make_learnuplet(submission, 2), make_learnuplet(submission, 1, "pending")
    assert not make_chain([failed, runs, waits], stalled_by=failed.uuid).is_over
    over = make_chain([failed, waits], stalled_by=failed.uuid)
    assert over.is_over
    assert over.stopped_at
    assert over.stopped_at.job == failed.uuid
    assert not make_chain([failed, waits], stalled_by=None).is_over  # retried, or a cancelled rank that is left out
    assert not make_chain(
        [failed, replace(waits, state=JobState.QUEUED)], stalled_by=failed.uuid
    ).is_over  # ordered before that
    cancelled = replace(failed, state=JobState.CANCELLED, failure=CANCELLED)
    assert make_chain([cancelled, waits], stalled_by=failed.uuid).is_over


def test_a_cancelled_rank_is_called_so_and_an_empty_chain_is_over() -> None:
    submission = make_submission(make_problem())
    chain = make_chain(
        [make_learnuplet(submission, 0, "failed", state=JobState.CANCELLED, failure=CANCELLED)], stalled_by=None
    )
    assert [rank.state for rank in chain.ranks] == ["cancelled"]
    assert make_chain([], stalled_by=None).is_over


@pytest.mark.parametrize(("higher", "number"), [(True, 1), (False, 0)])
def test_the_best_rank_is_that_of_the_problems_direction_and_the_first_of_equals(higher: bool, number: int) -> None:
    problem = make_problem(higher_is_better=higher)
    submission = make_submission(problem)
    perfs = [0.25, 0.75, 0.75, 0.25, None]
    chain = make_chain(
        [make_learnuplet(submission, rank, "done", perf=perf) for rank, perf in enumerate(perfs)], stalled_by=None
    )
    best = chain.best(problem)
    assert best
    assert best.number == number


@pytest.mark.parametrize(("done", "first"), [(0, 0), (3, 0), (50, 45), (100, 90)])
def test_a_long_chain_is_shown_around_what_runs(done: int, first: int) -> None:
    submission = make_submission(make_problem())
    states = ["done"] * done + ["todo"] * (100 - done)
    chain = make_chain([make_learnuplet(submission, *item) for item in enumerate(states)], stalled_by=None)
    console = Console(width=80)
    with console.capture() as captured:
        console.print(chain_table(chain, max_rows=10))
    rows = [line.split()[1] for line in captured.get().splitlines() if "│" in line]
    assert rows == [str(number) for number in range(first, first + 10)]
    assert f"{done} of 100 done" in captured.get()


# Leaderboards


def scored_entry(place: int, span: tuple[int, int], **changes: Any) -> Entry:
    values: dict[str, Any] = {
        "algo": uuid4(),
        "name": f"algo {place}",
        "trainings": 4,
        "place": place,
        "range": span,
        "perf": 1 - place / 10,
        "rank": 2,
        "mean": 0.5,
        "interval": (0.25, 0.75),
        "spread": Spread(files=8, sd=0.125, min=0, median=0.5, max=1),
    }
    return Entry(**{**values, **changes})


@pytest.fixture
def board() -> Leaderboard:
    entries = (
        scored_entry(1, (1, 1)),
        scored_entry(2, (2, 3), name="[bold]forest\x1b"),
        scored_entry(3, (2, 3), interval=None, spread=None),
        Entry(algo=uuid4(), name="new"),
    )
    return Leaderboard(problem=uuid4(), higher_is_better=True, test_files=8, entries=entries)


def test_a_leaderboard_is_a_table_that_fits_a_terminal(services: Services, board: Leaderboard) -> None:
    services.problem("sleep")
    services.orchestrator.board = board
    printed, _ = services.run("leaderboard", "sleep")
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in printed.splitlines() if "│" in line]
    assert rows == [
        ["1", "algo 1", "0.9000", "0.2500 to 0.7500", "2", "4", "0.1250"],
        ["2-3", "[bold]forest", "0.8000", "0.2500 to 0.7500", "2", "4", "0.1250"],
        ["2-3", "algo 3", "0.7000", "-", "2", "4", "-"],
        ["-", "new", "-", "-", "-", "0", "-"],
    ]
    assert max(map(len, printed.splitlines())) <= 80
    assert "sleep, 8 test files" in printed
    assert services.run_json("leaderboard", "sleep")["entries"][1]["range"] == [2, 3]
    assert services.run("leaderboard", "sleep", "--csv")[0] == "place,name\r\n1,algo 1\r\n"
    _, error = services.run("leaderboard", "sleep", "--csv", "--json", status=EXIT_USAGE)
    assert "choose one of --csv and --json" in error


def test_a_place_says_what_it_cannot_be_told_apart_from(board: Leaderboard) -> None:
    first, second, _, new = board.entries
    assert place_in_words(board, first.algo) == "place 1 of 3"
    assert place_in_words(board, second.algo) == "place 2 of 3, cannot be told apart from 2-3"
    assert place_in_words(board, new.algo) == place_in_words(board, uuid4()) == "no place on the leaderboard yet"


# Predictions


def test_a_prediction_is_printed_as_it_is(services: Services, files: list[Path]) -> None:
    problem = services.problem("sleep")
    result = services.storage.add(ArtifactKind.PREDICTION, b"1\n0\n")
    ordered = make_preduplet()
    services.orchestrator.predictions = [
        ordered,
        replace(ordered, status="pending"),
        replace(ordered, status="done", prediction_storage_uuid=result),
    ]
    printed, _ = services.run("pred", files[0], "--problem", "sleep")
    assert printed == "1\n0\n"
    ((_, (data, asked, model)),) = services.orchestrator.asked
    assert (services.storage.stored[data][1], asked, model) == (b"c.csv", problem.id, None)


def test_a_prediction_that_is_no_text_does_not_go_to_a_terminal(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    done_at_once(services, b"\x00\x1b[2J")
    arguments = ("pred", uuid4(), "--problem", "sleep")
    assert services.run(*arguments)[0] == "\x00\x1b[2J"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    printed, _ = services.run(*arguments)
    assert "is no text (5 B); write it with --output" in printed


def done_at_once(services: Services, content: bytes = b"1\n") -> None:
    services.problem("sleep")
    result = services.storage.add(ArtifactKind.PREDICTION, content)
    services.orchestrator.predictions = [make_preduplet(status="done", prediction_storage_uuid=result)]


def test_a_prediction_is_written_to_a_new_file_only(services: Services, files: list[Path], tmp_path: Path) -> None:
    done_at_once(services)
    target, model = tmp_path / "out.csv", uuid4()
    arguments = ("pred", uuid4(), "--problem", "sleep", "--output", target)
    assert services.run(*arguments, "--model", model)[1] == f"prediction written to {target}\n"
    assert target.read_bytes() == b"1\n"
    assert services.orchestrator.asked[0][1][2] == model
    _, error = services.run(*arguments, status=EXIT_FAILED)
    assert error == f"Error: {target} exists; name another file, or give --force\n"
    assert len(services.orchestrator.asked) == 1
    target.write_text("older")
    services.run(*arguments, "--force")
    assert target.read_bytes() == b"1\n"


def test_a_prediction_that_fails_leaves_no_file_and_status_3(services: Services, tmp_path: Path) -> None:
    services.problem("sleep")
    failed = make_preduplet(status="failed", failure=BROKEN)
    services.orchestrator.predictions = [failed]
    services.compute.written[failed.uuid] = "no such column\n"
    target = tmp_path / "out.csv"
    arguments = ("pred", uuid4(), "--problem", "sleep", "--output", target)
    _, error = services.run(*arguments, status=EXIT_JOB_FAILED)
    assert "the prediction failed: EXIT_CODE (to blame: submitter)" in error
    assert "  no such column\n" in error
    assert f"morpheo retry {failed.uuid}" in error
    assert not target.exists()


def test_a_prediction_that_is_not_waited_for_is_told_by_its_job(services: Services) -> None:
    done_at_once(services)
    ordered = services.orchestrator.predictions[0]
    arguments = ("pred", uuid4(), "--problem", "sleep", "--no-wait")
    assert services.run(*arguments)[0] == f"job {ordered.uuid}\n"
    assert services.run_json(*arguments)["uuid"] == str(ordered.uuid)
    _, error = services.run(*arguments, "--output", "x", status=EXIT_USAGE)
    assert "leave out --no-wait" in error
    assert not Path("x").exists()


def test_a_prediction_that_nobody_can_write_is_not_ordered(services: Services, tmp_path: Path) -> None:
    done_at_once(services)
    target = tmp_path / "nowhere" / "out.csv"
    _, error = services.run("pred", uuid4(), "--problem", "sleep", "--output", target, status=EXIT_FAILED)
    assert error == f"Error: {target} cannot be written: No such file or directory\n"
    assert services.orchestrator.asked == []
