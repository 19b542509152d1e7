"""Which worker takes which job."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from morpheo.models import JobKind
from morpheo.queues import MAX_TAGS, checked_tags, consumed, in_lane, queue_name, queue_of
from morpheo.specs import spec_digest
from morpheo.testing import make_learn_spec, make_predict_spec

tags = st.from_regex(r"[a-z0-9][a-z0-9-]{0,31}", fullmatch=True).filter(lambda tag: tag not in set(JobKind))
#: From few, so that workers and jobs often share some.
few = st.frozensets(st.sampled_from(["gpu", "big-memory", "a", "a-b", "b", "zz"]), max_size=MAX_TAGS)
kinds = st.sampled_from(JobKind)


@pytest.mark.parametrize(
    ("kind", "asked", "name"),
    [
        (JobKind.LEARN, (), "learn"),
        (JobKind.PREDICT, (), "predict"),
        (JobKind.LEARN, ("gpu", "big-memory"), "learn.big-memory+gpu"),
        (JobKind.PREDICT, ("gpu",), "predict.gpu"),
    ],
)
def test_a_queue_is_named_after_kind_and_sorted_tags(kind: JobKind, asked: tuple[str, ...], name: str) -> None:
    assert queue_name(kind, asked) == name


def test_a_job_goes_to_the_queue_of_its_kind_and_tags() -> None:
    assert queue_of(make_learn_spec()) == "learn"
    assert queue_of(make_predict_spec(tags=("gpu",))) == "predict.gpu"


@given(names=st.frozensets(kinds), has=few, kind=kinds, asks=few)
def test_a_worker_consumes_a_jobs_queue_if_it_has_all_of_its_tags(
    names: frozenset[JobKind], has: frozenset[str], kind: JobKind, asks: frozenset[str]
) -> None:
    if not names and not has:
        return
    takes = queue_name(kind, asks) in consumed([*names, *has])[kind]
    assert takes is (asks <= has if asks else kind in names)


@given(one=st.tuples(kinds, st.frozensets(tags, max_size=4)), other=st.tuples(kinds, st.frozensets(tags, max_size=4)))
def test_jobs_share_a_queue_only_if_they_ask_for_the_same(
    one: tuple[JobKind, frozenset[str]], other: tuple[JobKind, frozenset[str]]
) -> None:
    assert (queue_name(*one) == queue_name(*other)) is (one == other)


@given(names=st.frozensets(st.one_of(kinds, tags), min_size=1, max_size=4))
def test_no_queue_is_consumed_twice(names: frozenset[str]) -> None:
    queues = [queue for each in consumed(names).values() for queue in each]
    assert len(queues) == len(set(queues))


users = st.sampled_from(["", "anna", "ann", "anna.", "1@b.org", "gpu", "learn", "a" * 63, "a" * 64])


@given(names=st.frozensets(kinds, min_size=1), has=few, asks=few, submitter=users, other=users)
def test_submitters_kept_apart_share_no_queue(
    names: frozenset[JobKind], has: frozenset[str], asks: frozenset[str], submitter: str, other: str
) -> None:
    spec = in_lane(make_learn_spec(tags=tuple(sorted(asks))), submitter)
    taken = queue_of(spec) in consumed([*names, *has], other)[JobKind.LEARN]
    assert taken is (submitter == other and (asks <= has if asks else JobKind.LEARN in names))


@given(asks=few, submitter=users, other=users)
def test_an_order_has_one_lane_and_its_digest_does_not_depend_on_it(
    asks: frozenset[str], submitter: str, other: str
) -> None:
    spec = make_learn_spec(tags=tuple(sorted(asks)))
    assert in_lane(in_lane(spec, other), submitter) == in_lane(spec, submitter)
    assert in_lane(in_lane(spec, submitter), "") == spec
    assert spec_digest(in_lane(spec, submitter)) == spec_digest(spec)


@pytest.mark.parametrize("tag", ["@anna", "a@b"])
def test_nobody_can_ask_for_a_lane(tag: str) -> None:
    with pytest.raises(ValueError, match="is not a tag"):
        checked_tags([tag])


def test_with_tags_alone_only_tagged_jobs_are_taken() -> None:
    assert consumed(["gpu"]) == {JobKind.LEARN: ("learn.gpu",), JobKind.PREDICT: ("predict.gpu",)}


def test_with_a_kind_alone_the_other_is_not_taken() -> None:
    assert consumed(["learn"]) == {JobKind.LEARN: ("learn",), JobKind.PREDICT: ()}


def test_four_tags_are_sixteen_queues_of_a_kind() -> None:
    assert len(consumed(["learn", "a", "b", "c", "d"])[JobKind.LEARN]) == 16


def test_no_names_are_an_error() -> None:
    with pytest.raises(ValueError, match="name at least one"):
        consumed([])


@given(given=st.lists(tags, max_size=MAX_TAGS))
def test_tags_come_back_sorted_and_once(given: list[str]) -> None:
    assert checked_tags(given) == tuple(sorted(set(given)))


@pytest.mark.parametrize("tag", ["", "GPU", "-gpu", "g+u", "a.b", "a,b", "a b", "ü", "x" * 33, "gpu\n", "_"])
def test_what_is_no_tag_is_named(tag: str) -> None:
    with pytest.raises(ValueError, match="is not a tag: lower-case letters"):
        checked_tags([tag])


@pytest.mark.parametrize("kind", JobKind)
def test_a_kind_is_no_tag(kind: JobKind) -> None:
    with pytest.raises(ValueError, match=f"{kind} is no tag but a kind"):
        checked_tags([kind.value])


@pytest.mark.parametrize("check", [checked_tags, consumed])
def test_five_tags_are_too_many(check: object) -> None:
    assert callable(check)
    with pytest.raises(ValueError, match="at most 4 tags"):
        check(["a", "b", "c", "d", "e"])
