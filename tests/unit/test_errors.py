"""The exception tree: its drawing is complete, and each class says something by itself."""

from __future__ import annotations

import inspect
import re

import pytest

from morpheo import errors
from morpheo.errors import ApiError, InvalidInput, MorpheoError, Unavailable

CLASSES = [
    cls
    for _, cls in inspect.getmembers(errors, inspect.isclass)
    if issubclass(cls, Exception) and cls.__module__ == errors.__name__
]


def drawn() -> dict[str, str]:
    """Return the parent of each class, as the module's docstring draws it."""
    parents: dict[str, str] = {}
    above: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        if match := re.match(r"    ([│ ]*(?:[├└]── )?)([A-Z]\w+)\b", line):
            depth = len(match[1]) // 4
            above[depth:] = [match[2]]
            parents[match[2]] = above[depth - 1] if depth else "Exception"
    return parents


def test_the_drawing_has_every_class_below_its_parent() -> None:
    assert drawn() == {cls.__name__: cls.__bases__[0].__name__ for cls in CLASSES}


def make(cls: type[Exception], *args: str) -> Exception:
    return ApiError(*args, status=500) if cls is ApiError else cls(*args)


@pytest.mark.parametrize("cls", CLASSES)
def test_a_class_says_its_first_sentence_if_nothing_else_is_said(cls: type[Exception]) -> None:
    sentence = str(make(cls))
    assert sentence.endswith(".")
    assert "\n" not in sentence
    assert sentence in (cls.__doc__ or "")


@pytest.mark.parametrize("cls", CLASSES)
def test_a_message_replaces_the_sentence(cls: type[Exception]) -> None:
    assert str(make(cls, "it broke")) == "it broke"


@pytest.mark.parametrize("cls", CLASSES)
def test_every_error_is_morpheos(cls: type[Exception]) -> None:
    assert issubclass(cls, MorpheoError)
    assert not issubclass(cls, OSError)


def test_what_was_sent_wrong_names_its_field() -> None:
    assert InvalidInput("x", field="algo").field == "algo"
    assert InvalidInput("x").field is None


def test_an_answer_keeps_its_status() -> None:
    assert ApiError("no", status=409).status == 409


def test_only_infrastructure_is_tried_again() -> None:
    assert {cls.__name__ for cls in CLASSES if issubclass(cls, Unavailable)} == {
        "Unavailable",
        "DatabaseUnavailable",
        "RowLocked",
        "StorageUnavailable",
        "BrokerUnavailable",
        "RuntimeUnavailable",
        "DiskFull",
        "EngineFull",
        "ApiUnavailable",
    }
