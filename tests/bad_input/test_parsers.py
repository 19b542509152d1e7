"""The parsers of hostile bytes, on changed examples: no other exception than theirs, and bounded memory."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from tests.support.api import BOUNDARY
from tests.support.fuzz import MEMORY, TARGETS, peak_bytes, read_form, read_tar

CASES = int(os.environ.get("FUZZ_CASES", "600")) // 3
SEED = int(os.environ.get("FUZZ_SEED", "1"))

Change = tuple[int, int, bytes]
#: Where, how many bytes go, and what comes in their place.
CHANGES = st.lists(st.tuples(st.integers(0, 1 << 12), st.integers(0, 40), st.binary(max_size=40)), max_size=6)


def changed(content: bytes, changes: list[Change]) -> bytes:
    for place, gone, new in changes:
        at = place % (len(content) + 1)
        content = content[:at] + new + content[at + gone :]
    return content


@pytest.mark.parametrize("target", TARGETS)
def test_a_parser_ends_in_words_whatever_it_is_given(target: str) -> None:
    parse, begin = TARGETS[target]
    examples = begin()

    @seed(SEED)
    @settings(max_examples=CASES, database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.sampled_from(examples), CHANGES)
    def run(example: bytes, changes: list[Change]) -> None:
        parse(changed(example, changes))

    for example in examples:
        parse(example)
    run()


FORM = b"\x3f" + TARGETS["form"][1]()[0][1:]
TAR = TARGETS["tar"][1]()[0]
#: The reader looks further where a piece ends in what may be a boundary: these are as long as its source gives them.
PIECE, CUT = 63**3 + 1, f"\r\n--{BOUNDARY}".encode()
CUT_SHORT = [(begin + b"x" * PIECE)[: PIECE - len(CUT)] + CUT for begin in [FORM[1 : FORM.index(b"abc")], *[b""] * 16]]
LARGE = {
    "form-long-blob": (read_form, FORM.replace(b"abc", b"x" * (4 << 20))),
    "form-long-name": (read_form, FORM.replace(b"\r\n\r\nn\r\n", b"\r\n\r\n" + b"n" * (4 << 20) + b"\r\n")),
    "form-long-header": (read_form, FORM.replace(b'name="name"', b'name="' + b"n" * (4 << 20))),
    "form-cut-boundaries": (read_form, FORM[:1] + b"".join(CUT_SHORT)),
    "form-no-boundary": (read_form, b"\x3f" + b"x" * (4 << 20)),
    "tar-of-zeros": (read_tar, TAR[:512] + bytes(4 << 20)),
    "tar-of-nothing-but-headers": (read_tar, TAR[:512] * (4 << 11)),
}


@pytest.mark.parametrize(("parse", "content"), LARGE.values(), ids=LARGE)
def test_a_parser_holds_little_of_what_is_large(parse: Callable[[bytes], None], content: bytes) -> None:
    assert len(content) > 2 * MEMORY - 1
    assert peak_bytes(parse, content) < MEMORY
