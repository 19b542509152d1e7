"""Bad input to the storage API: refused in words, nothing stored, the service alive. Ids begin with the case number."""

from __future__ import annotations

import base64
import hashlib
import io
from typing import Any
from uuid import UUID, uuid4

import pytest

from morpheo.api.storage import create_storage_app
from morpheo.models import NIL_UUID, ArtifactKind
from morpheo.storage.database import Database
from morpheo.testing import BrokenSource
from tests.support.api import BOUNDARY, Service, basic, form, part

MIB = 1 << 20
UNKNOWN = uuid4()
OCTETS = "application/octet-stream"
#: What a server says of a chunked body.
CHUNKED = {"HTTP_TRANSFER_ENCODING": "chunked", "wsgi.input_terminated": True, "CONTENT_LENGTH": ""}
PREFIX = "[Error uploading algo] "
ALGO: dict[str, object] = {"name": "n", "size": 3, "blob": b"abc"}


@pytest.fixture
def storage(sqlite: Database) -> Service:
    return Service(create_storage_app, sqlite)


def algo(**changes: object) -> dict[str, Any]:
    """Return a request that would store an algo but for its changed fields; None removes one."""
    return form({name: value for name, value in {**ALGO, **changes}.items() if value is not None})


def edited(old: bytes, new: bytes, **changes: object) -> dict[str, Any]:
    request = algo(**changes)
    assert old in request["data"]
    return {**request, "data": request["data"].replace(old, new)}


def broken(request: dict[str, Any], **overrides: object) -> dict[str, Any]:
    """Return a request whose body is sent as these overrides of the WSGI environment say."""
    stream, length = io.BytesIO(request["data"]), str(len(request["data"]))
    # Not as an argument: the test client would put a form of its own in the place of one it does not see.
    environ = {"wsgi.input": stream, "CONTENT_LENGTH": length, "CONTENT_TYPE": request["content_type"]}
    return {"environ_overrides": {**environ, **overrides}}


MULTIPART = f"multipart/form-data; boundary={BOUNDARY}"
DISPOSITION = b'Content-Disposition: form-data; name="name"'
BAD: dict[str, tuple[dict[str, Any], int, str]] = {
    "13-uuid-without-hyphens": (algo(uuid=uuid4().hex, name=None, blob=None), 400, "Error parsing UUID uuid: "),
    "28-sql-in-uuid": (form({"uuid": "' OR 1=1--"}), 400, "Error parsing UUID uuid: "),
    "29-name-of-256-bytes": (algo(name="x" * 256), 400, "Error reading Name: Buffer overflow reading name"),
    "29-name-of-256-bytes-in-128-letters": (algo(name="é" * 128), 400, "Error reading Name: Buffer overflow"),
    "29-newline": (algo(name="a\nb"), 400, "name holds a control character"),
    "29-nul": (algo(name="a\0b"), 400, "name holds a control character"),
    "29-escape": (algo(name="\x1b[2J"), 400, "name holds a control character"),
    "29-c1": (algo(name="a\x85b"), 400, "name holds a control character"),
    "29-not-utf8": (algo(name=b"\xff"), 400, "name is not UTF-8 text"),
    "29-surrogate": (algo(name=b"\xed\xa0\x80"), 400, "name is not UTF-8 text"),
    "30-no-content-type": ({"data": b"abc"}, 400, 'Error parsing header "Content-Type"'),
    "30-text": ({"data": b"abc", "content_type": "text/plain"}, 400, "Invalid media type: text/plain. Should be: "),
    "30-urlencoded": ({"data": {"name": "n"}}, 400, "Invalid media type: application/x-www-form-urlencoded. "),
    "30-json": ({"json": {}}, 400, "Invalid media type: application/json. Should be: multipart/form-data"),
    "30-no-boundary": ({**algo(), "content_type": "multipart/form-data"}, 400, 'Error parsing header "Content-Type"'),
    "30-boundary-of-300": (form(ALGO, boundary="x" * 300), 400, 'Error parsing header "Content-Type"'),
    "30-other-boundary": ({**algo(), "content_type": MULTIPART + "x"}, 400, "Error parsing multipart data: "),
    "30-empty": (broken({"data": b"", "content_type": MULTIPART}), 400, "Error parsing multipart data: "),
    "31-no-final-boundary": (form(ALGO, end=b""), 400, "Error parsing multipart data: "),
    "31-half-a-final-boundary": (form(ALGO, end=f"--{BOUNDARY}".encode()), 400, "Error parsing multipart data: "),
    "31-next-part-cut": (form(ALGO, end=part("z", "z")[:-9]), 400, "Error parsing multipart data: "),
    "32-no-blob": (algo(blob=None), 400, "Premature EOF while parsing request"),
    "32-no-part": (form({}), 400, "Premature EOF while parsing request"),
    "32-blob-first": (form({"blob": b"abc", "name": "n", "size": 3}), 400, "Invalid form: 'Name' unset. "),
    "32-two-blobs": (form([*ALGO.items(), ("blob", b"x")]), 400, "two blob parts"),
    "32-unknown-part": (form({"owner": "x", **ALGO}), 400, 'Unknown field "owner"'),
    "32-part-without-name": (edited(b'; name="name"', b""), 400, 'Unknown field ""'),
    "32-part-without-disposition": (edited(DISPOSITION, b"X: y"), 400, "Error parsing multipart data: "),
    "32-empty-blob": (algo(blob=b""), 400, "the blob is empty"),
    "33-no-size": (algo(size=None), 400, "Invalid form: 'Size' unset. "),
    "33-zero": (algo(size=0), 400, "Invalid form: 'Size' unset. "),
    "33-minus-one": (algo(size=-1), 400, "Invalid form: size is negative"),
    "33-minus-two": (algo(size=-2), 400, "Invalid form: size is negative"),
    "33-letters": (algo(size="abc"), 400, "Error parsing size field to integer: "),
    "33-empty": (algo(size=""), 400, "Error parsing size field to integer: "),
    "33-21-digits": (algo(size="9" * 21), 400, "Error reading size field: Buffer overflow reading size"),
    "33-2**63": (algo(size=1 << 63), 400, "Error parsing size field to integer: "),
    "33-exponent": (algo(size="1e3"), 400, "Error parsing size field to integer: "),
    "33-underscore": (algo(size="1_0"), 400, "Error parsing size field to integer: "),
    "33-space": (algo(size=" 3"), 400, "Error parsing size field to integer: "),
    "33-other-digits": (algo(size="٣"), 400, "Error parsing size field to integer: "),
    "35-shorter-than-announced": (broken(algo(), CONTENT_LENGTH="9999"), 400, "the body "),
    "37-chunked-cut-short": (
        broken(form(ALGO, end=b""), **CHUNKED),
        400,
        "Error parsing multipart data: ",
    ),
    "36-reset": (
        broken(algo(), **{"wsgi.input": BrokenSource(algo()["data"][:-9], ConnectionResetError())}),
        400,
        "the body ended before its end",
    ),
    "40-1500-parts": (form([("name", "n")] * 1500 + [("size", 3), ("blob", b"abc")]), 413, "more than 100 parts"),
    "40-headers": (edited(DISPOSITION, DISPOSITION + b"\r\nA: b" * 200_000), 413, "a part's header is longer"),
    "40-header-of-1-MB": (edited(DISPOSITION, DISPOSITION + b"\r\nA: " + b"b" * MIB), 413, "a part's header is longer"),
}


@pytest.mark.parametrize(("request_", "status", "message"), BAD.values(), ids=BAD)
def test_a_bad_form_is_refused_and_nothing_is_stored(
    storage: Service, request_: dict[str, Any], status: int, message: str
) -> None:
    before = storage.stored()
    answer = storage.post("/algo", **request_)
    assert answer.status_code == status
    assert answer.content_type == "application/problem+json"
    assert answer.json["error"].startswith(PREFIX + message)
    assert len(answer.text) < 1000
    assert storage.stored() == before
    assert storage.get("/health").status_code == 200


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Basic",
        "Basic !!!",
        "Basic " + base64.b64encode(b"u").decode(),
        "Basic " + base64.b64encode(b"\xff:p").decode(),
        basic("x", "p"),
        basic("u", "x"),
        basic("u", ""),
        basic("", ""),
        basic("u\0", "p"),
        basic("u" * 10_000, "p"),
        basic("u", "p\0"),
        basic("ü", "p"),
        "Bearer " + base64.b64encode(b"u:p").decode(),
        "Digest username=u",
    ],
    ids=[
        "none", "no-pair", "bad-base64", "no-colon", "not-utf8", "unknown-user", "wrong-password", "no-password",
        "empty", "user-with-nul", "user-of-10-kB", "password-with-nul", "letters", "bearer", "digest",
    ],
)  # fmt: skip
def test_21_wrong_credentials_are_refused_before_the_body_is_read(storage: Service, header: str) -> None:
    body = BrokenSource(b"", AssertionError("the body was read"))
    before = storage.stored()
    environ = {"wsgi.input": body, "CONTENT_LENGTH": "9999", "CONTENT_TYPE": MULTIPART}
    answer = storage.post("/algo", headers={"Authorization": header}, environ_overrides=environ)
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"].startswith("Basic ")
    assert answer.json["error"]
    assert storage.stored() == before


IDS = {
    "25-short": ("123", 400),
    "25-long": ("x" * 3000, 400),
    "25-no-hyphens": (uuid4().hex, 400),
    "25-newline": (f"{uuid4()}%0a", 400),
    "25-nul": ("%00", 400),
    "28-sql": ("' OR 1=1--", 400),
    "26-nil": (str(NIL_UUID), 404),
    "26-unknown": (str(uuid4()), 404),
    "26-braces": (f"{{{uuid4()}}}", 404),
    "26-urn": (f"urn:uuid:{uuid4()}", 404),
}


@pytest.mark.parametrize("rest", ["", "/blob"], ids=["metadata", "blob"])
@pytest.mark.parametrize(("uuid", "status"), IDS.values(), ids=IDS)
def test_a_bad_id_is_a_400_and_an_unknown_one_a_404(storage: Service, uuid: str, status: int, rest: str) -> None:
    answer = storage.get(f"/algo/{uuid}{rest}")
    assert answer.status_code == status
    assert len(answer.json["error"]) < 300


PATHS = ["/algo/../data/x", "/algo/%2e%2e%2f", "/algo/..%2f..%2fetc", "//algo/x", "/algo;x", "/algo/;x", "/etc/passwd"]


@pytest.mark.parametrize("path", PATHS, ids=[f"27-{number}" for number in range(len(PATHS))])
def test_a_path_that_means_mischief_is_no_error_of_the_service(storage: Service, path: str) -> None:
    answer = storage.get(path)
    assert answer.status_code in (400, 404)
    assert answer.json["status"] == answer.status_code


@pytest.mark.parametrize(
    "name",
    ["'; DROP TABLE artifacts;--", "%s %(x)s {0}", "😀", "\u202eabc", "e\u0301", "a\u200bb", "x" * 255, "<script>"],
    ids=["28-sql", "28-format", "29-emoji", "29-rtl", "29-combining", "29-zero-width", "29-255-bytes", "29-html"],
)
def test_an_odd_name_is_stored_as_it_is(storage: Service, name: str) -> None:
    answer = storage.post("/algo", **algo(name=name))
    assert (answer.status_code, answer.json["name"]) == (201, name)
    assert storage.get("/algo", query_string={"name": name}).json["items"] == [answer.json]


@pytest.mark.parametrize("size", ["+3", "03", str((1 << 63) - 1)], ids=["plus", "zero-first", "largest"])
def test_33_whatever_go_takes_for_a_size_is_taken(storage: Service, size: str) -> None:
    assert storage.post("/algo", **algo(size=size)).status_code == 201


@pytest.mark.parametrize("kind", ["model", "data"])
def test_38_a_chunked_blob_is_stored_with_its_counted_size(storage: Service, kind: str) -> None:
    query = {"algo": str(storage.add_artifact(ArtifactKind.ALGO).id)} if kind == "model" else {}
    environ = {"wsgi.input": io.BytesIO(b"abc"), **CHUNKED}
    answer = storage.post(f"/{kind}", query_string=query, content_type=OCTETS, environ_overrides=environ)
    assert (answer.status_code, answer.json["size"]) == (201, 3)


@pytest.mark.parametrize("cut", [b"", b"ab"], ids=["empty", "short"])
def test_35_a_raw_blob_that_is_shorter_than_announced_is_refused(storage: Service, cut: bytes) -> None:
    before = storage.stored()
    environ = {"wsgi.input": io.BytesIO(cut), "CONTENT_LENGTH": "3"}
    assert storage.post("/data", content_type=OCTETS, environ_overrides=environ).status_code == 400
    assert storage.stored() == before


@pytest.mark.parametrize("how", ["raw", "raw-chunked", "form"])
def test_39_a_blob_over_the_limit_is_refused(sqlite: Database, how: str) -> None:
    storage = Service(create_storage_app, sqlite, max_blob_bytes=10)
    before = storage.stored()
    large: dict[str, Any] = {"data": b"x" * 11, "content_type": OCTETS}
    if how == "raw-chunked":
        large = broken(large, **CHUNKED)
    elif how == "form":
        large = form({"size": 11, "blob": b"x" * 11})
    answer = storage.post("/data", **large)
    assert (answer.status_code, answer.json["field"]) == (413, "blob")
    assert storage.stored() == before
    assert storage.post("/data", data=b"x" * 10, content_type=OCTETS).status_code == 201


@pytest.mark.parametrize("filename", ["../../x", "C:\\x", "a\0b"], ids=["parent", "drive", "nul"])
def test_41_the_filename_is_ignored(storage: Service, filename: str) -> None:
    request = edited(b'name="blob"', f'name="blob"; filename="{filename}"; filename*=utf-8\'\'x'.encode())
    answer = storage.post("/algo", **request)
    assert (answer.status_code, answer.json["name"]) == (201, "n")
    assert [key.split("/")[:2] for key in storage.blobs._blobs] == [["algo", answer.json["uuid"]]]


@pytest.mark.parametrize("how", ["form", "raw"])
def test_42_a_taken_id_is_refused_before_the_blob_is_read(storage: Service, how: str) -> None:
    taken = storage.add_artifact(ArtifactKind.DATA).id
    start = part("uuid", taken) + part("blob", b"x" * MIB) if how == "form" else b""
    body = BrokenSource(start, AssertionError("the blob was read"))
    environ = {"wsgi.input": body, "CONTENT_LENGTH": str(10 * MIB)}
    path, content_type = ("/data", MULTIPART) if how == "form" else (f"/data?uuid={taken}", OCTETS)
    answer = storage.post(path, environ_overrides={**environ, "CONTENT_TYPE": content_type})
    assert answer.status_code == 409
    assert str(taken) in answer.json["error"]


@pytest.mark.parametrize("query", ["name=n", "size=3", "uid=x", "Uuid=x"], ids=["other-kind", "size", "typo", "case"])
def test_44_an_unknown_word_in_the_query_is_refused(storage: Service, query: str) -> None:
    before = storage.stored()
    answer = storage.post(f"/data?{query}", data=b"abc", content_type=OCTETS)
    assert answer.status_code == 400
    assert answer.json["error"] == f'[Error uploading data] Unknown field "{query.partition("=")[0]}"'
    assert storage.stored() == before


def digests(content: bytes) -> dict[str, str]:
    md5 = base64.b64encode(hashlib.md5(content, usedforsecurity=False).digest()).decode()
    sha256 = base64.b64encode(hashlib.sha256(content).digest()).decode()
    sha512 = base64.b64encode(hashlib.sha512(content).digest()).decode()
    return {
        "Content-MD5": md5,
        "X-Amz-Checksum-Sha256": sha256,
        "Digest": f"SHA-256={sha256},unixsum=1,SHA-512={sha512}",
        "Content-Digest": f"sha-512=:{sha512}:, sha-256=:{sha256}:",
    }


@pytest.mark.parametrize("how", ["raw", "form"])
@pytest.mark.parametrize("header", digests(b""))
def test_45_a_body_must_have_the_digest_that_a_header_announces(storage: Service, header: str, how: str) -> None:
    request: dict[str, Any] = (
        algo() if how == "form" else {"data": b"abc", "content_type": OCTETS, "query_string": {"name": "n"}}
    )
    before = storage.stored()
    answer = storage.post("/algo", **request, headers={header: digests(b"other")[header]})
    assert (answer.status_code, answer.json["field"]) == (400, header)
    assert storage.stored() == before
    right = storage.post("/algo", **request, headers={header: digests(request["data"])[header]})
    assert right.status_code == 201


@pytest.mark.parametrize(
    ("header", "value"), [("Content-MD5", "é"), ("Content-MD5", "x"), ("Content-Digest", "sha-256")]
)
def test_45_a_digest_that_cannot_be_read_is_refused(storage: Service, header: str, value: str) -> None:
    before = storage.stored()
    answer = storage.post("/algo", **algo(), headers={header: value})
    assert (answer.status_code, answer.json["field"]) == (400, header)
    assert storage.stored() == before


@pytest.mark.parametrize(("method", "path"), [("DELETE", "/algo"), ("PUT", "/data"), ("PATCH", "/model")])
def test_55_a_wrong_method_is_told_which_are_right(storage: Service, method: str, path: str) -> None:
    answer = storage.open(path, method=method)
    assert (answer.status_code, answer.json["status"]) == (405, 405)
    assert {"GET", "POST"} <= set(answer.headers["Allow"].split(", "))


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("page=-1", "page"),
        ("page=abc", "page"),
        ("page=10000000000", "page"),
        ("page_size=0", "page_size"),
        ("page_size=1000000000", "page_size"),
        ("limit=5", "limit"),
        ("name=" + "x" * 256, "name"),
    ],
    ids=["negative", "letters", "huge", "empty-pages", "huge-pages", "unknown", "long-name"],
)
def test_59_a_bad_page_is_refused_and_named(storage: Service, query: str, field: str) -> None:
    answer = storage.get(f"/algo?{query}")
    assert (answer.status_code, answer.json["field"]) == (400, field)


def test_59_a_page_far_behind_the_end_is_empty(storage: Service) -> None:
    answer = storage.get("/algo?page=1000000000")
    assert (answer.status_code, answer.json["items"]) == (200, [])


@pytest.mark.parametrize("headers", [{"Accept": "text/xml"}, {"Accept-Encoding": "br"}], ids=["xml", "br"])
def test_60_json_is_answered_whatever_is_accepted(storage: Service, headers: dict[str, str]) -> None:
    answer = storage.get("/algo", headers=headers)
    assert (answer.status_code, answer.content_type) == (200, "application/json")


def test_62_other_hosts_change_nothing(storage: Service) -> None:
    spoofed = {"Host": "evil.example", "X-Forwarded-Host": "evil.example", "X-Forwarded-User": "u", "X-Real-IP": "::1"}
    assert storage.get("/algo", headers={**spoofed, "Authorization": ""}).status_code == 401
    assert storage.get("/algo", headers=spoofed).data == storage.get("/algo").data


@pytest.mark.parametrize("content", [b"\x00", b"PK\x03\x04", b"\x1f\x8b"], ids=["zero", "zip", "half-a-gzip"])
def test_63_what_an_archive_holds_is_not_looked_at_here(storage: Service, content: bytes) -> None:
    uuid = storage.post("/algo", **algo(blob=content)).json["uuid"]
    assert storage.get(f"/algo/{uuid}/blob").data == content


@pytest.fixture
def model_algo(storage: Service) -> UUID:
    return storage.add_artifact(ArtifactKind.ALGO).id


@pytest.mark.parametrize(("size", "status"), [(3, 201), (2, 400), (666, 400)], ids=["right", "less", "more"])
def test_34_a_wrong_size_is_refused_only_when_the_setting_says_so(sqlite: Database, size: int, status: int) -> None:
    lax = Service(create_storage_app, sqlite)
    strict = Service(create_storage_app, sqlite, strict_size=True)
    fields = {"size": size, "blob": b"abc"}
    assert lax.post("/data", **form(fields)).json["size"] == 3
    before = strict.stored()
    answer = strict.post("/data", **form(fields))
    assert answer.status_code == status
    assert (strict.stored() == before) is (status == 400)


@pytest.mark.parametrize(
    ("query", "status", "message"),
    [
        ("", 400, "Impossible to parse algo UUID <nil>: "),
        ("algo=x&uuid=x", 400, "Impossible to parse algo UUID <nil>: "),
        (f"algo={UNKNOWN}&uuid=x", 404, f"Error uploading model: algorithm {UNKNOWN} not found: "),
        ("algo={algo}&uuid=x", 400, "Impossible to parse model UUID: "),
        ("algo={algo}&uuid={taken}", 409, "[Error uploading model] [model] UUID "),
    ],
    ids=["no-algo", "bad-algo-first", "unknown-algo-before-uuid", "bad-uuid", "taken"],
)
def test_44_a_model_is_checked_in_the_order_of_2017(
    storage: Service, model_algo: UUID, query: str, status: int, message: str
) -> None:
    taken = storage.add_artifact(ArtifactKind.MODEL, algo=model_algo).id
    answer = storage.post("/model?" + query.format(algo=model_algo, taken=taken), data=b"abc")
    assert answer.status_code == status
    assert answer.json["error"].startswith(message)


@pytest.mark.parametrize("path", ["/", "/health"])
def test_24_public_routes_ask_for_no_password(storage: Service, path: str) -> None:
    assert storage.get(path, headers={"Authorization": "Basic nonsense"}).status_code == 200


def test_61_a_preflight_is_answered_without_a_password(sqlite: Database) -> None:
    storage = Service(create_storage_app, sqlite, cors_origins="http://web.example")
    asks = {"Access-Control-Request-Method": "PATCH", "Access-Control-Request-Headers": "authorization, content-type"}
    answer = storage.client.options("/problem/x", headers={"Origin": "http://web.example", "Authorization": "", **asks})
    assert answer.status_code == 200
    assert answer.headers["Access-Control-Allow-Origin"] == "http://web.example"
    assert answer.headers["Access-Control-Allow-Credentials"] == "true"
    assert {"POST", "PATCH"} <= set(answer.headers["Access-Control-Allow-Methods"].split(", "))
    assert answer.headers["Access-Control-Allow-Headers"].lower() == "authorization, content-type"


def test_61_answers_and_errors_can_be_read_by_listed_web_pages(sqlite: Database) -> None:
    storage = Service(create_storage_app, sqlite, cors_origins="http://web.example")
    for path, auth in (("/algo", basic("u", "p")), ("/algo", "")):
        answer = storage.get(path, headers={"Origin": "http://web.example", "Authorization": auth})
        assert answer.headers["Access-Control-Allow-Origin"] == "http://web.example"


def test_61_origins_can_be_limited(sqlite: Database) -> None:
    storage = Service(create_storage_app, sqlite, cors_origins="http://good.example")
    good, evil = (storage.get("/algo", headers={"Origin": f"http://{name}.example"}) for name in ("good", "evil"))
    assert good.headers["Access-Control-Allow-Origin"] == "http://good.example"
    assert "Access-Control-Allow-Origin" not in evil.headers
