"""The leaderboard in notebooks: tables, curves, and what is said without pandas and matplotlib."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib import pyplot as plt

from morpheo.client import Leaderboard
from morpheo.errors import MorpheoError


@pytest.fixture(autouse=True)
def no_screen() -> Iterator[None]:
    mpl.use("agg")
    yield
    plt.close("all")


def make_entry(number: int, **changes: Any) -> dict[str, Any]:
    return {
        "algo": str(UUID(int=number)),
        "name": f"algo {number}",
        "trainings": 3,
        "curve": {"ranks": [0, 1, 3], "train_files": [25, 50, 57], "perf": [0.5, 0.7, 0.6]},
        "place": number,
        "range": [1, 2],
        "perf": 0.7,
        "rank": 1,
        "mean": 0.7,
        "interval": [0.65, 0.75],
        "spread": {"files": 6, "sd": 0.05, "min": 0.6, "median": 0.7, "max": 0.8},
        **changes,
    }


def without_score(number: int) -> dict[str, Any]:
    nothing = dict.fromkeys(("place", "range", "perf", "rank", "mean", "interval", "spread"))
    curve: dict[str, list[float]] = {"ranks": [], "train_files": [], "perf": []}
    return make_entry(number, trainings=0, curve=curve, **nothing)


def make_board(*entries: dict[str, Any]) -> Leaderboard:
    return Leaderboard.from_json(
        {"problem": str(UUID(int=99)), "higher_is_better": True, "test_files": 6, "entries": list(entries)}
    )


def test_a_table_has_a_row_for_each_algo_by_place() -> None:
    table = make_board(make_entry(1), make_entry(2, interval=None), without_score(3)).to_pandas()
    assert table.index.name == "place"
    assert table.loc[1, "name"] == "algo 1"
    first = table[["first_place", "last_place", "interval_low", "sd"]].iloc[0]
    assert first.to_list() == [1, 2, 0.65, 0.05]
    assert table["interval_high"].isna().tolist() == [False, True, True]
    assert table["name"].tolist() == ["algo 1", "algo 2", "algo 3"]
    assert table["perf"].isna().tolist() == [False, False, True]
    assert str(table["rank"].dtype) == "Int64"  # whole numbers stay whole, though one is missing
    assert table.sort_values("perf").shape == (3, 14)


def test_a_board_without_algos_is_an_empty_table() -> None:
    assert make_board().to_pandas().empty
    assert str(make_board().to_pandas()["perf"].dtype) == "float64"


def test_a_curve_is_drawn_from_its_data() -> None:
    curve = make_board(make_entry(1, name="a_$b")).learning_curve("a_$b")
    assert curve.to_pandas().reset_index().to_dict("list") == {
        "rank": [0, 1, 3],
        "train_files": [25, 50, 57],
        "perf": [0.5, 0.7, 0.6],
    }
    axes = curve.plot()
    (line,) = axes.get_lines()
    assert np.asarray(line.get_xydata()).tolist() == [[25, 0.5], [50, 0.7], [57, 0.6]]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("files trained on", "perf")
    axes.figure.canvas.draw()


def test_curves_are_drawn_on_one_another() -> None:
    longer = {"ranks": [0, 1], "train_files": [50, 100], "perf": [0.1, 0.2]}
    board = make_board(make_entry(1), make_entry(2, name="_hidden $x", curve=longer), without_score(3))
    axes = board.learning_curve("algo 1").plot()
    assert board.learning_curve(UUID(int=2)).plot(axes) is axes
    assert board.learning_curve(str(UUID(int=3))).plot(ax=axes) is axes
    assert len(axes.get_lines()) == 3
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text().strip() for text in legend.get_texts()] == ["algo 1", r"_hidden \$x", "algo 3"]
    axes.figure.canvas.draw()
    assert axes.get_xlim()[0] == 0
    assert axes.get_xlim()[1] > 100
    assert axes.get_ylim()[0] < 0.1


def test_an_algo_is_named_by_its_id_or_by_a_name_that_only_it_has() -> None:
    board = make_board(make_entry(1, name="same"), make_entry(2, name="same"), make_entry(3))
    assert board.entry("algo 3").algo == UUID(int=3)
    assert board.entry(UUID(int=2)).place == 2
    with pytest.raises(
        LookupError, match=f"2 algos are named 'same'; name one by its id: {UUID(int=1)}, {UUID(int=2)}"
    ):
        board.entry("same")
    with pytest.raises(LookupError, match="no algo 'other'"):
        board.learning_curve("other")


def test_a_notebook_shows_a_table_and_no_markup_of_submitters() -> None:
    shown = make_board(make_entry(1, name="<script>alert(1)</script>"), without_score(2))._repr_html_()
    assert "<script>" not in shown
    assert "<td>1-2</td><td>&lt;script&gt;" in shown
    assert "<td>0.7</td><td>0.65 to 0.75</td><td>1</td><td>3</td>" in shown
    assert "<td></td><td>algo 2</td><td></td><td></td><td></td><td>0</td>" in shown


@pytest.mark.parametrize("missing", ["pandas", "matplotlib"])
def test_what_is_missing_is_said(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [missing, *(name for name in sys.modules if name.startswith(f"{missing}."))]:
        monkeypatch.setitem(sys.modules, name, None)
    board = make_board(make_entry(1))
    curve = board.learning_curve("algo 1")
    actions = [board.to_pandas, curve.to_pandas] if missing == "pandas" else [curve.plot]
    for action in actions:
        with pytest.raises(MorpheoError, match=r"is not installed; in a checkout, run: pip install '\.\[notebook\]'"):
            action()
