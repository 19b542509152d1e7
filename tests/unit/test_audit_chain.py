"""The chain of the audit trail: nothing in it can be changed without being found."""

from __future__ import annotations

import hashlib
import json
import tracemalloc
from collections.abc import Iterator
from contextvars import Context
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from morpheo.actors import ANONYMOUS, UNKNOWN, act_as, acting_as, current_actor
from morpheo.audit import MAX_FLAWS, START, Action, Event, Head, canonical, chained, event_digest, list_digest, verify

texts = st.text(max_size=8)
contents = st.fixed_dictionaries(
    {
        "at": st.floats(0, 4e9).map(lambda at: round(at, 3)),
        "actor": texts,
        "action": st.sampled_from(Action),
        "subject_kind": texts,
        "subject_id": texts,
        "detail": st.dictionaries(texts, st.integers() | texts | st.booleans(), max_size=3).map(canonical),
    }
)


def grow(count: int, head: Head = START, **changes: object) -> Iterator[Event]:
    values = {"at": 1.5, "actor": "user:u", "action": Action.JOB_ORDERED, "subject_kind": "job", "subject_id": "1"}
    for _ in range(count):
        event = chained(head, **{**values, "detail": "{}", **changes})  # type: ignore[arg-type]
        head = Head(event.seq, event.digest)
        yield event


def replaced(event: Event, name: str, value: Any) -> Event:
    return event._replace(**{name: value})


def end(events: list[Event]) -> Head:
    return Head(events[-1].seq, events[-1].digest) if events else START


@st.composite
def trails(draw: st.DrawFn, min_size: int = 1) -> list[Event]:
    events: list[Event] = []
    for content in draw(st.lists(contents, min_size=min_size, max_size=8)):
        events.append(chained(end(events), **content))
    return events


@given(trails(min_size=0))
def test_a_trail_that_nobody_touched_is_intact(events: list[Event]) -> None:
    verdict = verify(iter(events), end(events), noted=[START, *(Head(event.seq, event.digest) for event in events)])
    assert verdict.intact
    assert verdict.events == len(events)
    assert verdict.head == end(events)


@given(trails(), st.data())
def test_a_field_that_is_changed_is_found(events: list[Event], data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(events) - 1))
    name = data.draw(st.sampled_from(Event._fields))
    old = getattr(events[place], name)
    other = texts if isinstance(old, str) else st.integers(-1, 20) if name == "seq" else st.floats()
    new = data.draw(other.filter(lambda value: canonical(value) != canonical(old)))
    changed = [*events]
    changed[place] = replaced(changed[place], name, new)
    assert not verify(changed, end(events)).intact


@given(trails(), st.data())
def test_a_changed_event_with_a_new_digest_is_found(events: list[Event], data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(events) - 1))
    actor = data.draw(texts.filter(lambda actor: actor != events[place].actor))
    forged = events[place]._replace(actor=actor)
    changed = [*events[:place], forged._replace(digest=event_digest(forged)), *events[place + 1 :]]
    assert not verify(changed, end(events)).intact


@given(trails(), st.data())
def test_missing_events_are_named(events: list[Event], data: st.DataObject) -> None:
    first = data.draw(st.integers(1, len(events)))
    last = data.draw(st.integers(first, len(events)))
    flaws = verify(events[: first - 1] + events[last:], end(events)).flaws
    assert [(flaw.first, flaw.last) for flaw in flaws] == [(first, last)]


@given(trails(min_size=2), st.data())
def test_two_events_that_change_places_are_found(events: list[Event], data: st.DataObject) -> None:
    one, other = data.draw(st.lists(st.integers(0, len(events) - 1), min_size=2, max_size=2, unique=True))
    swapped = [*events]
    swapped[one], swapped[other] = swapped[other], swapped[one]
    assert not verify(swapped, end(events)).intact
    renumbered = [event._replace(seq=number) for number, event in enumerate(swapped, start=1)]
    assert not verify(renumbered, end(events)).intact
    rehashed = [event._replace(digest=event_digest(event)) for event in renumbered]
    assert not verify(rehashed, end(events)).intact


@given(trails(), contents, st.data())
def test_an_event_that_is_put_in_is_found(events: list[Event], content: dict[str, object], data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(events)))
    forged = chained(end(events[:place]), **content)  # type: ignore[arg-type]
    assert not verify([*events[:place], forged, *events[place:]], end(events)).intact
    moved = [event._replace(seq=event.seq + 1) for event in events[place:]]
    assert not verify([*events[:place], forged, *moved], end(events)).intact


@given(trails(min_size=2), st.data())
def test_a_trail_that_was_made_anew_is_found_by_a_head_that_was_noted(events: list[Event], data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(events) - 1))
    forged = [*events[:place]]
    for event in events[place:]:
        forged.append(
            chained(
                end(forged),
                at=event.at,
                actor=event.actor + "!",
                action=Action(event.action),
                subject_kind=event.subject_kind,
                subject_id=event.subject_id,
                detail=event.detail,
            )
        )
    assert verify(forged, end(forged)).intact
    noted = events[data.draw(st.integers(place, len(events) - 1))]
    flaws = verify(forged, end(forged), noted=[Head(noted.seq, noted.digest)]).flaws
    assert [flaw.first for flaw in flaws] == [noted.seq]


def test_a_trail_that_no_longer_gets_to_a_noted_head() -> None:
    events = list(grow(3))
    verdict = verify(events[:2], end(events[:2]), noted=[end(events)])
    assert [(flaw.first, flaw.last) for flaw in verdict.flaws] == [(3, 3)]
    assert "noted" in verdict.flaws[0].problem


def test_two_heads_that_were_noted_for_one_place_cannot_both_be_right() -> None:
    events = list(grow(3))
    noted = [Head(2, events[1].digest), Head(2, "f" * 64)]
    assert [flaw.first for flaw in verify(events, end(events), noted=noted).flaws] == [2]


def test_a_head_that_is_missing_or_was_set_back_is_found() -> None:
    events = list(grow(3))
    assert "missing" in verify(events, None).flaws[0].problem
    flaws = verify(events, Head(2, events[1].digest)).flaws
    assert [(flaw.first, flaw.last) for flaw in flaws] == [(2, 3)]
    assert not verify(events, Head(3, "f" * 64)).intact


@pytest.mark.parametrize("name", Event._fields)
@pytest.mark.parametrize("value", [b"x", None, "x", float("nan")], ids=repr)
def test_values_that_have_no_business_there_are_flaws_and_no_errors(name: str, value: object) -> None:
    events = list(grow(3))
    changed = [events[0], replaced(events[1], name, value), events[2]]
    assert not verify(changed, end(events)).intact


def test_many_flaws_are_counted_and_the_first_are_named() -> None:
    events = [event._replace(actor="x") for event in grow(MAX_FLAWS + 5)]
    verdict = verify(events, end(events))
    assert verdict.flaws_total == MAX_FLAWS + 5
    assert [flaw.first for flaw in verdict.flaws] == list(range(1, MAX_FLAWS + 1))


def test_verifying_takes_no_more_memory_for_more_events() -> None:
    def peak(count: int) -> int:
        *_, last = grow(count)
        tracemalloc.start()
        try:
            assert verify(grow(count), Head(last.seq, last.digest)).intact
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(10)
    # The least of some: threads that other tests left may allocate meanwhile.
    assert min(peak(5000) for _ in range(3)) < 2 * peak(50) + 10_000


def test_a_digest_is_what_the_documentation_says() -> None:
    (event,) = grow(1, detail=canonical({"size_bytes": 5, "sha256": "ab"}))
    fields = '[1,1.5,"user:u","job.ordered","job","1","{\\"sha256\\":\\"ab\\",\\"size_bytes\\":5}","' + "0" * 64 + '"]'
    assert event.digest == hashlib.sha256(fields.encode()).hexdigest()
    assert json.loads(fields) == list(event[:-1])
    assert list_digest(["a", 1]) == hashlib.sha256(b"a\n1\n").hexdigest()


def test_actors_last_as_long_as_their_block() -> None:
    def check() -> None:
        assert current_actor() == UNKNOWN
        with acting_as("cli:somebody"):
            with acting_as("worker:w"):
                assert current_actor() == "worker:w"
            assert current_actor() == "cli:somebody"
            act_as(ANONYMOUS)
            assert current_actor() == ANONYMOUS
        assert current_actor() == UNKNOWN

    Context().run(check)  # not that of this process, in which other tests have acted
