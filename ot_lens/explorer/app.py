"""The Dash application: the page, its views and downloads, the callbacks of the live panel, its guard."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from html import escape
from pathlib import Path
from typing import Any

from dash import ClientsideFunction, Dash, Input, Output, no_update
from flask import Flask, Response, abort, request

from ot_lens.errors import OtLensError
from ot_lens.explorer.guard import install_guard
from ot_lens.explorer.layout import page
from ot_lens.explorer.live import LiveModel
from ot_lens.explorer.live_page import answer_cards, token_table, trouble
from ot_lens.explorer.runs import OpenRun
from ot_lens.explorer.state import Choices, choices_of
from ot_lens.explorer.views import content, views

SCRIPT = "explorer"
TYPES = {"csv": "text/csv", "png": "image/png", "svg": "image/svg+xml", "py": "text/x-python"}


def build_app(runs: Sequence[OpenRun], live: LiveModel | None, *, host: str = "127.0.0.1") -> Dash:
    """The application over opened runs; the controls are those of the first one."""
    choices = [choices_of(run) for run in runs]
    app = Dash(
        __name__,
        # Dash inserts it into the page unescaped, and substitutes names between {% and %}.
        title=escape(f"ot_lens: {runs[0].name}").replace("%", "&#37;"),
        assets_folder=str(Path(__file__).parent / "assets"),
        serve_locally=True,
        update_title="",
        add_log_handler=False,
        enable_mcp=False,
    )
    app.server.debug = False  # even if FLASK_DEBUG is set
    app.layout = page(choices, live)
    _begin(app)
    if live is not None:
        _live(app, choices[0], live)
    _views(app.server, choices)
    _downloads(app.server, choices)
    install_guard(app, host)
    return app


def _begin(app: Any) -> None:
    """The page's script fills in the controls and asks for the views."""
    app.clientside_callback(
        ClientsideFunction(SCRIPT, "start"), Output("started", "data"), Input("facts", "data")
    )


def _views(server: Flask, choices: Sequence[Choices]) -> None:
    """The route `/view/RUN/NAME?STATE`: a view as JSON, with `figure=no` only what is said about it.

    The page asks for its views here and draws them itself: callbacks of Dash notify every component of the
    page, several times for each view, which takes longer than drawing.
    """

    @server.get("/view/<int:number>/<name>")
    def view(number: int, name: str) -> Response:
        if number >= len(choices) or name not in views():
            abort(404)
        state = choices[number].read(request.args, strict=number > 0)
        found = asdict(content(views()[name], choices[number].run, state))
        if request.args.get("figure") == "no":
            del found["figure"]
        return Response(json.dumps(found), mimetype="application/json")


def _live(app: Any, choices: Choices, live: LiveModel) -> None:
    for kind, show in (("tokens", token_table), ("answers", answer_cards)):
        app.callback(
            Output(f"live-{kind}", "children"),
            Output(f"told-{kind}", "data"),
            Input(f"ask-{kind}", "data"),
            prevent_initial_call=True,
        )(_answering(choices, live, f"ask-{kind}", show))
    app.clientside_callback(
        ClientsideFunction(SCRIPT, "told"),
        Output("noted", "data"),
        Input("told-tokens", "data"),
        Input("told-answers", "data"),
        prevent_initial_call=True,
    )


def _answering(choices: Choices, live: LiveModel, name: str, show: Any) -> Any:
    def answer(fields: Any) -> tuple[Any, Any]:
        asked = _mapping(fields)
        done = {"what": name, "number": asked.get("number")}
        if "prompt" not in asked:
            return no_update, done
        try:
            request = live.asked(asked, choices.read(asked))
            return show(live, live.checked(asked["prompt"]), request), done
        except OtLensError as error:
            return trouble(str(error)), done

    answer.__name__ = name.replace("-", "_")
    return answer


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _downloads(server: Flask, choices: Sequence[Choices]) -> None:
    """The route `/export/RUN/VIEW.SUFFIX?STATE`; each component is checked against a fixed list."""

    @server.get("/export/<int:number>/<name>.<suffix>")
    def export(number: int, name: str, suffix: str) -> Response:
        if number >= len(choices) or name not in views() or suffix not in TYPES:
            abort(404)
        run = choices[number].run
        state = choices[number].read(request.args, strict=number > 0)
        try:
            drawing = views()[name].drawing(run, state)
            if suffix in ("csv", "py"):
                body = (drawing.csv() if suffix == "csv" else drawing.program(run, name)).encode()
            else:
                body = drawing.image(suffix)
        except OtLensError as error:
            return Response(f"{error}\n", 404, mimetype="text/plain")
        plain = re.sub(r"[^A-Za-z0-9_.-]+", "-", run.name).strip("-.")[:60] or "run"
        headers = {"Content-Disposition": f'attachment; filename="{plain}-{name}.{suffix}"'}
        return Response(body, 200, headers, mimetype=TYPES[suffix])
