"""
Every route, as every role, on what is one's own and on what is another's: the answers of the three services.

The table has a line for each route and method of the services' maps, and a column for each role. A cell is the status
for something of one's own party, and, after a slash, for the same of the other party, if that differs. Who gives no
password gets 401 where the table does not say `public`.
"""

from __future__ import annotations

import itertools
import re
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from flask import Flask
from flask.testing import FlaskClient

from morpheo.access import Role, Scope
from morpheo.accounts import Accounts
from morpheo.api.compute import create_compute_app
from morpheo.api.orchestrator import create_orchestrator_app
from morpheo.api.rights import RIGHTS, is_public
from morpheo.api.storage import create_storage_app
from morpheo.config import Settings
from morpheo.models import ArtifactKind, LearnSpec, PredictSpec
from morpheo.resources import Resources
from morpheo.testing import MemoryBlobStore, RecordingPublisher
from tests.support.api import form, order
from tests.support.parties import Party, make_party

COLUMNS = (Role.ADMIN, Role.CUSTODIAN, Role.SUBMITTER, Role.WORKER, Role.READER)

TABLE = """
                                     admin      custodian  submitter  worker     reader
compute GET /                        public
compute GET /health                  public
compute GET /metrics                 public
compute GET /openapi.json            public
compute GET /docs                    public
compute GET /docs/start.js           public
compute POST /learn                  202        202/400    403        403        403
compute POST /pred                   202        202/400    403        403        403
compute GET /jobs                    200        200        200        403        403
compute GET /jobs/ID                 200        200/404    200/404    403        403
compute POST /jobs/ID/cancel         200        200/404    200/404    403        403
compute POST /jobs/ID/retry          201        201/404    201/404    403        403
compute GET /jobs/ID/logs            200        200/404    403/404    403        403

storage GET /                        public
storage GET /health                  public
storage GET /metrics                 public
storage GET /openapi.json            public
storage GET /docs                    public
storage GET /docs/start.js           public
storage GET /problem                 200        200        403        403        403
storage GET /algo                    200        200        200        403        403
storage GET /data                    200        200        403        403        403
storage GET /model                   200        200        200        403        403
storage GET /prediction              200        200        200        403        403
storage POST /problem                201        201        403        403        403
storage POST /algo                   201        403        201        403        403
storage POST /data                   201        201        403        403        403
storage POST /model                  201        403        403        201/403    403
storage POST /prediction             201        403        403        201        403
storage GET /problem/ID              200        200/404    403        200/404    403
storage GET /algo/ID                 200        200/404    200/404    200/404    403
storage GET /data/ID                 200        200/404    403        200/404    403
storage GET /model/ID                200        200/404    200/404    200/404    403
storage GET /prediction/ID           200        200/404    404        403        403
storage PATCH /problem/ID            200        200/404    403        403        403
storage PATCH /algo/ID               400        400/404    400/404    403        403
storage PATCH /data/ID               400        400/404    403        403        403
storage PATCH /model/ID              400        400/404    400/404    403        403
storage PATCH /prediction/ID         400        400/404    404        403        403
storage GET /problem/ID/blob         200        200/404    403        200/404    403
storage GET /algo/ID/blob            200        200/404    200/404    200/404    403
storage GET /data/ID/blob            200        200/404    403        200/404    403
storage GET /model/ID/blob           200        200/404    403/404    200/404    403
storage GET /prediction/ID/blob      200        200/404    404        403        403

orchestrator GET /                   public
orchestrator GET /health             public
orchestrator GET /metrics            public
orchestrator GET /openapi.json       public
orchestrator GET /docs               public
orchestrator GET /docs/start.js      public
orchestrator GET /problem            200        200        200        200        200
orchestrator GET /algo               200        200        200        403        403
orchestrator GET /data               200        200        403        403        403
orchestrator GET /learnuplet         200        200        200        200        403
orchestrator GET /preduplet          200        200        200        200        403
orchestrator GET /problem/ID         200        200        200        200        200
orchestrator GET /algo/ID            200        200/404    200/404    403        403
orchestrator GET /data/ID            200        200/404    403        403        403
orchestrator GET /learnuplet/ID      200        200/404    200/404    200/404    403
orchestrator GET /preduplet/ID       200        200/404    404        200/404    403
orchestrator POST /problem           201        201/400    403        403        403
orchestrator PATCH /problem/ID       200        200/403    403        403        403
orchestrator POST /algo              201        403        201/400    403        403
orchestrator POST /data              201        201/400    403        403        403
orchestrator POST /prediction        201        201/400    403        403        403
orchestrator POST /learnuplet/ID/retry     201  201/404    201/404    403        403
orchestrator POST /preduplet/ID/retry      201  201/404    404        403        403
orchestrator POST /worker/learnuplet/ID    200  403        403        200        403
orchestrator POST /worker/preduplet/ID     200  403        403        200        403
orchestrator POST /learndone/ID      200        403        403        200/400    403
orchestrator POST /preddone/ID       200        403        403        200/400    403
orchestrator GET /problem/ID/leaderboard   200  200        200        403        200
"""

_CREATE: Mapping[str, Callable[[Resources], Flask]] = {
    "compute": create_compute_app,
    "storage": create_storage_app,
    "orchestrator": create_orchestrator_app,
}


@dataclass(frozen=True)
class Line:
    """One line of the table."""

    service: str
    method: str
    route: str
    cells: Mapping[Role, tuple[int, int]] | None

    @property
    def name(self) -> str:
        return f"{self.service} {self.method} {self.route}"


def _lines() -> Iterator[Line]:
    for words in (line.split() for line in TABLE.strip().splitlines()[1:] if line.strip()):
        service, method, route, *cells = words
        if cells == ["public"]:
            yield Line(service, method, route, None)
            continue
        pairs = [(int(own), int(other or own)) for own, _, other in (cell.partition("/") for cell in cells)]
        yield Line(service, method, route, dict(zip(COLUMNS, pairs, strict=True)))


LINES = list(_lines())
GUARDED = [line for line in LINES if line.cells is not None]
LISTS = {line.name for line in GUARDED if line.method == "GET" and line.route.count("/") == 1}


@dataclass(frozen=True)
class World:
    """The services on one database, two parties, and a token of each of their users."""

    apps: Mapping[str, Flask]
    parties: tuple[Party, Party]
    tokens: Mapping[str, str]
    blobs: MemoryBlobStore
    #: The database as it was made.
    content: bytes


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, sqlite_template: bytes) -> World:
    path = tmp_path_factory.mktemp("matrix") / "world.db"
    path.write_bytes(sqlite_template)
    blobs = MemoryBlobStore()
    resources = _resources(path, blobs)
    parties = (make_party(resources, 1), make_party(resources, 2))
    accounts = Accounts(resources.database)
    names = {name: role for party in parties for role, name in party.names.items()}
    tokens = {}
    for name, role in {**names, "admin": Role.ADMIN, "reader": Role.READER}.items():
        accounts.add(name, [role], None)
        tokens[name] = accounts.create_token(name, name="", life=timedelta(days=1))[1]
    reading = frozenset({Scope.READ})
    tokens["reading admin"] = accounts.create_token("admin", name="", life=timedelta(days=1), scopes=reading)[1]
    resources.database.close()
    apps = {name: create(resources) for name, create in _CREATE.items()}
    return World(apps, parties, tokens, blobs, path.read_bytes())


def _resources(path: Path, blobs: MemoryBlobStore) -> Resources:
    resources = Resources(Settings(database_url=f"sqlite:///{path}", password=""), RecordingPublisher())
    vars(resources)["blobs"] = blobs
    return resources


@dataclass(frozen=True)
class Caller:
    """Somebody who asks, on a copy of the world of their own."""

    world: World
    path: Path

    def ask(self, line: Line, token: str | None, party: Party | None) -> Any:
        """Return the answer to the request of a line about what is a party's; None is what nobody has."""
        self.path.write_bytes(self.world.content)
        for side in ("-wal", "-shm"):
            self.path.with_name(self.path.name + side).unlink(missing_ok=True)
        blobs = MemoryBlobStore()
        blobs._blobs.update(self.world.blobs._blobs)
        resources = _resources(self.path, blobs)
        app = self.world.apps[line.service]
        app.extensions["morpheo"] = resources
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        route, kwargs = _request(line, party or self.world.parties[0], missing=party is None)
        kwargs["headers"] = {**headers, **kwargs.get("headers", {})}
        try:
            return FlaskClient(app).open(route, method=line.method, **kwargs)
        finally:
            resources.database.close()


@pytest.fixture
def caller(world: World, tmp_path: Path) -> Caller:
    return Caller(world, tmp_path / "world.db")


def _request(line: Line, party: Party, *, missing: bool = False) -> tuple[str, dict[str, Any]]:
    """Return the path of a request that would succeed for who owns the party's things, and what it sends."""
    kind = next((word for word in line.route.split("/") if word in set(ArtifactKind)), None)
    subject = uuid.uuid4() if missing else _subject(line, party, kind)
    query = ""
    if line.name == "storage POST /model":
        spec = party.held.spec
        assert isinstance(spec, LearnSpec)
        query = f"?uuid={spec.model_end}&algo={spec.algo}"
    return line.route.replace("ID", str(subject)) + query, _body(line, party, kind)


def _subject(line: Line, party: Party, kind: str | None) -> UUID:
    match line.name.split()[0], line.method, line.route:
        case "storage", _, _:
            return party.artifacts[ArtifactKind(kind or "data")]
        case _, "POST", route if "retry" in route:
            return (party.failed_prediction if "preduplet" in route else party.failed).id
        case _, "POST", route if route.startswith("/worker"):
            return (party.queued_prediction if "preduplet" in route else party.queued).id
        case _, _, route if route.startswith(("/learndone", "/learnuplet", "/jobs")):
            return party.held.id
        case _, _, route if route.startswith(("/preddone", "/preduplet")):
            return party.held_prediction.id
    return party.problem if kind == "problem" else party.artifacts[ArtifactKind(kind or "data")]


def _body(line: Line, party: Party, kind: str | None) -> dict[str, Any]:
    if line.method == "GET":
        return {}
    if line.service == "storage":
        if line.route == "/model":
            return {"data": b"new", "content_type": "application/octet-stream"}
        words = {"problem": {"name": "n", "description": "d"}, "algo": {"name": "n"}}.get(kind or "", {})
        return form({**words, "size": 3, "blob": b"new"})
    return {"json": _document(line, party)}


def _document(line: Line, party: Party) -> dict[str, Any]:
    spec, asked = party.done.spec, party.held_prediction.spec
    assert isinstance(spec, LearnSpec)
    assert isinstance(asked, PredictSpec)
    problem, new = str(party.problem), str(uuid.uuid4())
    workflow, test = str(spec.workflow), [str(spec.test_data[0])]
    documents = {
        "/learn": order(spec, uuid=new, model_end=str(uuid.uuid4())),
        "/pred": order(asked, uuid=new),
        "/problem": {"uuid": new, "workflow": workflow, "test_dataset": test, "size_train_dataset": 1},
        "/algo": {"uuid": str(party.fresh_algo), "name": "n", "problem": problem},
        "/data": {"uuid": str(party.spare), "problems": problem},
        "/prediction": {"data": str(party.spare), "problem": problem},
        "/problem/ID": {"logs": "none"},
    }
    return documents.get(line.route, {"worker": "w", "status": "failed"})


def _without_ids(answer: Any) -> str:
    return re.sub(r"[0-9a-f]{8}-[0-9a-f-]{27}", "ID", answer.text)


def _routes(service: str, app: Flask) -> set[str]:
    """Return all routes of an application as the table names them."""
    found = set()
    for rule in app.url_map.iter_rules():
        pieces = re.split(r"(<[^>]+>)", rule.rule)
        choices = [
            re.findall(r"\w+", piece.removeprefix("<any").rpartition(":")[0]) if piece.startswith("<any") else [piece]
            for piece in (re.sub(r"<(?!any)[^>]+>", "ID", piece) for piece in pieces)
        ]
        if rule.endpoint == "docs_asset":  # the files of the page, by name
            continue
        for method, words in itertools.product(rule.methods or (), itertools.product(*choices)):
            if method not in ("HEAD", "OPTIONS"):
                found.add(f"{service} {method} {''.join(words)}")
    return found


def test_the_table_has_every_route(world: World) -> None:
    routes = {route for service, app in world.apps.items() for route in _routes(service, app)}
    assert {line.name for line in LINES} == routes


def test_every_route_has_a_rule(world: World) -> None:
    guarded = {
        (rule.endpoint, method)
        for app in world.apps.values()
        for rule in app.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
        if not is_public(rule.endpoint)
    }
    assert guarded == set(RIGHTS)


@pytest.mark.parametrize("line", [line for line in LINES if line.cells is None], ids=lambda line: line.name)
def test_public_routes_ask_for_nothing(caller: Caller, line: Line) -> None:
    for token in (None, "nonsense", caller.world.tokens["reader"]):
        assert caller.ask(line, token, caller.world.parties[0]).status_code == 200


@pytest.mark.parametrize("line", GUARDED, ids=lambda line: line.name)
def test_who_does_not_say_who_they_are_gets_nowhere(caller: Caller, line: Line) -> None:
    for token in (None, "nonsense", "morpheo_" + "x" * 43):
        for party in (caller.world.parties[0], None):
            answer = caller.ask(line, token, party)
            assert answer.status_code == 401
            assert answer.headers["WWW-Authenticate"].startswith("Basic ")


@pytest.mark.parametrize("role", COLUMNS)
@pytest.mark.parametrize("line", GUARDED, ids=lambda line: line.name)
def test_the_answers_are_those_of_the_table(caller: Caller, line: Line, role: Role) -> None:
    mine, others = caller.world.parties
    assert line.cells is not None
    expected = line.cells[role]
    token = caller.world.tokens[mine.names.get(role, role)]
    own, foreign = (caller.ask(line, token, party) for party in (mine, others))
    assert (own.status_code, foreign.status_code) == expected, (own.text[:500], foreign.text[:500])
    if expected[1] in (403, 404):  # nobody learns whether there is such a thing
        missing = caller.ask(line, token, None)
        if "ID" in line.route and line.name != "orchestrator PATCH /problem/ID":  # problems are for all to see
            assert (missing.status_code, _without_ids(missing)) == (expected[1], _without_ids(foreign))
    if own.status_code < 300:
        assert "no-store" in own.headers["Cache-Control"]


@pytest.mark.parametrize("role", [Role.CUSTODIAN, Role.SUBMITTER, Role.WORKER])
@pytest.mark.parametrize(
    "line",
    [line for line in GUARDED if line.method == "GET" and line.route.count("/") == 1],
    ids=lambda line: line.name,
)
def test_lists_have_nothing_of_others(caller: Caller, line: Line, role: Role) -> None:
    mine, others = caller.world.parties
    answer = caller.ask(line, caller.world.tokens[mine.names[role]], mine)
    if answer.status_code == 403 or line.name == "orchestrator GET /problem":  # problems are for all to see
        return
    theirs = {str(item) for item in (*others.artifacts.values(), others.spare, others.fresh_algo, others.done.id)}
    theirs |= {str(job.id) for job in (others.failed, others.held, others.held_prediction, others.failed_prediction)}
    found = {text for text in theirs if f'"uuid":"{text}"' in answer.text or f'"id":"{text}"' in answer.text}
    assert not found
    if role is not Role.SUBMITTER or line.name not in ("storage GET /prediction", "orchestrator GET /preduplet"):
        assert re.search('"(uu)?id":"', answer.text)  # it is not just empty


@pytest.mark.parametrize("line", [line for line in GUARDED if line.method != "GET"], ids=lambda line: line.name)
def test_a_token_that_may_only_read_changes_nothing(world: World, caller: Caller, line: Line) -> None:
    answer = caller.ask(line, world.tokens["reading admin"], world.parties[0])
    assert answer.status_code == 403
    assert "scope" in answer.text
