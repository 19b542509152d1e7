"""The `morpheo` command in this process, as its console script runs it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from morpheo.cli import morpheo
from morpheo.cli.common import report_errors


class Terminal:
    """Runs commands, and gives what they write to stdout and stderr."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def run(self, *arguments: object, status: int = 0) -> tuple[str, str]:
        """Run a command that ends with a status."""
        with pytest.raises(SystemExit) as ended, report_errors():
            morpheo([str(item) for item in arguments], prog_name="morpheo")
        written = self._capsys.readouterr()
        assert (ended.value.code or 0) == status, written.out + written.err
        return written.out, written.err

    def run_json(self, *arguments: object, status: int = 0) -> Any:
        """Run a command with ``--json``; gives the document."""
        return json.loads(self.run(*arguments, "--json", status=status)[0])
