"""The page as Dash components, and the facts from which its script fills in the controls."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from dash import dcc, html

from ot_lens.explorer.live import MOST_CHARACTERS, MOST_FURTHER, LiveModel
from ot_lens.explorer.live_page import attributes
from ot_lens.explorer.runs import OpenRun, method_key, split_key
from ot_lens.explorer.state import Choices
from ot_lens.explorer.view import View
from ot_lens.explorer.views import views, views_of
from ot_lens.localization.settings import SCOPES
from ot_lens.plots import method_mark
from ot_lens.plots.style import OUTLINE
from ot_lens.tables import verdict

STORES = ("started", "ask-tokens", "ask-answers", "told-tokens", "told-answers", "noted")
HELP = (
    "Choose layers by clicking or dragging on the strip, or with the arrow keys in the row of layers (Shift "
    "extends the selection, Home and End jump to the ends). Every figure is drawn from the tables of the "
    "run; intervals are 95 %."
)
VERDICT_COLUMNS = {"set", "measure", "prompts", "control", "transport", "method", "k", "layer", "p_holm"}


def page(choices: Sequence[Choices], live: LiveModel | None) -> Any:
    """The complete page."""
    runs = [c.run for c in choices]
    depth, *others = views_of(runs)
    cards = [_card(view, runs) for view in others]
    title = html.H1(["ot_lens ", html.Span("explorer")])
    names = html.Div([title, html.P([*map(_title, runs)], className="runs")])
    return html.Div(
        [
            html.A("Skip to the views", href="#views", className="skip"),
            html.Header([names, html.Div(id="tools", className="tools")], className="top"),
            *_warnings(choices),
            _controls(depth, runs),
            html.Main([*cards[:1], _live_card(runs[0], live), *cards[1:]], id="views", tabIndex="-1"),
            html.Footer([HELP]),
            dcc.Store(id="facts", data=facts(choices, live)),
            *(dcc.Store(id=name) for name in STORES),
        ],
        id="page",
    )


def _title(run: OpenRun) -> Any:
    manifest = run.manifest
    model, prompts = manifest.get("model") or {}, manifest.get("prompts") or {}
    counts = (prompts.get("counts") or {}).get("test") or {}
    about = [str(model.get("name", "unknown model"))]
    if "n_layers" in model:
        about.append(f"{model['n_layers']} layers, width {model.get('d_model', '?')}")
    if counts:
        about.append(" + ".join(f"{n} {label}" for label, n in counts.items()) + " held-out prompts")
    about.append(f"seed {(manifest.get('config') or {}).get('seed', '?')}")
    return html.Span([html.Strong(run.name), " ", " · ".join(about)], className="run-title")


def _warnings(choices: Sequence[Choices]) -> list[Any]:
    warnings = []
    for c in choices:
        if not c.run.finished:
            warnings.append(f"{c.run.name} is unfinished. Showing partial results; continue with --resume.")
        warnings += [f"{c.run.name}: {fault}" for fault in c.run.faults.values()]
        if not c.layers:
            warnings.append(f"{c.run.name} has no layers yet: it has neither tables nor activations.")
    return [html.P(text, className="warning", role="status") for text in warnings]


def _controls(depth: View, runs: Sequence[OpenRun]) -> Any:
    """The strip along the depth, the layers below it, and the edits to compare."""
    return html.Section(
        [
            html.H2("Depth", className="visually-hidden"),
            html.Div(_figures(depth, runs), className="strips"),
            _more(depth, runs),
            html.Div([html.Div(id="ruler-box"), html.Div(id="choosers", className="choosers")], id="desk"),
        ],
        id="view-depth",
        className="depth",
        **attributes(aria_label="Depth: choose layers and edits"),
    )


def _card(view: View, runs: Sequence[OpenRun]) -> Any:
    reader = html.Div(id="plane-reader", className="reader") if view.name == "plane" else None
    arranged = "rows" if view.wide else "beside"
    return html.Section(
        [
            html.H2(view.title),
            html.P(view.lead, className="lead") if view.lead else None,
            html.Div(_figures(view, runs), className=f"figures of-{len(runs)} {arranged}"),
            reader,
            _more(view, runs),
        ],
        id=f"view-{view.name}",
        className=f"card {'wide' if view.wide or len(runs) > 1 else 'half'}",
    )


def _figures(view: View, runs: Sequence[OpenRun]) -> list[Any]:
    return [_figure(view, number, run, named=len(runs) > 1) for number, run in enumerate(runs)]


def _figure(view: View, number: int, run: OpenRun, *, named: bool) -> Any:
    """The place of a view of a run, which the page's script fills."""
    return html.Div(
        [
            html.H3(run.name) if named else None,
            html.P(className="missing", hidden=True),
            html.Div(
                html.Div(className="graph"),
                className="plot",
                role="img",
                **attributes(
                    aria_label=f"Figure: {view.title}, {run.name}; its numbers are in the CSV file."
                ),
            ),
            html.P(className="note", **attributes(aria_live="polite")),
        ],
        className="of-run",
        **attributes(data_view=view.name, data_run=str(number)),
    )


def _more(view: View, runs: Sequence[OpenRun]) -> Any:
    """Link, data, figure files and Python code of a view; the page's script keeps the hrefs up to date."""
    link = html.A("Link", href=f"#view-{view.name}", className="permalink", **attributes(data_view=view.name))
    files = [_files(view, number, run, named=len(runs) > 1) for number, run in enumerate(runs)]
    return html.Div([link, *files], className="more")


def _files(view: View, number: int, run: OpenRun, *, named: bool) -> Any:
    links = [
        html.A(
            suffix.upper(),
            href=f"/export/{number}/{view.name}.{suffix}",
            className="export",
            **attributes(aria_label=f"{view.title}: {suffix.upper()} of {run.name}", data_export="1"),
        )
        for suffix in ("csv", "png", "svg")
    ]
    copy = html.Button("Copy", type="button", className="copy", **attributes(data_copy="1"))
    code = html.Pre(html.Code(**attributes(data_view=view.name, data_run=str(number))), tabIndex="0")
    python = html.Details([html.Summary("Python"), html.Div([copy, code], className="code")])
    return html.Div(
        [html.Span(run.name, className="of") if named else None, *links, python], className="files"
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
            html.Div(id="live-tokens", **attributes(aria_live="polite")),
            html.Div(id="live-answers", **attributes(aria_live="polite")),
        ],
        id="view-live",
        className="card wide live",
    )


def facts(choices: Sequence[Choices], live: LiveModel | None) -> dict[str, Any]:
    """The facts of the first run, and the names of all runs."""
    first = choices[0]
    examples = first.run.texts.get("harmful", [])[:3]
    return {
        "runs": [{"name": c.run.name} for c in choices],
        "layers": first.layers,
        "methods": [_method(key) for key in first.methods],
        "measures": [{"key": key, "label": label} for key, label in first.measures.items()],
        "scopes": list(SCOPES),
        "sites": first.sites,
        "first": asdict(first.first),
        "views": {name: _reported(view) for name, view in views().items()},
        "outline": OUTLINE,
        "localized": _localized(first.run),
        "live": {
            "ready": live is not None,
            "methods": [] if live is None else [_method(key) for key in live.offered],
            "mostFurther": MOST_FURTHER,
            "most": MOST_CHARACTERS,
            "examples": examples,
        },
        "texts": [c.run.texts for c in choices],
    }


def _reported(view: View) -> dict[str, Any]:
    """What the page's script needs to know of a view."""
    return {"fields": view.fields, "told": view.told, "depth": view.depth, "sites": view.sites}


def _method(key: str) -> dict[str, Any]:
    name, k = split_key(key)
    mark, plain = method_mark(name, k), method_mark(name)
    look = {"label": plain.label, "full": mark.label, "color": mark.color}
    return {"key": key, "name": name, "k": k, **look}


def _localized(run: OpenRun) -> dict[str, list[int]]:
    """Localized layers by method; empty if the sweep cannot tell."""
    sweep = run.tables.get("localization")
    if sweep is None or not set(sweep.columns) >= VERDICT_COLUMNS:
        return {}
    rows = verdict(sweep)
    rows = rows[rows["localized"].fillna(value=False)].sort_values("layer")
    layers: dict[str, list[int]] = {}
    for method, k, layer in zip(rows["method"], rows["k"], rows["layer"], strict=True):
        layers.setdefault(method_key(method, k), []).append(int(layer))
    return layers
