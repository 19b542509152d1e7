"""Digests that a client announces for the body that it sends; another body is refused."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Iterable, Iterator

from werkzeug.datastructures import Headers

from morpheo.errors import InvalidInput

#: Names in the headers, and what hashlib calls them; a client may announce others, which nobody checks.
_ALGORITHMS = {"md5": "md5", "sha-256": "sha256", "sha-512": "sha512"}
#: Headers of one digest each.
_SINGLE = {"Content-MD5": "md5", "X-Amz-Checksum-Sha256": "sha-256"}
#: ``sha-256=:<base64>:`` of RFC 9530, or ``SHA-256=<base64>`` of RFC 3230.
_MEMBER = re.compile(r"\s*([A-Za-z0-9-]+)=(:?)([A-Za-z0-9+/]*=*)\2\s*")


class AnnouncedDigests:
    """
    Computes the digests that the headers of a request announce.

    Raises:
        InvalidInput: a header cannot be read.
    """

    def __init__(self, headers: Headers) -> None:
        self._digests = [
            (header, hashlib.new(_ALGORITHMS[name], usedforsecurity=False), _decoded(header, text))
            for header, name, text in _announced(headers)
        ]

    def update(self, piece: bytes) -> None:
        """Take a piece of the body into account."""
        for _, digest, _ in self._digests:
            digest.update(piece)

    def check(self) -> None:
        """
        Do nothing if the whole body is what was announced.

        Raises:
            InvalidInput: it is not.
        """
        for header, digest, expected in self._digests:
            if digest.digest() != expected:
                raise InvalidInput(f"the body is not the one that {header} announces; send it again", field=header)


def _announced(headers: Headers) -> Iterator[tuple[str, str, str]]:
    for header, name in _SINGLE.items():
        if header in headers:
            yield header, name, headers[header].strip()
    for header in ("Content-Digest", "Digest"):
        for name, text in _members(header, headers.getlist(header)):
            if name in _ALGORITHMS:
                yield header, name, text


def _members(header: str, values: Iterable[str]) -> Iterator[tuple[str, str]]:
    for value in values:
        for member in value.split(","):
            match = _MEMBER.fullmatch(member)
            if match is None:
                raise InvalidInput(f"{header} must be such as sha-256=:<base64>:", field=header)
            yield match[1].lower(), match[3]


def _decoded(header: str, text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as exc:
        raise InvalidInput(f"{header} is not base64", field=header) from exc
