"""What a container or a build writes, kept in bounded memory: the head and the tail."""

from __future__ import annotations

import threading
from dataclasses import dataclass


@dataclass(frozen=True)
class Run:
    """Consecutive bytes of a log."""

    #: Place of the first byte among all that was written.
    start: int
    content: bytes

    @property
    def end(self) -> int:
        """Place after the last byte."""
        return self.start + len(self.content)


def gap_line(count: int) -> bytes:
    """Return the line that stands for bytes that were not kept."""
    return f"[{count} bytes left out]\n".encode()


def joined(runs: list[Run]) -> bytes:
    """Return runs as one text, with a line in the place of each gap."""
    text, end = b"", 0
    for run in runs:
        if run.start > end:
            text += (b"" if not text or text.endswith(b"\n") else b"\n") + gap_line(run.start - end)
        text += run.content
        end = run.end
    return text


class BoundedLog:
    """
    Takes all that is written and keeps the first and the last bytes; whoever writes never waits.

    Thread-safe: one thread writes, another takes what is new with `since`.

    Args:
        limit: How many bytes are kept, half of them of the head.
        written: Set after each write.
    """

    def __init__(self, limit: int, *, written: threading.Event | None = None) -> None:
        self._head_size = limit // 2
        self._tail_size = limit - self._head_size
        self._head = bytearray()
        self._tail = bytearray()
        self._lock = threading.Lock()
        self._written = written
        self._ends_line = True
        #: How many bytes were written.
        self.total = 0

    def has_dropped(self, end: int) -> bool:
        """Return whether the byte before this place is neither part of the head nor of the tail any more."""
        return self._head_size < end <= self.total - self._tail_size

    def write(self, content: bytes) -> None:
        """Add bytes."""
        if not content:
            return
        with self._lock:
            rest = memoryview(content)
            room = self._head_size - len(self._head)
            self._head += rest[:room]
            self._tail += rest[room:][-self._tail_size :]
            if len(self._tail) > 2 * self._tail_size:
                del self._tail[: -self._tail_size]
            self.total += len(content)
            self._ends_line = content.endswith(b"\n")
        if self._written is not None:
            self._written.set()

    def note(self, text: str) -> None:
        """Add a line of our own, in brackets."""
        self.write((b"" if self._ends_line else b"\n") + f"[{text}]\n".encode())

    def since(self, start: int) -> list[Run]:
        """Return what is kept from a place on: two runs if there is a gap between head and tail."""
        with self._lock:
            runs = [Run(start, bytes(self._head[start:]))] if start < len(self._head) else []
            tail = bytes(self._tail[-self._tail_size :])
            tail_start = self.total - len(tail)
            begin = max(start, tail_start)
            if begin < self.total:
                run = Run(begin, tail[begin - tail_start :])
                if runs and runs[0].end == begin:
                    return [Run(start, runs[0].content + run.content)]
                runs.append(run)
            return runs

    def text(self) -> bytes:
        """Return what is kept, with a line in the place of what is not."""
        return joined(self.since(0))
