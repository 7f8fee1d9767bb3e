"""The page as Dash components: frame and cards; the page's script fills in the controls."""

from collections.abc import Sequence
from typing import Any

from dash import dcc, html

from ot_lens.explorer.live import LiveModel
from ot_lens.explorer.live_page import attributes
from ot_lens.explorer.runs import OpenRun
from ot_lens.explorer.state import Choices
from ot_lens.explorer.view import View
from ot_lens.explorer.views import VIEWS, views_of

STORES = ("started", "heard", "ask-tokens", "ask-answers", "told-tokens", "told-answers", "noted")
GRAPH: Any = {
    "displaylogo": False,
    "responsive": True,
    "displayModeBar": False,
    "doubleClick": "reset",
    "showTips": False,
}


def page(choices: Sequence[Choices], facts: dict[str, Any], live: LiveModel | None) -> Any:
    """The complete page."""
    runs = [c.run for c in choices]
    cards = [_card(view, runs) for view in views_of(runs) if view.name != "depth"]
    return html.Div(
        [
            html.A("Skip to the views", href="#views", className="skip"),
            _header(runs),
            *_warnings(choices),
            _controls(runs),
            html.Main([*cards[:1], _live_card(runs[0], live), *cards[1:]], id="views", tabIndex="-1"),
            _footer(),
            dcc.Store(id="facts", data=facts),
            dcc.Store(id="look", data={}),
            *(dcc.Store(id=name) for name in STORES),
        ],
        id="page",
    )


def _header(runs: Sequence[OpenRun]) -> Any:
    return html.Header(
        [
            html.Div(
                [
                    html.H1(["ot_lens ", html.Span("explorer")]),
                    html.P([part for run in runs for part in _title(run)], className="runs"),
                ]
            ),
            html.Div(id="tools", className="tools"),
        ],
        className="top",
    )


def _title(run: OpenRun) -> list[Any]:
    manifest = run.manifest
    model, prompts = manifest.get("model") or {}, manifest.get("prompts") or {}
    counts = (prompts.get("counts") or {}).get("test") or {}
    facts = [str(model.get("name", "unknown model"))]
    if "n_layers" in model:
        facts.append(f"{model['n_layers']} layers, width {model.get('d_model', '?')}")
    if counts:
        facts.append(" + ".join(f"{n} {label}" for label, n in counts.items()) + " held-out prompts")
    facts.append(f"seed {(manifest.get('config') or {}).get('seed', '?')}")
    return [html.Span([html.Strong(run.name), " ", " · ".join(facts)], className="run-title")]


def _warnings(choices: Sequence[Choices]) -> list[Any]:
    warnings = []
    for c in choices:
        if not c.run.finished:
            warnings.append(f"{c.run.name} is unfinished. Showing partial results; continue with --resume.")
        warnings += [f"{c.run.name}: {fault}" for fault in c.run.faults.values()]
        if not c.layers:
            warnings.append(f"{c.run.name} has no layers yet: it has neither tables nor activations.")
    return [html.P(text, className="warning", role="status") for text in warnings]


def _controls(runs: Sequence[OpenRun]) -> Any:
    """The strip along the depth, the layers below it, and the edits to compare."""
    strips = [_run_figure(VIEWS["depth"], number, run, len(runs)) for number, run in enumerate(runs)]
    return html.Section(
        [
            html.H2("Depth", className="visually-hidden"),
            html.Div(strips, className="strips"),
            _more(VIEWS["depth"], runs),
            html.Div([html.Div(id="ruler-box"), html.Div(id="choosers", className="choosers")], id="desk"),
        ],
        id="view-depth",
        className="depth",
        **attributes({"aria-label": "Depth: choose layers and edits"}),
    )


def _card(view: View, runs: Sequence[OpenRun]) -> Any:
    width = "wide" if view.wide or len(runs) > 1 else "half"
    extra = [html.Div(id="plane-reader", className="reader")] if view.name == "plane" else []
    return html.Section(
        [
            html.H2(view.title),
            html.P(view.lead, className="lead") if view.lead else None,
            html.Div(
                [_run_figure(view, number, run, len(runs)) for number, run in enumerate(runs)],
                className=f"figures of-{len(runs)} {'rows' if view.wide else 'beside'}",
            ),
            *extra,
            _more(view, runs),
        ],
        id=f"view-{view.name}",
        className=f"card {width}",
    )


def _run_figure(view: View, number: int, run: OpenRun, count: int) -> Any:
    component = {"view": view.name, "run": number}
    return html.Div(
        [
            html.H3(run.name) if count > 1 else None,
            html.P(id={"type": "missing", **component}, className="missing", hidden=True),
            html.Div(
                dcc.Graph(id={"type": "graph", **component}, config=GRAPH, responsive=True),
                className="plot",
                role="img",
                **attributes(
                    {"aria-label": f"Figure: {view.title}, {run.name}; its numbers are in the CSV file."}
                ),
            ),
            html.P(id={"type": "note", **component}, className="note", **attributes({"aria-live": "polite"})),
            dcc.Store(id={"type": "state", **component}),
            dcc.Store(id={"type": "drawn", **component}),
        ],
        className="of-run",
        **attributes({"data-view": view.name, "data-run": str(number)}),
    )


def _more(view: View, runs: Sequence[OpenRun]) -> Any:
    """Link, data, figure files and Python code of a view; the page's script keeps the hrefs up to date."""
    return html.Div(
        [
            html.A(
                "Link",
                href=f"#view-{view.name}",
                className="permalink",
                **attributes({"data-view": view.name}),
            ),
            *(_files(view, number, run, len(runs)) for number, run in enumerate(runs)),
        ],
        className="more",
    )


def _files(view: View, number: int, run: OpenRun, count: int) -> Any:
    links = [
        html.A(
            suffix.upper(),
            href=f"/export/{number}/{view.name}.{suffix}",
            className="export",
            **attributes({"aria-label": f"{view.title}: {suffix.upper()} of {run.name}", "data-export": "1"}),
        )
        for suffix in ("csv", "png", "svg")
    ]
    code = html.Details(
        [
            html.Summary("Python"),
            html.Div(
                [
                    html.Button("Copy", type="button", className="copy", **attributes({"data-copy": "1"})),
                    html.Pre(html.Code(id={"type": "code", "view": view.name, "run": number}), tabIndex="0"),
                ],
                className="code",
            ),
        ]
    )
    return html.Div(
        [html.Span(run.name, className="of") if count > 1 else None, *links, code], className="files"
    )


def _live_card(run: OpenRun, live: LiveModel | None) -> Any:
    lead = (
        f"{live.name}, loaded in this process. Prompts and answers are displayed, not stored."
        if live is not None
        else f"The model of {run.name} is not loaded: start with --model and its name or folder."
    )
    return html.Section(
        [
            html.H2("Live"),
            html.P(lead, className="lead"),
            html.Div(id="live-form"),
            html.Div(id="live-tokens", **attributes({"aria-live": "polite"})),
            html.Div(id="live-answers", **attributes({"aria-live": "polite"})),
        ],
        id="view-live",
        className="card wide live",
    )


def _footer() -> Any:
    return html.Footer(
        [
            "Choose layers by clicking or dragging on the strip, or with the arrow keys in the row of layers "
            "(Shift extends the selection, Home and End jump to the ends). Every figure is drawn from the "
            "tables of the run; intervals are 95 %."
        ]
    )
