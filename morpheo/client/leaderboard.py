"""The leaderboard for people who work in notebooks."""

from __future__ import annotations

import html
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, Self, TypeVar
from uuid import UUID

from morpheo import standings
from morpheo.errors import MorpheoError
from morpheo.standings import Entry, Spread

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


def _of_notebooks(method: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """Say what to install if a method lacks what it imports."""

    @wraps(method)
    def wrapped(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        try:
            return method(*args, **kwargs)
        except ModuleNotFoundError as exc:
            raise MorpheoError(f"{exc.name} is not installed; in a checkout, run: pip install '.[notebook]'") from exc

    return wrapped


@dataclass(frozen=True, kw_only=True)
class LearningCurve(standings.LearningCurve):
    """Score against data, of one algo: one item for each rank that ended with a model, in their order."""

    name: str

    @_of_notebooks
    def to_pandas(self) -> pd.DataFrame:
        """
        Return the columns ``train_files`` and ``perf``, by rank.

        Raises:
            MorpheoError: pandas is not installed.
        """
        import pandas as pd  # noqa: PLC0415 - of the notebook extra

        columns = {"train_files": list(self.train_files), "perf": list(self.perf)}
        return pd.DataFrame(columns, index=pd.Index(self.ranks, name="rank", dtype="int64"))

    @_of_notebooks
    def plot(self, ax: Axes | None = None) -> Axes:
        """
        Draw the curve, and return what it is drawn on.

        Args:
            ax: Draw on this; None is a figure of its own.

        Raises:
            MorpheoError: matplotlib is not installed.
        """
        from matplotlib import pyplot as plt  # noqa: PLC0415 - of the notebook extra
        from matplotlib.ticker import MaxNLocator  # noqa: PLC0415

        axes = plt.subplots()[1] if ax is None else ax
        # A name is a submitter's: a dollar would begin a formula, and an underscore keep it from the legend.
        axes.plot(self.train_files, self.perf, marker="o", label=" " + self.name.replace("$", r"\$"))
        axes.set_xlabel("files trained on")
        axes.set_ylabel("perf")
        axes.set_xlim(left=0, auto=True)  # the right end moves on for the next curve
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(visible=True, alpha=0.3)
        axes.legend()
        return axes


@dataclass(frozen=True, kw_only=True)
class Leaderboard(standings.Leaderboard):
    """All algos of a problem, best first; those without a score come last, in the order of registration."""

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Self:
        """Return what an answer of the orchestrator API says."""
        return cls(
            problem=UUID(document["problem"]),
            higher_is_better=document["higher_is_better"],
            test_files=document["test_files"],
            entries=tuple(_to_entry(item) for item in document["entries"]),
        )

    def entry(self, algo: UUID | str) -> Entry:
        """
        Return the entry of an algo, by its id or name.

        Raises:
            LookupError: there is none, or several have that name.
        """
        key = str(algo)
        found = [entry for entry in self.entries if key == str(entry.algo)]
        found = found or [entry for entry in self.entries if key == entry.name]
        if not found:
            raise LookupError(f"no algo {key!r} on the leaderboard of problem {self.problem}")
        if len(found) > 1:
            ids = ", ".join(str(entry.algo) for entry in found)
            raise LookupError(f"{len(found)} algos are named {key!r}; name one by its id: {ids}")
        return found[0]

    def learning_curve(self, algo: UUID | str) -> LearningCurve:
        """
        Return the learning curve of an algo, by its id or name.

        Raises:
            LookupError: there is none, or several have that name.
        """
        entry = self.entry(algo)
        return LearningCurve(name=entry.name, **vars(entry.curve))

    @_of_notebooks
    def to_pandas(self) -> pd.DataFrame:
        """
        Return a row for each algo, by place; what there is not is NA.

        Raises:
            MorpheoError: pandas is not installed.
        """
        import pandas as pd  # noqa: PLC0415 - of the notebook extra

        rows = [_row(entry) for entry in self.entries]
        table = pd.DataFrame(rows, columns=list(_TYPES)).astype(_TYPES)
        return table.set_index("place")

    def _repr_html_(self) -> str:
        """Return a table, for notebooks."""
        head = "".join(
            f"<th>{title}</th>" for title in ("place", "algo", "score", "95 % interval", "rank", "trainings")
        )
        body = "".join(
            f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in _cells(entry))}</tr>" for entry in self.entries
        )
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


#: Columns of the table, and what they hold.
_TYPES = {
    "place": "Int64",
    "first_place": "Int64",
    "last_place": "Int64",
    "name": "str",
    "algo": "str",
    "perf": "float64",
    "rank": "Int64",
    "trainings": "Int64",
    "mean": "float64",
    "interval_low": "float64",
    "interval_high": "float64",
    "sd": "float64",
    "min": "float64",
    "median": "float64",
    "max": "float64",
}


def _row(entry: Entry) -> dict[str, Any]:
    first, last = entry.range or (None, None)
    low, high = entry.interval or (None, None)
    spread = {} if entry.spread is None else vars(entry.spread)
    return {
        **{name: getattr(entry, name) for name in ("place", "name", "perf", "rank", "trainings", "mean")},
        **{name: spread.get(name) for name in ("sd", "min", "median", "max")},
        "algo": str(entry.algo),
        "first_place": first,
        "last_place": last,
        "interval_low": low,
        "interval_high": high,
    }


def _cells(entry: Entry) -> tuple[str, ...]:
    interval = "" if entry.interval is None else "{:.4g} to {:.4g}".format(*entry.interval)
    perf, rank = ("" if value is None else f"{value:.6g}" for value in (entry.perf, entry.rank))
    return entry.places, entry.name, perf, interval, rank, str(entry.trainings)


def _to_entry(document: dict[str, Any]) -> Entry:
    span, interval, spread, curve = (document[name] for name in ("range", "interval", "spread", "curve"))
    return Entry(
        algo=UUID(document["algo"]),
        name=document["name"],
        trainings=document["trainings"],
        curve=standings.LearningCurve(**{name: tuple(values) for name, values in curve.items()}),
        place=document["place"],
        range=None if span is None else (span[0], span[1]),
        perf=document["perf"],
        rank=document["rank"],
        mean=document["mean"],
        interval=None if interval is None else (interval[0], interval[1]),
        spread=None if spread is None else Spread(**spread),
    )
