"""
What goes out of a problem: hostile submissions that use what their submitter may see, on a node with a fake engine.

The numbers are those of the cases of ``trust`` 2: 18, 20 to 25.
"""

from __future__ import annotations

import json
import logging
import re
import secrets
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import text

from morpheo.access import Principal, Role
from morpheo.api.compute import create_compute_app
from morpheo.api.orchestrator import create_orchestrator_app
from morpheo.api.storage import create_storage_app
from morpheo.config import Settings
from morpheo.disclosure import MAX_LINE
from morpheo.errors import TooMany
from morpheo.logs import JsonLines, TextLines, make_redact
from morpheo.models import ArtifactKind, Job, JobKind
from morpheo.orchestrator import Orchestrator
from morpheo.resources import Resources
from morpheo.storage.database import Database
from morpheo.testing import FakeContainer, make_archive
from tests.support.api import Service, basic, calling, form
from tests.support.workbench import ALGO, PROBLEM, Program, Workbench, algo, flag, make_workbench, problem

CLEO = Principal(name="cleo", roles=frozenset({Role.CUSTODIAN}))
CARL = Principal(name="carl", roles=frozenset({Role.CUSTODIAN}))
SAM = Principal(name="sam", roles=frozenset({Role.SUBMITTER}))
EVE = Principal(name="eve", roles=frozenset({Role.SUBMITTER}))
ADA = Principal(name="ada", roles=frozenset({Role.ADMIN}))
Create = Callable[[Resources], Flask]
BROKEN = make_archive({"Dockerfile": 'FROM morpheo/base:1\nRUN false\nENTRYPOINT ["algo"]\n'})
#: A number with digits that nobody should see.
PERF = 0.1234567890123


class Site:
    """A node, and its services as different people see them."""

    def __init__(self, bench: Workbench) -> None:
        self.bench = bench
        self._clients: dict[tuple[Create, str], FlaskClient] = {}

    def ask(self, who: Principal, path: str, *, method: str = "GET", **kwargs: Any) -> Any:
        """Send a request to the service that has such a route."""
        create: Create = create_orchestrator_app
        if path.startswith("/jobs"):
            create = create_compute_app
        elif path.startswith("/model") or (path.startswith("/prediction") and method != "POST"):
            create = create_storage_app
        if (create, who.name) not in self._clients:
            client = FlaskClient(calling(create(self.bench.resources), who))
            client.environ_base["HTTP_AUTHORIZATION"] = basic("u", "p")
            self._clients[create, who.name] = client
        return self._clients[create, who.name].open(path, method=method, **kwargs)

    def register(self, *, data: bytes = b"a:1", test: tuple[bytes, ...] = (b"a:1\n", b"c:3\n"), **settings: Any) -> str:
        """Register a problem of Cleo's with one batch of data; return its id."""
        store, kinds = self.bench.store, ArtifactKind
        body = {
            "uuid": str(uuid4()),
            "workflow": str(store(kinds.PROBLEM, PROBLEM, name="p", description="p", by=CLEO)),
            "test_dataset": [str(store(kinds.DATA, content, by=CLEO)) for content in test],
            "size_train_dataset": 1,
            **settings,
        }
        assert self.ask(CLEO, "/problem", method="POST", json=body).status_code == 201
        batch = {"uuid": str(store(kinds.DATA, data, by=CLEO)), "problems": body["uuid"]}
        assert self.ask(CLEO, "/data", method="POST", json=batch).status_code == 201
        return str(body["uuid"])

    def submit(self, problem_id: str, who: Principal = SAM, archive: bytes = ALGO) -> Any:
        """Let somebody's algo take part."""
        stored = str(self.bench.store(ArtifactKind.ALGO, archive, name="a", by=who))
        return self.ask(who, "/algo", method="POST", json={"uuid": stored, "name": "a", "problem": problem_id})

    def trained(self, problem_id: str, who: Principal = SAM, archive: bytes = ALGO) -> dict[str, Any]:
        """Let somebody's algo take part and train it; return its first learnuplet as its owner sees it."""
        answer = self.submit(problem_id, who, archive)
        assert answer.status_code == 201, answer.text
        self.work()
        return self.uplet(who, answer.json["new_algo"]["uuid"])

    def uplet(self, who: Principal, algo_id: str) -> dict[str, Any]:
        """Return the first learnuplet of an algo as somebody sees it."""
        found: dict[str, Any] = self.ask(who, f"/learnuplet?algo={algo_id}").json["learnuplets"][0]
        return found

    def work(self) -> None:
        """Do what is queued."""
        while self.bench.publisher.published:
            self.bench.resources.runner.run(self.bench.publisher.published.pop(0))

    def seen(self, who: Principal, problem_id: str, uplet: dict[str, Any]) -> str:
        """Return all that the services answer somebody about a training, with the headers."""
        job, model = uplet["uuid"], uplet["model_end"]
        paths = [
            *("/problem", f"/problem/{problem_id}", "/algo", "/data", "/learnuplet", f"/learnuplet/{job}"),
            *("/preduplet", f"/problem/{problem_id}/leaderboard", f"/problem/{problem_id}/leaderboard?format=csv"),
            *(
                "/jobs",
                f"/jobs/{job}",
                f"/jobs/{job}/logs",
                f"/jobs/{job}/logs?attempt=1",
                f"/jobs/{job}/logs?follow=1",
            ),
            *("/model", f"/model/{model}", f"/model/{model}/blob", "/prediction"),
        ]
        answers = [self.ask(who, path) for path in paths]
        assert {answer.status_code for answer in answers} <= {200, 403, 404}
        return "\n".join(f"{answer.headers}\n{answer.get_data(as_text=True)}" for answer in answers)


@pytest.fixture
def site(sqlite_url: str, tmp_path: Path) -> Site:
    return Site(make_workbench(sqlite_url, tmp_path / "node"))


def failing(*printed: bytes, code: int = 7) -> Program:
    """Return an algo that prints its train data, and other bytes, and fails."""

    def program(container: FakeContainer) -> int:
        for path in container.path(f"{flag(container, '-V')}/train").iterdir():
            if path.is_file():
                container.log.write(path.read_bytes() + b"\n")
        for content in printed:
            container.log.write(content)
        return code

    return program


@pytest.fixture
def canary() -> str:
    return secrets.token_hex(16)


# 20. Logs


@pytest.mark.parametrize("logs", ["none", "cause"])
def test_20_what_an_algo_prints_reaches_the_custodian_and_not_the_submitter(site: Site, canary: str, logs: str) -> None:
    site.bench.programs["algo"] = failing()
    problem_id = site.register(data=f"a:{canary}".encode(), logs=logs)
    uplet = site.trained(problem_id)
    assert uplet["status"] == "failed"
    assert canary not in site.seen(SAM, problem_id, uplet)
    job = f"/jobs/{uplet['uuid']}"
    for path in (f"{job}/logs", f"{job}/logs?attempt=1", f"{job}/logs?follow=1"):
        answer = site.ask(SAM, path)
        assert answer.status_code == 403
        assert "for its custodian" in answer.json["error"]
        assert canary in site.ask(CLEO, path).text  # the raw log is always kept for the custodian
        assert canary in site.ask(ADA, path).text
        assert site.ask(CARL, path).status_code == 403  # the custodian of another problem
    assert canary in site.ask(CLEO, job).json["failure"]["message"]
    document = site.ask(SAM, job).json
    steps = {step["name"]: step for step in document["attempts"][0]["steps"]}
    if logs == "none":
        assert (uplet["failure"], document["failure"], steps) == (None, None, {})
    else:
        assert (uplet["failure"]["cause"], uplet["failure"]["step"]) == ("EXIT_CODE", "train")
        assert steps["train"]["exit_code"] == 7


def test_20_everything_is_what_the_algo_printed_and_never_what_the_problem_did(site: Site, canary: str) -> None:
    def talking(container: FakeContainer) -> int:
        for path in container.path(f"{flag(container, '-i')}/test").iterdir():
            if path.is_file():
                container.print(path.read_text())
        return problem(container)

    hidden = secrets.token_hex(16)
    site.bench.programs["problem"] = talking
    site.bench.programs["algo"] = lambda container: failing(code=0)(container) or algo(container)
    problem_id = site.register(data=f"a:{canary}".encode(), test=(f"a:{hidden}\n".encode(),), logs="all")
    uplet = site.trained(problem_id)
    assert uplet["status"] == "done"
    seen = site.seen(SAM, problem_id, uplet)
    assert canary in seen
    assert hidden not in seen
    for path in (f"/jobs/{uplet['uuid']}/logs", f"/jobs/{uplet['uuid']}/logs?follow=1"):
        assert hidden in site.ask(CLEO, path).text


def test_20_a_problem_that_fails_is_told_to_its_custodian(site: Site, canary: str) -> None:
    def broken(container: FakeContainer) -> int:
        if flag(container, "-T") == "detarget":
            return problem(container)
        container.print(f"Traceback: target {canary}")
        return 1

    site.bench.programs["problem"] = broken
    problem_id = site.register(logs="all")
    uplet = site.trained(problem_id)
    assert canary not in site.seen(SAM, problem_id, uplet)
    assert uplet["failure"]["message"] == (
        "perf: the problem's own image failed; its custodian has the log; ask them (exit code 1)"
    )
    assert canary in site.ask(CLEO, f"/jobs/{uplet['uuid']}/logs").text


def test_20_settings_change_what_is_seen_of_what_was_before(site: Site, canary: str) -> None:
    site.bench.programs["algo"] = failing()
    problem_id = site.register(data=f"a:{canary}".encode())
    uplet = site.trained(problem_id)
    path = f"/problem/{problem_id}"
    for who in (SAM, CARL):
        refused = site.ask(who, path, method="PATCH", json={"logs": "all"})
        assert refused.status_code == 403
    assert canary not in site.seen(SAM, problem_id, uplet)
    changed = site.ask(CLEO, path, method="PATCH", json={"logs": "all"})
    assert (changed.status_code, changed.json["logs"], changed.json["score_digits"]) == (200, "all", 6)
    assert canary in site.seen(SAM, problem_id, uplet)
    assert site.ask(CLEO, path, method="PATCH", json={"logs": "none"}).status_code == 200
    assert canary not in site.seen(SAM, problem_id, uplet)


def test_20_an_order_that_only_names_a_lenient_problem_is_not_of_it(site: Site, canary: str) -> None:
    lenient = site.register(logs="all")
    site.bench.programs["algo"] = failing()
    data = site.bench.store(ArtifactKind.DATA, f"a:{canary}".encode(), by=CLEO)
    spec = site.bench.learn_spec(problem=UUID(lenient), train_data=(data,))
    job = site.bench.resources.jobs.submit(spec)
    site.work()
    for who in (SAM, CLEO):
        assert site.ask(who, f"/jobs/{job.id}/logs").status_code == 403
        assert canary not in site.ask(who, f"/jobs/{job.id}").text
    assert canary in site.ask(ADA, f"/jobs/{job.id}/logs").text


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"logs": "some"}, "logs"),
        ({"logs": ["all"]}, "logs"),
        ({"model_download": "yes"}, "model_download"),
        ({"score_digits": -1}, "score_digits"),
        ({"score_digits": 16}, "score_digits"),
        ({"score_digits": 2.5}, "score_digits"),
        ({"submissions_per_day": 0}, "submissions_per_day"),
        ({"time_step_s": 0}, "time_step_s"),
        ({"size_train_dataset": 3}, "size_train_dataset"),
    ],
)
def test_settings_that_cannot_be_are_refused(site: Site, change: dict[str, Any], field: str) -> None:
    problem_id = site.register()
    before = site.ask(CLEO, f"/problem/{problem_id}").json
    answer = site.ask(CLEO, f"/problem/{problem_id}", method="PATCH", json=change)
    assert (answer.status_code, answer.json["field"]) == (400, field)
    assert site.ask(CLEO, f"/problem/{problem_id}").json == before


def test_a_problem_that_is_not_there_cannot_be_changed(site: Site) -> None:
    for name in (str(uuid4()), "x", "%00"):
        assert site.ask(ADA, f"/problem/{name}", method="PATCH", json={"logs": "all"}).status_code == 404


# 21. Injection

HOSTILE = (
    b"\x1b[2J\x1b]0;owned\x07\r\n2026-01-01 00:00:00,000 CRITICAL morpheo forged\n",
    b'{"level": "CRITICAL", "message": "forged"}\n==> perf <==\n</script><script>alert(1)</script>\n',
    b"\xff\xfe\x80 not UTF-8 \x00\x00 NUL \xe2\x80\xae turned\n",
    b"L" * (1 << 20) + b"\nlast words\n",
)


@pytest.fixture
def worker_log(caplog: pytest.LogCaptureFixture) -> Iterator[list[tuple[str, str]]]:
    """What is logged meanwhile, as text and as JSON."""
    lines: list[tuple[str, str]] = []
    caplog.set_level(logging.DEBUG, logger="morpheo")
    redact = make_redact(Settings())
    forms = TextLines(redact), JsonLines(redact)
    handler = logging.Handler()
    handler.emit = lambda record: lines.append((forms[0].format(record), forms[1].format(record)))  # type: ignore[method-assign]
    logging.getLogger().addHandler(handler)
    yield lines
    logging.getLogger().removeHandler(handler)


def test_21_what_a_submitter_sees_of_a_log_is_harmless_text(site: Site, worker_log: list[tuple[str, str]]) -> None:
    site.bench.programs["algo"] = failing(*HOSTILE)
    problem_id = site.register(logs="all")
    uplet = site.trained(problem_id)
    path = f"/jobs/{uplet['uuid']}/logs"
    whole = site.ask(SAM, path)
    assert whole.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert whole.headers["X-Content-Type-Options"] == "nosniff"
    assert all(letter.isprintable() or letter in "\n\t" for letter in whole.text)
    assert max(map(len, whole.text.splitlines())) < MAX_LINE + 100
    assert "last words" in whole.text
    headings = re.findall(r"^==> (\w+) <==$", whole.text, re.MULTILINE)
    assert headings == ["build_algo", "train"]
    events = site.ask(SAM, f"{path}?follow=1").data
    texts = [json.loads(line[6:]).get("text", "") for line in events.splitlines() if line.startswith(b"data: ")]
    assert all(letter.isprintable() or letter in "\n\t" for line in texts for letter in line)
    assert "last words" in "".join(texts)
    message = uplet["failure"]["message"]
    assert all(letter.isprintable() or letter in "\n\t" for letter in message)
    assert all("\n" not in as_json and json.loads(as_json) for _, as_json in worker_log)
    assert worker_log
    assert not any("forged" in line for lines in worker_log for line in lines)


@pytest.mark.parametrize("logs", ["none", "cause", "all"])
def test_21_the_raw_log_is_kept_byte_by_byte(site: Site, logs: str) -> None:
    site.bench.programs["algo"] = failing(*HOSTILE[:3])
    uplet = site.trained(site.register(logs=logs))
    stored = [site.bench.blobs._blobs[blob.key][0] for blob in site.bench.blobs.list(f"logs/{uplet['uuid']}/")]
    assert any(b"".join(HOSTILE[:3]) in content for content in stored)
    shown = site.ask(CLEO, f"/jobs/{uplet['uuid']}/logs").data
    assert b"".join(HOSTILE[:2]) in shown


# 22. Exit code and cause


def strange_file(container: FakeContainer) -> int:
    done = algo(container)
    volume = flag(container, "-V")
    train = next(path for path in container.path(f"{volume}/train").iterdir() if path.is_file())
    container.write(f"{volume}/test/pred/{train.read_text().partition(':')[2]}", b"x")
    return done


def strange_model(container: FakeContainer) -> int:
    done = algo(container)
    volume = flag(container, "-V")
    train = next(path for path in container.path(f"{volume}/train").iterdir() if path.is_file())
    container.path(f"{volume}/model").joinpath(f"{train.read_text().partition(':')[2]}\x07").symlink_to("/etc/passwd")
    return done


@pytest.mark.parametrize(
    ("program", "cause"),
    [(failing(code=1), "EXIT_CODE"), (strange_file, "BAD_OUTPUT"), (strange_model, "BAD_OUTPUT")],
    ids=["log", "prediction", "model"],
)
def test_22_no_word_of_a_container_is_in_a_failure(site: Site, canary: str, program: Program, cause: str) -> None:
    site.bench.programs["algo"] = program
    problem_id = site.register(data=f"a:{canary}".encode())
    uplet = site.trained(problem_id)
    assert uplet["failure"]["cause"] == cause
    assert canary not in site.seen(SAM, problem_id, uplet)
    assert canary in site.uplet(CLEO, uplet["algo"])["failure"]["message"]


def test_22_a_build_that_fails_is_told_without_its_log(site: Site) -> None:
    problem_id = site.register()
    uplet = site.trained(problem_id, archive=BROKEN)
    assert uplet["failure"]["cause"] == "BUILD_FAILED"
    assert "returned a non-zero code" not in site.seen(SAM, problem_id, uplet)
    assert "returned a non-zero code" in site.uplet(CLEO, uplet["algo"])["failure"]["message"]


def test_22_what_an_attempt_says_of_infrastructure_is_for_insiders(site: Site) -> None:
    problem_id = site.register()
    site.bench.runtime.down = True
    algo_id = site.submit(problem_id).json["new_algo"]["uuid"]
    site.bench.resources.runner.run(site.bench.publisher.published.pop(0))
    site.bench.runtime.down = False
    uplet = site.uplet(SAM, algo_id)
    attempts = {who: site.ask(who, f"/jobs/{uplet['uuid']}").json["attempts"] for who in (SAM, CLEO)}
    assert [attempt["message"] for attempt in attempts[SAM]] == [""] * len(attempts[CLEO])
    assert attempts[CLEO][0]["message"] == "no container engine answers"


# 18. Predictions that nobody asked for


def test_18_a_prediction_for_data_that_nobody_asked_for_is_refused(site: Site) -> None:
    def nosy(container: FakeContainer) -> int:
        done = algo(container)
        container.write(f"{flag(container, '-V')}/test/pred/{uuid4()}", b"x")
        return done

    problem_id = site.register()
    model = site.trained(problem_id)["model_end"]
    site.bench.programs["algo"] = nosy
    job = predicted(site, problem_id)
    assert (job["status"], job["failure"]["cause"]) == ("failed", "BAD_OUTPUT")
    stored = site.ask(ADA, "/prediction").json["items"]
    assert stored == []
    assert model == site.ask(ADA, "/model").json["items"][0]["uuid"]


def test_18_a_worker_cannot_report_the_prediction_of_another_job(site: Site) -> None:
    problem_id = site.register()
    site.trained(problem_id)
    first = predicted(site, problem_id)["prediction_storage_uuid"]
    data = str(site.bench.store(ArtifactKind.DATA, b"b", by=CLEO))
    order = site.ask(ADA, "/prediction", method="POST", json={"data": data, "problem": problem_id}).json
    site.bench.publisher.published.clear()
    done = {"status": "done", "prediction_storage_uuid": first}
    answer = site.ask(ADA, f"/preddone/{order['uuid']}", method="POST", json=done)
    assert (answer.status_code, answer.json["field"]) == (400, "prediction_storage_uuid")
    assert site.ask(ADA, f"/preduplet/{order['uuid']}").json["prediction_storage_uuid"] is None


def predicted(site: Site, problem_id: str) -> dict[str, Any]:
    """Order a prediction, and do it."""
    data = str(site.bench.store(ArtifactKind.DATA, b"a", by=CLEO))
    order = site.ask(ADA, "/prediction", method="POST", json={"data": data, "problem": problem_id}).json
    site.work()
    job: dict[str, Any] = site.ask(ADA, f"/preduplet/{order['uuid']}").json
    return job


@pytest.mark.parametrize("kind", [ArtifactKind.MODEL, ArtifactKind.PREDICTION])
def test_19_uploads_have_the_limits_of_outputs(sqlite: Database, kind: ArtifactKind) -> None:
    service = Service(create_storage_app, sqlite, model_bytes=10_000, model_files=1, prediction_bytes=20_000)
    algo_id = service.add_artifact(ArtifactKind.ALGO).id
    words = {"algo": str(algo_id)} if kind is ArtifactKind.MODEL else {}
    before = service.stored()
    raw = {"query_string": words, "content_type": "application/octet-stream"}
    answers = [service.post(f"/{kind}", data=b"x" * 20_001, **raw)]
    if kind is ArtifactKind.PREDICTION:
        answers.append(service.post(f"/{kind}", **form({"size": 20_001, "blob": b"x" * 20_001})))
    for answer in answers:
        assert (answer.status_code, answer.json["field"]) == (413, "blob")
    assert service.stored() == before
    assert service.post(f"/{kind}", data=b"x" * 10_000, **raw).status_code == 201


# 23. Durations and scores


def scoring(values: list[float]) -> Program:
    """Return a problem whose scores are given, one for each training, and somewhat different for each file."""

    def program(container: FakeContainer) -> int:
        if flag(container, "-T") == "detarget":
            return problem(container)
        hidden, submission = flag(container, "-i"), flag(container, "-s")
        test = sorted(path.name for path in container.path(f"{hidden}/test").iterdir() if path.is_file())
        train = sorted(path.name for path in container.path(f"{submission}/train").iterdir() if path.is_file())
        perf = values.pop(0)
        document = {
            "perf": perf,
            "test_perf": {name: perf + 0.01 * place for place, name in enumerate(test)},
            "train_perf": dict.fromkeys(train, perf),
        }
        container.write(f"{hidden}/perf/performance.json", json.dumps(document).encode())
        return 0

    return program


TESTS = tuple(f"{x}:{x}\n".encode() for x in "abcdefg")


def test_23_no_digit_of_a_score_goes_out_that_is_not_published(site: Site) -> None:
    site.bench.programs["problem"] = scoring([PERF])
    problem_id = site.register(test=TESTS, score_digits=2)
    uplet = site.trained(problem_id)
    assert uplet["perf"] == 0.12
    assert sorted(uplet["test_perf"].values()) == [0.12, 0.13, 0.14, 0.15, 0.16, 0.17, 0.18]
    seen = site.seen(SAM, problem_id, uplet)
    without_ids = re.sub(r"[0-9a-f]{8}-[0-9a-f-]{27}|[0-9a-f]{32,}", "", seen)
    assert not re.search(r"0\.\d{3}", without_ids), re.search(r".{30}0\.\d{3}.{30}", without_ids)
    assert site.uplet(CLEO, uplet["algo"])["perf"] == PERF
    (entry,) = site.ask(SAM, f"/problem/{problem_id}/leaderboard").json["entries"]
    assert (entry["perf"], entry["curve"]["perf"], entry["mean"]) == (0.12, [0.12], 0.15)
    assert (entry["spread"]["min"], entry["spread"]["median"], entry["spread"]["max"]) == (0.12, 0.15, 0.18)


def test_23_places_and_ranks_tell_nothing_of_digits_that_are_not_published(site: Site) -> None:
    # Later ones are better by what is not published: neither the order nor the best rank may tell.
    site.bench.programs["problem"] = scoring([0.501, 0.502, 0.503, 0.504])
    problem_id = site.register(test=TESTS, score_digits=2, parallel_ranks=1)
    more = {"uuid": str(site.bench.store(ArtifactKind.DATA, b"z:1", by=CLEO)), "problems": problem_id}
    assert site.ask(CLEO, "/data", method="POST", json=more).status_code == 201
    algos = [site.trained(problem_id, who)["algo"] for who in (SAM, EVE)]
    board = site.ask(SAM, f"/problem/{problem_id}/leaderboard").json
    assert [(entry["algo"], entry["place"], entry["rank"]) for entry in board["entries"]] == [
        (algos[0], 1, 0),
        (algos[1], 1, 0),
    ]
    assert len({json.dumps([entry["interval"], entry["spread"]]) for entry in board["entries"]}) == 1


def test_23_a_leaderboard_follows_a_change_of_digits(site: Site) -> None:
    site.bench.programs["problem"] = scoring([PERF])
    problem_id = site.register(test=TESTS)
    site.trained(problem_id)
    path = f"/problem/{problem_id}"
    shown = []
    for digits in (6, 1, 3):
        assert site.ask(CLEO, path, method="PATCH", json={"score_digits": digits}).status_code == 200
        shown.append(site.ask(SAM, f"{path}/leaderboard").json["entries"][0]["perf"])
    assert shown == [0.123457, 0.1, 0.123]


def test_23_times_are_rounded_up_to_the_custodians_step(site: Site) -> None:
    problem_id = site.register(time_step_s=300)
    uplet = site.trained(problem_id)
    job = site.ask(SAM, f"/jobs/{uplet['uuid']}").json
    (attempt,) = job["attempts"]
    times = [job[name] for name in ("created_at", "started_at", "ended_at")]
    times += [attempt["started_at"], attempt["ended_at"], *(step["started_at"] for step in attempt["steps"])]
    seconds = [datetime.fromisoformat(moment).timestamp() for moment in times]
    seconds += [uplet["timestamp_creation"], uplet["timestamp_done"], *(step["seconds"] for step in attempt["steps"])]
    seconds.append(site.ask(SAM, f"/model/{uplet['model_end']}").json["timestamp_upload"])
    assert {each % 300 for each in seconds} == {0}
    assert all(step["seconds"] == 300 for step in attempt["steps"])
    raw = site.ask(CLEO, f"/jobs/{uplet['uuid']}").json
    assert datetime.fromisoformat(raw["ended_at"]).timestamp() < datetime.fromisoformat(job["ended_at"]).timestamp()
    assert all(step["seconds"] < 60 for step in raw["attempts"][0]["steps"])


def test_23_a_submitter_adds_as_many_algos_a_day_as_the_custodian_allows(site: Site) -> None:
    problem_id = site.register(submissions_per_day=2)
    first = site.submit(problem_id)
    assert [first.status_code, site.submit(problem_id).status_code] == [201, 201]
    refused = site.submit(problem_id)
    assert (refused.status_code, refused.json["status"]) == (429, 429)
    assert 86_000 < int(refused.headers["Retry-After"]) <= 86_400
    assert "takes 2 algos of a submitter in 24 hours" in refused.json["Error"]
    again = {key: first.json["new_algo"][key] for key in ("uuid", "name", "problem")}
    assert site.ask(SAM, "/algo", method="POST", json=again).status_code == 201  # the same one twice is one
    assert site.submit(problem_id, EVE).status_code == 201
    assert {site.submit(problem_id, CLEO).status_code for _ in range(3)} == {201}
    assert site.submit(problem_id, CARL).status_code == 201  # not the custodian of this one
    assert site.submit(site.register()).status_code == 201  # each problem counts for itself
    _age(site, hours=23.99)
    waits = site.submit(problem_id)
    assert 0 < int(waits.headers["Retry-After"]) <= 37
    _age(site, hours=0.02)
    assert [site.submit(problem_id).status_code for _ in range(3)] == [201, 201, 429]


def test_23_without_a_limit_there_is_none(site: Site) -> None:
    problem_id = site.register(submissions_per_day=None)
    assert {site.submit(problem_id).status_code for _ in range(12)} == {201}
    assert site.ask(CLEO, f"/problem/{problem_id}", method="PATCH", json={"submissions_per_day": 12}).status_code == 200
    assert site.submit(problem_id).status_code == 429
    changed = site.ask(CLEO, f"/problem/{problem_id}", method="PATCH", json={"submissions_per_day": None})
    assert changed.json["submissions_per_day"] is None
    assert site.submit(problem_id).status_code == 201


def _age(site: Site, *, hours: float) -> None:
    with site.bench.database.connect() as connection:
        connection.execute(text("UPDATE submissions SET created_at = created_at - :seconds"), {"seconds": hours * 3600})
        connection.commit()


def test_23_two_submissions_at_once_do_not_both_pass(database: Database) -> None:
    service = Service(create_orchestrator_app, database)
    workflow, test = (str(service.add_artifact(kind).id) for kind in (ArtifactKind.PROBLEM, ArtifactKind.DATA))
    body = {"uuid": str(uuid4()), "workflow": workflow, "test_dataset": [test], "size_train_dataset": 1}
    assert service.post("/problem", json={**body, "submissions_per_day": 3}).status_code == 201
    problem_id = UUID(str(body["uuid"]))
    algos = [service.add_artifact(ArtifactKind.ALGO, owner=SAM.name).id for _ in range(12)]
    start, statuses = threading.Barrier(len(algos)), list[str]()

    def submit(algo_id: UUID) -> None:
        start.wait(30)
        try:
            service.resources.orchestrator.register_algo(algo_id, name="a", problem_id=problem_id, by=SAM)
        except TooMany:
            statuses.append("refused")
        else:
            statuses.append("added")

    threads = [threading.Thread(target=submit, args=(algo_id,)) for algo_id in algos]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(statuses) == ["added"] * 3 + ["refused"] * 9


# 24. Models


def test_24_a_model_is_for_the_custodian_until_it_is_let_out(site: Site) -> None:
    problem_id = site.register()
    uplet = site.trained(problem_id)
    path = f"/model/{uplet['model_end']}"
    for who in (SAM, EVE, CARL):
        for headers in ({}, {"Range": "bytes=0-0"}):
            assert site.ask(who, f"{path}/blob", headers=headers).status_code == 403
        assert site.ask(who, f"{path}/blob", method="HEAD").status_code == 403
        shown = site.ask(who, path).json
        assert (shown["size"], shown["sha256"]) == (None, None)  # a program chooses both
        listed = [(item["size"], item["sha256"]) for item in site.ask(who, "/model").json["items"]]
        assert listed == ([(None, None)] if who is SAM else [])
    for who in (CLEO, ADA):
        assert site.ask(who, f"{path}/blob").status_code == 200
        assert site.ask(who, path).json["sha256"] is not None
    site.ask(CLEO, f"/problem/{problem_id}", method="PATCH", json={"model_download": True})
    assert site.ask(SAM, f"{path}/blob").status_code == 200
    assert site.ask(EVE, f"{path}/blob").status_code == 403  # it is Sam's


def test_24_a_model_that_nobody_reported_is_for_admins(site: Site) -> None:
    problem_id = site.register(model_download=True)
    algo_id = UUID(site.trained(problem_id)["algo"])
    model = site.bench.store(ArtifactKind.MODEL, b"x", algo=algo_id)
    assert [site.ask(who, f"/model/{model}/blob").status_code for who in (SAM, CLEO, ADA)] == [403, 403, 200]


def test_a_prediction_is_for_who_ordered_it_and_for_insiders(site: Site) -> None:
    problem_id = site.register()
    site.trained(problem_id)
    prediction = predicted(site, problem_id)["prediction_storage_uuid"]

    class Owned(Orchestrator):
        def job_of_result(self, kind: ArtifactKind, result: UUID) -> Job | None:
            found = super().job_of_result(kind, result)
            return found and replace(found, owner=EVE.name)

    vars(site.bench.resources)["orchestrator"] = Owned(site.bench.database)
    path = f"/prediction/{prediction}/blob"
    statuses = {who.name: site.ask(who, path).status_code for who in (SAM, EVE, CARL, CLEO, ADA)}
    assert statuses == {"sam": 403, "eve": 200, "carl": 403, "cleo": 200, "ada": 200}


# 25. The broker


def test_25_the_queue_is_told_the_id_of_a_job_and_nothing_else(site: Site, canary: str) -> None:
    problem_id = site.register(data=f"a:{canary}".encode())
    answer = site.submit(problem_id)
    jobs = site.bench.resources.orchestrator.jobs(JobKind.LEARN, algo=UUID(answer.json["new_algo"]["uuid"]))
    assert site.bench.publisher.published == [job.id for job in jobs]
