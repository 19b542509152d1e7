"""
Requests as the clients of 2017 put them on the wire, byte for byte, and answers as they read them.

The heads are those of Go 1.8 (`net/http`), of Chrome 58 in Electron, and of python-requests 2.18: their order of
headers, their spelling, and what they leave out.
"""

from __future__ import annotations

import http.client
import json
import select
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

#: User u, password p.
BASIC = "Authorization: Basic dTpw"
JSON = "Content-Type: application/json"
GO_BOUNDARY = "8bb6a4f5a2bb2d9e3e6de8a3ea9d4d1a0b1f34d9a1b36b1d3c2b90f6f7a1"
WEBKIT_BOUNDARY = "----WebKitFormBoundary7MA4YWxkTrZu0gW"
_CHROME = (
    "User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) "
    "morpheo-analytics/0.0.1 Chrome/58.0.3029.110 Electron/1.7.9 Safari/537.36"
)


@dataclass(frozen=True)
class Answer:
    """What a service sent back."""

    status: str
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        """The body, which says that it is JSON."""
        assert "json" in self.headers["Content-Type"], self
        return json.loads(self.body)


class Connection:
    """A connection that is kept, as Go and Chrome keep theirs."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._host = f"Host: 127.0.0.1:{port}"
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=20)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._socket.close()

    def exchange(self, method: str, path: str, headers: Iterable[str], body: bytes = b"") -> Answer:
        """Send a request whose headers follow ``Host`` in this order, and read the answer."""
        head = "\r\n".join([f"{method} {path} HTTP/1.1", self._host, *headers, "", ""])
        if select.select([self._socket], [], [], 0)[0]:  # the service has hung up: nobody had asked it for a while
            self._connect_again()
        self._socket.sendall(head.encode("ascii") + body)
        response = http.client.HTTPResponse(self._socket, method=method)
        response.begin()
        answer = Answer(f"HTTP/1.1 {response.status} {response.reason}", response.headers, response.read())
        assert response.version == 11
        if response.will_close:
            self._connect_again()
        return answer

    def _connect_again(self) -> None:
        self._socket.close()
        self._socket = socket.create_connection(("127.0.0.1", self._port), timeout=20)


class GoClient(Connection):
    """
    The Go client: Host, User-Agent, length, then the headers that were set in alphabetical order, then the encoding.

    Args:
        port: Of the service.
        auth: Whether it sends user and password; the client of the compute API does not.
    """

    def __init__(self, port: int, *, auth: bool = True) -> None:
        super().__init__(port)
        self._auth = [BASIC] if auth else []

    def get(self, path: str, *, json_type: bool = False) -> Answer:
        """Send a GET; the client of the orchestrator gives it a content type."""
        return self._send("GET", path, [], [JSON] if json_type else [])

    def post_json(self, path: str, document: Any) -> Answer:
        """Send a document as `json.Marshal` writes it."""
        body = json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()
        return self._send("POST", path, [f"Content-Length: {len(body)}"], [JSON], body)

    def post_form(self, path: str, fields: Iterable[tuple[str, str]], blob: bytes, *, file_name: str) -> Answer:
        """Send a form that was built in memory, the blob last."""
        body = go_form(fields, blob, file_name=file_name)
        content_type = f"Content-Type: multipart/form-data; boundary={GO_BOUNDARY}"
        return self._send("POST", path, [f"Content-Length: {len(body)}"], [content_type], body)

    def post_form_chunked(self, path: str, fields: Iterable[tuple[str, str]], blob: bytes, *, file_name: str) -> Answer:
        """Send a form from a reader of unknown length, in the pieces that it gave."""
        body = go_form(fields, blob, file_name=file_name)
        pieces = [body[start : start + 100] for start in range(0, len(body), 100)]
        chunked = b"".join(f"{len(piece):x}\r\n".encode() + piece + b"\r\n" for piece in [*pieces, b""])
        content_type = f"Content-Type: multipart/form-data; boundary={GO_BOUNDARY}"
        return self._send("POST", path, ["Transfer-Encoding: chunked"], [content_type], chunked)

    def post_raw(self, path: str, blob: bytes) -> Answer:
        """Send a blob with its length and no content type, as models are."""
        return self._send("POST", path, [f"Content-Length: {len(blob)}"], [], blob)

    def _send(self, method: str, path: str, length: list[str], given: list[str], body: bytes = b"") -> Answer:
        headers = ["User-Agent: Go-http-client/1.1", *length, *sorted([*self._auth, *given]), "Accept-Encoding: gzip"]
        return self.exchange(method, path, headers, body)


def go_form(fields: Iterable[tuple[str, str]], blob: bytes, *, file_name: str) -> bytes:
    """Return a form as Go's `mime/multipart` writes it."""
    body = b"".join(
        f'--{GO_BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in fields
    )
    disposition = f'Content-Disposition: form-data; name="blob"; filename="{file_name}"'
    head = f"--{GO_BOUNDARY}\r\n{disposition}\r\nContent-Type: application/octet-stream\r\n\r\n".encode()
    return body + head + blob + f"\r\n--{GO_BOUNDARY}--\r\n".encode()


class Browser(Connection):
    """
    Analytics, a page in Electron.

    Args:
        port: Of the service.
        origin: Of the page.
    """

    def __init__(self, port: int, origin: str) -> None:
        super().__init__(port)
        self._origin = f"Origin: {origin}"

    def preflight(self, path: str, method: str) -> Answer:
        """Ask whether a request with a password and a content type may be sent."""
        headers = [
            "Connection: keep-alive",
            f"Access-Control-Request-Method: {method}",
            self._origin,
            _CHROME,
            "Access-Control-Request-Headers: authorization,content-type",
        ]
        return self.exchange("OPTIONS", path, [*headers, *self._accept()])

    def get(self, path: str) -> Answer:
        """Send a GET, which has a content type and no content."""
        headers = ["Connection: keep-alive", BASIC, self._origin, _CHROME, "content-type: application/json"]
        return self.exchange("GET", path, [*headers, *self._accept()])

    def post_json(self, path: str, document: Any) -> Answer:
        """Send a document as `JSON.stringify` writes it."""
        body = json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()
        return self._post(path, body, "content-type: application/json")

    def post_form(self, path: str, fields: Iterable[tuple[str, str]], blob: bytes, *, file_name: str) -> Answer:
        """Send a `FormData` with a file."""
        body = b"".join(
            f'--{WEBKIT_BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
            for name, value in fields
        )
        disposition = f'Content-Disposition: form-data; name="blob"; filename="{file_name}"'
        body += f"--{WEBKIT_BOUNDARY}\r\n{disposition}\r\nContent-Type: application/x-gzip\r\n\r\n".encode() + blob
        body += f"\r\n--{WEBKIT_BOUNDARY}--\r\n".encode()
        return self._post(path, body, f"Content-Type: multipart/form-data; boundary={WEBKIT_BOUNDARY}")

    def _post(self, path: str, body: bytes, content_type: str) -> Answer:
        headers = ["Connection: keep-alive", f"Content-Length: {len(body)}", BASIC, self._origin, _CHROME, content_type]
        return self.exchange("POST", path, [*headers, *self._accept()], body)

    @staticmethod
    def _accept() -> list[str]:
        return ["Accept: */*", "Accept-Encoding: gzip, deflate", "Accept-Language: en-US"]


class FlaskOrchestrator(Connection):
    """The orchestrator of 2017 in Python, which pushes jobs to the compute API without a content type."""

    def push(self, path: str, document: Any) -> Answer:
        """Send a document as `json.dumps` writes it."""
        body = json.dumps(document).encode()
        headers = (
            "User-Agent: python-requests/2.18.4",
            "Accept-Encoding: gzip, deflate",
            "Accept: */*",
            "Connection: keep-alive",
            f"Content-Length: {len(body)}",
        )
        return self.exchange("POST", path, headers, body)
