"""Builds with a way out: through the proxy to mirrors that are listed, and nowhere else."""

from __future__ import annotations

import json
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from docker import APIClient

from morpheo.errors import RuntimeUnavailable
from morpheo.runtime.contract import BuildNetwork, BuildResult, BuildSpec, Interrupt, Owner, Profile
from morpheo.runtime.docker import DockerRuntime
from morpheo.runtime.network import PROXY_URL
from tests.conftest import missing
from tests.support.images import context
from tests.support.mirrors import HOSTS, Mirrors, make_mirrors
from tests.support.networks import networks_can_be_made
from tests.support.services import engine_url

PROFILE = Profile(
    user=10001, memory_bytes=128 << 20, cpus=1.0, pids=32, tmp_bytes=1 << 20, log_bytes=1 << 20, file_bytes=8 << 20
)
FETCH = """
import sys
from urllib.error import URLError
from urllib.request import urlopen
for url in sys.argv[1:]:
    try:
        with urlopen(url, timeout=20) as answer:
            print(url, answer.status, answer.read().decode().strip())
    except URLError as exc:
        said = exc.read().decode().strip() if hasattr(exc, "read") else exc.reason
        print(url, getattr(exc, "code", None), said)
"""


@pytest.fixture(scope="module")
def mirrors() -> Iterator[Mirrors]:
    if not networks_can_be_made() or shutil.which("unshare") is None:
        missing("root or iproute2")
    folder = Path(tempfile.mkdtemp(prefix="mirrors-"))
    folder.chmod(0o755)
    with make_mirrors(folder) as made:
        yield made
    shutil.rmtree(folder)


def ask(mirrors: Mirrors, head: bytes, hello: bytes = b"BUILD %s 1\r\n" % str(uuid4()).encode()) -> bytes:
    """Send the proxy something, as a relay does; return the whole answer."""
    with socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(30)
        peer.connect(str(mirrors.socket))
        peer.sendall(hello + head)
        return b"".join(iter(lambda: peer.recv(65536), b""))


def get(mirrors: Mirrors, url: str) -> bytes:
    return ask(mirrors, f"GET {url} HTTP/1.1\r\nHost: x\r\n\r\n".encode())


def tunnel(mirrors: Mirrors, authority: str, inside: bytes = b"hello\r\n\r\n") -> bytes:
    return ask(mirrors, f"CONNECT {authority} HTTP/1.1\r\n\r\n".encode() + inside)


def test_a_listed_mirror_is_fetched_from_and_tunnelled_to(mirrors: Mirrors) -> None:
    assert get(mirrors, "http://mirror.example/simple/?a=b").endswith(
        b"from mirror.example: GET /simple/?a=b HTTP/1.1\n"
    )
    answer = tunnel(mirrors, "mirror.example:443")
    assert answer.startswith(b"HTTP/1.1 200 Connection established\r\n\r\n")
    assert answer.endswith(b"from mirror.example: hello\n")


@pytest.mark.parametrize("host", [name for name in HOSTS if name != "mirror.example"])
def test_nothing_else_is_reached_even_if_it_is_listed(mirrors: Mirrors, host: str) -> None:
    before = mirrors.hits()
    for answer in (get(mirrors, f"http://{host}/"), tunnel(mirrors, f"{host}:443")):
        assert answer.startswith(b"HTTP/1.1 403 ")
        assert (b"not a mirror" if host == "other.example" else b"not public") in answer
    assert mirrors.hits() == before


@pytest.mark.parametrize("address", ["127.0.0.1", "169.254.169.254", "10.99.0.1", "151.101.0.223", "2130706433"])
def test_no_address_is_a_host(mirrors: Mirrors, address: str) -> None:
    before = mirrors.hits()
    for answer in (get(mirrors, f"http://{address}/"), tunnel(mirrors, f"{address}:443")):
        assert answer.startswith(b"HTTP/1.1 403 ")
    assert mirrors.hits() == before


def test_other_ports_are_not_reached(mirrors: Mirrors) -> None:
    before = mirrors.hits()
    assert get(mirrors, "http://mirror.example:6379/").startswith(b"HTTP/1.1 403 ")
    assert tunnel(mirrors, "mirror.example:6379").startswith(b"HTTP/1.1 403 ")
    assert mirrors.hits() == before


def test_who_does_not_say_which_job_it_is_gets_no_answer(mirrors: Mirrors) -> None:
    head = b"GET http://mirror.example/ HTTP/1.1\r\n\r\n"
    assert ask(mirrors, head, hello=b"") == b""
    assert ask(mirrors, head, hello=b"BUILD ../../x 1\r\n") == b""


def test_a_head_that_is_too_long_gets_no_answer(mirrors: Mirrors) -> None:
    line = b"X: " + b"x" * 1000 + b"\r\n"
    assert ask(mirrors, b"GET http://mirror.example/ HTTP/1.1\r\n" + line * 20 + b"\r\n") == b""


def test_two_requests_in_one_are_one(mirrors: Mirrors) -> None:
    before = len(mirrors.hits())
    ask(mirrors, b"GET http://mirror.example/a HTTP/1.1\r\n\r\nGET http://mirror.example/b HTTP/1.1\r\n\r\n")
    assert mirrors.hits()[before:] == ["mirror.example:80 GET /a HTTP/1.1"]


@pytest.fixture
def runtime(engine: APIClient) -> DockerRuntime:
    return DockerRuntime(engine_url(), profile=PROFILE, node=uuid4().hex, timeout_s=60)


def build(runtime: DockerRuntime, owner: Owner, socket_path: Path, *urls: str, more: str = "") -> BuildResult:
    """Fetch some URLs in an image build, and remove the image."""
    files = {
        "Dockerfile": f"FROM morpheo/base:1\nCOPY f.py /\nRUN python3 /f.py {' '.join(urls)}\n{more}",
        "f.py": FETCH,
    }
    spec = BuildSpec(
        owner=owner,
        tag=f"morpheo/test:{uuid4().hex}",
        timeout_s=120,
        network=BuildNetwork(proxy_socket=socket_path, relay_image="morpheo/base:1"),
    )
    result = runtime.build(context(files), spec, interrupt=Interrupt())
    if result.image_id is not None:
        runtime.remove_image(result.image_id)
    assert owner.job_id not in {found.job_id for found in runtime.owners()}
    return result


@pytest.mark.docker
def test_a_build_reaches_a_mirror_and_its_request_is_logged_with_its_job(
    runtime: DockerRuntime, mirrors: Mirrors
) -> None:
    owner = Owner(job_id=uuid4(), attempt=3)
    result = build(runtime, owner, mirrors.socket, "http://mirror.example/wheel")
    assert b"http://mirror.example/wheel 200 from mirror.example: GET /wheel HTTP/1.1" in result.log, result.log
    (line,) = mirrors.requests(owner.job_id)
    assert (line["attempt"], line["method"], line["host"], line["port"], line["path"], line["status"]) == (
        3,
        "GET",
        "mirror.example",
        80,
        "/wheel",
        200,
    )
    assert line["received"] > 50


@pytest.mark.docker
def test_a_build_reaches_nothing_but_mirrors(runtime: DockerRuntime, mirrors: Mirrors) -> None:
    before = mirrors.hits()
    owner = Owner(job_id=uuid4(), attempt=1)
    names = ["other.example", "inside.example", "metadata.example", "here.example", "169.254.169.254", "127.0.0.1:6379"]
    probe = (
        "RUN python3 -c \"import socket; print([name for _, name in socket.if_nameindex()], open('/proc/net/route')"
        ".read().count(chr(10)), open('/etc/resolv.conf').read())\"\n"
        "RUN env; ls /proxy; cat /proc/net/unix; ls -d /run/* /proc/1/root/proxy\n"
    )
    result = build(runtime, owner, mirrors.socket, *(f"http://{name}/" for name in names), more=probe + "RUN true\n")
    text = result.log.decode()
    for name in names:
        assert f"http://{name}/ 403 " in text, text
    assert "['lo'] 1 " in text
    assert "proxy.sock" not in text
    assert mirrors.hits() == before
    refused = mirrors.requests(owner.job_id, least=len(names))
    assert [line["status"] for line in refused] == [403] * len(names)
    assert [line["level"] for line in refused] == ["WARNING"] * len(names)


@pytest.mark.docker
def test_the_proxy_is_not_written_into_the_image(runtime: DockerRuntime, mirrors: Mirrors, engine: APIClient) -> None:
    spec = BuildSpec(
        owner=Owner(job_id=uuid4(), attempt=1),
        tag=f"morpheo/test:{uuid4().hex}",
        timeout_s=120,
        network=BuildNetwork(proxy_socket=mirrors.socket, relay_image="morpheo/base:1"),
    )
    files = {"Dockerfile": "FROM morpheo/base:1\nRUN env | grep -i proxy > /dev/null\n"}
    image_id = runtime.build(context(files), spec, interrupt=Interrupt()).image_id
    assert image_id is not None
    try:
        described = json.dumps([engine.inspect_image(image_id), engine.history(image_id)])
    finally:
        runtime.remove_image(image_id)
    assert PROXY_URL not in described
    assert "HTTP_PROXY" not in described.upper()


@pytest.mark.docker
def test_a_proxy_that_does_not_answer_is_no_fault_of_the_build(
    runtime: DockerRuntime, mirrors: Mirrors, tmp_path: Path
) -> None:
    owner = Owner(job_id=uuid4(), attempt=1)
    with pytest.raises(RuntimeUnavailable, match="start `morpheo build-proxy`"):
        build(runtime, owner, tmp_path / "nowhere" / "proxy.sock")
    dead = mirrors.folder / "dead" / "proxy.sock"
    dead.parent.mkdir(exist_ok=True)
    with socket.socket(socket.AF_UNIX) as closed:
        closed.bind(str(dead))
    with pytest.raises(RuntimeUnavailable, match="does not answer at"):
        build(runtime, owner, dead)
    dead.unlink()
    assert runtime.owners() == []


@pytest.mark.docker
def test_a_missing_relay_image_is_named(runtime: DockerRuntime, mirrors: Mirrors) -> None:
    spec = BuildSpec(
        owner=Owner(job_id=uuid4(), attempt=1),
        tag=f"morpheo/test:{uuid4().hex}",
        timeout_s=120,
        network=BuildNetwork(proxy_socket=mirrors.socket, relay_image="morpheo/none:1"),
    )
    with pytest.raises(RuntimeUnavailable, match=r"no image morpheo/none:1.*MORPHEO_BUILD_RELAY_IMAGE"):
        runtime.build(context(), spec, interrupt=Interrupt())
