"""How query strings are parsed."""

from __future__ import annotations

from typing import Any

import marshmallow as ma
from webargs.flaskparser import FlaskParser


class StrictQueryParser(FlaskParser):
    """Refuses query parameters that nobody knows: a misspelt filter would otherwise list everything."""

    DEFAULT_VALIDATION_STATUS = 400
    DEFAULT_UNKNOWN_BY_LOCATION: dict[str, Any] = {  # noqa: RUF012 - as webargs declares it
        **FlaskParser.DEFAULT_UNKNOWN_BY_LOCATION,
        "query": ma.RAISE,
    }
