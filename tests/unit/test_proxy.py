"""What the proxy of image builds carries out, and what it refuses."""

from __future__ import annotations

import pytest

from morpheo.proxy import RefusedError, is_listed, is_public, parse_request

HOSTS = ("pypi.org", "*.Mirror.example")


@pytest.mark.parametrize("host", ["pypi.org", "a.mirror.example", "a.b.mirror.example"])
def test_a_host_is_in_the_list_by_its_name_or_by_what_it_is_below(host: str) -> None:
    assert is_listed(host, HOSTS)


@pytest.mark.parametrize(
    "host", ["pypi.org.evil.example", "evilpypi.org", "www.pypi.org", "mirror.example", "evilmirror.example", "", "*"]
)
def test_other_hosts_are_not(host: str) -> None:
    assert not is_listed(host, HOSTS)


@pytest.mark.parametrize("address", ["151.101.0.223", "2a04:4e42::223", "8.8.8.8"])
def test_public_addresses_are_reached(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "0.0.0.0",
        "10.0.0.1",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "100.100.100.200",
        "192.0.0.192",
        "192.88.99.1",
        "168.63.129.16",
        "198.18.0.1",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "fe80::1",
        "fe80::1%eth0",
        "fd00:ec2::254",
        "ff02::1",
        "::ffff:10.0.0.1",
        "::ffff:8.8.8.8",
        "::10.0.0.1",
        "64:ff9b::a9fe:a9fe",
        "64:ff9b:1::1",
        "2002:0a00:0001::1",
        "2001:0:4136:e378:8000:63bf:3fff:fdd2",
        "2001:db8::1",
    ],
)
def test_private_addresses_and_what_stands_for_them_are_not(address: str) -> None:
    assert not is_public(address)


def test_a_tunnel_is_asked_for_with_connect() -> None:
    request = parse_request(b"CONNECT PyPI.org.:443 HTTP/1.1\r\nHost: pypi.org:443\r\nUser-Agent: pip/23")
    assert (request.method, request.host, request.port, request.head) == ("CONNECT", "pypi.org", 443, b"")


def test_a_request_is_sent_on_without_what_concerns_this_connection_only() -> None:
    request = parse_request(
        b"GET http://deb.debian.org/debian/dists?x=/y HTTP/1.1\r\nHost: evil.example\r\nAccept: text/*\r\n"
        b"Connection: keep-alive, X\r\nProxy-Authorization: Basic x\r\nContent-Length: 0\r\nRange: bytes=5-"
    )
    assert (request.host, request.port, request.path) == ("deb.debian.org", 80, "/debian/dists?x=/y")
    assert request.head == (
        b"GET /debian/dists?x=/y HTTP/1.1\r\nHost: deb.debian.org\r\nConnection: close\r\nAccept: text/*\r\n"
        b"Range: bytes=5-\r\n\r\n"
    )


@pytest.mark.parametrize(
    ("target", "path"), [("http://a.example", "/"), ("http://a.example:80/x", "/x"), ("HTTP://a.example/", "/")]
)
def test_a_url_may_leave_out_its_path_and_name_its_port(target: str, path: str) -> None:
    assert parse_request(f"GET {target} HTTP/1.0".encode()).path == path


@pytest.mark.parametrize(
    "line",
    [
        "CONNECT pypi.org:22",
        "CONNECT pypi.org:80",
        "CONNECT pypi.org",
        "CONNECT :443",
        "CONNECT [::1]:443",
        "CONNECT user@pypi.org:443",
        "CONNECT pypi.org#.evil.example:443",
        "CONNECT https://pypi.org:443",
        "CONNECT -pypi.org:443",
        "CONNECT p%79pi.org:443",
        "GET http://pypi.org:8080/",
        "GET http://pypi.org@evil.example/",
        "GET http://pypi.org:80@evil.example/",
        "GET http://[::1]/",
        "GET http:///etc/passwd",
        "GET https://pypi.org/",
        "GET ftp://pypi.org/",
        "GET file:///etc/passwd",
        "GET /simple/",
        "GET http://pypi.org/#x",
        "POST http://pypi.org/",
        "PUT http://pypi.org/",
        "DELETE http://pypi.org/",
        "TRACE http://pypi.org/",
        "BUILD http://pypi.org/",
    ],
)
def test_what_is_no_plain_request_of_a_mirror_is_refused(line: str) -> None:
    with pytest.raises(RefusedError) as caught:
        parse_request(f"{line} HTTP/1.1\r\nHost: pypi.org".encode())
    assert caught.value.status == 403


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"GET http://pypi.org/",
        b"GET http://pypi.org/ HTTP/2",
        b"GET http://pypi.org/ x HTTP/1.1",
        b"GET http://pypi.org/\n HTTP/1.1",
        b"GET http://pypi.org/ HTTP/1.1\r\nno header",
        b"GET http://pypi.org/ HTTP/1.1\r\nX : y",
        b"GET http://pypi.org/ HTTP/1.1\r\nX: a\nHost: evil.example",
        b"GET http://pypi.org/ HTTP/1.1\r\nX: a\r\n folded",
        b"GET http://pypi.org/" + b"x" * 5000 + b" HTTP/1.1",
        b"\x16\x03\x01",
    ],
)
def test_what_is_no_request_is_refused(head: bytes) -> None:
    with pytest.raises(RefusedError) as caught:
        parse_request(head)
    assert caught.value.status == 400


@pytest.mark.parametrize("header", [b"Content-Length: 5", b"Content-Length: +0", b"Transfer-Encoding: chunked"])
def test_a_request_with_a_body_is_refused(header: bytes) -> None:
    with pytest.raises(RefusedError, match="no body"):
        parse_request(b"GET http://pypi.org/ HTTP/1.1\r\n" + header)
