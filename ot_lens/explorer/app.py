"""The Dash application: the page, its callbacks, its downloads, its guard."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from dash import ALL, MATCH, ClientsideFunction, Dash, Input, Output, State, ctx, no_update
from flask import Flask, abort, request

from ot_lens.errors import OtLensError
from ot_lens.explorer.exports import install_exports
from ot_lens.explorer.facts import facts
from ot_lens.explorer.guard import install_guard
from ot_lens.explorer.layout import page
from ot_lens.explorer.live import LiveModel
from ot_lens.explorer.live_page import answer_cards, token_table, trouble
from ot_lens.explorer.runs import OpenRun
from ot_lens.explorer.state import Choices
from ot_lens.explorer.updates import is_known
from ot_lens.explorer.views import VIEWS, content

SCRIPT = "explorer"


def build_app(runs: Sequence[OpenRun], live: LiveModel | None, *, host: str = "127.0.0.1") -> Dash:
    """The application over opened runs; the controls are those of the first one."""
    choices = [Choices(run) for run in runs]
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
    app.layout = page(choices, facts(choices, live), live)
    _on_the_page(app)
    _drawing(app, choices)
    if live is not None:
        _live(app, choices[0], live)
    install_exports(app.server, choices)
    install_guard(app.server, host, app.csp_hashes())
    _known_callbacks_only(app)
    return app


def _known_callbacks_only(app: Dash) -> None:
    """Refuse requests for callbacks that the page does not have, before Dash looks for them."""
    server: Flask = app.server

    @server.before_request
    def check() -> None:
        if request.method == "POST" and not is_known(request.get_data(), app.callback_map):
            abort(400)


def _on_the_page(app: Any) -> None:
    """Callbacks that run only in the browser."""
    app.clientside_callback(
        ClientsideFunction(SCRIPT, "start"), Output("started", "data"), Input("facts", "data")
    )
    app.clientside_callback(
        ClientsideFunction(SCRIPT, "paint"),
        Output({"type": "graph", "view": MATCH, "run": MATCH}, "figure"),
        Output({"type": "graph", "view": MATCH, "run": MATCH}, "style"),
        Input({"type": "drawn", "view": MATCH, "run": MATCH}, "data"),
        Input("look", "data"),
        State({"type": "drawn", "view": MATCH, "run": MATCH}, "id"),
        prevent_initial_call=True,
    )
    app.clientside_callback(
        ClientsideFunction(SCRIPT, "listen"),
        Output("heard", "data"),
        Input({"type": "graph", "view": "depth", "run": ALL}, "clickData"),
        Input({"type": "graph", "view": "depth", "run": ALL}, "selectedData"),
        Input({"type": "graph", "view": "plane", "run": ALL}, "hoverData"),
        Input({"type": "graph", "view": "plane", "run": ALL}, "clickData"),
        prevent_initial_call=True,
    )


def _drawing(app: Dash, choices: Sequence[Choices]) -> None:
    each = {"view": MATCH, "run": MATCH}

    @app.callback(
        Output({"type": "drawn", **each}, "data"),
        Output({"type": "missing", **each}, "children"),
        Output({"type": "missing", **each}, "hidden"),
        Output({"type": "note", **each}, "children"),
        Output({"type": "code", **each}, "children"),
        Input({"type": "state", **each}, "data"),
        prevent_initial_call=True,
    )
    def draw(fields: Any) -> tuple[Any, ...]:
        target = ctx.outputs_list[0]["id"]
        name, number = target.get("view"), target.get("run")
        if name not in VIEWS or not isinstance(number, int) or not 0 <= number < len(choices):
            abort(400)
        state = choices[number].read(_mapping(fields), strict=number > 0)
        view = content(VIEWS[name], choices[number].run, state)
        return view.figure, view.missing, not view.missing, view.note, view.code


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
        request = _mapping(fields)
        done = {"what": name, "number": request.get("number")}
        if "prompt" not in request:
            return no_update, done
        try:
            return show(live, live.checked(request["prompt"]), choices.read(request)), done
        except OtLensError as error:
            return trouble(str(error)), done

    answer.__name__ = name.replace("-", "_")
    return answer


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
