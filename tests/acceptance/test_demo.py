"""The demo, as a newcomer runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from docker import APIClient

from tests.acceptance.conftest import leftovers

pytestmark = pytest.mark.docker


def test_the_demo_learns_predicts_and_leaves_nothing(engine: APIClient, tmp_path: Path) -> None:
    before = leftovers(engine)
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "morpheo", "demo", "--json"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "TMPDIR": str(temporary)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert {name: len(scores) for name, scores in result["scores"].items()} == {"logistic": 5, "bayes": 5}
    assert all(0.9 < score <= 1 for scores in result["scores"].values() for score in scores)
    assert [entry["curve"]["ranks"] for entry in result["boards"][0]["entries"]] == [[0, 1, 2, 3]] * 2
    first, second = result["boards"][1]["entries"]
    best = max(score for scores in result["scores"].values() for score in scores)
    assert first["perf"] == pytest.approx(best, abs=1e-6)
    assert first["perf"] >= second["perf"] > 0.95
    assert second["curve"]["train_files"] == [2, 4, 6, 8, 10]
    assert all(entry["interval"][0] <= entry["interval"][1] for entry in (first, second))
    assert len(result["prediction"]) == 22
    assert all(0 <= float(value) <= 1 for value in result["prediction"])
    assert leftovers(engine) == before
    assert list(temporary.iterdir()) == []
