"""What holds after each bad request."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from morpheo.logs import TextLines


@pytest.fixture(autouse=True)
def clean_log(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Nothing that was sent is in the log as it came: one record is one line, in which every letter can be seen."""
    yield
    lines = TextLines(lambda text: text)
    for record in caplog.get_records("call"):
        record.exc_text = record.exc_info = record.stack_info = None
        assert lines.format(record).isprintable()
