"""
Reads a ``multipart/form-data`` upload from the socket, part by part.

The text fields come first and are small; the ``blob`` part is never held in memory or on disk but read through, like a
file. werkzeug's sans-io decoder does the parsing; its ``request.files`` would spool the whole body to disk first.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from werkzeug.exceptions import RequestEntityTooLarge
from werkzeug.http import parse_options_header
from werkzeug.sansio.multipart import Data, Epilogue, Event, Field, File, MultipartDecoder, NeedData

from morpheo.errors import InvalidInput, TooLarge
from morpheo.storage.blobs import Source

BLOB = "blob"
_READ_SIZE = 1 << 18
#: Longest part header and text field that the decoder buffers, in bytes.
_MAX_BUFFERED = 64 << 10
_MAX_PARTS = 100
_MAX_BOUNDARY = 70
#: How far back a boundary with blanks behind it is looked for, in bytes.
_TAIL = 1 << 10


class MultipartReader:
    """
    One upload, read from front to back: first `fields`, then `read` for the blob.

    The end of the blob is only reported when the rest of the body has been seen to be complete, so that a body that
    was cut never looks like a short blob.

    Args:
        source: The request's body.
        content_type: Its Content-Type.

    Raises:
        InvalidInput: the body is not what it says, or ends too early.
    """

    def __init__(self, source: Source, content_type: str) -> None:
        self._source = source
        boundary = _boundary(content_type).encode("latin-1")
        self._decoder = MultipartDecoder(boundary, max_parts=_MAX_PARTS)
        self._cut_boundary = re.compile(rb"--%s(?:-|[^\S\r\n]*\r?)\Z" % re.escape(boundary))
        self._events = self._decode()
        self._blob_rest = b""
        self._blob_ended = False
        self._finished = False
        #: Whether `fields` came to a blob.
        self.has_blob = False

    def fields(self, limits: dict[str, int]) -> Iterator[tuple[str, bytes]]:
        """
        Return the name and content of each text part, as it comes, up to the blob or the end.

        Args:
            limits: The names that are known, and how many bytes each may have.
        """
        for event in self._events:
            if not isinstance(event, Field | File):
                continue
            if event.name == BLOB:
                self.has_blob = True
                return
            if event.name not in limits:
                raise InvalidInput(f'Unknown field "{(event.name or "")[:100]}"', field=event.name)
            yield event.name, self._text(event.name, limits[event.name])

    def read(self, size: int = -1, /) -> bytes:
        """Return at most `size` bytes of the blob; none at its end."""
        while not self._blob_rest and not self._blob_ended:
            event = next(self._events)
            if isinstance(event, Data):
                self._blob_rest = event.data
                self._blob_ended = not event.more_data
        if not self._blob_rest and not self._finished and size != 0:
            self._finish()
        piece = self._blob_rest if size < 0 else self._blob_rest[:size]
        self._blob_rest = self._blob_rest[len(piece) :]
        return piece

    def _finish(self) -> None:
        # Other fields after the blob are ignored, as they always were; a second blob is not.
        self._finished = True
        for event in self._events:
            if isinstance(event, Field | File) and event.name == BLOB:
                raise InvalidInput("two blob parts; send one", field=BLOB)

    def _text(self, name: str, limit: int) -> bytes:
        content = b""
        for event in self._events:
            if isinstance(event, Data):
                content += event.data
                if len(content) > limit:
                    prefix = {"name": "Name: ", "uuid": "UUID ", "size": "size field: "}.get(name, f"{name}: ")
                    raise InvalidInput(
                        f"Error reading {prefix}Buffer overflow reading {name} (max length is {limit} in base 10): EOF",
                        field=name,
                    )
                if not event.more_data:
                    break
        return content

    def _decode(self) -> Iterator[Event]:
        buffered = 0
        while True:
            try:
                event = self._decoder.next_event()
            except RequestEntityTooLarge as exc:
                raise TooLarge(f"more than {_MAX_PARTS} parts") from exc
            except (ValueError, KeyError, UnicodeError) as exc:
                raise InvalidInput(f"Error parsing multipart data: {exc or 'a malformed part'}") from exc
            if isinstance(event, NeedData):
                if buffered > _MAX_BUFFERED + _READ_SIZE:
                    raise TooLarge(f"a part's header is longer than {_MAX_BUFFERED} bytes")
                piece = self._next_piece()
                buffered += len(piece)
                self._decoder.receive_data(piece or None)
                continue
            buffered = 0
            yield event
            if isinstance(event, Epilogue):
                return

    def _next_piece(self) -> bytes:
        # If a piece ended between a boundary and its `--`, blanks or LF, the decoder would take the CR before the
        # boundary for content: one byte too many in the blob.
        piece = self._source.read(_READ_SIZE)
        while piece and self._cut_boundary.search((bytes(self._decoder.buffer[-_TAIL:]) + piece[-_TAIL:])[-_TAIL:]):
            more = self._source.read(_READ_SIZE)
            if not more:
                break
            piece += more
            if len(piece) > _MAX_BUFFERED + 2 * _READ_SIZE:  # no file happens to be like that
                raise InvalidInput("Error parsing multipart data: too many boundaries that are cut short")
        return piece


def _boundary(content_type: str) -> str:
    media_type, options = parse_options_header(content_type)
    if not media_type:
        raise InvalidInput('Error parsing header "Content-Type": send multipart/form-data')
    if not media_type.startswith("multipart/"):
        raise InvalidInput(f"Invalid media type: {media_type[:100]}. Should be: multipart/form-data")
    boundary = options.get("boundary", "")
    if not 0 < len(boundary) <= _MAX_BOUNDARY or not boundary.isascii():
        raise InvalidInput('Error parsing header "Content-Type": the boundary must have 1 to 70 ASCII characters')
    return boundary
