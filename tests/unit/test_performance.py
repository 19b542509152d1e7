"""The performance file: numbers for exactly the files of the job, or a sentence that the problem's author can use."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from morpheo.errors import BadOutput
from morpheo.models import Scores
from morpheo.performance import parse_performance

TRAIN, TEST, OTHER = UUID(int=1), UUID(int=0xABC), UUID(int=3)
GOOD: dict[str, Any] = {"perf": 0.5, "train_perf": {str(TRAIN): 0.75}, "test_perf": {str(TEST): 0.25}}


def parse(content: bytes | str | dict[str, Any]) -> Scores:
    raw = json.dumps(content) if isinstance(content, dict) else content
    return parse_performance(raw.encode() if isinstance(raw, str) else raw, train_data=[TRAIN], test_data=[TEST])


def test_a_good_file_gives_the_scores() -> None:
    assert parse(GOOD) == Scores(perf=0.5, train_perf={str(TRAIN): 0.75}, test_perf={str(TEST): 0.25})


@pytest.mark.parametrize("value", [0, -1, 7, 1e300, -0.0, 5e-324, 10**15])
def test_any_finite_number_is_a_score(value: float) -> None:
    score = parse({**GOOD, "perf": value}).perf
    assert score == value
    assert isinstance(score, float)


def test_other_keys_are_ignored() -> None:
    assert parse({**GOOD, "note": ["anything", None]}) == parse(GOOD)


def test_a_file_given_twice_needs_one_score() -> None:
    scores = parse_performance(json.dumps(GOOD).encode(), train_data=[TRAIN, TRAIN], test_data=[TEST])
    assert set(scores.train_perf) == {str(TRAIN)}


@pytest.mark.parametrize("value", [True, None, "0.5", [0.5], {}, {"a": 1}])
@pytest.mark.parametrize("key", ["perf", "train_perf", "test_perf"])
def test_a_score_of_another_kind_is_refused_by_name(key: str, value: object) -> None:
    per_file = {"perf": value, "train_perf": {str(TRAIN): value}, "test_perf": {str(TEST): value}}
    with pytest.raises(BadOutput, match=rf"performance.json: {key}.* must be a number"):
        parse({**GOOD, key: per_file[key]})


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1" + "0" * 400])
def test_a_number_that_is_not_finite_is_refused(number: str) -> None:
    with pytest.raises(BadOutput, match=r"not a JSON number|finite number"):
        parse(json.dumps(GOOD).replace("0.5", number))


@pytest.mark.parametrize("key", ["perf", "train_perf", "test_perf"])
def test_a_missing_key_is_named(key: str) -> None:
    with pytest.raises(BadOutput, match=key):
        parse({name: value for name, value in GOOD.items() if name != key})


@pytest.mark.parametrize(("key", "data_id"), [("train_perf", TRAIN), ("test_perf", TEST)])
def test_a_missing_score_is_named(key: str, data_id: UUID) -> None:
    with pytest.raises(BadOutput, match=f"{key} has no score for {data_id}"):
        parse({**GOOD, key: {}})


@pytest.mark.parametrize("data_id", [str(OTHER), "", "x" * 1000, "a\nb\x1b", "\ud800", str(TEST).upper()])
@pytest.mark.parametrize("key", ["train_perf", "test_perf"])
def test_a_score_for_a_file_of_another_job_is_refused(key: str, data_id: str) -> None:
    with pytest.raises(BadOutput, match=f"{key} has a score for .*, which is not in this job") as caught:
        parse({**GOOD, key: {**GOOD[key], data_id: 1.0}})
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300


def test_an_id_in_other_letters_is_another_id() -> None:
    with pytest.raises(BadOutput, match="no score for"):
        parse({**GOOD, "test_perf": {str(TEST).upper() + " ": 1.0}})


@pytest.mark.parametrize("value", [[], 1, None, "x", True])
@pytest.mark.parametrize("key", ["train_perf", "test_perf"])
def test_scores_per_file_are_an_object(key: str, value: object) -> None:
    with pytest.raises(BadOutput, match=f"{key} must be an object"):
        parse({**GOOD, key: value})


@pytest.mark.parametrize("content", ["[]", "1", "null", '"perf"', "true"])
def test_a_document_that_is_no_object_is_refused(content: str) -> None:
    with pytest.raises(BadOutput, match="must be an object with perf, train_perf and test_perf"):
        parse(content)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"{'perf': 1}",
        b'{"perf": 1,}',
        b'{"perf": 1} x',
        b'{"perf": 01}',
        b'{"perf": 0x1}',
        b'{"perf": +1}',
        b"\xff\xfe",
        json.dumps(GOOD).encode("utf-16"),
        b"\xef\xbb\xbf" + json.dumps(GOOD).encode(),
        b"[" * 10_000,
        b'{"a":' * 10_000,
        b"[" * 100_000 + b"]" * 100_000,
        b'{"perf": ' + b"9" * 5000 + b"}",
        b'{"perf": "\n"}',
        b"\0",
    ],
    ids=[
        "empty",
        "cut-short",
        "single-quotes",
        "comma-at-end",
        "two-values",
        "leading-zero",
        "hexadecimal",
        "plus",
        "not-utf8",
        "utf16",
        "byte-order-mark",
        "deep-list-cut-short",
        "deep-object-cut-short",
        "deep-list",
        "long-number",
        "line-end-in-string",
        "zero-byte",
    ],
)
def test_what_is_not_json_is_refused(content: bytes) -> None:
    with pytest.raises(BadOutput, match=r"performance\.json is not JSON: ."):
        parse(content)


@pytest.mark.parametrize(
    "content",
    [
        '{"perf": 1, "perf": 2, "train_perf": {}, "test_perf": {}}',
        f'{{"perf": 1, "train_perf": {{"{TRAIN}": 1, "{TRAIN}": 2}}, "test_perf": {{"{TEST}": 1}}}}',
        '{"note": {"a": 1, "a": 2}}',
    ],
)
def test_a_key_that_stands_twice_is_refused(content: str) -> None:
    with pytest.raises(BadOutput, match="a key stands twice"):
        parse(content)


VALUES = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from([*GOOD, str(TRAIN), str(TEST)]) | st.text(), inner),
    max_leaves=10,
)


@settings(max_examples=60)
@given(content=st.binary() | VALUES.map(lambda value: json.dumps(value).encode()))
def test_whatever_is_in_the_file_it_is_scores_or_bad_output(content: bytes) -> None:
    try:
        scores = parse(content)
    except BadOutput:
        return
    assert set(scores.train_perf) == {str(TRAIN)}
    assert set(scores.test_perf) == {str(TEST)}
