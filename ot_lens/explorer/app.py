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
    """The application over opened runs.

    Args:
        runs: One or more; the controls are those of the first.
        live: The model of the live panel, if it is at hand.
        host: The address it will be served at, for the guard.
    """
    choices = [Choices(run) for run in runs]
    app = Dash(
        __name__,
        # Dash puts it into the page as it is, and fills in names between {% and %}.
        title=escape(f"ot_lens: {runs[0].name}").replace("%", "&#37;"),
        assets_folder=str(Path(__file__).parent / "assets"),
        serve_locally=True,
        update_title="",
        add_log_handler=False,
        enable_mcp=False,
    )
    app.server.debug = False  # whatever FLASK_DEBUG says
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
    """Refuse requests for callbacks that the page does not have before Dash looks for them."""
    server: Flask = app.server

    @server.before_request
    def check() -> None:
        if request.method == "POST" and not is_known(request.get_data(), app.callback_map):
            abort(400)


def _on_the_page(app: Any) -> None:
    """Callbacks that run in the browser alone."""
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
    place = {"view": MATCH, "run": MATCH}

    @app.callback(
        Output({"type": "drawn", **place}, "data"),
        Output({"type": "missing", **place}, "children"),
        Output({"type": "missing", **place}, "hidden"),
        Output({"type": "note", **place}, "children"),
        Output({"type": "code", **place}, "children"),
        Input({"type": "state", **place}, "data"),
        prevent_initial_call=True,
    )
    def draw(given: Any) -> tuple[Any, ...]:
        chosen = ctx.outputs_list[0]["id"]
        name, number = chosen.get("view"), chosen.get("run")
        if name not in VIEWS or not isinstance(number, int) or not 0 <= number < len(choices):
            abort(400)
        state = choices[number].read(_mapping(given), strict=number > 0)
        found = content(VIEWS[name], choices[number].run, state)
        return found.figure, found.missing, not found.missing, found.note, found.code


def _live(app: Any, choices: Choices, live: LiveModel) -> None:
    for what, show in (("tokens", _tokens), ("answers", _answers)):
        app.callback(
            Output(f"live-{what}", "children"),
            Output(f"told-{what}", "data"),
            Input(f"ask-{what}", "data"),
            prevent_initial_call=True,
        )(_asked(choices, live, f"ask-{what}", show))
    app.clientside_callback(
        ClientsideFunction(SCRIPT, "told"),
        Output("noted", "data"),
        Input("told-tokens", "data"),
        Input("told-answers", "data"),
        prevent_initial_call=True,
    )


def _asked(choices: Choices, live: LiveModel, asked: str, show: Any) -> Any:
    def answer(given: Any) -> tuple[Any, Any]:
        request = _mapping(given)
        done = {"what": asked, "number": request.get("number")}
        if "prompt" not in request:
            return no_update, done
        try:
            return show(live, live.checked(request["prompt"]), choices.read(request)), done
        except OtLensError as error:
            return trouble(str(error)), done

    answer.__name__ = asked.replace("-", "_")
    return answer


def _tokens(live: LiveModel, prompt: str, state: Any) -> Any:
    return token_table(live, prompt, state)


def _answers(live: LiveModel, prompt: str, state: Any) -> Any:
    return answer_cards(live.answers(prompt, state), state)


def _mapping(given: Any) -> Mapping[str, Any]:
    return given if isinstance(given, Mapping) else {}
