"""Text and JSON as the clients of 2017 send them, parsed strictly."""

from __future__ import annotations

import json
import math
import re
from typing import Any
from uuid import UUID

from flask import Request

from morpheo.errors import InvalidInput, TooLarge
from morpheo.storage.blobs import Source

_UUID = re.compile(r"(?:urn:uuid:)?(\{)?([0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12})(?(1)\})")


#: Longest integer in an order; a 64-bit one has 20 characters.
_MAX_DIGITS = 20


def parse_uuid(text: str) -> UUID:
    """
    Return the UUID that a text is: hyphenated, also with braces or as a URN.

    Raises:
        ValueError: it is none.
    """
    match = _UUID.fullmatch(text)
    if match is None:
        raise ValueError(f"{text[:50]!r} is not a UUID such as 123e4567-e89b-12d3-a456-426614174000")
    return UUID(match[2])


def read_json(request: Request, source: Source, *, max_bytes: int) -> dict[str, Any]:
    """
    Return the JSON object that is a request's body, whatever its Content-Type.

    Raises:
        InvalidInput: it is not a JSON object, or holds what JSON or a database has no place for.
        TooLarge: it is longer than `max_bytes`.
        UnsupportedEncoding: it is compressed.
    """
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise UnsupportedEncoding
    content = bytearray()
    while piece := source.read(min(max_bytes + 1 - len(content), 1 << 16)):
        content += piece
        if len(content) > max_bytes:
            raise TooLarge(f"the body is larger than {max_bytes} bytes")
    try:
        document = json.loads(
            content.decode("utf-8"), parse_constant=_refuse_constant, parse_float=_finite, parse_int=_small
        )
        text = json.dumps(document, ensure_ascii=False)
        text.encode("utf-8")  # fails on half of a surrogate pair
    except RecursionError as exc:
        raise InvalidInput("Error decoding body to JSON: nested too deep") from exc
    except ValueError as exc:
        raise InvalidInput(f"Error decoding body to JSON: {exc}") from exc
    if r"\u0000" in text:
        raise InvalidInput("Error decoding body to JSON: a string holds a zero character")
    if not isinstance(document, dict):
        raise InvalidInput("Error decoding body to JSON: the body must be an object")
    return document


class UnsupportedEncoding(InvalidInput):
    """The body must not be compressed; send it without Content-Encoding."""


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("a number is too large")
    return number


def _small(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise ValueError("a number is too large")
    return int(text)
