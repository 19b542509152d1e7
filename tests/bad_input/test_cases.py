"""Every case of bad input has a test that bears its number."""

from __future__ import annotations

import re
from pathlib import Path

CASES = set(range(1, 67))
#: Who may do what (22, 23) is tried out elsewhere, for every route, role and object.
ELSEWHERE = {22, 23}


def test_every_case_has_a_test() -> None:
    tested: set[int] = set()
    for module in Path(__file__).parent.glob("test_*.py"):
        text = module.read_text()
        for first, last in re.findall(r"def test_(\d\d)_(?:to_(\d\d)_)?", text):
            tested |= {int(first)} if not last else set()
        tested |= {int(number) for number in re.findall(r'[\["](\d\d)-[^"\n]*"', text)}
    assert tested == CASES - ELSEWHERE
