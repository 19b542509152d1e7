"""What the clients have in common: one session, retries of safe requests, and errors in words."""

from __future__ import annotations

from typing import Any

import requests
from requests.adapters import HTTPAdapter
from requests.auth import AuthBase
from urllib3 import Retry

from morpheo.errors import ApiError, ApiUnavailable

#: Seconds to connect, and seconds without any byte.
TIMEOUT = (5, 120)


class HttpClient:
    """
    Talks to one service.

    GET and HEAD are tried again, with growing pauses, if the service does not answer or says that it is unavailable;
    nothing else is.

    Args:
        url: Address of the service, such as ``http://127.0.0.1:8082``.
        auth: A token, or user and password for HTTP Basic, if the service asks for them.
        retries: How often a safe request is tried again.
    """

    def __init__(self, url: str, *, auth: str | tuple[str, str] | None = None, retries: int = 3) -> None:
        self.url = url.rstrip("/")
        self._session = requests.Session()
        self._session.auth = _Bearer(auth) if isinstance(auth, str) else auth
        retry = Retry(
            total=retries,
            backoff_factor=0.2,
            status_forcelist=(502, 503, 504),
            allowed_methods=("GET", "HEAD"),
            raise_on_status=False,
        )
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, HTTPAdapter(max_retries=retry))

    def request(self, method: str, path: str, **kwargs: Any) -> requests.Response:
        """
        Send a request.

        Raises:
            ApiUnavailable: the service cannot be reached.
            ApiError: it answered with an error.
        """
        kwargs.setdefault("timeout", TIMEOUT)
        try:
            response = self._session.request(method, self.url + path, **kwargs)
        except requests.RequestException as exc:
            raise ApiUnavailable(f"no answer from {self.url}; is it running?") from exc
        if response.status_code >= requests.codes.bad_request:
            raise ApiError(_message(response), status=response.status_code)
        return response

    def close(self) -> None:
        """Close all connections."""
        self._session.close()


class _Bearer(AuthBase):
    # Not a header of the session, which requests would replace by what a .netrc says.
    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self._token}"
        return request


def _message(response: requests.Response) -> str:
    try:
        document = response.json()
        # What is wrong in full; services of 2017 have only their own key.
        return str(next(document[key] for key in ("detail", "error", "Error") if key in document))
    except (ValueError, TypeError, StopIteration):
        wrong = ": user, password or token is wrong" if response.status_code == requests.codes.unauthorized else ""
        return f"{response.status_code} {response.reason}{wrong}"
