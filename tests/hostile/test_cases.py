"""Every hostile submission has a test that bears its number."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
CASES = set(range(1, 76))
#: Cases that need no hostile container, or another rig; where, and how the test is named.
ELSEWHERE = {
    **{case: ("integration/test_what_goes_out.py", f"test_{case}_") for case in range(21, 26)},
    74: ("faults/test_worker.py", "test_62_a_job_that_kills_its_worker_each_time"),
}
_NAME = re.compile(r"def test_(\d\d(?:_(?:and_|to_)?\d\d)*)_")


def cases_of(name: str) -> set[int]:
    """Return the numbers that the name of a test begins with: ``04_05``, ``10_and_17``, ``51_to_56``."""
    found: set[int] = set()
    for first, last in re.findall(r"(\d\d)(?:_to_(\d\d))?", name):
        found |= set(range(int(first), int(last or first) + 1))
    return found


def test_every_case_has_a_test() -> None:
    tested: set[int] = set()
    for module in Path(__file__).parent.glob("test_*.py"):
        for name in _NAME.findall(module.read_text()):
            tested |= cases_of(name)
    for case, (path, name) in ELSEWHERE.items():
        assert f"def {name}" in (TESTS / path).read_text(), case
    assert tested | ELSEWHERE.keys() == CASES
