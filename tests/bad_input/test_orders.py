"""Bad input to the compute API: refused in words, nothing stored, the service alive. Ids begin with the case number."""

from __future__ import annotations

import io
import json
from typing import Any
from uuid import uuid4

import pytest

from morpheo.api.compute import create_compute_app
from morpheo.models import NIL_UUID
from morpheo.storage.database import Database
from morpheo.testing import make_learn_spec
from tests.support.api import Service, order

SPEC = make_learn_spec()
ORDER = order(SPEC)
NIL = str(NIL_UUID)
DECODING = "Error decoding body to JSON: "
INVALID = "Invalid learn-uplet: "
MIB = 1 << 20


def body(**changes: Any) -> bytes:
    return json.dumps({**ORDER, **changes}).encode()


def raw(name: str, literal: str) -> bytes:
    """Return an order in which a field is written as these letters."""
    return body(**{name: "@"}).replace(b'"@"', literal.encode("utf-8", "surrogatepass"))


@pytest.fixture
def compute(sqlite: Database) -> Service:
    """A service that would accept `ORDER`."""
    service = Service(create_compute_app, sqlite)
    service.add_needs(SPEC)
    return service


BAD: dict[str, tuple[bytes, int, str]] = {
    "01-malformed": (b'{"uuid": ', 400, DECODING),
    "01-empty": (b"", 400, DECODING),
    "01-null": (b"null", 400, DECODING),
    "01-list": (b"[]", 400, DECODING),
    "01-string": (b'"x"', 400, DECODING),
    "01-number": (b"1", 400, DECODING),
    "01-two-values": (body() + b"{}", 400, DECODING),
    "03-not-utf8": (body(status="@").replace(b"@", b"\xff"), 400, DECODING),
    "03-utf16": (json.dumps(ORDER).encode("utf-16"), 400, DECODING),
    "03-utf8-bom": (b"\xef\xbb\xbf" + body(), 400, DECODING),
    "04-surrogate": (raw("worker", '"\\ud800"'), 400, DECODING),
    "04-surrogate-in-a-key": (raw("worker", '{"\\udfff": 1}'), 400, DECODING),
    "04-zero-escaped": (raw("worker", '"a\\u0000b"'), 400, DECODING),
    "04-zero-raw": (raw("worker", '"a\x00b"'), 400, DECODING),
    "05-nan": (raw("perf", "NaN"), 400, DECODING),
    "05-infinity": (raw("perf", "Infinity"), 400, DECODING),
    "05-minus-infinity": (raw("perf", "-Infinity"), 400, DECODING),
    "05-1e999": (raw("perf", "1e999"), 400, DECODING),
    "06-5000-digits": (raw("rank", "9" * 5000), 400, DECODING),
    "06-5000-digits-where-nobody-looks": (raw("timestamp_request", "9" * 5000), 400, DECODING),
    "06-2**63": (raw("rank", str(1 << 63)), 400, DECODING + "rank: "),
    "06-negative": (raw("rank", "-1"), 400, DECODING + "rank: "),
    "06-fraction": (raw("rank", "1.5"), 400, DECODING + "rank: "),
    "06-true": (raw("rank", "true"), 400, DECODING + "rank: "),
    "06-text": (raw("rank", '"1"'), 400, DECODING + "rank: "),
    "07-nesting": (raw("perf", "[" * 100_000 + "]" * 100_000), 400, DECODING),
    "07-nesting-objects": (raw("perf", '{"a":' * 100_000 + "1" + "}" * 100_000), 400, DECODING),
    "08-other-case": (body().replace(b'"uuid"', b'"UUID"'), 400, INVALID + "id field is required"),
    "10-missing": (b"{}", 400, INVALID + "id field is required"),
    "10-null": (body(algo=None), 400, INVALID + "algo field is required"),
    "10-number": (body(algo=1), 400, DECODING + "algo: "),
    "10-list-for-one": (body(algo=[str(SPEC.algo)]), 400, DECODING + "algo: "),
    "10-one-for-list": (body(train_data=str(SPEC.train_data[0])), 400, DECODING + "train_data: "),
    "10-object-for-list": (body(train_data={"a": "b"}), 400, DECODING + "train_data: "),
    "10-number-in-list": (body(train_data=[1]), 400, DECODING + "train_data: "),
    "10-status": (body(status=1), 400, DECODING + "status: "),
    "10-empty-uuid": (body(problem=""), 400, DECODING + "problem: "),
    "11-nil-problem": (body(problem=NIL), 400, INVALID + "problem field is required"),
    "11-nil-in-list": (body(train_data=[NIL]), 400, INVALID + "Nil UUID in train_data field at pos 0"),
    "13-no-hyphens": (body(uuid=SPEC.id.hex), 400, DECODING + "uuid: "),
    "13-short": (body(uuid=str(SPEC.id)[:-1]), 400, DECODING + "uuid: "),
    "13-long": (body(uuid=f"{SPEC.id}0"), 400, DECODING + "uuid: "),
    "13-other-digits": (body(uuid="٣" + str(SPEC.id)[1:]), 400, DECODING + "uuid: "),
    "13-space": (body(uuid=f" {SPEC.id}"), 400, DECODING + "uuid: "),
    "13-newline": (body(uuid=f"{SPEC.id}\n"), 400, DECODING + "uuid: "),
    "13-half-braces": (body(uuid=f"{{{SPEC.id}"), 400, DECODING + "uuid: "),
    "14-million-ids": (body(train_data=[str(SPEC.algo)] * 1_000_000), 413, "the body is larger than 1048576 bytes"),
    "14-twice": (body(train_data=[str(SPEC.algo)] * 2), 400, INVALID + f"{SPEC.algo} is in train_data twice"),
    "14-train-and-test": (body(test_data=ORDER["train_data"]), 400, INVALID + ORDER["train_data"][0]),
    "15-status": (body(status="xxx"), 400, INVALID + "status field ain't valid (provided: xxx"),
    "15-done": (body(status="done"), 400, INVALID + "status field ain't valid (provided: done"),
    "15-failed": (body(status="failed"), 400, INVALID + "status field ain't valid (provided: failed"),
    "16-rank-without-model": (body(rank=1), 400, INVALID + "rank 1 and empty ModelStart"),
    "16-nil-model-end": (body(model_end=NIL), 400, INVALID + "model_end field is required"),
    "17-unknown-algo": (body(algo=str(uuid4())), 400, "algo: algo "),
    "19-too-long": (body(worker="x" * MIB), 413, "the body is larger than 1048576 bytes"),
    "28-sql": (body(uuid="' OR 1=1--"), 400, DECODING + "uuid: "),
}


@pytest.mark.parametrize(("content", "status", "message"), BAD.values(), ids=BAD)
def test_a_bad_order_is_refused_and_nothing_is_stored(
    compute: Service, content: bytes, status: int, message: str
) -> None:
    before = compute.stored()
    chunked = {"wsgi.input": io.BytesIO(content), "wsgi.input_terminated": True, "CONTENT_LENGTH": ""}
    for answer in (
        compute.post("/learn", data=content),
        compute.post("/learn", environ_overrides={**chunked, "HTTP_TRANSFER_ENCODING": "chunked"}),
    ):
        assert answer.status_code == status
        assert answer.content_type == "application/problem+json"
        assert answer.json["error"].startswith(message)
        assert len(answer.text) < 1000
    assert compute.stored() == before
    assert compute.get("/health").status_code == 200


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br"])
def test_20_a_compressed_order_is_refused(compute: Service, encoding: str) -> None:
    before = compute.stored()
    answer = compute.post("/learn", data=body(), headers={"Content-Encoding": encoding})
    assert answer.status_code == 415
    assert compute.stored() == before


def test_35_an_order_that_is_shorter_than_announced_is_refused(compute: Service) -> None:
    before = compute.stored()
    short = {"wsgi.input": io.BytesIO(body()), "CONTENT_LENGTH": str(len(body()) + 1)}
    assert compute.post("/learn", environ_overrides=short).status_code == 400
    assert compute.stored() == before


def test_45_an_order_with_another_digest_than_announced_is_refused(compute: Service) -> None:
    before = compute.stored()
    answer = compute.post("/learn", data=body(), headers={"Content-MD5": "1B2M2Y8AsgTpgAmY7PhCfg=="})
    assert (answer.status_code, answer.json["field"]) == (400, "Content-MD5")
    assert compute.stored() == before


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(body(timestamp_creation=1, perf=[0.5], **{"unknown key": {"a": None}}), id="09-unknown-keys"),
        pytest.param(body().replace(b'"uuid":', b'"uuid": "x", "uuid":'), id="08-duplicate-key-last-wins"),
        pytest.param(body(uuid=str(SPEC.id).upper()), id="12-upper-case"),
        pytest.param(body(uuid=f"{{{SPEC.id}}}"), id="12-braces"),
        pytest.param(body(uuid=f"urn:uuid:{SPEC.id}"), id="12-urn"),
        pytest.param(body(worker="é😀"), id="04-letters-that-are-fine"),
        pytest.param(body(model_start=NIL), id="16-nil-model-start-of-rank-0"),
        pytest.param(body() + b" " * (MIB - len(body())), id="19-exactly-the-limit"),
    ],
)
def test_an_odd_order_is_accepted_and_stored_in_its_canonical_form(compute: Service, content: bytes) -> None:
    assert compute.post("/learn", data=content).status_code == 202
    assert compute.resources.jobs.get(SPEC.id).spec == SPEC


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("limit=0", "limit"),
        ("limit=-1", "limit"),
        ("limit=501", "limit"),
        ("limit=1000000000", "limit"),
        ("limit=abc", "limit"),
        ("limit=1.5", "limit"),
        ("state=done", "state"),
        ("kind=learn'", "kind"),
        ("problem=x", "problem"),
        ("algo=' OR 1=1--", "algo"),
        ("after=x", "after"),
        ("after=MS4wIHg%3D", "after"),
        ("after=%00", "after"),
        ("after=é", "after"),
        ("page=1", "page"),
    ],
)
def test_59_a_bad_query_is_refused_and_named(compute: Service, query: str, field: str) -> None:
    answer = compute.get(f"/jobs?{query}")
    assert (answer.status_code, answer.json["field"]) == (400, field)
    assert field in answer.json["error"]


@pytest.mark.parametrize("attempt", ["0", "-1", "x", str(1 << 70)])
def test_59_a_bad_attempt_is_refused(compute: Service, attempt: str) -> None:
    assert compute.post("/learn", data=body()).status_code == 202
    assert compute.get(f"/jobs/{SPEC.id}/logs?attempt={attempt}").status_code in (400, 404)


PATHS = [
    "/jobs/../learn",
    "/jobs/%2e%2e%2f",
    "/jobs/..%2f..%2fetc",
    "/jobs/%00",
    "/jobs/;x",
    "/jobs/" + "x" * 3000,
    "/jobs/%27%20OR%201=1--",
    "/jobs/%ff",
]


@pytest.mark.parametrize("path", PATHS, ids=[f"27-{number}" for number in range(len(PATHS))])
def test_a_path_that_means_mischief_is_no_error_of_the_service(compute: Service, path: str) -> None:
    answer = compute.get(path)
    assert answer.status_code in (400, 404, 405)
    assert answer.json["status"] == answer.status_code
    assert len(answer.text) < 1000


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/learn", "POST"),
        ("DELETE", "/jobs", "GET"),
        ("PUT", "/pred", "POST"),
        ("GET", "/jobs/x/cancel", "POST"),
    ],
)
def test_55_a_wrong_method_is_told_which_are_right(compute: Service, method: str, path: str, allowed: str) -> None:
    answer = compute.open(path, method=method)
    assert answer.status_code == 405
    assert allowed in answer.headers["Allow"].split(", ")
    assert answer.json["status"] == 405


@pytest.mark.parametrize("headers", [{"Accept": "text/xml"}, {"Accept-Encoding": "br"}], ids=["xml", "br"])
def test_60_json_is_answered_whatever_is_accepted(compute: Service, headers: dict[str, str]) -> None:
    answer = compute.get("/jobs", headers=headers)
    assert (answer.status_code, answer.content_type) == (200, "application/json")
    assert "Content-Encoding" not in answer.headers


def test_62_other_hosts_change_nothing(compute: Service) -> None:
    plain = compute.get("/jobs").data
    spoofed = {"Host": "evil.example", "X-Forwarded-Host": "evil.example", "X-Forwarded-For": "127.0.0.1"}
    assert compute.get("/jobs", headers=spoofed).data == plain
    assert b"evil" not in compute.get("/openapi.json", headers=spoofed).data


def test_64_an_unknown_job_is_not_cancelled(compute: Service) -> None:
    before = compute.stored()
    assert compute.post(f"/jobs/{uuid4()}/cancel").status_code == 404
    assert compute.stored() == before


def test_18_another_order_with_the_same_id_is_a_conflict(compute: Service) -> None:
    assert compute.post("/learn", data=body()).status_code == 202
    before = compute.stored()
    assert compute.post("/learn", data=body(rank=0, tags=["gpu"])).status_code == 409
    assert compute.stored() == before


@pytest.mark.parametrize("content_type", [None, "text/plain", "application/octet-stream", "multipart/form-data"])
def test_02_the_content_type_of_an_order_does_not_matter(compute: Service, content_type: str | None) -> None:
    assert compute.post("/learn", data=body(), content_type=content_type).status_code == 202


def test_64_a_job_that_has_ended_is_not_changed_by_a_cancel(compute: Service) -> None:
    assert compute.post("/learn", data=body()).status_code == 202
    assert compute.post(f"/jobs/{SPEC.id}/cancel").json["state"] == "cancelled"
    before = compute.stored()
    answer = compute.post(f"/jobs/{SPEC.id}/cancel")
    assert (answer.status_code, answer.json["state"]) == (200, "cancelled")
    assert "had ended already" in answer.json["message"]
    assert compute.stored() == before


def test_18_an_order_is_the_same_however_its_ids_are_written(compute: Service) -> None:
    assert compute.post("/learn", data=body()).status_code == 202
    before = compute.stored()
    again = body(uuid=str(SPEC.id).upper(), algo=f"urn:uuid:{SPEC.algo}", workflow=f"{{{SPEC.workflow}}}")
    assert compute.post("/learn", data=again).status_code == 202
    assert compute.stored() == before
