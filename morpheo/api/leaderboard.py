"""
The leaderboard of a problem, as JSON or CSV.

The schemas describe the JSON, but do not make it: marshmallow would take a second for 20,000 trained ranks.
"""

from __future__ import annotations

import csv
import io

import marshmallow as ma
from flask import Response, request
from flask.views import MethodView
from flask_smorest import Blueprint
from pydantic import TypeAdapter

from morpheo.api import examples
from morpheo.api.app import current_resources
from morpheo.api.openapi import failures, path_id
from morpheo.api.parser import StrictQueryParser
from morpheo.api.wire import parse_uuid
from morpheo.errors import NotFound
from morpheo.standings import Leaderboard

leaderboards = Blueprint("leaderboards", __name__, description="Who is how good, and how sure that is")
leaderboards.ARGUMENTS_PARSER = StrictQueryParser()

_DOCUMENT = TypeAdapter(Leaderboard)
_JSON, _CSV = "application/json", "text/csv"
_FORMATS = {"json": _JSON, "csv": _CSV}
#: What makes a spreadsheet take a text for a formula, as OWASP has it ("CSV Injection").
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


class LeaderboardQuerySchema(ma.Schema):
    """How to show it."""

    format = ma.fields.String(
        validate=ma.validate.OneOf(list(_FORMATS)),
        metadata={"description": "In place of the Accept header; JSON by default"},
    )


class SpreadSchema(ma.Schema):
    """How the scores of single test files differ."""

    files = ma.fields.Integer(metadata={"description": "How many have a score"})
    sd = ma.fields.Float(allow_none=True, metadata={"description": "Standard deviation of a sample"})
    min = ma.fields.Float()
    median = ma.fields.Float()
    max = ma.fields.Float()


class LearningCurveSchema(ma.Schema):
    """Score against data; each list has one item for each rank that ended with a model."""

    ranks = ma.fields.List(ma.fields.Integer())
    train_files = ma.fields.List(
        ma.fields.Integer(), metadata={"description": "Files that this rank and those before it trained on"}
    )
    perf = ma.fields.List(ma.fields.Float())


class EntrySchema(ma.Schema):
    """An algo; what may be null is so until it has a score."""

    place = ma.fields.Integer(allow_none=True, metadata={"description": "Equal scores have equal places"})
    range = ma.fields.List(
        ma.fields.Integer(),
        allow_none=True,
        metadata={"description": "First and last of the places that cannot be told apart from its own"},
    )
    algo = ma.fields.UUID()
    name = ma.fields.String()
    perf = ma.fields.Float(allow_none=True, metadata={"description": "The best"})
    rank = ma.fields.Integer(allow_none=True, metadata={"description": "In which it has its best score"})
    trainings = ma.fields.Integer(metadata={"description": "How many ended with a model"})
    mean = ma.fields.Float(
        allow_none=True, metadata={"description": "Of the scores of all test files; null if it lacks one"}
    )
    interval = ma.fields.List(
        ma.fields.Float(),
        allow_none=True,
        metadata={"description": "95 % bootstrap interval of the mean; null also if there are fewer than 6 test files"},
    )
    spread = ma.fields.Nested(SpreadSchema, allow_none=True)
    curve = ma.fields.Nested(LearningCurveSchema)


class LeaderboardSchema(ma.Schema):
    """All algos of a problem, best first. Scores are rounded to its `score_digits` decimals."""

    problem = ma.fields.UUID()
    higher_is_better = ma.fields.Boolean()
    test_files = ma.fields.Integer()
    entries = ma.fields.List(ma.fields.Nested(EntrySchema))


@leaderboards.route("/problem/<problem_id>/leaderboard", parameters=[path_id("problem_id", "Id of the problem")])
class Leaderboards(MethodView):
    """The leaderboard of a problem."""

    @leaderboards.arguments(LeaderboardQuerySchema, location="query")
    @leaderboards.response(200, LeaderboardSchema, example=examples.LEADERBOARD)
    @leaderboards.alt_response(
        200, schema={"type": "string"}, content_type=_CSV, example=examples.LEADERBOARD_TABLE, description="Best first"
    )
    @failures(400, 404)
    def get(self, query: dict[str, str], problem_id: str) -> Response:
        """Show who is how good, and how sure that is; with `Accept: text/csv` as a table without learning curves."""
        try:
            board = current_resources().orchestrator.leaderboard(parse_uuid(problem_id))
        except ValueError as exc:
            raise NotFound(f"problem {problem_id[:50]} not found") from exc
        shown = _FORMATS.get(query.get("format", "")) or request.accept_mimetypes.best_match([_JSON, _CSV], _JSON)
        response = _csv(board) if shown == _CSV else Response(_DOCUMENT.dump_json(board), content_type=_JSON)
        response.vary.add("Accept")
        return response


_COLUMNS = ("place", "first_place", "last_place", "algo", "name", "perf", "rank", "trainings", "mean")
_MORE_COLUMNS = ("interval_low", "interval_high", "files", "sd", "min", "median", "max")


def _csv(board: Leaderboard) -> Response:
    """Return a table after RFC 4180; what there is not is empty."""
    text = io.StringIO()
    table = csv.writer(text)
    table.writerow(_COLUMNS + _MORE_COLUMNS)
    for entry in board.entries:
        spread = entry.spread
        table.writerow(
            (
                entry.place,
                *(entry.range or (None, None)),
                entry.algo,
                _cell(entry.name),
                entry.perf,
                entry.rank,
                entry.trainings,
                entry.mean,
                *(entry.interval or (None, None)),
                *((spread.files, spread.sd, spread.min, spread.median, spread.max) if spread else (None,) * 5),
            )
        )
    response = Response(text.getvalue(), content_type="text/csv; charset=utf-8; header=present")
    response.headers["Content-Disposition"] = f'attachment; filename="leaderboard-{board.problem}.csv"'
    return response


def _cell(text: str) -> str:
    # Submitters choose names; a spreadsheet must not run them.
    return f"'{text}" if text.startswith(_FORMULA) else text
