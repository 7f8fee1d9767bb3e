"""Downloads of a view: its rows as CSV, its figure as PNG or SVG, and the Python code that makes it."""

import re
from collections.abc import Sequence

from flask import Flask, Response, abort, request

from ot_lens.errors import OtLensError
from ot_lens.explorer.runs import OpenRun
from ot_lens.explorer.state import Choices, State
from ot_lens.explorer.view import View, csv_text, image
from ot_lens.explorer.views import VIEWS

TYPES = {"csv": "text/csv", "png": "image/png", "svg": "image/svg+xml", "py": "text/x-python"}


def install_exports(server: Flask, choices: Sequence[Choices]) -> None:
    """Add the route `/export/RUN/VIEW.SUFFIX?STATE`; each component is checked against a fixed list."""

    @server.get("/export/<int:number>/<name>.<suffix>")
    def export(number: int, name: str, suffix: str) -> Response:
        if number >= len(choices) or name not in VIEWS or suffix not in TYPES:
            abort(404)
        run, view = choices[number].run, VIEWS[name]
        state = choices[number].read(request.args, strict=number > 0)
        try:
            body = _body(view, run, state, suffix)
        except OtLensError as error:
            return Response(f"{error}\n", 404, mimetype="text/plain")
        return _download(body, f"{_plain(run.name)}-{name}.{suffix}", TYPES[suffix])


def _body(view: View, run: OpenRun, state: State, suffix: str) -> bytes:
    if suffix == "csv":
        return csv_text(view, run, state).encode()
    if suffix == "py":
        view.tables(run, state)
        return view.code(run, state).encode()
    return image(view, run, state, suffix)


def _download(body: bytes, name: str, kind: str) -> Response:
    headers = {"Content-Disposition": f'attachment; filename="{name}"', "Cache-Control": "no-store"}
    return Response(body, 200, headers, mimetype=kind)


def _plain(name: str) -> str:
    """The name of a run as part of a file name."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-.")[:60] or "run"
