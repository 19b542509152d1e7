"""
``/docs``: the OpenAPI document as a page that people read and try out.

The page is Swagger UI, whose files come with the package flask-swagger-ui; nothing is fetched from elsewhere.
"""

from __future__ import annotations

from html import escape
from pathlib import Path

import flask_swagger_ui
from flask import Flask, Response, send_from_directory

_FOLDER = Path(flask_swagger_ui.__file__).parent / "dist"
_ASSETS = ("swagger-ui.css", "swagger-ui-bundle.js", "favicon-32x32.png")
#: Swagger UI sets styles and draws its icons itself; all else comes from this service and speaks only with it.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="stylesheet" href="docs/swagger-ui.css">
<link rel="icon" href="docs/favicon-32x32.png">
</head>
<body>
<div id="page"></div>
<script src="docs/swagger-ui-bundle.js"></script>
<script src="docs/start.js"></script>
</body>
</html>
"""
_START = """SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#page",
  deepLinking: true,
  validatorUrl: null,
  queryConfigEnabled: false,
  persistAuthorization: false
});
"""


def add_docs(app: Flask) -> None:
    """Serve the page and its files."""
    page = _PAGE.format(title=escape(app.config["API_TITLE"]))
    app.add_url_rule("/docs", view_func=lambda: _answer(page, "text/html"), endpoint="docs", strict_slashes=True)
    app.add_url_rule("/docs/start.js", view_func=lambda: _answer(_START, "text/javascript"), endpoint="docs_start")
    names = ", ".join(f'"{name}"' for name in _ASSETS)
    app.add_url_rule(f"/docs/<any({names}):name>", view_func=_asset, endpoint="docs_asset")


def _answer(text: str, kind: str) -> Response:
    return _with_policy(Response(text, content_type=f"{kind}; charset=utf-8"))


def _asset(name: str) -> Response:
    return _with_policy(send_from_directory(_FOLDER, name, max_age=3600))


def _with_policy(response: Response) -> Response:
    response.headers["Content-Security-Policy"] = _POLICY
    return response
